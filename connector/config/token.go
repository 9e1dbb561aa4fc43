package config

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/warrenmesh/warren/connector"
	"github.com/warrenmesh/warren/connector/state"
	"github.com/warrenmesh/warren/edge/wire"
	"github.com/warrenmesh/warren/host"
)

// maxTokenFile bounds what is read of a token's file, in bytes: more than a
// token has, so that too much shows.
const maxTokenFile = 16 << 10

// ErrBadToken is wrapped where a text was read and is no token: the same text
// is none the next time either. A file that cannot be read may be mended.
var ErrBadToken = errors.New("bad token")

// badToken is an ErrBadToken that says so in its own words.
type badToken struct{ error }

func (e badToken) Is(target error) bool { return target == ErrBadToken }
func (e badToken) Unwrap() error        { return e.error }

// UseToken takes a token from its text; from says where that came from, for
// the error ("--token"), which holds nothing of the text. What is no token is
// an ErrBadToken; once the connector has enrolled it is none, but a note: see
// Notes.
func (c *Config) UseToken(text, from string) error {
	token, err := parseToken(text, from)
	if err != nil {
		return c.NoToken(err)
	}
	c.Spec.Token = token
	return nil
}

func parseToken(text, from string) (wire.Token, error) {
	if strings.TrimSpace(text) == "" {
		return wire.Token{}, badToken{fmt.Errorf("reading a token from %s: it is empty: give what `warren token create` prints at the edge", from)}
	}
	token, err := wire.ParseToken(text)
	if err != nil {
		return wire.Token{}, badToken{fmt.Errorf("reading a token from %s: %w", from, cmp.Or(errors.Unwrap(err), err))}
	}
	return token, nil
}

// NoToken is called with why a token that was asked for cannot be had. It
// returns err where the connector needs one. Where it has enrolled, it notes
// err and returns nil: a connector must not stay away for a token that it does
// not use. Spec.StateDir is settled before.
func (c *Config) NoToken(err error) error {
	edges := c.enrolled()
	if err == nil || len(edges) == 0 {
		return err
	}
	c.notes = append(c.notes, fmt.Sprintf("%v; not used: this connector has enrolled with %s", err, strings.Join(edges, ", ")))
	return nil
}

// Notes are what the connector's log should warn of at its start: tokens that
// could not be read and that nothing needs.
func (c *Config) Notes() []string { return c.notes }

// ReadToken reads the token at TokenFile, if there is one to read and UseToken
// took none: a file, or a pipe, as a shell's <(command) is one. Once the
// connector has enrolled, a file that is gone is in order, and one that cannot
// be read, or holds no token, is a note: see Notes.
func (c *Config) ReadToken() error {
	if c.TokenFile == "" || len(c.Spec.Token.Edges) > 0 {
		return nil
	}
	text, err := host.ReadPrivateOrPipe(c.TokenFile, maxTokenFile)
	switch {
	case err == nil:
		return c.UseToken(string(text), fmt.Sprintf("file %q", c.TokenFile))
	case !errors.Is(err, fs.ErrNotExist):
		return c.NoToken(fmt.Errorf("reading a token from file %w", err))
	case len(c.enrolled()) > 0:
		return nil
	}
	return fmt.Errorf("reading a token from file %w: write into it, with mode 0600, what `warren token create` prints at the edge", err)
}

// enrolled names the edges that the state directory knows. What is wrong there
// shows when the connector opens it.
func (c *Config) enrolled() (names []string) {
	edges, err := state.Look(c.Spec.StateDir)
	if err != nil {
		return nil
	}
	for _, e := range edges {
		name := "edge with the key " + e.PublicKey.String()
		if len(e.URLs) > 0 {
			name = "edge " + e.URLs[0]
		}
		names = append(names, name)
	}
	return names
}

// Check looks at this machine: at the token's file, and at all that
// connector.Check does. The error is a strict.Problems with places in the
// files.
func (c *Config) Check(ctx context.Context, resolver connector.Resolver) error {
	var found []connector.Problem
	if err := c.ReadToken(); err != nil {
		found = append(found, connector.Problem{Path: "connector.token_file", Value: c.TokenFile, Hint: err.Error()})
	}
	return c.Locate(append(found, connector.Check(ctx, c.Spec, resolver)...))
}

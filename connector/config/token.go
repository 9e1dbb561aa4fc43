package config

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/warrenmesh/warren/connector"
	"github.com/warrenmesh/warren/connector/state"
	"github.com/warrenmesh/warren/edge/wire"
	"github.com/warrenmesh/warren/host"
)

// maxTokenFile bounds what is read of a token's file, in bytes: more than a
// token has, so that too much shows.
const maxTokenFile = 16 << 10

// UseToken takes a token from its text; from says where that came from, for
// the error ("--token"), which holds nothing of the text.
func (c *Config) UseToken(text, from string) error {
	token, err := wire.ParseToken(text)
	if err != nil {
		return fmt.Errorf("reading a token from %s: %w", from, cmp.Or(errors.Unwrap(err), err))
	}
	c.Spec.Token = token
	return nil
}

// ReadToken reads the token at TokenFile, if there is one to read and UseToken
// took none. A file that is gone is no error once the connector has enrolled:
// nothing needs it then.
func (c *Config) ReadToken() error {
	if c.TokenFile == "" || len(c.Spec.Token.Edges) > 0 {
		return nil
	}
	text, err := host.ReadPrivate(c.TokenFile, maxTokenFile)
	switch {
	case err == nil:
		return c.UseToken(string(text), fmt.Sprintf("file %q", c.TokenFile))
	case !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("reading a token from file %w", err)
	case c.enrolled():
		return nil
	}
	return fmt.Errorf("reading a token from file %w: write into it, with mode 0600, what `warren token create` prints at the edge", err)
}

// enrolled tells whether the state directory knows an edge. What is wrong
// there shows when the connector opens it.
func (c *Config) enrolled() bool {
	edges, err := state.Look(c.Spec.StateDir)
	return err == nil && len(edges) > 0
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

package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/warrenmesh/warren/configs/strict"
	"github.com/warrenmesh/warren/connector"
	"github.com/warrenmesh/warren/edge/admin/client"
)

func newToken(p *program) *cobra.Command {
	c := &cobra.Command{Use: "token", Short: "Make, list and revoke the tokens with which connectors enrol"}
	c.AddCommand(newTokenCreate(p), newTokenList(p), newTokenRevoke(p), newTokenImport(p))
	return c
}

// tokenFlags are those of `token create`.
type tokenFlags struct {
	request client.TokenRequest
	routes  []string
	ttl     time.Duration
	edges   []string
	quiet   bool
	asJSON  *bool
}

func newTokenCreate(p *program) *cobra.Command {
	c := &cobra.Command{
		Use:   "create",
		Short: "Make a token, and print the command that a connector starts with",
		Long: `Make a token at a running edge, and print the one command to run in the private
network. The token is printed once: the edge keeps nothing that it could be made
from. Whoever has it can enrol a connector with these routes, once and within
the hour unless it is told otherwise; a connector that has enrolled needs it no
more.`,
		Example: `  warren token create --network berlin --routes 10.0.0.0/16
  warren token create --network berlin --routes 10.0.0.0/16,10.1.0.0/16 --name berlin-1 --ttl 24h
  (umask 077; warren token create --network berlin --routes 10.0.0.0/16 --ephemeral --quiet > token)`,
		Args: cobra.NoArgs,
	}
	var f tokenFlags
	c.Flags().StringVar(&f.request.Network, "network", "", "`network` that the connector stands in")
	c.Flags().StringSliceVar(&f.routes, "routes", nil, "`prefixes` behind it, as in 10.0.0.0/16,10.1.0.0/16; may be repeated")
	c.Flags().StringVar(&f.request.Name, "name", "", "`name` of the connector (default: the one that it asks for, else its host's)")
	c.Flags().DurationVar(&f.ttl, "ttl", client.DefaultTokenTTL, "`duration` for which connectors can enrol with it, at least 1m")
	c.Flags().BoolVar(&f.request.Reusable, "reusable", false, "let any number of connectors enrol with it")
	c.Flags().BoolVar(&f.request.Ephemeral, "ephemeral", false, "as --reusable, and forget each connector after 10 minutes of absence: for containers")
	c.Flags().StringArrayVar(&f.edges, "edge", nil, "another `edge` that the connector shall join, as in 'PUBLIC_KEY@HOST:PORT', with more addresses behind commas; may be repeated")
	c.Flags().BoolVarP(&f.quiet, "quiet", "q", false, "print the token and nothing else")
	f.asJSON = jsonFlag(c)
	c.PreRunE = func(c *cobra.Command, _ []string) error { return f.read(c) }
	return asking(p, c, func(ctx context.Context, e *client.Client, _ []string) error {
		made, err := e.CreateToken(ctx, f.request)
		if err != nil {
			return err
		}
		p.warnOpenFile("a token")
		switch {
		case *f.asJSON:
			return p.printJSON(made)
		case f.quiet:
			if made.Record != "" {
				fmt.Fprintf(p.stderr, "warren: the other edges do not know the token yet; run there: warren token import %s\n", made.Record)
			}
			_, err = fmt.Fprintln(p.stdout, made.Text)
			return err
		}
		return p.printCreated(made, f.request.Edges)
	})
}

// read turns the flags into the request, or says what is wrong with them.
func (f *tokenFlags) read(c *cobra.Command) error {
	f.request.Routes = trimmed(f.routes)
	switch {
	case f.request.Network == "":
		return wrongUsage(c, "reading the flags of %q: --network is required: `warren network list` lists them", c.CommandPath())
	case len(f.request.Routes) == 0:
		return wrongUsage(c, "reading the flags of %q: --routes is required, as in --routes 10.0.0.0/16", c.CommandPath())
	case f.ttl < client.MinTokenTTL || f.ttl > client.MaxTokenTTL:
		return wrongUsage(c, "reading --ttl %v: use %s to %dh", f.ttl, "1m", client.MaxTokenTTL/time.Hour)
	case f.quiet && *f.asJSON:
		return wrongUsage(c, "reading the flags of %q: --quiet and --json exclude each other", c.CommandPath())
	}
	if err := checkName(c, f.request.Name); err != nil {
		return err
	}
	f.request.TTLMillis = f.ttl.Milliseconds()
	for _, text := range f.edges {
		e, err := parseTokenEdge(text)
		if err != nil {
			return wrongUsage(c, "reading --edge: %w", err)
		}
		f.request.Edges = append(f.request.Edges, e)
	}
	if _, _, err := f.request.Check(); err != nil {
		return wrongUsage(c, "%w", err)
	}
	return nil
}

// trimmed takes the white space off words that commas parted.
func trimmed(words []string) []string {
	var out []string
	for _, w := range words {
		if w = strings.TrimSpace(w); w != "" {
			out = append(out, w)
		}
	}
	return out
}

// parseTokenEdge reads "PUBLIC_KEY@HOST:PORT,HOST:PORT".
func parseTokenEdge(text string) (client.TokenEdge, error) {
	keyText, urls, ok := strings.Cut(text, "@")
	if !ok {
		return client.TokenEdge{}, fmt.Errorf("%q is not PUBLIC_KEY@HOST:PORT", text)
	}
	key, err := strict.ParseKey(keyText)
	if err != nil {
		return client.TokenEdge{}, err
	}
	e := client.TokenEdge{PublicKey: wgtypes.Key(key).String()}
	for u := range strings.SplitSeq(urls, ",") {
		url, err := connector.ParseEdgeURL(strings.TrimSpace(u))
		if err != nil {
			return client.TokenEdge{}, err
		}
		e.URLs = append(e.URLs, url.String())
	}
	return e, nil
}

// printCreated writes what to do with a token, and what it is good for.
func (p *program) printCreated(made client.CreatedToken, others []client.TokenEdge) error {
	t := made.Token
	who := "one connector, once"
	switch {
	case t.Ephemeral:
		who = "any number of connectors; each is forgotten after 10 minutes of absence"
	case t.Reusable:
		who = "any number of connectors"
	}
	f := newFacts(p.stdout)
	f.add("token", t.ID)
	f.add("enrols", who)
	f.add("as", t.Name)
	f.add("network", t.Network)
	f.add("routes", list(t.Routes))
	f.add("until", until(t.Expires))
	if err := f.flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(p.stdout, `
Run this in the private network:

  warren connector run --token %s

It is shown this once, and is not needed any more once the connector is up. As
others on that machine may see a command line, these are safer there:

  warren connector run --token-file FILE     a file with mode 0600 that holds the token
  warren connector run --token-file -        paste it, then press Enter
  WARREN_TOKEN in the environment            for containers
`, made.Text)
	if err != nil || made.Record == "" {
		return err
	}
	var names []string
	for _, e := range others {
		names = append(names, e.URLs[0])
	}
	_, err = fmt.Fprintf(p.stdout, `
The connector joins %s as well once it is told there of the token. What
tells it is no secret that enrols:

  warren token import %s
`, list(names), made.Record)
	return err
}

// until writes when t is, and how far off.
func until(t time.Time) string {
	return fmt.Sprintf("%s, in %s", moment(t, time.Local), span(time.Until(t)))
}

// moment writes t for people who are here, and for those who may be elsewhere.
func moment(t time.Time, here *time.Location) string {
	const layout = "2006-01-02 15:04:05 MST"
	local, utc := t.In(here).Format(layout), t.UTC().Format(layout)
	if local != utc {
		local += " (" + utc + ")"
	}
	return local
}

// recentlyEnded is how long `token list` shows a token after its end without
// being asked to: those of today and yesterday are what one looks for. The
// edge knows them for 7 days.
const recentlyEnded = 24 * time.Hour

func newTokenList(p *program) *cobra.Command {
	c := &cobra.Command{
		Use:   "list",
		Short: "List the tokens of a running edge",
		Long: `List the tokens of a running edge, the latest first: those that are active, and
those that were spent, expired or revoked within the last 24 hours. With --all
also the older ones, for the 7 days that the edge remembers them.`,
		Args: cobra.NoArgs,
	}
	all := c.Flags().Bool("all", false, "list those that ended more than 24 hours ago, too")
	asJSON := jsonFlag(c)
	return asking(p, c, func(ctx context.Context, e *client.Client, _ []string) error {
		tokens, err := e.Tokens(ctx)
		if err != nil {
			return err
		}
		shown := []client.Token{}
		for _, t := range tokens {
			if *all || t.Ended.IsZero() || time.Since(t.Ended) < recentlyEnded {
				shown = append(shown, t)
			}
		}
		if *asJSON {
			return p.printJSON(shown)
		}
		if len(shown) == 0 {
			fmt.Fprintln(p.stderr, "the edge has no tokens: make one with `warren token create`")
			return nil
		}
		return p.printTokens(shown)
	})
}

func (p *program) printTokens(all []client.Token) error {
	t := newTable(p.stdout, "ID", "NAME", "NETWORK", "STATE", "USES", "EXPIRES", "USED BY", "ROUTES")
	for _, token := range all {
		state, expires := token.State, "in "+span(time.Until(token.Expires))
		if token.State != client.TokenActive {
			state, expires = strings.TrimSpace(token.State+" "+ago(token.Ended)), ""
		}
		t.row(token.ID, token.Name, token.Network, state, uses(token), expires, usedBy(token), shorten(token.Routes))
	}
	return t.flush()
}

// uses writes how often a token was used, and of how many times.
func uses(t client.Token) string {
	used := fmt.Sprintf("%d of 1", t.Uses)
	switch {
	case t.Ephemeral:
		used = fmt.Sprintf("%d, ephemeral", t.Uses)
	case t.Reusable:
		used = fmt.Sprintf("%d, reusable", t.Uses)
	}
	if t.Pending > 0 {
		used += fmt.Sprintf(", %d pending", t.Pending)
	}
	return used
}

// usedBy writes who has enrolled with a token.
func usedBy(t client.Token) string {
	if t.SpentBy != "" {
		return t.SpentBy
	}
	return shorten(t.Connectors)
}

func newTokenRevoke(p *program) *cobra.Command {
	c := &cobra.Command{
		Use:   "revoke ID|NAME",
		Short: "Make a token good for nothing",
		Long: `Make a token good for nothing, by its id or its name. Who tries it within 7 days
is told that it was revoked. Connectors that have enrolled with it stay: see
warren connector revoke.`,
		Args: cobra.ExactArgs(1),
	}
	asJSON := jsonFlag(c)
	c.PreRunE = func(c *cobra.Command, args []string) error {
		return refuseToken(c, args[0], "the token's ID or name")
	}
	return asking(p, c, func(ctx context.Context, e *client.Client, args []string) error {
		t, err := e.RevokeToken(ctx, args[0])
		if err != nil {
			return err
		}
		if *asJSON {
			return p.printJSON(t)
		}
		fmt.Fprintf(p.stdout, "token %s is revoked: nobody can enrol with it any more\n", t.ID)
		if len(t.Connectors) > 0 {
			fmt.Fprintf(p.stdout, "what has enrolled with it stays: %s; `warren connector revoke NAME` ends one\n", shorten(t.Connectors))
		}
		return nil
	})
}

// maxRecord is more than the record of a token has.
const maxRecord = 192 << 10

func newTokenImport(p *program) *cobra.Command {
	c := &cobra.Command{
		Use:   "import RECORD|-",
		Short: "Make a token of another edge known to this one",
		Long: `Make a token of another edge known to this one, so that its connector joins both.
The other edge's warren token create --edge prints RECORD; - reads it from
standard input.`,
		Args: cobra.ExactArgs(1),
	}
	asJSON := jsonFlag(c)
	return asking(p, c, func(ctx context.Context, e *client.Client, args []string) error {
		record := args[0]
		if record == "-" {
			text, err := io.ReadAll(io.LimitReader(p.stdin, maxRecord))
			if err != nil {
				return fmt.Errorf("reading a token's record from standard input: %w", err)
			}
			record = string(text)
		}
		if err := refuseToken(c, record, "the record that `warren token create` printed with the token"); err != nil {
			return err
		}
		t, err := e.ImportToken(ctx, client.ImportRequest{Record: strings.TrimSpace(record)})
		if err != nil {
			return err
		}
		if *asJSON {
			return p.printJSON(t)
		}
		_, err = fmt.Fprintf(p.stdout, "token %s is known here: network %s, routes %s, until %s\n", cmp.Or(t.Name, t.ID), t.Network, list(t.Routes), until(t.Expires))
		return err
	})
}

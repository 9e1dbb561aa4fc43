package connector

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/warrenmesh/warren/connector/guard"
	"github.com/warrenmesh/warren/connector/origin"
	"github.com/warrenmesh/warren/connector/state"
	"github.com/warrenmesh/warren/host"
)

// checkWithin bounds each resolution of a Check.
const checkWithin = 5 * time.Second

// Problem is one thing that Check found.
type Problem struct {
	// Path is the key path in connector.toml: "edge[0].url".
	Path string
	// Value is what stands there.
	Value string
	// Hint says what is wrong and what to do.
	Hint string
}

// String is the problem in one line.
func (p Problem) String() string { return fmt.Sprintf("%s = %q: %s", p.Path, p.Value, p.Hint) }

// Check looks at the spec and at this machine, as `warren connector check`
// does: the spec's own problems, the private key's file, the state directory,
// whether there is an edge to join, whether the names of edges and aliases
// resolve, and whether the guard lets the aliases be used. It changes nothing
// and sends nothing but DNS queries. No problem: nil.
func Check(ctx context.Context, spec Spec, resolver Resolver) []Problem {
	c := checker{spec: spec, resolver: resolver, guard: guard.New(spec.Guard)}
	spec.Validate(c.report)
	if len(c.problems) > 0 {
		return c.problems // what follows would trip over the same things
	}
	c.checkKey()
	c.checkState()
	for i, e := range spec.Edges {
		c.checkEdge(ctx, fmt.Sprintf("edge[%d].url", i), e)
	}
	names := origin.New(spec.Origin, origin.Deps{Guard: c.guard, Resolver: resolver})
	for i, a := range spec.Origin.Aliases {
		c.checkAlias(ctx, fmt.Sprintf("alias[%d]", i), a, names)
	}
	return c.problems
}

type checker struct {
	spec     Spec
	resolver Resolver
	guard    *guard.Guard
	problems []Problem
}

func (c *checker) report(path, value, hint string) {
	c.problems = append(c.problems, Problem{Path: path, Value: value, Hint: hint})
}

func (c *checker) checkKey() {
	_, err := host.ReadKey(c.spec.keyFile())
	switch {
	case err == nil:
	case c.spec.PrivateKeyFile != "":
		c.report("connector.private_key_file", c.spec.PrivateKeyFile, err.Error())
	case !errors.Is(err, fs.ErrNotExist): // the first run makes it
		c.report("connector.state_dir", c.spec.StateDir, err.Error())
	}
}

// checkState looks at the state directory, where something is to be kept in
// it, and for an edge.
func (c *checker) checkState() {
	s := c.spec
	if s.StateDir == "" {
		return // all that there is was declared
	}
	saved, err := state.Look(s.StateDir)
	if err == nil && (s.PrivateKeyFile == "" || s.hasToken() || len(s.Edges) == 0) {
		err = host.CheckDir(s.StateDir)
	}
	switch {
	case err != nil:
		c.report("connector.state_dir", s.StateDir, err.Error())
	case len(saved)+len(s.Edges) == 0 && !s.hasToken():
		c.report("edge", "", "none is declared, and none is known in "+s.StateDir+": add an [[edge]], name a token_file, or run with a token first")
	}
}

func (c *checker) checkEdge(ctx context.Context, path string, e EdgeSpec) {
	ctx, cancel := context.WithTimeout(ctx, checkWithin)
	defer cancel()
	for _, u := range e.URLs {
		if _, err := resolveURL(ctx, c.resolver, u); err != nil {
			c.report(path, u.String(), err.Error())
		}
	}
}

func (c *checker) checkAlias(ctx context.Context, path string, a origin.Alias, names *origin.Dialer) {
	if v, why := c.guard.Allow(a.From.Proto, a.From.Addr); v != guard.Allow {
		c.report(path+".from", a.From.String(), "the guard denies it: "+why)
	}
	ctx, cancel := context.WithTimeout(ctx, checkWithin)
	defer cancel()
	denied, err := names.Denied(ctx, a.From.Proto, a.To)
	if err != nil {
		c.report(path+".to", a.To.String(), err.Error())
	}
	for _, why := range denied {
		c.report(path+".to", a.To.String(), "the guard denies it: "+why)
	}
}

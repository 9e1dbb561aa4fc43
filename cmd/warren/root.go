package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/warrenmesh/warren/cmd/warren/demo"
)

// newRoot makes the tree of commands: noun, then verb.
func newRoot(p *program) *cobra.Command {
	root := &cobra.Command{
		Use:   "warren",
		Short: "Publish private TCP and UDP services from networks that may overlap",
		Long: `Warren publishes private TCP and UDP services from networks that may overlap.

An edge, on a public machine, listens for apps; connectors, inside private
networks, dial out to it and need no open port.

Begin with:
  warren edge init                                    on the public machine: writes a first edge.toml
  warren token create --network NAME --routes PREFIX  there, once the edge runs: prints what to run
  warren connector run --token TOKEN                  in the private network`,
		Version:           thisBuild().Version,
		SilenceErrors:     true, // run writes them, once
		SilenceUsage:      true,
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
	}
	root.SetIn(p.stdin)
	root.SetOut(p.stdout)
	root.SetErr(p.stderr)
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return &usageError{command: c.CommandPath(), err: fmt.Errorf("reading the flags of %q: %w", c.CommandPath(), err)}
	})
	cobra.EnableCommandSorting = false
	root.AddCommand(
		demo.Command(),
		newEdge(p), newConnector(p), newToken(p),
		newStatus(p), newNetwork(p), newApp(p), newPool(p), newPools(p), newFlow(p), newEvent(p), newProbe(p),
		newGenkey(p), newPubkey(p), newVersion(p),
	)
	checkUsage(root)
	return root
}

// checkUsage makes every command below c, and c itself, answer a wrong command
// line with a usageError.
func checkUsage(c *cobra.Command) {
	if c.HasSubCommands() {
		c.Args = cobra.ArbitraryArgs
		c.RunE = chooseVerb
	} else if takes := c.Args; takes != nil {
		c.Args = func(c *cobra.Command, args []string) error {
			if takes(c, args) == nil {
				return nil
			}
			return wrongUsage(c, "reading the arguments of %q: it is used as `%s`, and got %d", c.CommandPath(), c.UseLine(), len(args))
		}
	}
	for _, sub := range c.Commands() {
		checkUsage(sub)
	}
}

// chooseVerb is what a noun without a verb, or with one that does not exist,
// does.
func chooseVerb(c *cobra.Command, args []string) error {
	if len(args) == 0 && !c.HasParent() {
		return c.Help()
	}
	var verbs []string
	for _, sub := range c.Commands() {
		if sub.IsAvailableCommand() {
			verbs = append(verbs, sub.Name())
		}
	}
	if len(args) == 0 {
		return wrongUsage(c, "choosing a command of %q: write one of %s after it", c.CommandPath(), strings.Join(verbs, ", "))
	}
	if err := refuseToken(c, args[0], "a command"); err != nil {
		return err
	}
	hint := "it has " + strings.Join(verbs, ", ")
	c.SuggestionsMinimumDistance = 2
	if like := c.SuggestionsFor(args[0]); len(like) > 0 {
		hint = fmt.Sprintf("did you mean %q?", like[0])
	}
	return wrongUsage(c, "choosing a command of %q: there is no %q: %s", c.CommandPath(), args[0], hint)
}

func wrongUsage(c *cobra.Command, format string, args ...any) error {
	return &usageError{command: c.CommandPath(), err: fmt.Errorf(format, args...)}
}

package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	connectorconfig "github.com/warrenmesh/warren/connector/config"
	"github.com/warrenmesh/warren/host"
)

// tokenVariable is where a connector finds its token in the environment.
const tokenVariable = "WARREN_TOKEN"

// givenToken is how `connector run` is told a token.
type givenToken struct {
	text, file string
}

func (g *givenToken) add(c *cobra.Command) {
	c.Flags().StringVar(&g.text, "token", "", "`token` to enrol with, as the edge's `warren token create` prints it; others on this machine may see it here")
	c.Flags().StringVar(&g.file, "token-file", "", "`file` that holds the token, with mode 0600; - for standard input (default: $"+tokenVariable+" holds the token)")
}

// read gives cfg the token: a flag comes before the environment, and that
// before the config. The environment has none afterwards, so that no child has
// it.
func (g *givenToken) read(c *cobra.Command, p *program, cfg *connectorconfig.Config) error {
	inEnvironment := p.env(tokenVariable)
	p.unsetenv(tokenVariable)
	flag, file := c.Flags().Changed("token"), c.Flags().Changed("token-file")
	switch {
	case flag && file:
		return wrongUsage(c, "reading the flags of %q: --token and --token-file exclude each other", c.CommandPath())
	case flag:
		return useToken(cfg, g.text, "--token")
	case file && g.file == "-":
		text, err := firstLine(p.stdin)
		if err != nil {
			return err
		}
		return useToken(cfg, text, "standard input")
	case file:
		cfg.TokenFile = g.file
	case inEnvironment != "":
		return useToken(cfg, inEnvironment, tokenVariable)
	}
	err := cfg.ReadToken()
	if err != nil {
		// What can be read and is no token stays none.
		if _, unread := host.ReadPrivate(cfg.TokenFile, 1); unread == nil {
			return &uselessError{err}
		}
	}
	return err
}

// useToken takes a token from its text. The same text is refused again.
func useToken(cfg *connectorconfig.Config, text, from string) error {
	if err := cfg.UseToken(text, from); err != nil {
		return &uselessError{err}
	}
	return nil
}

// maxTokenInput is more than a token and what is around it have.
const maxTokenInput = 16 << 10

// firstLine returns the first line that is not blank: a person pastes it and
// presses Enter.
func firstLine(r io.Reader) (string, error) {
	lines := bufio.NewReader(io.LimitReader(r, maxTokenInput))
	for {
		line, err := lines.ReadString('\n')
		if line = strings.TrimSpace(line); line != "" {
			return line, nil
		}
		switch {
		case errors.Is(err, io.EOF):
			return "", errors.New("reading a token from standard input: there is none")
		case err != nil:
			return "", fmt.Errorf("reading a token from standard input: %w", err)
		}
	}
}

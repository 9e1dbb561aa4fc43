package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

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
// it. What keeps read waiting, as a pipe does, ends with ctx.
func (g *givenToken) read(ctx context.Context, c *cobra.Command, p *program, cfg *connectorconfig.Config) error {
	inEnvironment := p.env(tokenVariable)
	p.unsetenv(tokenVariable)
	flag, file := c.Flags().Changed("token"), c.Flags().Changed("token-file")
	switch {
	case flag && file:
		return wrongUsage(c, "reading the flags of %q: --token and --token-file exclude each other", c.CommandPath())
	case flag:
		return useToken(cfg, g.text, "--token")
	case file && g.file == "-":
		text, err := p.pastedToken(ctx)
		return takeToken(ctx, cfg, text, "standard input", err)
	case file:
		cfg.TokenFile = g.file
	case inEnvironment != "":
		return useToken(cfg, inEnvironment, tokenVariable)
	}
	return p.readTokenFile(ctx, cfg)
}

// pastedToken reads a token from standard input, and asks for it where a
// person is there.
func (p *program) pastedToken(ctx context.Context) (string, error) {
	f, ok := p.stdin.(*os.File)
	if !ok {
		return firstLine(p.stdin)
	}
	if isTerminal(f) {
		fmt.Fprintln(p.stderr, "paste the token, then Ctrl-D or Enter")
		return firstLine(newWaitingReader(ctx, f, func() {}))
	}
	return firstLine(newWaitingReader(ctx, f, p.tellWaiting("standard input")))
}

// tellWaiting is for a reader that waits for a token.
func (p *program) tellWaiting(from string) func() {
	return func() { fmt.Fprintf(p.stderr, "warren: waiting for a token from %s\n", from) }
}

// readTokenFile gives cfg the token of its TokenFile, if it has one.
func (p *program) readTokenFile(ctx context.Context, cfg *connectorconfig.Config) error {
	from := fmt.Sprintf("file %q", cfg.TokenFile)
	if info, err := os.Stat(cfg.TokenFile); err == nil && info.Mode()&fs.ModeNamedPipe != 0 {
		text, err := p.readFIFO(ctx, cfg.TokenFile, info)
		return takeToken(ctx, cfg, text, from, err)
	}
	err := cfg.ReadToken()
	if errors.Is(err, connectorconfig.ErrBadToken) {
		text, _ := host.ReadPrivate(cfg.TokenFile, maxTokenInput) // for the hint alone
		return badToken(string(text), err)
	}
	return err
}

// readFIFO reads a token from a FIFO, as a shell's <(command) is one. It refuses
// what host.ReadPrivateOrPipe does, and ends with ctx, as that does not.
func (p *program) readFIFO(ctx context.Context, path string, info fs.FileInfo) (string, error) {
	if of, ok := info.Sys().(*syscall.Stat_t); ok && of.Uid != 0 && int(of.Uid) != os.Geteuid() {
		return "", fmt.Errorf("it is a pipe of another user (uid %d): name a file or a pipe of your own", of.Uid)
	}
	// Opening it would wait for a writer else (fifo(7)).
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	return firstLine(newWaitingReader(ctx, f, p.tellWaiting(fmt.Sprintf("file %q", path))))
}

// takeToken takes what was read, unless reading failed. Who stops it while it
// waits does not want a connector without a token, either.
func takeToken(ctx context.Context, cfg *connectorconfig.Config, text, from string, err error) error {
	if err == nil {
		return useToken(cfg, text, from)
	}
	err = fmt.Errorf("reading a token from %s: %w", from, err)
	if ctx.Err() != nil {
		return err
	}
	return cfg.NoToken(err)
}

// useToken takes a token from its text.
func useToken(cfg *connectorconfig.Config, text, from string) error {
	err := cfg.UseToken(text, from)
	if errors.Is(err, connectorconfig.ErrBadToken) {
		return badToken(text, err)
	}
	return err
}

// Marks that come along with a token which is copied out of a file.
const (
	byteOrderMark = "\ufeff"
	quotes        = "\"'`\u2018\u2019\u201c\u201d"
)

// badToken adds to err, what is wrong with a token's text, what may be the
// cause of it. The same text is refused again.
func badToken(text string, err error) error {
	switch text = strings.TrimSpace(text); {
	case strings.HasPrefix(text, byteOrderMark):
		err = fmt.Errorf("%w; it begins with a byte order mark: write it without the mark", err)
	case strings.Trim(text, quotes) != text:
		err = fmt.Errorf("%w; write it without the quotes", err)
	}
	return &uselessError{err}
}

// maxTokenInput is more than a token and what is around it have.
const maxTokenInput = 16 << 10

// firstLine returns the first line that is not blank, "" where there is none:
// a person pastes it and presses Enter.
func firstLine(r io.Reader) (string, error) {
	lines := bufio.NewReaderSize(io.LimitReader(r, maxTokenInput), maxTokenInput)
	for {
		line, err := lines.ReadString('\n')
		if line = strings.TrimSpace(line); line != "" && (err == nil || errors.Is(err, io.EOF)) {
			return line, nil
		}
		switch {
		case errors.Is(err, io.EOF):
			return "", nil
		case err != nil:
			return "", err
		}
	}
}

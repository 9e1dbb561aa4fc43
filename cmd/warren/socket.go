package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/warrenmesh/warren/edge/admin/client"
	edgeconfig "github.com/warrenmesh/warren/edge/config"
)

// systemSocket is where an edge that systemd runs has its socket: the unit's
// RuntimeDirectory is "warren".
const systemSocket = "/run/warren/edge.sock"

// asking makes c a command for a running edge: do gets a client for its admin
// socket.
func asking(p *program, c *cobra.Command, do func(context.Context, *client.Client, []string) error) *cobra.Command {
	socket := c.Flags().String("socket", "", "admin `socket` of the edge (default: $WARREN_SOCKET, else where an edge of this user or of systemd has it)")
	stateDir := c.Flags().String("state-dir", "", "state `directory` of the edge (default: $WARREN_STATE_DIR, else as for edge run)")
	c.RunE = func(c *cobra.Command, args []string) error {
		path, err := p.findSocket(*socket, *stateDir)
		if err != nil {
			return err
		}
		edge := client.New(path)
		defer edge.Close()
		return do(c.Context(), edge, args)
	}
	return c
}

// findSocket says which admin socket is meant: flags come before the
// environment, and that before the places where edges have theirs, of which
// the first that exists is taken.
func (p *program) findSocket(socket, stateDir string) (string, error) {
	if socket != "" {
		return socket, nil
	}
	if stateDir != "" { // a flag is closer than any variable
		return filepath.Join(stateDir, filepath.Base(systemSocket)), nil
	}
	if s := p.env("WARREN_SOCKET"); s != "" {
		return s, nil
	}
	if dir := p.env("WARREN_STATE_DIR"); dir != "" {
		return filepath.Join(dir, filepath.Base(systemSocket)), nil
	}
	var places []string
	if dir := edgeconfig.StateDir(p.env); dir != "" {
		places = append(places, edgeconfig.AdminSocket(p.env, dir), filepath.Join(dir, filepath.Base(systemSocket)))
	}
	places = slices.Compact(append(places, systemSocket))
	for _, place := range places {
		if _, err := os.Stat(place); !errors.Is(err, fs.ErrNotExist) {
			return place, nil
		}
	}
	return "", fmt.Errorf("looking for a running edge: there is no admin socket at %s: start the edge, or name its socket with --socket or WARREN_SOCKET",
		strings.Join(places, " or "))
}

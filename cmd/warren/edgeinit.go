package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/warrenmesh/warren/configs"
)

// initFlags say where a first config is written.
type initFlags struct{ out string }

func (f *initFlags) add(c *cobra.Command, kind string) {
	c.Flags().StringVarP(&f.out, "output", "o", "", fmt.Sprintf("`file` to write (default: %s.toml in DIR)", kind))
}

// path is the file that is meant: -o, or kind.toml in the directory of args.
func (f *initFlags) path(c *cobra.Command, kind string, args []string) (string, error) {
	switch {
	case f.out != "" && len(args) > 0:
		return "", wrongUsage(c, "choosing the file to write: %q and -o %q are both given: leave one of them out", args[0], f.out)
	case f.out != "":
		return f.out, nil
	case len(args) > 0:
		return filepath.Join(args[0], kind+".toml"), nil
	}
	return kind + ".toml", nil
}

// writeNew writes a file that must not be there yet, and its directory if that
// is missing.
func writeNew(path, text string, mode fs.FileMode) (err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("making a directory for %q: %w", path, err)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("writing %q: it is there already, and is left as it is: choose another place with -o, or remove it", path)
	}
	if err != nil {
		return fmt.Errorf("writing a new file: %w", err)
	}
	defer func() {
		err = errors.Join(err, f.Close())
		if err != nil {
			_ = os.Remove(path)
		}
	}()
	if _, err := f.WriteString(text); err != nil {
		return fmt.Errorf("writing a new file: %w", err)
	}
	return nil
}

func newEdgeInit(p *program) *cobra.Command {
	var flags initFlags
	c := &cobra.Command{
		Use:   "init [DIR]",
		Short: "Write a first edge.toml, with every key explained",
		Long: `Write a first edge.toml, with every key explained. It starts as it is, without
root: it listens on loopback only, until you write the machine's addresses into
it. A file that is there already is left alone.`,
		Example: "  warren edge init\n  warren edge init -o /etc/warren/edge.toml",
		Args:    cobra.MaximumNArgs(1),
	}
	flags.add(c, "edge")
	c.RunE = func(c *cobra.Command, args []string) error {
		path, err := flags.path(c, "edge", args)
		if err != nil {
			return err
		}
		if err := writeNew(path, configs.Edge, 0o644); err != nil {
			return err
		}
		_, err = fmt.Fprintf(p.stdout, `wrote %[1]s
It starts as it is, on loopback. Write your addresses, networks and apps into it;
connectors call what [wireguard] advertise names. Then:

  warren edge check --host -c %[1]s
  warren edge run -c %[1]s

Once it runs, this prints the one command to run in a private network:

  warren token create --network NAME --routes PREFIX
`, path)
		return err
	}
	return c
}

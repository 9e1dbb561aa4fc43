package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

func newGenkey(p *program) *cobra.Command {
	return &cobra.Command{
		Use:   "genkey",
		Short: "Write a new private key to standard output",
		Example: `  (umask 077; warren genkey > connector.key)
  warren pubkey < connector.key`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			key, err := wgtypes.GeneratePrivateKey()
			if err != nil {
				return fmt.Errorf("making a private key: %w", err)
			}
			p.warnOpenFile("a private key")
			_, err = fmt.Fprintln(p.stdout, key)
			return err
		},
	}
}

// warnOpenFile warns where a secret is about to go to a file that others may
// read: the shell made it, with its umask.
func (p *program) warnOpenFile(secret string) {
	f, ok := p.stdout.(*os.File)
	if !ok {
		return
	}
	info, err := f.Stat()
	if err == nil && info.Mode().IsRegular() && info.Mode().Perm()&0o007 != 0 {
		fmt.Fprintf(p.stderr, "warren: writing %s to a file that everybody on this machine may read: run chmod 600 on it, or use umask 077 first\n", secret)
	}
}

// maxKeyInput is more than a key and its newline have.
const maxKeyInput = 4096

func newPubkey(p *program) *cobra.Command {
	return &cobra.Command{
		Use:     "pubkey",
		Short:   "Read a private key from standard input and write its public key",
		Example: "  warren pubkey < connector.key",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			text, err := io.ReadAll(io.LimitReader(p.stdin, maxKeyInput))
			if err != nil {
				return fmt.Errorf("reading a private key from standard input: %w", err)
			}
			key, err := wgtypes.ParseKey(strings.TrimSpace(string(text)))
			if err != nil { // its text may hold a part of the key
				return errors.New("reading a private key from standard input: it is not 44 characters of base64: give it what `warren genkey` wrote")
			}
			_, err = fmt.Fprintln(p.stdout, key.PublicKey())
			return err
		},
	}
}

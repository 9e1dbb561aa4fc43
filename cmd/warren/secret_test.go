package main

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"
)

// minted are the tokens of one script.
type minted struct{ texts []string }

// cmdMint makes a token at the script's edge, and sets a variable to its text:
// mint TOKEN --network berlin --routes 10.0.0.0/24.
func cmdMint(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: mint NAME ARGS...")
	}
	ts.Check(ts.Exec("warren", append([]string{"token", "create", "--quiet"}, args[1:]...)...))
	text := strings.TrimSpace(ts.ReadFile("stdout"))
	if !strings.HasPrefix(text, "wrn1_") || strings.ContainsAny(text, " \n") {
		ts.Fatalf("%q is no token", text)
	}
	all := ts.Value("minted").(*minted)
	all.texts = append(all.texts, text)
	ts.Setenv(args[0], text)
}

// cmdHidden wants no file of the script to hold one of its tokens, but those
// that are named: hidden token.file.
func cmdHidden(ts *testscript.TestScript, _ bool, args []string) {
	all := ts.Value("minted").(*minted)
	if len(all.texts) == 0 {
		ts.Fatalf("the script has made no token")
	}
	files := 0
	root := ts.MkAbs(".")
	ts.Check(filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		name, _ := filepath.Rel(root, path)
		if slices.Contains(args, name) {
			return nil
		}
		files++
		content, err := os.ReadFile(path)
		for _, text := range all.texts {
			// A part will do: a log may quote or break what it writes.
			if secret := text[len(text)-24:]; bytes.Contains(content, []byte(secret)) {
				ts.Fatalf("%s holds a token", name)
			}
		}
		return err
	}))
	ts.Logf("no token in %d files", files)
}

package main

import (
	"strings"

	"github.com/spf13/cobra"
)

// maxName is the most bytes of a connector's name, as the edge has it.
const maxName = 63

// checkName refuses a --name that no edge would take; an empty one is none.
func checkName(c *cobra.Command, name string) error {
	if len(name) > maxName {
		return wrongUsage(c, "reading --name: a name of %d bytes is too long: use %d at most", len(name), maxName)
	}
	for i, r := range name {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9':
		case i > 0 && strings.ContainsRune("-_.", r):
		default:
			return wrongUsage(c, `reading --name %q: use letters, digits, "-", "_" and ".", beginning with a letter or a digit`, name)
		}
	}
	return nil
}

// refuseToken refuses an argument that is a token where one must not stand:
// whoever it is sent to would write it into an error or a log. want says what
// to write instead.
func refuseToken(c *cobra.Command, arg, want string) error {
	if !looksLikeToken(arg) {
		return nil
	}
	return wrongUsage(c, "reading the arguments of %q: write %s, not the token itself", c.CommandPath(), want)
}

// looksLikeToken tells whether a text begins as a token of any release does,
// quotes aside. A token's record begins otherwise.
func looksLikeToken(text string) bool {
	rest, ok := strings.CutPrefix(strings.TrimLeft(text, " \t\r\n"+byteOrderMark+quotes), "wrn")
	version, _, found := strings.Cut(rest, "_")
	return ok && found && version != "" && strings.Trim(version, "0123456789") == ""
}

package integration

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// A hunt looks for secrets in what must not hold them.
type hunt struct {
	forms map[string][]form // by the secret's name
}

// form is one way in which somebody could have written a secret down.
type form struct {
	how  string
	text []byte
}

// add makes a secret known in each way that it could be written: as it is, in
// hexadecimal, in both alphabets of base64 at every place in a longer text,
// and, where it is a text, the way that it is copied.
func (h *hunt) add(name string, secret []byte) {
	if len(secret) < 16 {
		panic("a secret so short is found everywhere")
	}
	if h.forms == nil {
		h.forms = map[string][]form{}
	}
	forms := []form{
		{"raw", secret},
		{"hex", []byte(hex.EncodeToString(secret))},
		{"HEX", []byte(strings.ToUpper(hex.EncodeToString(secret)))},
		{"decimal", []byte(strings.Trim(strings.Join(strings.Fields(fmt.Sprint(secret)), ","), "[]"))},
		{"decimal with spaces", []byte(strings.Trim(fmt.Sprint(secret), "[]"))},
	}
	for _, alphabet := range []struct {
		name string
		*base64.Encoding
	}{{"base64", base64.RawStdEncoding}, {"base64url", base64.RawURLEncoding}} {
		for shift := range 3 {
			// Of the first and the last character some bits are the neighbours'.
			text := alphabet.EncodeToString(append(make([]byte, shift), secret...))
			text = text[(shift*8+5)/6:]
			if (shift+len(secret))%3 != 0 {
				text = text[:len(text)-1]
			}
			forms = append(forms, form{fmt.Sprintf("%s behind %d bytes", alphabet.name, shift), []byte(text)})
		}
	}
	h.forms[name] = forms
}

// addText makes a secret known that is a text already.
func (h *hunt) addText(name, secret string) {
	h.add(name, []byte(secret))
	// Half of a token is one too many: a log line may have been cut.
	h.forms[name] = append(h.forms[name], form{"its second half", []byte(secret[len(secret)/2:])})
}

// in returns what of the secrets is in a text; none of the exceptions counts.
func (h *hunt) in(text []byte, except ...string) (found []string) {
	for name, forms := range h.forms {
		if slices.Contains(except, name) {
			continue
		}
		for _, f := range forms {
			if bytes.Contains(text, f.text) {
				found = append(found, fmt.Sprintf("%s (%s)", name, f.how))
			}
		}
	}
	slices.Sort(found)
	return found
}

// check fails the test for each secret in a text.
func (h *hunt) check(t *testing.T, where string, text []byte, except ...string) {
	t.Helper()
	if len(text) == 0 {
		t.Errorf("%s is empty: there was nothing to search", where)
	}
	for _, what := range h.in(text, except...) {
		t.Errorf("%s holds %s", where, what)
	}
}

// checkTree fails the test for each secret in the files of a directory, and
// returns how many files there were. except says what a file may hold.
func (h *hunt) checkTree(t *testing.T, dir string, except func(path string) []string) (files int) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		files++
		for _, what := range h.in(text, except(path)...) {
			t.Errorf("the file %q holds %s", path, what)
		}
		return nil
	})
	if err != nil {
		t.Errorf("searching %q: %v", dir, err)
	}
	return files
}

// TestHuntFinds plants a secret in each form and in the middle of other text.
func TestHuntFinds(t *testing.T) {
	secret := make([]byte, 32)
	plan{Seed: 5}.bytesOf(0).Read(secret)
	const text = "wrn1_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8"
	var h hunt
	h.add("key", secret)
	h.addText("token", text)
	surrounded := func(before int) []byte {
		return append(append(bytes.Repeat([]byte{0xa5}, before), secret...), 1, 2, 3, 4, 5)
	}
	for name, sample := range map[string]string{
		"raw":            string(surrounded(7)),
		"hex":            hex.EncodeToString(surrounded(7)),
		"a Go slice":     fmt.Sprintf("%v", surrounded(3)),
		"a JSON array":   strings.ReplaceAll(fmt.Sprint(secret), " ", ","),
		"Go's %X":        fmt.Sprintf("%X", secret),
		"base64":         base64.StdEncoding.EncodeToString(secret),
		"base64, second": base64.StdEncoding.EncodeToString(surrounded(1)),
		"base64, third":  base64.StdEncoding.EncodeToString(surrounded(2)),
		"base64url":      base64.URLEncoding.EncodeToString(surrounded(4)),
		"a token":        "token=" + text + " ",
		"a token's end":  "… " + text[len(text)/2:],
	} {
		if found := h.in([]byte(sample)); len(found) == 0 {
			t.Errorf("%s: not found in %q", name, sample)
		}
	}
	if found := h.in([]byte(base64.StdEncoding.EncodeToString(make([]byte, 300)))); len(found) != 0 {
		t.Errorf("found %q where nothing is", found)
	}
	if found := h.in(secret, "key"); len(found) != 0 {
		t.Errorf("found %q, which is excepted", found)
	}
}

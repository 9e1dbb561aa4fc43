// Package guide runs the commands of a Markdown guide, so that README.md
// cannot say what does not work.
//
// # The convention
//
// A fenced block is run when its info string, after the language, carries
// attributes; other blocks are prose. Renderers show none of it:
//
//	```sh host=edge
//	warren genkey > edge.key
//	```
//
// host=NAME names the machine that the block is for. Each machine has a shell
// that lives as long as the guide: its directory and variables stay from block
// to block. A block fails where one of its commands does (as under set -e).
//
// file=PATH writes the block to a file of that machine, as a reader would
// with an editor, instead of running it. PATH is relative to the shell's first
// directory, which is empty and the home directory at the same time.
//
// background starts the block in a terminal of its own, where it must go on
// running until the guide ends. until="TEXT" waits until it has printed TEXT.
//
// capture=WORD keeps what the block printed, without the white space around
// it. In every later block WORD stands for it: a reader pastes a key where the
// text says EDGE_PUBLIC_KEY. WORD is in capitals.
//
// A block with the attribute expect, right after one that ran, says what that
// one printed: its lines in this order, others in between allowed, "..." for
// any text within a line:
//
//	```text expect
//	;; ANSWER SECTION:
//	web.apps.example.com. ... A 203.0.113.10
//	```
//
// An attribute that is not known, a host that does not exist, a captured word
// that no later block uses: each is an error, so that a slip of the pen does
// not turn a check off.
package guide

import (
	"fmt"
	"regexp"
	"strings"
)

// Block is a fenced block that the guide wants run.
type Block struct {
	Line       int    // of the opening fence, from 1
	Language   string // "sh", "toml"
	Host       string
	File       string
	Background bool
	Until      string
	Capture    string
	Expect     []string // lines of the expect block that follows
	Text       string
}

var (
	opening   = regexp.MustCompile("^(`{3,}|~{3,})[ \t]*([^`]*)$")
	attribute = regexp.MustCompile(`^([a-z]+)(?:=(?:"([^"]*)"|([^\s"]+)))?(?:\s+|$)`)
	word      = regexp.MustCompile(`^[A-Z][A-Z0-9_]{3,}$`)
)

// Extract returns the blocks of a Markdown text that carry attributes, in
// their order.
func Extract(markdown string) ([]Block, error) {
	var blocks []Block
	lines := strings.Split(markdown, "\n")
	last := -1 // index in blocks of the block that an expect may follow
	for i := 0; i < len(lines); i++ {
		match := opening.FindStringSubmatch(strings.TrimRight(lines[i], " \t\r"))
		if match == nil {
			continue
		}
		fence, info, start := match[1], match[2], i
		var text strings.Builder
		for i++; ; i++ {
			if i == len(lines) {
				return nil, fmt.Errorf("line %d: a fence that is never closed", start+1)
			}
			if line := strings.TrimRight(lines[i], " \t\r"); strings.HasPrefix(line, fence) && strings.Trim(line, fence[:1]) == "" {
				break
			}
			text.WriteString(lines[i] + "\n")
		}
		language, attributes, _ := strings.Cut(strings.TrimSpace(info), " ")
		block, expect, err := parseInfo(strings.TrimSpace(attributes))
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", start+1, err)
		}
		block.Line, block.Language, block.Text = start+1, language, text.String()
		switch {
		case expect && last < 0:
			return nil, fmt.Errorf("line %d: expect follows no block that ran", start+1)
		case expect:
			blocks[last].Expect = strings.Split(strings.TrimRight(block.Text, "\n"), "\n")
			last = -1
		case block.Host != "":
			if block.File == "" && !block.Background {
				last = len(blocks)
			} else {
				last = -1
			}
			blocks = append(blocks, block)
		}
	}
	return blocks, nil
}

// parseInfo reads the attributes of one info string.
func parseInfo(attributes string) (block Block, expect bool, err error) {
	for rest := attributes; rest != ""; {
		match := attribute.FindStringSubmatch(rest)
		if match == nil {
			return block, false, fmt.Errorf("reading the attributes %q: want name, name=value or name=\"a value\"", rest)
		}
		rest = rest[len(match[0]):]
		name, value := match[1], match[2]+match[3]
		switch {
		case name == "host" && value != "":
			block.Host = value
		case name == "file" && value != "":
			block.File = value
		case name == "until" && value != "":
			block.Until = value
		case name == "capture" && word.MatchString(value):
			block.Capture = value
		case name == "background" && value == "":
			block.Background = true
		case name == "expect" && value == "":
			expect = true
		default:
			return block, false, fmt.Errorf("the attribute %q is not known, or its value is wrong", strings.TrimSpace(match[0]))
		}
	}
	switch {
	case attributes == "" || expect && attributes == "expect":
		return block, expect, nil
	case expect:
		return block, false, fmt.Errorf("expect stands alone")
	case block.Host == "":
		return block, false, fmt.Errorf("the attributes %q name no host", attributes)
	case block.Until != "" && !block.Background:
		return block, false, fmt.Errorf("until goes with background")
	case block.File != "" && (block.Background || block.Capture != ""):
		return block, false, fmt.Errorf("a file is not run: no background, no capture")
	case block.Background && block.Capture != "":
		return block, false, fmt.Errorf("what runs in the background has no end to capture")
	}
	return block, false, nil
}

// meets reports the first line of want that output does not have, in order.
func meets(output string, want []string) error {
	lines := strings.Split(output, "\n")
	for _, w := range want {
		if strings.TrimSpace(w) == "" {
			continue
		}
		// Runs of white space are alike: tools align with tabs.
		pattern := regexp.QuoteMeta(strings.Join(strings.Fields(w), " "))
		pattern = strings.ReplaceAll(pattern, regexp.QuoteMeta("..."), ".*")
		line := regexp.MustCompile("^" + pattern + "$")
		found := false
		for len(lines) > 0 && !found {
			found = line.MatchString(strings.Join(strings.Fields(lines[0]), " "))
			lines = lines[1:]
		}
		if !found {
			return fmt.Errorf("the guide expects the line %q", w)
		}
	}
	return nil
}

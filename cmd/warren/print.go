package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
)

// jsonFlag adds --json to a command that prints for people otherwise.
func jsonFlag(c *cobra.Command) *bool {
	return c.Flags().Bool("json", false, "print JSON instead, as the API has it")
}

func (p *program) printJSON(v any) error {
	enc := json.NewEncoder(p.stdout)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// table writes rows under a header, in columns. A cell that is empty becomes
// a dash, so that a line can be cut at its white space.
type table struct {
	w *tabwriter.Writer
}

func newTable(w io.Writer, header ...string) *table {
	t := &table{w: tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)}
	t.row(header...)
	return t
}

func (t *table) row(cells ...string) {
	for i, cell := range cells {
		if cell == "" {
			cells[i] = "-"
		}
	}
	// The last cell has no tab behind it, and so no white space.
	fmt.Fprintln(t.w, strings.Join(cells, "\t"))
}

func (t *table) flush() error { return t.w.Flush() }

// facts writes one named thing a line. What is empty is left out.
type facts struct {
	w *tabwriter.Writer
}

func newFacts(w io.Writer) *facts {
	return &facts{w: tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)}
}

func (f *facts) add(name, value string) {
	if value != "" {
		fmt.Fprintf(f.w, "%s\t%s\n", name, value)
	}
}

func (f *facts) flush() error { return f.w.Flush() }

// byteCount writes n for people: "1.4 MiB".
func byteCount(n uint64) string {
	const units = "KMGTPE"
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	value, unit := float64(n), -1
	for value >= 1024 {
		value /= 1024
		unit++
	}
	return fmt.Sprintf("%.1f %ciB", value, units[unit])
}

// span writes how long d is for people, with the two units that tell most:
// "3h12m", "2d4h", "40s".
func span(d time.Duration) string {
	switch d = d.Round(time.Second); {
	case d < 0:
		return "0s"
	case d < time.Minute:
		return fmt.Sprintf("%ds", d/time.Second)
	case d < time.Hour:
		return fmt.Sprintf("%dm%ds", d/time.Minute, d%time.Minute/time.Second)
	case d < 24*time.Hour:
		return fmt.Sprintf("%dh%dm", d/time.Hour, d%time.Hour/time.Minute)
	}
	const day = 24 * time.Hour
	return fmt.Sprintf("%dd%dh", d/day, d%day/time.Hour)
}

// ago writes how long t is past; "" for the zero time.
func ago(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return span(time.Since(t)) + " ago"
}

// millis writes a number of milliseconds; "" for none.
func millis(ms float64) string {
	switch {
	case ms <= 0:
		return ""
	case ms < 10:
		return fmt.Sprintf("%.2f ms", ms)
	}
	return fmt.Sprintf("%.0f ms", ms)
}

// of writes "2 of 3".
func of(n, all int) string { return fmt.Sprintf("%d of %d", n, all) }

// list joins words for people; "" for none.
func list(words []string) string { return strings.Join(words, ", ") }

// joined joins words for a command line.
func joined(words []string) string { return strings.Join(words, ",") }

// plural writes "1 alias", "2 aliases".
func plural(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

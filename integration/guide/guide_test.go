package guide

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/warrenmesh/warren/integration/proc"
	"github.com/warrenmesh/warren/integration/require"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const sample = "# A guide\n" +
	"```sh\nrm -rf / # prose: no attributes, never run\n```\n" +
	"```sh host=edge capture=EDGE_PUBLIC_KEY\nword=kept\necho \"  key1=  \"\n```\n" +
	"Some text.\n\n" +
	"````toml host=dc file=conf/dc.toml\nkey = \"EDGE_PUBLIC_KEY\"\n```\n````\n" +
	"~~~sh host=dc\ncat conf/dc.toml\n~~~\n" +
	"```text expect\nkey = \"key1...\n```\n" +
	"```sh host=edge background until=\"is up\"\necho daemon is up\nsleep 600\n```\n" +
	"```sh host=edge\necho $word; pwd; cd /; echo $HOME | wc -l\n```\n" +
	"```sh host=edge\npwd\n```\n" +
	"```text expect\n/\n```\n"

func TestExtract(t *testing.T) {
	blocks, err := Extract(sample)
	if err != nil {
		t.Fatal(err)
	}
	want := []Block{
		{Line: 5, Language: "sh", Host: "edge", Capture: "EDGE_PUBLIC_KEY", Text: "word=kept\necho \"  key1=  \"\n"},
		{Line: 11, Language: "toml", Host: "dc", File: "conf/dc.toml", Text: "key = \"EDGE_PUBLIC_KEY\"\n```\n"},
		{Line: 15, Language: "sh", Host: "dc", Text: "cat conf/dc.toml\n", Expect: []string{`key = "key1...`}},
		{Line: 21, Language: "sh", Host: "edge", Background: true, Until: "is up", Text: "echo daemon is up\nsleep 600\n"},
		{Line: 25, Language: "sh", Host: "edge", Text: "echo $word; pwd; cd /; echo $HOME | wc -l\n"},
		{Line: 28, Language: "sh", Host: "edge", Text: "pwd\n", Expect: []string{"/"}},
	}
	if diff := cmp.Diff(want, blocks); diff != "" {
		t.Errorf("blocks differ (-want +got):\n%s", diff)
	}
}

func TestExtractRefuses(t *testing.T) {
	for _, test := range []struct{ name, text, want string }{
		{"unknown attribute", "```sh hots=edge\n```", `"hots=edge" is not known`},
		{"no host", "```sh background\n```", "no host"},
		{"open fence", "```sh host=edge\ntrue\n", "never closed"},
		{"expect first", "```text expect\n```", "follows no block"},
		{"expect after a file", "```sh host=a file=x\n```\n```text expect\n```", "follows no block"},
		{"expect with more", "```text expect host=a\n```", "stands alone"},
		{"until alone", "```sh host=a until=x\n```", "goes with background"},
		{"small capture", "```sh host=a capture=key\n```", "is not known"},
		{"capture of a file", "```sh host=a file=x capture=WORD\n```", "not run"},
		{"no value", "```sh host=\n```", "want name"},
		{"a sentence", "```sh this is prose\n```", "not known"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := Extract(test.text)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error = %v, want one with %q", err, test.want)
			}
		})
	}
}

func run(t *testing.T, markdown string) (map[string]Machine, error) {
	t.Helper()
	require.Tool(t, "bash", "bash")
	blocks, err := Extract(markdown)
	if err != nil {
		t.Fatal(err)
	}
	machines := map[string]Machine{}
	for _, name := range []string{"edge", "dc"} {
		machines[name] = Machine{Place: proc.Here{}, Home: t.TempDir()}
	}
	return machines, (&Runner{Machines: machines, Logf: t.Logf}).Run(t.Context(), blocks)
}

func TestRunnerRunsTheSample(t *testing.T) {
	machines, err := run(t, sample)
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(filepath.Join(machines["dc"].Home, "conf/dc.toml"))
	if want := "key = \"key1=\"\n```\n"; err != nil || string(got) != want {
		t.Errorf("the file is %q, %v, want %q", got, err, want)
	}
}

func TestRunnerFails(t *testing.T) {
	for _, test := range []struct{ name, text, want string }{
		{"a command in the middle", "```sh host=dc\ntrue\nfalse\ntrue\n```", "failed with 1: false"},
		{"a command in a function", "```sh host=dc\nf() { (exit 7); }\nf\ntrue\n```", "failed with 7"},
		{"an expectation", "```sh host=dc\necho one\n```\n```text expect\ntwo\n```", `expects the line "two"`},
		{"the order", "```sh host=dc\necho one; echo two\n```\n```text expect\ntwo\none\n```", `expects the line "one"`},
		{"a machine", "```sh host=moon\ntrue\n```", "no such machine"},
		{"nothing to do", "just text", "no block"},
		{"an unused word", "```sh host=dc capture=WORD\necho x\n```", "no later block"},
		{"an empty word", "```sh host=dc capture=WORD\ntrue\n```\n```sh host=dc\necho WORD\n```", "nothing to capture"},
		{"a daemon that ends", "```sh host=dc background until=up\necho broken; exit 3\n```", "broken"},
		{"a daemon that ends later", "```sh host=dc background until=up\necho up\nread x < pipe || true\n```\n```sh host=edge\nsleep 0.2\n```", "has ended"},
		{"the shell ends", "```sh host=dc\nexit 0\n```", "ended"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := run(t, test.text)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error = %v, want one with %q", err, test.want)
			}
		})
	}
}

func FuzzExtract(f *testing.F) {
	f.Add(sample)
	f.Add("```sh host=\"a b\" file=x\n```")
	f.Fuzz(func(t *testing.T, text string) {
		blocks, err := Extract(text)
		if err != nil {
			return
		}
		for _, b := range blocks {
			if b.Host == "" || b.Line < 1 {
				t.Errorf("a block without a machine or a line: %+v", b)
			}
		}
	})
}

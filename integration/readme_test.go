package integration

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/warrenmesh/warren/integration/daemon"
	"github.com/warrenmesh/warren/integration/guide"
	"github.com/warrenmesh/warren/integration/netns"
	"github.com/warrenmesh/warren/integration/origins"
	"github.com/warrenmesh/warren/integration/proc"
	"github.com/warrenmesh/warren/integration/require"
)

// TestReadme runs the fenced blocks of README.md that name a host (package
// guide has the convention), on these machines:
//
//	edge     203.0.113.10, 2001:db8:e::10
//	private  10.0.0.2 in a private network, whose web server is 10.0.0.10:80
//	         and answers "hello from the private network"; the internet
//	         cannot reach it
//	client   198.51.100.10, somewhere in the internet
//	source   a checkout of this repository, with Go and without a network
//
// Each but the last has an empty home directory and warren on its PATH, and
// its shell is an ordinary person's; sudo is there and does nothing.
func TestReadme(t *testing.T) {
	w := daemon.Find(t)
	text, err := os.ReadFile("../README.md")
	if os.IsNotExist(err) {
		require.Missing(t, "README.md, which is not written yet")
	} else if err != nil {
		t.Fatal(err)
	}
	blocks, err := guide.Extract(string(text))
	if err != nil {
		t.Fatalf("README.md: %v", err)
	}
	for tool, pkg := range map[string]string{"bash": "bash", "curl": "curl", "dig": "bind9-dnsutils"} {
		require.Tool(t, tool, pkg)
	}
	world := newWorld(t)
	origins.Nginx(t, world.berlin, origins.NginxConfig{
		Addr:  netip.AddrPortFrom(origin, 80),
		Files: map[string]string{"index.html": "hello from the private network\n"},
	})
	machines := map[string]guide.Machine{}
	for name, host := range map[string]*netns.Host{"edge": world.edge, "private": world.berlin1, "client": world.client} {
		machines[name] = readmeMachine(t, w, host)
	}
	machines["source"] = sourceMachine(t, world.client)
	runner := guide.Runner{Machines: machines, Logf: t.Logf}
	if err := runner.Run(t.Context(), blocks); err != nil {
		t.Fatalf("README.md: %v", err)
	}
}

// sourceMachine has a directory in which the repository's own files appear,
// and whatever a block builds there stays out of the repository.
func sourceMachine(t *testing.T, host *netns.Host) guide.Machine {
	t.Helper()
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(root)
	if err != nil {
		t.Fatal(err)
	}
	home := t.TempDir()
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") || strings.HasPrefix(e.Name(), "warren") { // built things
			continue
		}
		if err := os.Symlink(filepath.Join(root, e.Name()), filepath.Join(home, e.Name())); err != nil {
			t.Fatal(err)
		}
	}
	env := []string{"GOFLAGS=-mod=readonly -buildvcs=false", "GOPROXY=off"}
	for _, name := range []string{"GOCACHE", "GOMODCACHE", "GOPATH"} {
		value := proc.Must(t, host, proc.Spec{Path: require.Tool(t, "go", "golang"), Args: []string{"env", name}})
		env = append(env, name+"="+strings.TrimSpace(value))
	}
	return guide.Machine{Place: host, Home: home, Env: env}
}

func readmeMachine(t *testing.T, w daemon.Warren, host *netns.Host) guide.Machine {
	t.Helper()
	home, bin := netns.Directory(t, "home"), netns.Directory(t, "bin")
	if err := os.Symlink(w.Path, filepath.Join(bin, "warren")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(bin, "sudo"), []byte("#!/bin/sh\nexec \"$@\"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	netns.Give(t, bin)
	attr, _, _ := netns.Ordinary()
	return guide.Machine{
		Place: host, Home: home,
		Env:  []string{"PATH=" + bin + ":" + os.Getenv("PATH"), "XDG_RUNTIME_DIR=", "XDG_STATE_HOME=", "TERM=dumb"},
		Spec: proc.Spec{Attr: attr},
	}
}

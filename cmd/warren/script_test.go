package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"go.uber.org/goleak"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/warrenmesh/warren/integration/require"
)

// leakChecked fails a run that leaves goroutines behind.
type leakChecked struct{ *testing.M }

func (m leakChecked) Run() int {
	code := m.M.Run()
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

func TestMain(m *testing.M) {
	testscript.Main(leakChecked{m}, map[string]func(){"warren": main})
}

// TestScripts runs the commands as a person does. Beside testscript's own
// commands a script has those of scriptCommands.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Deadline:            time.Now().Add(4 * time.Minute),
		Setup: func(env *testscript.Env) error {
			env.Values["T"] = env.T()
			env.Values["daemons"] = &daemons{byName: map[string]*background{}}
			env.Values["minted"] = new(minted)
			env.Setenv("HOME", filepath.Join(env.WorkDir, "home"))
			return nil
		},
		Cmds: scriptCommands,
	})
}

var scriptCommands = map[string]func(ts *testscript.TestScript, neg bool, args []string){
	"daemon":   cmdDaemon,
	"ends":     cmdEnds,
	"exits":    cmdExits,
	"fill":     cmdFill,
	"freeport": cmdFreePort,
	"get":      cmdGet,
	"hidden":   cmdHidden,
	"hold":     cmdHold,
	"keys":     cmdKeys,
	"manager":  cmdManager,
	"mint":     cmdMint,
	"needs":    cmdNeeds,
	"open":     cmdOpen,
	"serve":    cmdServe,
	"signal":   cmdSignal,
	"waitlog":  cmdWaitLog,
}

// trace is what no operator should ever see.
var trace = regexp.MustCompile(`panic:|goroutine \d+|\.go:\d+ \+0x`)

// cmdExits runs a program and checks its exit code: exits 2 warren edge run.
// What it says on standard error is never a stack trace, and a failure says
// something, in lines of lower case, and does not dump the usage.
func cmdExits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE PROGRAM ARGS...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	got := 0
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		got = exit.ExitCode()
	case err != nil:
		ts.Fatalf("%v", err)
	}
	stderr := ts.ReadFile("stderr")
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
	if trace.MatchString(stderr) {
		ts.Fatalf("a stack trace for an operator")
	}
	if want == 0 {
		return
	}
	if strings.TrimSpace(stderr) == "" && ts.ReadFile("stdout") == "" {
		ts.Fatalf("it failed without a word")
	}
	if strings.Contains(stderr, "Usage:") || strings.Contains(stderr, "Flags:") {
		ts.Fatalf("the usage was dumped")
	}
	for line := range strings.Lines(stderr) {
		said, ours := strings.CutPrefix(line, "warren: ")
		if ours && strings.ToLower(said[:1]) != said[:1] {
			ts.Fatalf("a message that does not begin in lower case: %q", line)
		}
	}
}

// cmdFill replaces $NAME in files by the script's variables.
func cmdFill(ts *testscript.TestScript, _ bool, args []string) {
	for _, name := range args {
		text := os.Expand(ts.ReadFile(name), func(key string) string {
			value := ts.Getenv(key)
			if value == "" {
				ts.Fatalf("%s needs $%s, which is not set", name, key)
			}
			return value
		})
		ts.Check(os.WriteFile(ts.MkAbs(name), []byte(text), 0o644))
	}
}

// cmdFreePort sets each variable to a port that is free for TCP and UDP.
func cmdFreePort(ts *testscript.TestScript, _ bool, args []string) {
	for _, name := range args {
		ts.Setenv(name, strconv.Itoa(freePort(ts)))
	}
}

func freePort(ts *testscript.TestScript) int {
	for range 100 {
		tcp, err := net.Listen("tcp", "127.0.0.1:0")
		ts.Check(err)
		port := tcp.Addr().(*net.TCPAddr).Port
		udp, err := net.ListenPacket("udp", tcp.Addr().String())
		ts.Check(tcp.Close())
		if err == nil {
			ts.Check(udp.Close())
			return port
		}
	}
	ts.Fatalf("no port is free for TCP and UDP")
	return 0
}

// cmdHold takes ports until the script ends, and answers nothing on them:
// hold tcp 5432.
func cmdHold(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: hold tcp|udp PORT")
	}
	addr := net.JoinHostPort("127.0.0.1", args[1])
	if args[0] == "tcp" {
		ln, err := net.Listen("tcp", addr)
		ts.Check(err)
		ts.Defer(func() { _ = ln.Close() })
		return
	}
	conn, err := net.ListenPacket("udp", addr)
	ts.Check(err)
	ts.Defer(func() { _ = conn.Close() })
}

// cmdKeys makes a key pair for each name: NAME.key, and $NAME is its public
// key.
func cmdKeys(ts *testscript.TestScript, _ bool, args []string) {
	for _, name := range args {
		key, err := wgtypes.GeneratePrivateKey()
		ts.Check(err)
		ts.Check(os.WriteFile(ts.MkAbs(name+".key"), []byte(key.String()+"\n"), 0o600))
		ts.Setenv(name, key.PublicKey().String())
	}
}

// cmdNeeds skips the script where the machine lacks a program, or fails it
// where nothing may be skipped: needs wg.
func cmdNeeds(ts *testscript.TestScript, _ bool, args []string) {
	for _, name := range args {
		lack := ""
		switch name {
		case "namespaces":
			if err := exec.Command("unshare", "-rn", "true").Run(); err != nil {
				lack = "the right to make a network namespace"
			}
		case "lowports":
			lack = dropRights(ts)
		default:
			if _, ok := require.Find(name); !ok {
				lack = fmt.Sprintf("the program %q", name)
			}
		}
		switch {
		case lack == "":
		case require.All():
			ts.Fatalf("%s=1 and this machine lacks %s", require.EnvAll, lack)
		default:
			ts.Value("T").(testscript.T).Skip("needs " + lack)
		}
	}
}

// dropRights sets $UNPRIVILEGED to a command before which another one may not
// have a port below 1024, and returns what this machine lacks for that.
func dropRights(ts *testscript.TestScript) (lack string) {
	text, err := os.ReadFile("/proc/sys/net/ipv4/ip_unprivileged_port_start")
	if start, parse := strconv.Atoi(strings.TrimSpace(string(text))); err == nil && parse == nil && start <= 80 {
		return "ports that need a right: every user may have port 80 here"
	}
	drop := "env"
	if os.Geteuid() == 0 {
		drop = "setpriv --inh-caps=-net_bind_service --bounding-set=-net_bind_service"
		if _, ok := require.Find("setpriv"); !ok {
			return `the program "setpriv"`
		}
	}
	ts.Setenv("UNPRIVILEGED", drop)
	return ""
}

// cmdServe greets on a port of this machine until the script ends; with
// nothing to say it waits for the client to end: serve PORT TEXT.
func cmdServe(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: serve PORT TEXT")
	}
	ln, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", args[0]))
	ts.Check(err)
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer conn.Close()
				if args[1] != "" {
					_, _ = io.WriteString(conn, args[1])
					return
				}
				_, _ = io.Copy(io.Discard, conn)
			})
		}
	})
	ts.Defer(func() { _ = ln.Close(); serving.Wait() })
}

// cmdGet connects to an app and wants to read a text: get PORT TEXT. With "!"
// nobody may accept.
func cmdGet(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: get PORT TEXT")
	}
	conn, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", args[0]))
	if neg {
		if err == nil {
			_ = conn.Close()
			ts.Fatalf("port %s accepts connections", args[0])
		}
		return
	}
	ts.Check(err)
	defer conn.Close()
	ts.Check(conn.SetDeadline(time.Now().Add(10 * time.Second)))
	got, err := io.ReadAll(conn)
	if err != nil || string(got) != args[1] {
		ts.Fatalf("port %s said %q, %v, want %q", args[0], got, err, args[1])
	}
}

// cmdOpen holds a connection to an app open until the script ends, and waits
// until it has gone through: open PORT.
func cmdOpen(ts *testscript.TestScript, _ bool, args []string) {
	conn, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", args[0]))
	ts.Check(err)
	ts.Defer(func() { _ = conn.Close() })
}

package main

import (
	"bytes"
	"net"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// patience is how long a script waits for a daemon on a busy machine; it ends
// a test that would fail anyhow.
const patience = 30 * time.Second

// background is a daemon of a script.
type background struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
	err  error         // how; read after done
}

// daemons are those of one script, by name.
type daemons struct {
	mu     sync.Mutex
	byName map[string]*background
}

func (d *daemons) get(ts *testscript.TestScript, name string) *background {
	d.mu.Lock()
	defer d.mu.Unlock()
	b := d.byName[name]
	if b == nil {
		ts.Fatalf("there is no daemon %q", name)
	}
	return b
}

// cmdDaemon starts a program that goes on while the script does; standard
// error goes to NAME.log and standard output to NAME.out:
// daemon edge warren edge run -c edge.toml.
func cmdDaemon(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: daemon NAME PROGRAM ARGS...")
	}
	all := ts.Value("daemons").(*daemons)
	// The environment of the script finds the program that is tested.
	cmd := exec.Command("sh", append([]string{"-c", `exec "$@"`, "sh"}, args[1:]...)...)
	cmd.Dir, cmd.Env = ts.MkAbs("."), environment(ts)
	stdout, err := os.Create(ts.MkAbs(args[0] + ".out"))
	ts.Check(err)
	defer stdout.Close()
	stderr, err := os.Create(ts.MkAbs(args[0] + ".log"))
	ts.Check(err)
	defer stderr.Close()
	cmd.Stdout, cmd.Stderr = stdout, stderr
	ts.Check(cmd.Start())
	b := &background{cmd: cmd, done: make(chan struct{})}
	go func() { // ends with the process, for which the script waits
		b.err = cmd.Wait()
		close(b.done)
	}()
	all.mu.Lock()
	all.byName[args[0]] = b
	all.mu.Unlock()
	ts.Defer(func() {
		_ = cmd.Process.Kill()
		<-b.done
	})
}

// environment is what a script's programs see.
func environment(ts *testscript.TestScript) []string {
	var env []string
	for _, key := range []string{"PATH", "HOME", "TMPDIR", "WORK", "WARREN_SOCKET", "WARREN_STATE_DIR", "WARREN_TOKEN", "NOTIFY_SOCKET"} {
		if value := ts.Getenv(key); value != "" {
			env = append(env, key+"="+value)
		}
	}
	return env
}

var signalNames = map[string]syscall.Signal{"TERM": syscall.SIGTERM, "INT": syscall.SIGINT, "HUP": syscall.SIGHUP}

// cmdSignal sends a signal to a daemon: signal TERM edge.
func cmdSignal(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 2 || signalNames[args[0]] == 0 {
		ts.Fatalf("usage: signal TERM|INT|HUP NAME")
	}
	ts.Check(ts.Value("daemons").(*daemons).get(ts, args[1]).cmd.Process.Signal(signalNames[args[0]]))
}

// cmdEnds waits until a daemon ends and checks its exit code: ends edge 0.
func cmdEnds(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: ends NAME CODE")
	}
	want, err := strconv.Atoi(args[1])
	ts.Check(err)
	b := ts.Value("daemons").(*daemons).get(ts, args[0])
	limit := time.NewTimer(patience)
	defer limit.Stop()
	select {
	case <-b.done:
	case <-limit.C:
		ts.Fatalf("%s does not end:\n%s", args[0], ts.ReadFile(args[0]+".log"))
	}
	said := ts.ReadFile(args[0] + ".log")
	if got := b.cmd.ProcessState.ExitCode(); got != want {
		ts.Fatalf("%s ended with exit code %d, want %d:\n%s", args[0], got, want, said)
	}
	if trace.MatchString(said) {
		ts.Fatalf("%s wrote a stack trace:\n%s", args[0], said)
	}
}

// cmdWaitLog waits until a file that a daemon writes has a line that matches:
// waitlog edge.log 'edge ready'.
func cmdWaitLog(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: waitlog FILE REGEXP")
	}
	want, err := regexp.Compile("(?m)" + args[1])
	ts.Check(err)
	limit := time.NewTimer(patience)
	defer limit.Stop()
	poll := time.NewTicker(20 * time.Millisecond)
	defer poll.Stop()
	for {
		text, _ := os.ReadFile(ts.MkAbs(args[0]))
		if want.Match(text) {
			return
		}
		if trace.Match(text) {
			ts.Fatalf("%s has a stack trace:\n%s", args[0], text)
		}
		select {
		case <-poll.C:
		case <-limit.C:
			ts.Fatalf("%s never said %q:\n%s", args[0], args[1], bytes.TrimSpace(text))
		}
	}
}

// cmdManager stands in for a service manager: it sets NOTIFY_SOCKET and writes
// what daemons say there to a file, until the script ends: manager notify.log.
func cmdManager(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 1 {
		ts.Fatalf("usage: manager FILE")
	}
	socket := &net.UnixAddr{Name: ts.MkAbs("notify.sock"), Net: "unixgram"}
	conn, err := net.ListenUnixgram("unixgram", socket)
	ts.Check(err)
	file, err := os.Create(ts.MkAbs(args[0]))
	ts.Check(err)
	ts.Setenv("NOTIFY_SOCKET", socket.Name)
	var listening sync.WaitGroup
	listening.Go(func() {
		defer file.Close()
		message := make([]byte, 4096)
		for {
			n, err := conn.Read(message)
			if err != nil {
				return
			}
			// One message a line: it has lines of its own.
			_, _ = file.WriteString(strings.Join(strings.Fields(string(message[:n])), " ") + "\n")
		}
	})
	ts.Defer(func() { _ = conn.Close(); listening.Wait() })
}

package integration

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/warrenmesh/warren/connector"
	connectorconfig "github.com/warrenmesh/warren/connector/config"
	"github.com/warrenmesh/warren/edge"
	edgeconfig "github.com/warrenmesh/warren/edge/config"
	"github.com/warrenmesh/warren/integration/daemon"
	"github.com/warrenmesh/warren/integration/proc"
)

// A measured daemon is this test binary in a process of its own: it runs the
// same edge.Run or connector.Run as the real program, and at SIGUSR1 collects
// garbage and prints what is left. The product has no such door.

// envRole makes this binary a daemon or a crowd instead of a test.
const envRole = "WARREN_TEST_ROLE"

const (
	roleDaemon = "daemon" // with the arguments of warren: edge run -c FILE
	roleCrowd  = "crowd"  // see crowd_test.go

	roleRegistry  = "registry"  // with a directory; see registry_test.go
	roleContainer = "container" // with a directory and a command; see container_test.go
)

// playRole is main of a process that is not a test.
func playRole(role string) int {
	if os.Getenv(envProfiles) != "" {
		runtime.MemProfileRate = 4096
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	usr1 := make(chan os.Signal, 1)
	signal.Notify(usr1, syscall.SIGUSR1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		reportMemory(ctx, usr1, os.Stdout)
	}()
	defer func() { stop(); <-done }()
	var err error
	switch {
	case role == roleCrowd:
		err = runCrowd(ctx, os.Stdin)
	case role == roleRegistry && len(os.Args) == 2:
		err = runRegistry(ctx, os.Args[1], os.Stdin, os.Stdout)
	case role == roleContainer && len(os.Args) > 3:
		err = runContained(os.Args[1], os.Args[2:])
	case len(os.Args) == 5 && os.Args[1] == "edge":
		err = runEdge(ctx, os.Args[4])
	case len(os.Args) == 5 && os.Args[1] == "connector":
		err = runConnector(ctx, os.Args[4])
	default:
		err = fmt.Errorf("no part in %q", os.Args)
	}
	if err != nil && !errors.Is(err, context.Canceled) {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func runEdge(ctx context.Context, file string) error {
	hup, reload := make(chan os.Signal, 1), make(chan struct{})
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	done := make(chan struct{})
	defer func() { <-done }()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		defer close(done)
		for {
			select {
			case <-ctx.Done():
				return
			case <-hup:
			}
			select {
			case <-ctx.Done():
				return
			case reload <- struct{}{}:
			}
		}
	}()
	return edge.Run(ctx, edge.Options{
		Load:  func() (*edgeconfig.Config, error) { return edgeconfig.Load(os.Getenv, file) },
		Log:   slog.New(slog.NewTextHandler(os.Stderr, nil)),
		Grace: time.Millisecond, Reload: reload,
	})
}

func runConnector(ctx context.Context, file string) error {
	cfg, err := connectorconfig.Load(os.Getenv, file)
	if err != nil {
		return err
	}
	return connector.Run(ctx, cfg.Spec, connector.Deps{Log: slog.New(slog.NewTextHandler(os.Stderr, nil))})
}

// reportMemory prints a line at each signal, until ctx ends.
func reportMemory(ctx context.Context, signals <-chan os.Signal, w io.Writer) {
	for n := 1; ; n++ {
		select {
		case <-ctx.Done():
			return
		case <-signals:
		}
		// Twice: what a pool holds outlives one collection.
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		if dir := os.Getenv(envProfiles); dir != "" {
			writeProfile(filepath.Join(dir, fmt.Sprintf("heap-%d-%d.pprof", os.Getpid(), n)))
		}
		fmt.Fprintf(w, "memory %d: %d %d %d %d .\n", n, m.HeapInuse, m.StackInuse, residentBytes(), runtime.NumGoroutine())
	}
}

// envProfiles names a directory for heap profiles of what is measured, for who
// wants to know where the memory is: go tool pprof -base.
const envProfiles = "WARREN_TEST_PROFILES"

func writeProfile(path string) {
	file, err := os.Create(path)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return
	}
	defer file.Close()
	if err := pprof.WriteHeapProfile(file); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
}

// residentBytes is VmRSS of this process (proc_pid_status(5), in KiB).
func residentBytes() (rss uint64) {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0
	}
	_, after, _ := strings.Cut(string(status), "VmRSS:")
	fmt.Sscan(after, &rss)
	return rss << 10
}

// measured is a process that reports its memory.
type measured struct {
	process *proc.Process
	asked   int
}

// memory is what a process holds once its garbage is collected, in bytes.
type memory struct{ heap, stack, rss, goroutines int64 }

// inUse is the measure of the issue: HeapInuse + StackInuse.
func (m memory) inUse() int64 { return m.heap + m.stack }

// settled is the least of several samples: packets that are under way at the
// moment of one, a buffer of 64 KiB each, are no flow's and no network's.
func (m *measured) settled(t *testing.T) memory {
	t.Helper()
	least := m.memory(t)
	for range 5 {
		waitFor(t, 300*time.Millisecond)
		if now := m.memory(t); now.inUse() < least.inUse() {
			least = now
		}
	}
	return least
}

func (m *measured) memory(t *testing.T) (now memory) {
	t.Helper()
	m.asked++
	if err := m.process.Signal(syscall.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	line := fmt.Sprintf("memory %d: ", m.asked)
	err := pollFor(t, 20*time.Second, func() error {
		_, after, found := strings.Cut(m.process.Output(), line)
		if !found || !strings.Contains(after, " .\n") {
			return errors.New("the process has not reported its memory")
		}
		_, err := fmt.Sscan(after, &now.heap, &now.stack, &now.rss, &now.goroutines)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return now
}

// measuring is this binary in the place of warren, for daemon's configs.
func measuring() (program daemon.Warren, env []string) {
	return daemon.Warren{Path: "/proc/self/exe"}, []string{envRole + "=" + roleDaemon, "GOMAXPROCS=2"}
}

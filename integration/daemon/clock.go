package daemon

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/warrenmesh/warren/integration/netns"
	"github.com/warrenmesh/warren/integration/require"
)

// envClock names the file of a Clock to a program that WithClock built.
const envClock = "WARREN_TEST_CLOCK"

// What WithClock changes in the standard library: what time.Now reads is ahead
// by what the first sixteen bytes of a file say at that moment, of the wall
// clock in seconds, of the monotonic one in nanoseconds. Timers go by the
// machine's.
var clockChanges = []struct{ from, to string }{
	{"func Now() Time {\n\tsec, nsec, mono := runtimeNow()\n", "func Now() Time {\n\tsec, nsec, mono := runtimeNow()\n\tsec += testClock(0)\n\tmono += testClock(1)\n"},
	{"subMono(runtimeNano()-startNano, t.ext)", "subMono(runtimeNano()+testClock(1)-startNano, t.ext)"}, // Since
	{"subMono(t.ext, runtimeNano()-startNano)", "subMono(t.ext, runtimeNano()+testClock(1)-startNano)"}, // Until
}

const clockFile = `package time

import (
	"sync"
	"sync/atomic"
	"syscall"
	"unsafe"
)

var testClockPage = sync.OnceValue(func() *[2]int64 {
	path, ok := syscall.Getenv("` + envClock + `")
	if !ok {
		return new([2]int64)
	}
	fd, err := syscall.Open(path, syscall.O_RDONLY, 0)
	if err != nil {
		panic("opening the test's clock: " + err.Error())
	}
	page, err := syscall.Mmap(fd, 0, 16, syscall.PROT_READ, syscall.MAP_SHARED)
	if err != nil {
		panic("mapping the test's clock: " + err.Error())
	}
	return (*[2]int64)(unsafe.Pointer(&page[0]))
})

func testClock(i int) int64 { return atomic.LoadInt64(&testClockPage()[i]) }
`

// WithClock builds the program once more, with a wall clock that a Clock
// moves. root is the repository's. The first build on a machine compiles the
// standard library again (30 s on two cores), later ones find it in Go's cache. It is
// never built with the race detector, which watches the program proper.
func (w Warren) WithClock(tb require.TB, root string) Warren {
	tb.Helper()
	dir := filepath.Dir(w.Path)
	out := filepath.Join(dir, "warren-clock")
	defer lock(tb, filepath.Join(dir, "clock.lock"))()
	if _, err := os.Stat(out); err == nil {
		return Warren{Path: out}
	}
	goroot, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		tb.Fatalf("asking go for its root: %v", err)
	}
	source := filepath.Join(strings.TrimSpace(string(goroot)), "src", "time")
	text, err := os.ReadFile(filepath.Join(source, "time.go"))
	if err != nil {
		tb.Fatalf("%v", err)
	}
	moved := string(text)
	for _, change := range clockChanges {
		if !strings.Contains(moved, change.from) {
			tb.Fatalf("the time package of %s is not as WithClock knows it: no %q", runtime.Version(), change.from)
		}
		moved = strings.ReplaceAll(moved, change.from, change.to)
	}
	replace := map[string]string{}
	for name, text := range map[string]string{"time.go": moved, "test_clock.go": clockFile} {
		replaced := filepath.Join(dir, "overlay-"+name)
		writeFile(tb, replaced, text)
		replace[filepath.Join(source, name)] = replaced
	}
	overlay, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		tb.Fatalf("%v", err)
	}
	list := filepath.Join(dir, "overlay.json")
	writeFile(tb, list, string(overlay))
	// A build that is cut short leaves nothing that the next test would take.
	cmd := exec.CommandContext(tb.Context(), "go", "build", "-overlay", list, "-o", out+".new", "./cmd/warren")
	cmd.Dir = root
	if printed, err := cmd.CombinedOutput(); err != nil {
		tb.Fatalf("building cmd/warren with a clock: %v\n%s", err, strings.TrimSpace(string(printed)))
	}
	if err := os.Rename(out+".new", out); err != nil {
		tb.Fatalf("%v", err)
	}
	return Warren{Path: out}
}

// lock keeps tests that run at the same time from one another until unlock.
func lock(tb require.TB, path string) (unlock func()) {
	tb.Helper()
	file, err := os.Create(path)
	if err == nil {
		err = unix.Flock(int(file.Fd()), unix.LOCK_EX)
	}
	if err != nil {
		tb.Fatalf("locking %q: %v", path, err)
	}
	return func() { file.Close() }
}

// Clock is how far the clocks of the programs that were given its Env are
// ahead of the machine's. It works with the program that WithClock builds.
type Clock struct {
	tb     require.TB
	file   *os.File
	passed time.Duration
}

// NewClock makes a wall clock that is ahead by that much (behind, if
// negative), in whole seconds.
func NewClock(tb require.TB, ahead time.Duration) *Clock {
	tb.Helper()
	dir := netns.Directory(tb, "clock")
	file, err := os.OpenFile(filepath.Join(dir, "clock"), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		tb.Fatalf("%v", err)
	}
	tb.Cleanup(func() { file.Close() })
	netns.Give(tb, dir)
	c := &Clock{tb: tb, file: file}
	c.write(ahead, 0)
	return c
}

// Set steps the wall clock, also of programs that run.
func (c *Clock) Set(ahead time.Duration) {
	c.tb.Helper()
	c.write(ahead+c.passed, c.passed)
}

// Pass lets time pass that nobody waits for: both clocks go on by that much,
// as they do in a machine that was suspended.
func (c *Clock) Pass(d time.Duration) {
	c.tb.Helper()
	c.passed += d
	c.write(c.passed, c.passed)
}

func (c *Clock) write(wall, monotonic time.Duration) {
	c.tb.Helper()
	page := binary.NativeEndian.AppendUint64(nil, uint64(wall/time.Second))
	page = binary.NativeEndian.AppendUint64(page, uint64(monotonic))
	if _, err := c.file.WriteAt(page, 0); err != nil {
		c.tb.Fatalf("setting a clock: %v", err)
	}
}

// Env is the environment of a program that is to have this clock.
func (c *Clock) Env() []string { return []string{fmt.Sprintf("%s=%s", envClock, c.file.Name())} }

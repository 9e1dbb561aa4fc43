package netns

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/warrenmesh/warren/integration/require"
)

// How the re-run of the test binary learns what it is. The variables are read
// here and by Available alone.
const (
	envStage = "WARREN_NETNS_STAGE" // "", stageProbe or stageInside
	envWhy   = "WARREN_NETNS_WHY"   // why there are no namespaces
	envMode  = "WARREN_NETNS_MODE"  // modeUser or modeRoot, with the outer uid: "user/1000"

	stageProbe  = "probe"
	stageInside = "inside"
)

// The two ways to own network namespaces.
const (
	modeUser = "user" // in a user namespace of our own: no privilege needed
	modeRoot = "root" // as root of the machine
)

// Main is the body of a TestMain: os.Exit(netns.Main(m.Run)).
//
// It runs the test binary again inside namespaces of its own (network, mount,
// process ids, and users where the machine allows it) and calls run there.
// The re-run is the first process of its process namespace: when it ends,
// however it ends, the kernel kills whatever it left behind and takes the
// network namespaces, their links and the mounts away. Where the machine
// allows none of this, run is called in place, and Available says why.
func Main(run func() int) int {
	switch os.Getenv(envStage) {
	case stageProbe:
		if err := settle(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		if err := tryTwoHosts(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return 0
	case stageInside:
		if err := settle(); err != nil {
			fmt.Fprintln(os.Stderr, "netns:", err)
			return 1
		}
		return run()
	}
	// The death signal below follows the thread, so this goroutine keeps it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var why []string
	for _, mode := range []string{modeUser, modeRoot} {
		if mode == modeRoot && os.Getuid() != 0 {
			why = append(why, "not root")
			continue
		}
		var stderr bytes.Buffer
		probe := command(mode, stageProbe)
		probe.Stderr = &stderr
		if err := probe.Run(); err != nil {
			why = append(why, fmt.Sprintf("as %s: %v %s", mode, err, strings.TrimSpace(stderr.String())))
			continue
		}
		return runInside(mode)
	}
	os.Setenv(envWhy, strings.Join(why, "; "))
	return run()
}

// Available reports whether hosts can be made, and if not, why.
func Available() (ok bool, why string) {
	if os.Getenv(envStage) == stageInside {
		return true, ""
	}
	if why = os.Getenv(envWhy); why == "" {
		why = "TestMain did not call netns.Main"
	}
	return false, why
}

// Require ends the test as skipped (or failed, see package require) where no
// hosts can be made.
func Require(tb require.TB) {
	tb.Helper()
	if ok, why := Available(); !ok {
		require.Missing(tb, "network namespaces (an unprivileged user namespace or root, and Debian package iproute2): %s", why)
	}
}

// command is this very program again, in new namespaces.
func command(mode, stage string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), envStage+"="+stage, fmt.Sprintf("%s=%s/%d", envMode, mode, os.Getuid()))
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS | syscall.CLONE_NEWPID,
		Pdeathsig:  syscall.SIGKILL,
	}
	if mode == modeUser {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = identity("/proc/self/uid_map", os.Getuid())
		cmd.SysProcAttr.GidMappings = identity("/proc/self/gid_map", os.Getgid())
		cmd.SysProcAttr.GidMappingsEnableSetgroups = os.Getuid() == 0
	}
	return cmd
}

// identity maps ids into the new user namespace: root takes every id that it
// has here along, unchanged; anybody else may map only themselves, to root.
func identity(file string, id int) []syscall.SysProcIDMap {
	if os.Getuid() != 0 {
		return []syscall.SysProcIDMap{{ContainerID: 0, HostID: id, Size: 1}}
	}
	var maps []syscall.SysProcIDMap
	data, _ := os.ReadFile(file) // none: no maps, and the probe fails saying so
	lines := bufio.NewScanner(bytes.NewReader(data))
	for lines.Scan() {
		var first, outer, count int
		if _, err := fmt.Sscan(lines.Text(), &first, &outer, &count); err == nil {
			maps = append(maps, syscall.SysProcIDMap{ContainerID: first, HostID: first, Size: count})
		}
	}
	return maps
}

// runInside runs the test binary in namespaces, passes signals on (go test
// asks for stack traces with SIGQUIT), and returns its exit code. Temporary
// files are made in a directory that goes away even if the tests panic.
func runInside(mode string) int {
	cmd := command(mode, stageInside)
	dir, err := os.MkdirTemp("", "warren-test-")
	if err == nil {
		err = os.Chmod(dir, 0o777|os.ModeSticky) // as /tmp: ordinary people make files in it too
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "netns: making a temporary directory:", err)
		return 1
	}
	defer os.RemoveAll(dir)
	cmd.Env = append(cmd.Env, "TMPDIR="+dir)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGQUIT)
	defer signal.Stop(signals)
	if err := cmd.Start(); err != nil {
		fmt.Fprintln(os.Stderr, "netns: starting the test binary again:", err)
		return 1
	}
	over := make(chan struct{})
	passed := make(chan struct{})
	go func() {
		defer close(passed)
		for {
			select {
			case sig := <-signals:
				cmd.Process.Signal(sig)
			case <-over:
				return
			}
		}
	}()
	err = cmd.Wait()
	close(over)
	<-passed
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		if code := exit.ExitCode(); code >= 0 {
			return code
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "netns: the test binary ended:", err)
		return 1
	}
	return 0
}

// settle makes the new namespaces liveable: private mounts, /proc of the new
// process ids, an empty /run to write in, the loopback up, and every port
// free for everybody.
func settle() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("making mounts private: %w", err)
	}
	// Refused inside some containers. The old /proc serves too: it only shows
	// process ids of outside.
	_ = unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
	if err := unix.Mount("tmpfs", "/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755"); err != nil {
		return fmt.Errorf("mounting an empty /run: %w", err)
	}
	if err := os.Mkdir("/run/sshd", 0o755); err != nil { // sshd's privilege separation wants it
		return err
	}
	return settleNetwork()
}

// settleNetwork readies the network namespace of the calling thread.
func settleNetwork() error {
	if err := ip("link set lo up"); err != nil {
		return err
	}
	// Origins run as ordinary people here and listen on their usual ports.
	if err := sysctl("net/ipv4/ip_unprivileged_port_start", "0"); err != nil {
		return err
	}
	if _, err := os.Stat("/proc/sys/net/ipv6"); err != nil {
		return nil // a kernel without IPv6
	}
	// Looking for duplicate addresses takes a second in which IPv6 is mute.
	return errors.Join(
		sysctl("net/ipv6/conf/all/accept_dad", "0"),
		sysctl("net/ipv6/conf/default/accept_dad", "0"))
}

// tryTwoHosts makes what every test makes, once: the proof that it can.
func tryTwoHosts() (err error) {
	lab := &Lab{hosts: map[string]*Host{}}
	defer lab.close()
	a, err := lab.newHost("a")
	if err != nil {
		return err
	}
	b, err := lab.newHost("b")
	if err != nil {
		return err
	}
	_, err = lab.newLink(a, "eth0", b, "eth0", 1500)
	return err
}

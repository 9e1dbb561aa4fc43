package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/warrenmesh/warren/integration/daemon"
	"github.com/warrenmesh/warren/integration/netns"
	"github.com/warrenmesh/warren/integration/proc"
)

// TestKilledLeavesNothing kills a run that is in the middle of a measurement,
// and looks for what it had started and written.
func TestKilledLeavesNothing(t *testing.T) {
	netns.Require(t)
	binary := daemon.Find(t).Path
	tmp := t.TempDir()
	before := processes(t)
	cmd := exec.Command("/proc/self/exe", "-warren", binary, "-cases", "bulk-up-1", "-contenders", "warren", "-duration", "1m")
	for _, entry := range os.Environ() {
		if !strings.HasPrefix(entry, "WARREN_NETNS_") && !strings.HasPrefix(entry, "TMPDIR=") {
			cmd.Env = append(cmd.Env, entry)
		}
	}
	cmd.Env = append(cmd.Env, envRole+"="+roleMain, "TMPDIR="+tmp)
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	cmd.WaitDelay = time.Second
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Process.Kill()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	err := proc.Poll(ctx, func() error {
		for _, line := range processes(t) {
			if strings.Contains(line, `"kind":"bulk"`) {
				return nil // the load, which is the last to start
			}
		}
		return errors.New("there is no load")
	})
	if err != nil {
		cmd.Process.Kill()
		cmd.Wait()
		t.Fatalf("waiting for a measurement: %v\n%s", err, &output)
	}
	if err := cmd.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	err = proc.Poll(ctx, func() error {
		for pid, line := range processes(t) {
			if _, was := before[pid]; !was {
				return fmt.Errorf("process %s still runs: %s", pid, line)
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	left, err := os.ReadDir(tmp)
	if err != nil || len(left) > 0 {
		t.Errorf("files are left: %v %v", left, err)
	}
}

// processes is every process that this test can see, with its command line.
// Those that have ended and not been waited for are none.
func processes(t *testing.T) map[string]string {
	t.Helper()
	all := map[string]string{}
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range dirs {
		if line, err := os.ReadFile(filepath.Join(dir, "cmdline")); err == nil && len(line) > 0 {
			all[filepath.Base(dir)] = string(bytes.ReplaceAll(line, []byte{0}, []byte{' '}))
		}
	}
	return all
}

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/warrenmesh/warren/integration/proc"
)

// usage is what the kernel has booked on some processes.
type usage struct {
	cpu  float64 // seconds of user and system time, children that ended included
	rss  int64   // bytes that are resident now
	peak int64   // bytes that were, at the most
}

// ticks is the unit of times in /proc/PID/stat: USER_HZ, which is 100 on every
// architecture that Go runs on.
const ticks = 100

// account reads what processes, and all that they started, have used. Each
// process of ours leads a group, so its descendants are found by it.
func account(processes []*proc.Process) (sum usage, err error) {
	if len(processes) == 0 {
		return usage{}, nil
	}
	groups := map[int]bool{}
	for _, p := range processes {
		select {
		case <-p.Done():
			return usage{}, fmt.Errorf("%s ended: %s", p.Name(), lastLine(p.Output()))
		default:
			groups[p.Pid()] = true
		}
	}
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return usage{}, err
	}
	found := 0
	for _, path := range stats {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // it ended
		}
		group, cpu, rss, err := parseStat(string(text))
		if err != nil {
			return usage{}, fmt.Errorf("reading %s: %w", path, err)
		}
		if !groups[group] {
			continue
		}
		found++
		sum.cpu += cpu
		sum.rss += rss
		sum.peak += peakOf(filepath.Join(filepath.Dir(path), "status"))
	}
	if found < len(processes) {
		// An old /proc shows the process ids of outside; see netns.
		return usage{}, errors.New("the processes are not in /proc")
	}
	return sum, nil
}

// parseStat reads a line of /proc/PID/stat (proc_pid_stat(5)).
func parseStat(line string) (group int, cpu float64, rss int64, err error) {
	// The name, in brackets, may hold anything.
	_, after, found := cutLast(line, ")")
	fields := strings.Fields(after)
	const state = 3 // the number of the first field here
	if !found || len(fields) < 24-state+1 {
		return 0, 0, 0, fmt.Errorf("there are too few fields in %q", line)
	}
	number := func(n int) int64 {
		v, parseErr := strconv.ParseInt(fields[n-state], 10, 64)
		err = errors.Join(err, parseErr)
		return v
	}
	group = int(number(5))
	cpu = float64(number(14)+number(15)+number(16)+number(17)) / ticks
	rss = number(24) * int64(os.Getpagesize())
	return group, cpu, rss, err
}

func cutLast(s, sep string) (before, after string, found bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}

// peakOf reads VmHWM of /proc/PID/status (proc_pid_status(5), in KiB).
func peakOf(path string) (peak int64) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	_, after, _ := strings.Cut(string(text), "VmHWM:")
	fmt.Sscan(after, &peak)
	return peak << 10
}

// lastLine is the end of what a program printed.
func lastLine(text string) string {
	text = strings.TrimSpace(text)
	return text[strings.LastIndexByte(text, '\n')+1:]
}

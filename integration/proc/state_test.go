package proc

import (
	"os"
	"strconv"
	"strings"
)

// stateOf is the state letter of a process (R, S, Z…), empty if there is none.
func stateOf(pid int) string {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return ""
	}
	// The name, in parentheses, may hold anything: the state follows the last one.
	after := string(stat[strings.LastIndexByte(string(stat), ')')+1:])
	return strings.Fields(after)[0]
}

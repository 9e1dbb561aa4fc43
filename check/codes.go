package check

import (
	"fmt"
	"strconv"
	"strings"
)

// codes are the status codes that pass, as ranges.
type codes []codeRange

type codeRange struct{ first, last int }

// maxCodes bounds how many ranges there are.
const maxCodes = 32

// parseCodes reads codes ("301"), classes ("2xx") and ranges ("200-204"). An
// error says which of them is wrong, and what to write.
func parseCodes(list []string) (codes, error) {
	if len(list) > maxCodes {
		return nil, fmt.Errorf("at most %d; write ranges", maxCodes)
	}
	out := make(codes, 0, len(list))
	for _, s := range list {
		r, ok := parseCode(s)
		if !ok {
			return nil, fmt.Errorf(`%s is none: write codes from 100 to 599, as in "301", "2xx" or "200-204"`, quote([]byte(s)))
		}
		out = append(out, r)
	}
	return out, nil
}

func parseCode(s string) (codeRange, bool) {
	if class, ok := strings.CutSuffix(strings.ToLower(s), "xx"); ok {
		if len(class) != 1 || class[0] < '1' || class[0] > '5' {
			return codeRange{}, false
		}
		first := int(class[0]-'0') * 100
		return codeRange{first, first + 99}, true
	}
	from, to, isRange := strings.Cut(s, "-")
	first, ok := parseStatus(from)
	last := first
	if isRange && ok {
		last, ok = parseStatus(to)
	}
	return codeRange{first, last}, ok && first <= last
}

func parseStatus(s string) (int, bool) {
	if len(s) != 3 || s[0] < '1' || s[0] > '5' {
		return 0, false
	}
	code, err := strconv.Atoi(s)
	return code, err == nil
}

func (c codes) has(code int) bool {
	for _, r := range c {
		if r.first <= code && code <= r.last {
			return true
		}
	}
	return false
}

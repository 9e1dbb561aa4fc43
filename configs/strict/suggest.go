package strict

import (
	"fmt"
	"slices"
	"strings"
)

// listed is how many legal words a hint lists at most.
const listed = 16

// Suggest returns a hint for a word that is none of known: `did you mean "x"?`
// where one is close, else the whole list where it is short, else "".
func Suggest(word string, known []string) string {
	best, least := "", 1+min(len(word)/4, 2)
	lower := strings.ToLower(word)
	for _, k := range known {
		if d := edits(lower, strings.ToLower(k)); d < least || d == least && best == "" {
			best, least = k, d
		}
	}
	switch {
	case best != "" && strings.EqualFold(best, word):
		return fmt.Sprintf("did you mean %q? upper and lower case differ", best)
	case best != "":
		return fmt.Sprintf("did you mean %q?", best)
	case len(known) == 0:
		return ""
	case len(known) <= listed:
		sorted := slices.Sorted(slices.Values(known))
		return "known here: " + strings.Join(sorted, ", ")
	}
	return ""
}

// edits is the number of insertions, deletions, replacements and swaps of
// neighbours (optimal string alignment) between a and b. Long words count as
// far apart: a typo is not looked for in them.
func edits(a, b string) int {
	const long = 64
	if len(a) > long || len(b) > long {
		return long
	}
	var before, prev, cur [long + 1]int
	for j := 0; j <= len(b); j++ {
		prev[j] = j
	}
	for i := 1; i <= len(a); i++ {
		cur[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			cur[j] = min(prev[j]+1, cur[j-1]+1, prev[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				cur[j] = min(cur[j], before[j-2]+1)
			}
		}
		before, prev = prev, cur
	}
	return prev[len(b)]
}

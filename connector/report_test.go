package connector

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/warrenmesh/warren/edge/wire"
)

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	for text, want := range map[string]float64{
		"0.52 0.58 0.59 1/467 2311\n": 0.52, "12.00 1 1 1/1 1": 12, "": 0, "much": 0, "-1 0 0": 0, "NaN 0 0": 0, "1e300 0 0": 0,
	} {
		file := filepath.Join(dir, "loadavg")
		writeFile(t, file, text, 0o600)
		if got := load(file); got != want {
			t.Errorf("load of %q = %v, want %v", text, got, want)
		}
	}
	if got := load(filepath.Join(dir, "none")); got != 0 {
		t.Errorf("load of nothing = %v", got)
	}
}

// The table holds what a list of everything would, cut to its length.
func TestFailuresAgainstAList(t *testing.T) {
	type kind struct{ destination, result string }
	random := rand.New(rand.NewPCG(1, 2))
	var f failures
	var latest []kind // newest first
	counts := make(map[kind]uint64)
	for i := range 5000 {
		k := kind{fmt.Sprintf("tcp/10.0.0.%d:80", random.IntN(22)), []string{resultRefused, resultTimeout}[random.IntN(2)]}
		now := time.Unix(int64(i), 0)
		known := slices.Index(latest, k)
		if fresh := f.note(k.destination, k.result, errors.New("it failed"), now); fresh != (known < 0) {
			t.Fatalf("failure %d is of a new kind: %v", i, fresh)
		}
		if known >= 0 {
			latest = slices.Delete(latest, known, known+1)
		}
		latest = slices.Insert(latest, 0, k)
		counts[k]++
		if len(latest) > wire.MaxOriginErrors {
			delete(counts, latest[wire.MaxOriginErrors])
			latest = latest[:wire.MaxOriginErrors]
		}
		list := f.list()
		if len(list) != len(latest) || !list[0].Last.Equal(now) {
			t.Fatalf("failure %d: %d kinds are kept, want %d", i, len(list), len(latest))
		}
		for j, e := range list {
			if want := latest[j]; e.Destination != want.destination || e.Result != want.result || e.Count != counts[want] {
				t.Fatalf("failure %d: entry %d is %+v, want %+v, %d times", i, j, e, want, counts[want])
			}
		}
	}
}

func FuzzPlain(f *testing.F) {
	f.Add("a sentence", 64)
	f.Add("line\nline\x1b[31m\x00", 8)
	f.Add("größer\xff\xfe", 3)
	f.Fuzz(func(t *testing.T, text string, n int) {
		n = min(max(n, 0), 1000)
		got := plain(text, n)
		if len(got) > n || strings.ContainsFunc(got, unicode.IsControl) || got != strings.ToValidUTF8(got, "?") {
			t.Errorf("plain(%q, %d) = %q", text, n, got)
		}
	})
}

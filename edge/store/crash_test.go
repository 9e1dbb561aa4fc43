package store

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"
)

// How the re-run of the test binary learns that it is the one to be killed.
const (
	envChild = "WARREN_STORE_CHILD" // the state file
	envSteps = "WARREN_STORE_STEPS" // "SEED FIRST"
)

// change is one Put or Delete of a step.
type change struct {
	kind, id string
	value    string
	gone     bool
}

// step is what the nth Update of a history does: parent and child agree on it
// without a word.
func step(seed, n uint64) []change {
	r := rand.New(rand.NewPCG(seed, n))
	changes := make([]change, 1+r.IntN(4))
	for i := range changes {
		c := change{kind: string(rune('a' + r.IntN(3))), id: strconv.Itoa(r.IntN(40)), gone: r.IntN(3) == 0}
		// Mostly small, some of several pages.
		c.value = fmt.Sprintf("%d-%d-%s", n, i, strings.Repeat("x", r.IntN(100)*(1+99*(r.IntN(10)/9))))
		changes[i] = c
	}
	return changes
}

func (c change) apply(tx *Tx) error {
	if c.gone {
		return tx.Delete(c.kind, c.id)
	}
	return tx.Put(c.kind, c.id, c.value)
}

// storeAndAcknowledge is the child: it makes a step after the other, and after
// each writes a byte to descriptor 3.
func storeAndAcknowledge(path string) int {
	var seed, n uint64
	if _, err := fmt.Sscan(os.Getenv(envSteps), &seed, &n); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	acknowledge := os.NewFile(3, "acknowledge")
	s, err := Open(path)
	for ; err == nil; n++ {
		err = s.Update(func(tx *Tx) error {
			for _, c := range step(seed, n) {
				if err := c.apply(tx); err != nil {
					return err
				}
			}
			return nil
		})
		if err == nil {
			_, err = acknowledge.Write([]byte{1})
		}
	}
	fmt.Fprintln(os.Stderr, err)
	return 1
}

// killed runs the child until some steps were acknowledged, kills it a moment
// later, and returns how many it has acknowledged in all.
func killed(t *testing.T, path string, seed, first uint64, after int, moment time.Duration) uint64 {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	var stderr strings.Builder
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), envChild+"="+path, fmt.Sprintf("%s=%d %d", envSteps, seed, first))
	cmd.ExtraFiles = []*os.File{w}
	cmd.Stderr = &stderr
	err = cmd.Start()
	_ = w.Close()
	if err != nil {
		t.Fatal(err)
	}
	acknowledged, err := io.CopyN(io.Discard, r, int64(after))
	time.Sleep(moment) // the moment is the test's own choice: nothing is waited for
	_ = cmd.Process.Kill()
	rest, _ := io.Copy(io.Discard, r)
	_ = cmd.Wait()
	if err != nil || stderr.Len() > 0 {
		t.Fatalf("the child ended by itself after %d steps: %s", acknowledged, &stderr)
	}
	return uint64(acknowledged + rest)
}

// model is what the file must hold.
type model map[string]string

func (m model) step(seed, n uint64) model {
	m = maps.Clone(m)
	for _, c := range step(seed, n) {
		if c.gone {
			delete(m, c.kind+"/"+c.id)
			continue
		}
		text, _ := json.Marshal(c.value)
		m[c.kind+"/"+c.id] = string(text)
	}
	return m
}

// A process that is killed at any moment leaves a file that opens, in which
// every acknowledged Update stands, and the one in flight is whole or absent.
func TestKill(t *testing.T) {
	kills, wanted := 100, uint64(1000)
	if testing.Short() {
		kills, wanted = 12, 60
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	var total, whole uint64 // whole: in flight and yet there
	var path string
	var n uint64
	var want model
	for kill := range kills {
		after, moment := rand.IntN(30), time.Duration(rand.IntN(3000))*time.Microsecond
		if kill%10 == 0 { // a file of its own, whose making is cut off as well
			path, n, want = filepath.Join(t.TempDir(), "edge.db"), 0, model{}
			after, moment = 0, time.Duration(rand.IntN(40))*time.Millisecond
		}
		acknowledged := killed(t, path, seed, n, after, moment)
		for range acknowledged {
			want = want.step(seed, n)
			n++
		}
		total += acknowledged
		s, err := Open(path)
		if err != nil {
			t.Fatalf("after kill %d: %v", kill, err)
		}
		got := model(contents(t, s, "a", "b", "c"))
		if next := want.step(seed, n); !reflect.DeepEqual(got, want) && reflect.DeepEqual(got, next) {
			want = next
			n++
			whole++
		}
		if !reflect.DeepEqual(got, want) {
			t.Fatalf("after kill %d: %d steps were acknowledged, the file holds\n%v\nwant\n%v", kill, n, got, want)
		}
		check(t, s)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d kills, %d acknowledged, %d more stood whole", kills, total, whole)
	if total < wanted {
		t.Errorf("%d steps were acknowledged, want %d: nothing is proved", total, wanted)
	}
}

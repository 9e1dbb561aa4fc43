package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"

	"go.etcd.io/bbolt"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/warrenmesh/warren/integration/require"
)

func TestMain(m *testing.M) {
	if path := os.Getenv(envChild); path != "" {
		os.Exit(storeAndAcknowledge(path))
	}
	goleak.VerifyTestMain(m)
}

type record struct {
	Name string            `json:"name"`
	N    int               `json:"n"`
	More map[string]string `json:"more,omitempty"`
}

func mustOpen(t testing.TB, path string) *Store {
	t.Helper()
	s, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func newStore(t testing.TB) *Store {
	t.Helper()
	return mustOpen(t, filepath.Join(t.TempDir(), "edge.db"))
}

func put(t testing.TB, s *Store, kind, id string, value any) {
	t.Helper()
	if err := s.Update(func(tx *Tx) error { return tx.Put(kind, id, value) }); err != nil {
		t.Fatal(err)
	}
}

// contents is every record of some kinds, as its text.
func contents(t testing.TB, s *Store, kinds ...string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := s.View(func(tx *Tx) error {
		for _, kind := range kinds {
			err := tx.Each(kind, func(id string, decode func(any) error) error {
				var text json.RawMessage
				err := decode(&text)
				all[kind+"/"+id] = string(text)
				return err
			})
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// check has bbolt look at the whole file.
func check(t testing.TB, s *Store) {
	t.Helper()
	for _, problem := range problems(t, s) {
		t.Errorf("bbolt's check: %s", problem)
	}
}

func problems(t testing.TB, s *Store) (list []string) {
	t.Helper()
	err := s.db.View(func(b *bbolt.Tx) error {
		for err := range b.Check() {
			list = append(list, err.Error())
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	return list
}

func TestRecordsOutliveTheProcess(t *testing.T) {
	path := filepath.Join(t.TempDir(), "edge.db")
	want := record{"a", 7, map[string]string{"x": "<&>"}}
	s, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	put(t, s, "token", "1", want)
	put(t, s, "token", "2", record{})
	put(t, s, "peer", "1", record{Name: "of another kind"})
	put(t, s, "token", "2", record{Name: "replaced"})
	put(t, s, "token", "3", record{})
	err = s.Update(func(tx *Tx) error {
		return errors.Join(tx.Delete("token", "3"), tx.Delete("token", "none"), tx.Delete("none", "1"))
	})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	s = mustOpen(t, path)
	err = s.View(func(tx *Tx) error {
		var got record
		if found, err := tx.Get("token", "1", &got); !found || err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("Get = %+v, %v, %v", got, found, err)
		}
		for _, absent := range [][2]string{{"token", "3"}, {"peer", "2"}, {"none", "1"}} {
			if found, err := tx.Get(absent[0], absent[1], &got); found || err != nil {
				t.Errorf("Get of %v = %v, %v", absent, found, err)
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	got := contents(t, s, "token", "peer", "none")
	if want := map[string]string{
		"token/1": `{"name":"a","n":7,"more":{"x":"\u003c\u0026\u003e"}}`, "token/2": `{"name":"replaced","n":0}`, "peer/1": `{"name":"of another kind","n":0}`,
	}; !reflect.DeepEqual(got, want) {
		t.Errorf("it holds %v", got)
	}
	if entries, err := os.ReadDir(filepath.Dir(path)); err != nil || len(entries) != 1 {
		t.Errorf("the directory holds %v, %v", entries, err)
	}
}

// A whole Update is stored or nothing of it, and its error is the function's
// own, so that a caller may look into it.
func TestUpdateIsWholeOrNothing(t *testing.T) {
	s := newStore(t)
	put(t, s, "a", "1", 1)
	own := errors.New("no")
	err := s.Update(func(tx *Tx) error {
		return errors.Join(tx.Put("a", "2", 2), tx.Put("b", "1", 3), tx.Delete("a", "1"), own)
	})
	if !errors.Is(err, own) || err.Error() != "no" {
		t.Errorf("Update fails with %v", err)
	}
	func() {
		defer func() {
			if recover() == nil {
				t.Error("the panic was swallowed")
			}
		}()
		_ = s.Update(func(tx *Tx) error {
			_ = tx.Put("a", "3", 3)
			panic("a bug")
		})
	}()
	if got, want := contents(t, s, "a", "b"), map[string]string{"a/1": "1"}; !reflect.DeepEqual(got, want) {
		t.Errorf("it holds %v, want %v", got, want)
	}
	if err := s.View(func(*Tx) error { return own }); err != own {
		t.Errorf("View fails with %v", err)
	}
}

// An older release reads what a newer one stored, as long as the format is the
// same.
func TestUnknownFieldsAreLeftOut(t *testing.T) {
	s := newStore(t)
	put(t, s, "a", "1", map[string]any{"name": "x", "n": 1, "of_a_later_release": []int{1}})
	err := s.View(func(tx *Tx) error {
		var r record
		found, err := tx.Get("a", "1", &r)
		if !found || r.Name != "x" || r.N != 1 {
			t.Errorf("Get = %+v, %v", r, found)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

func TestEachVisitsInOrderAndMayChange(t *testing.T) {
	s := newStore(t)
	const n = 500 // several pages
	err := s.Update(func(tx *Tx) error {
		for i := range n {
			if err := tx.Put("a", fmt.Sprintf("%03d", (i*7)%n), record{N: (i * 7) % n}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	visited := 0
	err = s.Update(func(tx *Tx) error {
		return tx.Each("a", func(id string, decode func(any) error) error {
			var r record
			if err := decode(&r); err != nil {
				return err
			}
			if want := fmt.Sprintf("%03d", r.N); id != want || r.N%5 > 1 {
				t.Errorf("visited %s, which holds %d", id, r.N)
			}
			visited++
			switch r.N % 5 {
			case 0: // this one, and the three after the next
				return errors.Join(tx.Delete("a", id), tx.Delete("a", fmt.Sprintf("%03d", r.N+2)),
					tx.Delete("a", fmt.Sprintf("%03d", r.N+3)), tx.Delete("a", fmt.Sprintf("%03d", r.N+4)))
			default:
				return errors.Join(tx.Put("a", id, record{N: -r.N}), tx.Put("a", "!"+id, record{}), tx.Put("b", id, record{}))
			}
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	if visited != n/5*2 || len(contents(t, s, "a")) != n/5*2 || len(contents(t, s, "b")) != n/5 {
		t.Errorf("visited %d of %d, left %d", visited, n, len(contents(t, s, "a")))
	}
	for _, id := range []string{"k", "k\x00", "k\x00\x00", "k\x00\x01", "k\x01", "ka"} { // each as near to the next as can be
		put(t, s, "c", id, 1)
	}
	if got := contents(t, s, "c"); len(got) != 6 {
		t.Errorf("visited %q", got)
	}
	stop := errors.New("enough")
	visited = 0
	err = s.View(func(tx *Tx) error {
		return tx.Each("a", func(string, func(any) error) error { visited++; return stop })
	})
	if err != stop || visited != 1 {
		t.Errorf("Each = %v after %d", err, visited)
	}
	check(t, s)
}

func TestMisuseIsAnError(t *testing.T) {
	s := newStore(t)
	put(t, s, "a", "1", record{Name: "x"})
	var kept *Tx
	var decode func(any) error
	err := s.View(func(tx *Tx) error {
		kept = tx
		return tx.Each("a", func(_ string, d func(any) error) error { decode = d; return nil })
	})
	if err != nil {
		t.Fatal(err)
	}
	inView := func(do func(tx *Tx) error) error { return s.View(do) }
	tests := []struct {
		name string
		err  error
		want string
	}{
		{"Put in a View", inView(func(tx *Tx) error { return tx.Put("a", "2", 1) }), `putting a "2": a View changes nothing`},
		{"Delete in a View", inView(func(tx *Tx) error { return tx.Delete("none", "2") }), `deleting none "2": a View changes nothing`},
		{"no id", s.Update(func(tx *Tx) error { return tx.Put("a", "", 1) }), "can be no record's kind and id"},
		{"no kind", s.Update(func(tx *Tx) error { return tx.Delete("", "1") }), "can be no record's kind and id"},
		{"the format's bucket", s.Update(func(tx *Tx) error { return tx.Put("meta", "format", 99) }), "can be no record's kind and id"},
		{"an id that is too long", s.Update(func(tx *Tx) error { return tx.Put("a", strings.Repeat("x", 32769), 1) }), "key too large"},
		{"a value that is none", s.Update(func(tx *Tx) error { return tx.Put("a", "2", func() {}) }), `encoding a "2"`},
		{"a value of another type", inView(func(tx *Tx) error { _, err := tx.Get("a", "1", new(int)); return err }), `decoding a "1"`},
		{"Get after the end", func() error { _, err := kept.Get("a", "1", new(record)); return err }(), "the transaction is over"},
		{"Put after the end", kept.Put("a", "1", 1), "the transaction is over"},
		{"Delete after the end", kept.Delete("a", "1"), "the transaction is over"},
		{"Each after the end", kept.Each("a", nil), "the transaction is over"},
		{"decode after the end", decode(new(record)), "the transaction is over"},
	}
	for _, tt := range tests {
		if tt.err == nil || !strings.Contains(tt.err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", tt.name, tt.err, tt.want)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for name, err := range map[string]error{
		"View": s.View(func(*Tx) error { return nil }), "Update": s.Update(func(*Tx) error { return nil }),
	} {
		if err == nil || !strings.Contains(err.Error(), "database not open") || !strings.Contains(err.Error(), s.path) {
			t.Errorf("%s after Close: %v", name, err)
		}
	}
}

// A View sees the records as they were when it began, and neither waits for an
// Update nor holds one up, even one for which the file has to grow.
func TestViewDuringUpdate(t *testing.T) {
	s := newStore(t)
	put(t, s, "a", "1", "before")
	get := func(tx *Tx) (text string) {
		if _, err := tx.Get("a", "1", &text); err != nil {
			t.Error(err)
		}
		return text
	}
	err := s.View(func(old *Tx) error {
		updated := make(chan error)
		go func() {
			updated <- s.Update(func(tx *Tx) error {
				if err := tx.Put("a", "1", "after"); err != nil {
					return err
				}
				if got := get(tx); got != "after" {
					t.Errorf("the Update itself sees %q", got)
				}
				viewed := make(chan error)
				go func() {
					viewed <- s.View(func(tx *Tx) error {
						if got := get(tx); got != "before" {
							t.Errorf("during the Update a View sees %q", got)
						}
						return nil
					})
				}()
				if err := <-viewed; err != nil {
					return err
				}
				return tx.Put("a", "2", strings.Repeat("x", 4<<20))
			})
		}()
		err := <-updated
		if got := get(old); got != "before" {
			t.Errorf("a View that began before sees %q", got)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := contents(t, s, "a")["a/1"]; got != `"after"` {
		t.Errorf("after it: %s", got)
	}
}

func TestCloseWaits(t *testing.T) {
	for name, run := range map[string]func(*Store, func(*Tx) error) error{"View": (*Store).View, "Update": (*Store).Update} {
		t.Run(name, func(t *testing.T) {
			s := newStore(t)
			put(t, s, "a", "1", "x")
			inside, over, closing, closed := make(chan struct{}), make(chan error, 1), make(chan struct{}), make(chan error, 1)
			go func() {
				over <- run(s, func(tx *Tx) error {
					close(inside)
					<-closing
					var text string
					for range 1000 { // Close has every chance to take the file away
						if found, err := tx.Get("a", "1", &text); err != nil || !found || text != "x" {
							t.Errorf("Get during Close = %q, %v, %v", text, found, err)
						}
					}
					select {
					case err := <-closed:
						t.Errorf("Close returned %v before the %s did", err, name)
					default:
					}
					return nil
				})
			}()
			<-inside
			go func() { closing <- struct{}{}; closed <- s.Close() }()
			if err := <-over; err != nil {
				t.Error(err)
			}
			if err := <-closed; err != nil {
				t.Error(err)
			}
		})
	}
}

// A disk that takes a write and does not confirm it: nobody knows what it has,
// and whatever came next could overwrite what the last confirmed state needs.
func TestUnconfirmedWrite(t *testing.T) {
	path := filepath.Join(t.TempDir(), "edge.db")
	s := mustOpen(t, path)
	for i := range 10 { // pages to use again, so that the file need not grow
		put(t, s, "a", fmt.Sprint(i), strings.Repeat("x", 3000))
	}
	if err := s.Update(func(tx *Tx) error { return errors.Join(tx.Delete("a", "1"), tx.Delete("a", "2")) }); err != nil {
		t.Fatal(err)
	}
	put(t, s, "a", "0", "confirmed")
	// /dev/null takes writes, and refuses to sync.
	mend := replaceFile(t, path, "/dev/null")
	err := s.Update(func(tx *Tx) error { return tx.Put("a", "0", "unconfirmed") })
	if !errors.Is(err, syscall.EINVAL) || !strings.Contains(err.Error(), "the disk did not confirm a write") {
		t.Errorf("Update fails with %v", err)
	}
	mend()
	if err := s.Update(func(tx *Tx) error { return tx.Put("a", "3", "later") }); err == nil || !strings.Contains(err.Error(), "start again") {
		t.Errorf("the next Update: %v", err)
	}
	if got := contents(t, s, "a")["a/0"]; got != `"confirmed"` {
		t.Errorf("a View sees %s", got)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = mustOpen(t, path)
	put(t, s, "a", "0", "again")
	check(t, s)
}

// replaceFile puts another file behind the descriptor that this process has of
// path; mend takes it back.
func replaceFile(t *testing.T, path, other string) (mend func()) {
	t.Helper()
	links, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		require.Missing(t, "/proc")
	}
	fd := -1
	for _, link := range links {
		if to, _ := os.Readlink("/proc/self/fd/" + link.Name()); to == path {
			if _, err := fmt.Sscan(link.Name(), &fd); err != nil {
				t.Fatal(err)
			}
		}
	}
	if fd < 0 {
		t.Fatalf("%s is not open", path)
	}
	f, err := os.OpenFile(other, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	saved, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Dup3(int(f.Fd()), fd, unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := errors.Join(unix.Dup3(saved, fd, unix.O_CLOEXEC), unix.Close(saved)); err != nil {
			t.Fatal(err)
		}
	}
}

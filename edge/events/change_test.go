package events

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// files are secrets by path.
type files map[string]string

func (f files) read(path string) ([]byte, error) {
	text, ok := f[path]
	if !ok {
		return nil, fmt.Errorf("%q: no such file", path)
	}
	return []byte(text), nil
}

const key = "0123456789abcdef"

func TestSecrets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := files{"key": key + "\r\n", "token": "t0ken\n"}
		s := &site{}
		l := New(Deps{Transport: s, Secret: f.read})
		defer l.Stop()
		spec := ops
		spec.SecretFile, spec.TokenFile = "key", "token"
		if err := l.Apply([]Spec{spec}); err != nil {
			t.Fatal(err)
		}
		add(l, 1, "pool")
		synctest.Wait()
		if c := s.took[0]; c.signature != Sign([]byte(key), []byte(c.body)) || c.authorization != "Bearer t0ken" {
			t.Errorf("call = %+v", c)
		}
		if got, want := Sign([]byte("key"), []byte("The quick brown fox jumps over the lazy dog")), "sha256=f7bc83f430538424b13298e6aa6fb143ef4d59a14946175997479dbc2d1a3cd8"; got != want {
			t.Errorf("signature = %s, want %s", got, want)
		}
		f["token"] = "another"
		if err := l.Apply([]Spec{spec}); err != nil {
			t.Fatal(err)
		}
		add(l, 1, "pool")
		synctest.Wait()
		if c := s.took[1]; c.authorization != "Bearer another" {
			t.Errorf("call = %+v", c)
		}
		delete(f, "key")
		if err := l.Apply([]Spec{spec}); err == nil {
			t.Error("a file that is gone was read")
		}
		add(l, 1, "pool")
		synctest.Wait()
		if ids(s.told("")) != "1-3" {
			t.Error("a change that failed took the old away")
		}
	})
}

func TestProblems(t *testing.T) {
	f := files{"short": "0123456789", "empty": "\n", "lines": "a\nb"}
	l := New(Deps{Secret: f.read})
	defer l.Stop()
	_, err := l.Prepare([]Spec{
		{Name: "a", URL: "ftp://x/secret"},
		{Name: "a", URL: "https://user:pw@x/"},
		{Name: "", URL: "hooks.example.com/secret"},
		{Name: "b c", URL: "https://"},
		{Name: "d", URL: "https://x/#y", Timeout: time.Hour, MaxAge: time.Millisecond, Queue: -1, Kinds: []string{"pool", ""}},
		{Name: "e", URL: "https://x", SecretFile: "short"},
		{Name: "f", URL: "https://x", SecretFile: "missing"},
		{Name: "g", URL: "https://x", TokenFile: "empty"},
		{Name: "h", URL: "https://x", TokenFile: "lines"},
		{Name: "i", URL: "https://[::1"},
	})
	if err == nil {
		t.Fatal("it passes")
	}
	for _, want := range []string{
		"webhook[0].url = \"ftp://x/…\": want https", "webhook[1].url = \"https://x\": leave the user", "webhook[1].name = \"a\": webhook[0] has the same name",
		"webhook[2].name", "webhook[2].url = \"(not shown", "webhook[3].name", "webhook[3].url", "webhook[4].url", "webhook[4].timeout", "webhook[4].max_age", "webhook[4].queue",
		"webhook[4].kinds[1]", "webhook[5].secret_file: \"short\": the key has 10 bytes", "webhook[6].secret_file: \"missing\": no such file",
		"webhook[7].token_file", "webhook[8].token_file", "webhook[9].url",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("no %s in\n%v", want, err)
		}
	}
	if strings.Contains(err.Error(), "/secret") || strings.Contains(err.Error(), "pw") {
		t.Errorf("a secret is told: %v", err)
	}
	if err := l.Apply([]Spec{{Name: "a", URL: "http://10.0.0.1:8080/hook"}}); err != nil {
		t.Error(err)
	}
}

func TestWarnings(t *testing.T) {
	for url, want := range map[string]int{"https://x": 0, "http://x": 1, ":": 0} {
		if w := (Spec{Name: "a", URL: url, TokenFile: "t"}).Warnings(); len(w) != want {
			t.Errorf("%s: %q", url, w)
		}
	}
}

// down is a site that takes nothing until it is up.
func down() (s *site, up func()) {
	healthy := false
	s = &site{}
	s.answer = func(int, call) (int, error) {
		if healthy {
			return 200, nil
		}
		return 0, errReset
	}
	return s, func() { s.mu.Lock(); healthy = true; s.mu.Unlock() }
}

func TestApplyKeepsQueueAndPosition(t *testing.T) {
	s, up := down()
	with(t, s, ops, func(t *testing.T, l *Log) {
		add(l, 5, "pool")
		after(time.Minute)
		add(l, 5, "pool")
		before, calls := l.Hooks()[0], s.count()
		for range 50 {
			if err := l.Apply([]Spec{{Name: "new", URL: "https://new.example"}, ops}); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		if now := l.Hooks()[1]; now != before || s.count() != calls {
			t.Errorf("status = %+v, was %+v; %d calls, were %d", now, before, s.count(), calls)
		}
		up()
		after(5 * time.Minute)
		add(l, 1, "pool")
		synctest.Wait()
		if got := ids(s.told("ops.example")); got != "1-11" {
			t.Errorf("told %s", got)
		}
		if got := ids(s.told("new.example")); got != "11" {
			t.Errorf("the new one was told %s", got)
		}
	})
}

// TestChangedHookTakesOver: under the same name, what was not told goes to the
// new URL, what is being sent included.
func TestChangedHookTakesOver(t *testing.T) {
	s := &site{}
	s.answer = func(_ int, c call) (int, error) {
		if c.host == "ops.example" {
			return 0, errReset
		}
		return 200, nil
	}
	with(t, s, ops, func(t *testing.T, l *Log) {
		add(l, 3, "pool")
		after(time.Minute)
		add(l, 3, "pool")
		moved := ops
		moved.URL = "https://moved.example"
		p, err := l.Prepare([]Spec{moved})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := l.Prepare(nil); err == nil {
			t.Error("two changes at one time")
		}
		add(l, 3, "pool")
		p.Commit()
		p.Rollback() // too late
		add(l, 1, "pool")
		synctest.Wait()
		if got := ids(s.told("moved.example")); got != "1-10" {
			t.Errorf("told %s", got)
		}
		if st := l.Hooks()[0]; st.Delivered != 10 || st.Failures == 0 || st.URL != "https://moved.example" || st.Waiting != 0 {
			t.Errorf("status = %+v", st)
		}
		if err := l.Apply(nil); err != nil {
			t.Fatal(err)
		}
		add(l, 1, "pool")
		synctest.Wait()
		if len(l.Hooks()) != 0 || len(s.told("")) != 10 {
			t.Error("a webhook that is gone was told")
		}
	})
}

func TestRollback(t *testing.T) {
	s := &site{}
	with(t, s, ops, func(t *testing.T, l *Log) {
		p, err := l.Prepare([]Spec{{Name: "new", URL: "https://new.example"}})
		if err != nil {
			t.Fatal(err)
		}
		p.Rollback()
		p.Commit() // too late
		add(l, 1, "pool")
		synctest.Wait()
		if len(s.told("ops.example")) != 1 || len(s.told("")) != 1 {
			t.Errorf("told %v", s.told(""))
		}
		p, err = l.Prepare([]Spec{ops})
		if err != nil {
			t.Fatal(err)
		}
		l.Stop()
		p.Commit()
		if err := l.Wait(t.Context(), 1); err == nil || errors.Is(err, t.Context().Err()) {
			t.Errorf("Wait = %v", err)
		}
	})
}

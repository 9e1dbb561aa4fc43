package monitor

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/warrenmesh/warren/check"
	"github.com/warrenmesh/warren/netstack/netx"
)

func TestApplyKeepsTheStateOfUnchangedTargets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		m, e := start(t, w, pg)
		after(time.Second)
		before := m.Snapshot()[0]
		wantEvents(t, e, place+" pg unknown→up")
		for range 100 {
			if err := m.Apply([]Spec{pg}, []Target{target, {"tokyo", addr11, "pg"}}); err != nil {
				t.Fatal(err)
			}
		}
		if now := m.Snapshot()[0]; now != before {
			t.Errorf("result = %+v, want %+v", now, before)
		}
		if got := w.count(place); got != 1 {
			t.Errorf("%d checks, want none more than the first", got)
		}
		after(time.Second)
		wantEvents(t, e, "tokyo/10.0.0.11:5432 pg unknown→up")
	})
}

func TestApplyEndsWhatIsNotAskedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		m, _ := start(t, w, pg)
		after(time.Second)
		if err := m.Apply(nil, nil); err != nil {
			t.Fatal(err)
		}
		wantUp(t, m, false, "not monitored yet")
		after(time.Hour)
		if got := w.count(place); got != 1 {
			t.Errorf("%d checks, want 1", got)
		}
	})
}

func TestChangedSettingsStartFromTheOldState(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		m, e := start(t, w, pg)
		after(time.Second)
		wantEvents(t, e, place+" pg unknown→up")

		faster := pg
		faster.Interval, faster.Timeout = time.Second, time.Second
		w.set(place, netx.ErrRefused)
		p, err := m.Prepare([]Spec{faster}, []Target{target})
		if err != nil {
			t.Fatal(err)
		}
		after(time.Minute) // the old check alone goes on, and notices
		wantEvents(t, e, place+" pg up→down")
		p.Commit()
		synctest.Wait()
		wantUp(t, m, false, "connection refused")
		w.set(place, nil)
		after(3 * time.Second)
		wantUp(t, m, true, "")
		wantEvents(t, e, place+" pg down→up") // and none was told twice

		before := w.count(place)
		after(10 * time.Second)
		if n := w.count(place) - before; n < 8 || n > 12 {
			t.Errorf("%d checks in 10 s, want one a second from the new check alone", n)
		}
	})
}

func TestOneOfTwoSharersChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		m := New(Deps{Dial: w.dial})
		defer m.Stop()
		other := pg
		other.Name = "other"
		targets := []Target{target, {"berlin", addr10, "other"}}
		if err := m.Apply([]Spec{pg, other}, targets); err != nil {
			t.Fatal(err)
		}
		after(time.Second)
		other.Fall = 1
		if err := m.Apply([]Spec{pg, other}, targets); err != nil {
			t.Fatal(err)
		}
		wantUp(t, m, true, "")
		w.set(place, netx.ErrRefused)
		m.Recheck("berlin")
		synctest.Wait()
		wantUp(t, m, true, "") // pg still wants two
		after(time.Second)
		m.Recheck("berlin")
		synctest.Wait()
		if up, _ := m.Up("berlin", addr10, "other"); up {
			t.Error("the changed monitor, with fall = 1, is still up")
		}
	})
}

func TestRollbackLeavesTheOldInForce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		m, _ := start(t, w, pg)
		after(time.Second)
		changed := pg
		changed.Interval = time.Second
		p, err := m.Prepare([]Spec{changed}, []Target{target, {"tokyo", addr11, "pg"}})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := m.Prepare(nil, nil); err == nil {
			t.Error("a second change was prepared beside the first")
		}
		p.Rollback()
		p.Commit() // too late: it does nothing
		if got := len(m.Snapshot()); got != 1 {
			t.Errorf("%d targets, want 1", got)
		}
		wantUp(t, m, true, "")
		before := w.count(place)
		after(time.Minute)
		if n := w.count(place) - before; n < 10 || n > 14 {
			t.Errorf("%d checks in a minute, want about 12", n)
		}
		if got := w.count("tokyo/10.0.0.11:5432"); got > 1 {
			t.Errorf("%d checks of what was rolled back", got)
		}
	})
}

func TestSettle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.delay = 30 * time.Millisecond
		m := New(Deps{Dial: w.dial})
		defer m.Stop()
		p, err := m.Prepare([]Spec{pg}, []Target{target, {"tokyo", addr11, "pg"}})
		if err != nil {
			t.Fatal(err)
		}
		if n := p.Settle(context.Background()); n != 0 {
			t.Errorf("%d unsettled", n)
		}
		p.Commit()
		wantUp(t, m, true, "")

		w.set("tokyo/10.0.0.10:5432", errSilence)
		p, err = m.Prepare([]Spec{pg}, []Target{target, {"tokyo", addr10, "pg"}})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if n := p.Settle(ctx); n != 1 {
			t.Errorf("%d unsettled, want the silent one", n)
		}
		p.Rollback()
	})
}

func TestPrepareRefuses(t *testing.T) {
	gopher := pg
	gopher.Check.Type = "gopher"
	distrust := pg
	distrust.Check = check.Spec{Type: check.TypeTLS, CAFile: filepath.Join(t.TempDir(), "missing.pem")}
	tests := []struct {
		name   string
		specs  []Spec
		target Target
		want   string
	}{
		{"a monitor that is not defined", nil, target, `watching berlin/10.0.0.10:5432 (monitor "pg"): no such monitor`},
		{"no network", []Spec{pg}, Target{"", addr10, "pg"}, "the network or the address is missing"},
		{"no address", []Spec{pg}, Target{Network: "a", Monitor: "pg"}, "the network or the address is missing"},
		{"a type of a later release", []Spec{gopher}, target, `unknown type "gopher"; use one of: tcp tls http https udp icmp dns postgres smtp redis`},
		{"a ca_file that is missing", []Spec{distrust}, target, "reading the ca_file"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld()
			m := New(Deps{Dial: w.dial})
			defer m.Stop()
			err := m.Apply(test.specs, []Target{test.target})
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Fatalf("error = %v, want it to contain %q", err, test.want)
			}
			if err := m.Apply([]Spec{pg}, []Target{target}); err != nil {
				t.Errorf("after the refusal: %v", err)
			}
		})
	}
}

// What a ca_file holds is read with each change, and is part of what makes a
// check the same.
func TestAChangedCAFileIsAnotherCheck(t *testing.T) {
	spec := far()
	file := filepath.Join(t.TempDir(), "ca.pem")
	spec.Check = check.Spec{Type: check.TypeTLS, CAFile: file}
	m := New(Deps{Dial: newWorld().dial})
	defer m.Stop()
	apply := func(text string) Task {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := m.Apply([]Spec{spec}, []Target{target}); err != nil {
			t.Fatal(err)
		}
		return only(t, m)
	}
	first := apply(someCA)
	if first.Spec.Check.CA != someCA {
		t.Errorf("the task trusts %q", first.Spec.Check.CA)
	}
	if again := apply(someCA); again != first {
		t.Errorf("unchanged, and yet %+v", again)
	}
	if changed := apply(someCA + "\n"); changed.ID == first.ID {
		t.Error("changed, and yet the same task")
	}
}

// someCA is a certificate for nobody.
const someCA = `-----BEGIN CERTIFICATE-----
MIIBeTCCAR+gAwIBAgIUazqbSb19YVX2kw8BQP9NkQGqB+IwCgYIKoZIzj0EAwIw
ETEPMA0GA1UEAwwGbm9ib2R5MCAXDTI2MTEyMjEyMTU0M1oYDzIxMjYxMDI5MTIx
NTQzWjARMQ8wDQYDVQQDDAZub2JvZHkwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNC
AASi+PPJJ3Af2qnIP4mRJW7Xa8hL7KNBUnc4oe6f3jcx9J7usnE7oA7miM5JZ5BC
xY+Bf7JXC7ZCS2RH8JHyCM7lo1MwUTAdBgNVHQ4EFgQUGk+WfXryezTAgRwPSDZA
LLvvA3cwHwYDVR0jBBgwFoAUGk+WfXryezTAgRwPSDZALLvvA3cwDwYDVR0TAQH/
BAUwAwEB/zAKBggqhkjOPQQDAgNIADBFAiEA90Zvk7oryy7E3pSgM+aP4SxHvl7r
lBEP8DaLGhb/g1YCIHVplZ3Iv9Z4+KChJUawNt5ry/oob2B4LxOEqTfKbrMI
-----END CERTIFICATE-----
`

func TestSpecValidate(t *testing.T) {
	tests := []struct {
		name   string
		change func(*Spec)
		want   string // "path value", "" for no problem
	}{
		{"good", func(*Spec) {}, ""},
		{"all defaults", func(s *Spec) { *s = Spec{Name: "pg"} }, ""},
		{"a short interval shortens the timeout", func(s *Spec) { *s = Spec{Name: "pg", Interval: time.Second} }, ""},
		{"no name", func(s *Spec) { s.Name = "" }, "name "},
		{"type", func(s *Spec) { s.Check.Type = "gopher" }, "type gopher"},
		{"a check's own problem", func(s *Spec) { s.Check.Path = "/" }, "path /"},
		{"retries", func(s *Spec) { s.Retries = 11 }, "retries 11"},
		{"run_by", func(s *Spec) { s.RunBy = "nobody" }, "run_by nobody"},
		{"interval too short", func(s *Spec) { s.Interval, s.Timeout = 50*time.Millisecond, 0 }, "interval 50ms"},
		{"interval negative", func(s *Spec) { s.Interval, s.Timeout = -time.Second, -time.Second }, "interval -1s"},
		{"interval too long", func(s *Spec) { s.Interval = 25 * time.Hour }, "interval 25h0m0s"},
		{"timeout over interval", func(s *Spec) { s.Timeout = 6 * time.Second }, "timeout 6s"},
		{"timeout negative", func(s *Spec) { s.Timeout = -1 }, "timeout -1ns"},
		{"rise", func(s *Spec) { s.Rise = -1 }, "rise -1"},
		{"fall", func(s *Spec) { s.Fall = 101 }, "fall 101"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			s := pg
			test.change(&s)
			got := ""
			s.Validate(func(path, value, hint string) {
				if hint == "" {
					t.Errorf("%s: no hint", path)
				}
				if got == "" {
					got = path + " " + value
				}
			})
			if got != test.want {
				t.Errorf("first problem = %q, want %q", got, test.want)
			}
		})
	}
}

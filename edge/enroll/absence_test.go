package enroll

import (
	"errors"
	"testing"
	"time"

	"github.com/warrenmesh/warren/edge/wire"
)

// absent lets time pass in which the registry sweeps each second.
func (w *world) absent(d time.Duration) {
	w.Sweep()
	for range d / time.Second {
		w.clock.pass(time.Second)
		w.Sweep()
	}
}

// A name is that of its holder until it has been absent, which a moment of
// silence is not.
func TestANameIsGivenOverAfterAnAbsenceAlone(t *testing.T) {
	for _, c := range []struct {
		name string
		do   func(w *world, token wire.Token)
		want string
	}{
		{"it is there", func(w *world, token wire.Token) { w.absent(time.Hour) }, "web-2"},
		{"it fell silent just now", func(w *world, token wire.Token) { w.absent(time.Hour); w.setAlive("web", false) }, "web-2"},
		{"silent for 3 seconds", func(w *world, token wire.Token) { w.setAlive("web", false); w.absent(3 * time.Second) }, "web-2"},
		{"silent for 29 seconds", func(w *world, token wire.Token) { w.setAlive("web", false); w.absent(brief - time.Second) }, "web-2"},
		{"it said farewell", func(w *world, token wire.Token) { w.setAlive("web", false); w.setLeft("web") }, "web"},
		{"silent for 30 seconds", func(w *world, token wire.Token) { w.setAlive("web", false); w.absent(brief) }, "web"},
		{"it came back just now", func(w *world, token wire.Token) { w.setAlive("web", false); w.absent(brief); w.setAlive("web", true) }, "web-2"},
		{"it came back and fell silent again", func(w *world, token wire.Token) {
			w.setAlive("web", false)
			w.absent(brief - time.Second)
			w.setAlive("web", true)
			w.absent(time.Second)
			w.setAlive("web", false)
			w.absent(brief - time.Second)
		}, "web-2"},
		{"its key enrolled again just now", func(w *world, token wire.Token) {
			w.setAlive("web", false)
			w.absent(brief)
			if _, refusal := w.register(token, w.connector("web").PublicKey, ""); refusal != nil {
				w.t.Fatal(refusal)
			}
		}, "web-2"},
		{"the edge restarted just now", func(w *world, token wire.Token) { w.restart(); w.setAlive("web", false); w.Sweep() }, "web-2"},
		{"the edge restarted 29 seconds ago", func(w *world, token wire.Token) {
			w.restart()
			w.setAlive("web", false)
			w.absent(brief - time.Second)
		}, "web-2"},
		{"the edge restarted 30 seconds ago", func(w *world, token wire.Token) { w.restart(); w.setAlive("web", false); w.absent(brief) }, "web"},
		{"it was absent before the edge restarted", func(w *world, token wire.Token) {
			w.setAlive("web", false)
			w.absent(2 * time.Minute)
			w.restart()
			w.setAlive("web", false)
			w.absent(brief - time.Second)
		}, "web-2"},
		{"this process was stopped for long", func(w *world, token wire.Token) {
			w.Sweep()
			w.clock.pass(time.Hour)
			w.setAlive("web", false)
			w.Sweep()
		}, "web-2"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			_, token := w.token(ephemeral, func(r *TokenRequest) { r.Name, r.TTL = "web", 24*time.Hour })
			w.enrolled(token, "")
			c.do(w, token)
			if answer, refusal := w.register(token, newKey(), ""); refusal != nil || answer.Name != c.want {
				t.Errorf("called %q (%v), want %q", answer.Name, refusal, c.want)
			}
			w.check()
		})
	}
}

// An absence goes on over restarts of the edge, which are not the connector's.
func TestAnAbsenceGoesOnOverRestarts(t *testing.T) {
	for _, c := range []struct {
		name  string
		every time.Duration // between restarts
		down  time.Duration // how long each takes
		gone  time.Duration // when it is forgotten; 0: never
	}{
		{"none", time.Hour, 0, absence},
		{"every 7 minutes", 7 * time.Minute, 0, absence},
		{"every 3 minutes", 3 * time.Minute, 0, absence},
		{"every 9 minutes and 30 seconds", absence - 30*time.Second, 0, absence - 30*time.Second + callIn},
		{"every 5 minutes, down for 20", 5 * time.Minute, 20 * time.Minute, 25*time.Minute + callIn},
		{"every 59 seconds", callIn - time.Second, 0, 0}, // nobody has had the time to call
		{"every 20 seconds", 20 * time.Second, 0, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			_, token := w.token(ephemeral)
			w.enrolled(token, "web")
			w.enrolled(token, "lives")
			w.setAlive("web", false)
			w.Sweep()
			start := w.clock.Now()
			var gone time.Duration
			for w.clock.Now().Sub(start) < 2*time.Hour && gone == 0 {
				for range c.every / time.Second {
					w.clock.pass(time.Second)
					w.Sweep()
					if w.connector("web").Name == "" {
						gone = w.clock.Now().Sub(start)
						break
					}
				}
				if gone == 0 {
					w.clock.pass(c.down)
					w.restart()
					w.setAlive("web", false)
					w.Sweep()
					w.check()
				}
			}
			if gone != c.gone {
				t.Errorf("forgotten after %v, want %v", gone, c.gone)
			}
			if w.connector("lives").Name == "" {
				t.Error("so was one that lives")
			}
			w.check()
		})
	}
}

// One that calls within the first minute is no longer absent, however long it
// was.
func TestWhoCallsAfterARestartIsNotAbsent(t *testing.T) {
	w := newWorld(t)
	_, token := w.token(ephemeral)
	_, key := w.enrolled(token, "web")
	w.setAlive("web", false)
	w.absent(absence - time.Second)
	w.clock.pass(time.Hour)
	w.restart()
	w.setAlive("web", false)
	w.absent(callIn - time.Second)
	w.setAlive("web", true)
	w.absent(time.Second)
	if _, refusal := w.poll(key); refusal != nil {
		t.Fatal(refusal)
	}
	w.setAlive("web", false)
	w.restart()
	w.setAlive("web", false)
	w.absent(absence - time.Second)
	if w.connector("web").Name == "" {
		t.Error("the absence before it came back still counts")
	}
	w.absent(time.Second)
	if w.connector("web").Name != "" {
		t.Error("it is never forgotten")
	}
	w.check()
}

// The store hears of an absence and of its end, and of nothing between.
func TestAnAbsenceIsStoredOnce(t *testing.T) {
	w := newWorld(t)
	_, token := w.token(ephemeral)
	_, key := w.enrolled(token, "web")
	_, lasting := w.token()
	w.enrolled(lasting, "stays")
	w.setAlive("stays", false)
	for _, c := range []struct {
		what  string
		alive bool
		d     time.Duration
		want  int
	}{
		{"it lives", true, time.Minute, 0},
		{"it is silent for a moment", false, brief - time.Second, 0},
		{"it lives on", true, time.Minute, 0},
		{"it is absent", false, absence - time.Second, 1},
		{"it is back", true, time.Minute, 1},
	} {
		before := w.store.updates
		w.setAlive("web", c.alive)
		w.absent(c.d)
		if c.alive {
			if _, refusal := w.poll(key); refusal != nil {
				t.Fatal(refusal)
			}
		}
		if got := w.store.updates - before; got != c.want {
			t.Errorf("%s: %d writes, want %d", c.what, got, c.want)
		}
		w.check()
	}
}

// Where the store fails, the absence goes on in memory, and is stored later.
func TestAnAbsenceThatCannotBeStored(t *testing.T) {
	w := newWorld(t)
	_, token := w.token(ephemeral)
	w.enrolled(token, "web")
	w.setAlive("web", false)
	w.store.fail(errors.New("no space left on device"), 0)
	w.absent(5 * time.Minute)
	w.check()
	w.store.fail(nil, 0)
	w.absent(time.Second)
	w.check()
	w.restart()
	w.setAlive("web", false)
	w.absent(5*time.Minute - 2*time.Second)
	if w.connector("web").Name == "" {
		t.Error("forgotten before its time")
	}
	w.absent(time.Second)
	if w.connector("web").Name != "" {
		t.Error("the absence was not stored")
	}
	w.check()
}

func TestAnAbsenceThatBeginsInTheFuture(t *testing.T) {
	w := newWorld(t)
	_, token := w.token(ephemeral)
	w.enrolled(token, "web")
	w.setAlive("web", false)
	w.absent(time.Minute)
	w.clock.pass(-24 * time.Hour)
	w.restart()
	w.setAlive("web", false)
	w.absent(absence)
	if w.connector("web").Name != "" {
		t.Error("it stays until the clock is where it was")
	}
	w.check()
}

package enroll

import (
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

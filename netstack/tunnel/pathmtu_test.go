package tunnel

import (
	"testing"
	"time"
)

// probePath runs m for d over a path that carries inner packets up to carries
// bytes, and returns how many probes it sent.
func probePath(m *pathMTU, now *time.Time, d time.Duration, carries int) (probes int) {
	for end := now.Add(d); now.Before(end); *now = now.Add(watchEvery) {
		if size := m.step(*now); size > 0 {
			probes++
			if size <= carries {
				m.answered(*now, size)
			}
		}
	}
	return probes
}

func TestPathMTU(t *testing.T) {
	for _, tc := range []struct {
		name             string
		ceiling, carries int
		want             int
	}{
		{"Ethernet over IPv4", 1400, 1400, 1400},
		{"Ethernet over IPv6", 1380, 1380, 1380},
		{"PPPoE behind a router", 1400, 1392, 1380},
		{"a tunnel on the way", 1400, 1330, 1320},
		{"the floor", 1400, 1280, 1280},
		{"below the floor", 1400, 1000, 1280},
		{"a local route below the floor", 1100, 1280, 1280},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var m pathMTU
			now := time.Unix(1000, 0)
			m.restart(now, tc.ceiling)
			if m.working != minInnerMTU {
				t.Errorf("MTU before any proof = %d, want the floor", m.working)
			}
			probePath(&m, &now, time.Minute, tc.carries)
			if m.working != tc.want {
				t.Errorf("MTU = %d, want %d", m.working, tc.want)
			}
		})
	}
}

func TestPathMTUFollowsThePath(t *testing.T) {
	var m pathMTU
	now := time.Unix(1000, 0)
	m.restart(now, 1400)
	probePath(&m, &now, time.Minute, 1400)
	if m.working != 1400 {
		t.Fatalf("MTU = %d, want 1400", m.working)
	}
	probePath(&m, &now, time.Minute, 1320)
	if m.working != 1320 {
		t.Errorf("MTU after the path shrank = %d, want 1320", m.working)
	}
	probePath(&m, &now, 12*time.Minute, 1400)
	if m.working != 1400 {
		t.Errorf("MTU after the path grew = %d, want 1400", m.working)
	}
}

func TestPathMTUIsQuietWhenSettled(t *testing.T) {
	var m pathMTU
	now := time.Unix(1000, 0)
	m.restart(now, 1400)
	probePath(&m, &now, time.Minute, 1400)
	if n := probePath(&m, &now, 10*time.Minute, 1400); n > 125 {
		t.Errorf("%d probes in 10 minutes of a settled path, want about 120", n)
	}
}

func TestPathMTUBeforeThePeerIsUp(t *testing.T) {
	var m pathMTU
	if size := m.step(time.Unix(1000, 0)); size != 0 {
		t.Errorf("a probe of %d bytes before the peer was up", size)
	}
}

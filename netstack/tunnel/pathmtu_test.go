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
		{"jumbo frames", 8900, 8900, 8900},
		{"jumbo frames here, 1500 beyond", 8900, 1400, 1400},
		{"jumbo frames here, PPPoE beyond", 8900, 1372, 1372},
		{"jumbo frames of another size", 8900, 8060, 8000},
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

// TestPathMTUFindsTheCommonFirst: where the local frames are jumbo and the
// path's are not, the first proof is worth 1400 bytes, and nothing is lost by
// the search for more.
func TestPathMTUFindsTheCommonFirst(t *testing.T) {
	var m pathMTU
	now := time.Unix(1000, 0)
	m.restart(now, 8900)
	for probes := range 30 {
		size := m.step(now)
		switch {
		case probes == 0 && size != 1400:
			t.Fatalf("the first probe has %d bytes, want 1400", size)
		case probes == 1 && size != 8900:
			t.Fatalf("the second probe has %d bytes, want 8900", size)
		case probes > 0 && m.working != 1400:
			t.Fatalf("MTU = %d after %d probes, want 1400", m.working, probes)
		}
		if 0 < size && size <= 1400 {
			m.answered(now, size)
		}
		now = m.next
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

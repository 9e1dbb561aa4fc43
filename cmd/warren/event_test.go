package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/warrenmesh/warren/edge/admin/client"
)

// The follower tells what it could not show, and outlives the edge.
func TestFollowTellsOfGapsAndRestarts(t *testing.T) {
	first, second := time.Unix(1, 0), time.Unix(2, 0)
	refused := fmt.Errorf("connecting: %w", syscall.ECONNREFUSED)
	gone := errors.New("not allowed")
	events := func(ids ...uint64) (list []client.Event) {
		for _, id := range ids {
			list = append(list, client.Event{ID: id})
		}
		return list
	}
	steps := []struct {
		after uint64 // asked for
		list  client.EventList
		err   error
	}{
		{7, client.EventList{Events: events(8, 9), Since: first}, nil},
		{9, client.EventList{Since: first}, nil},
		{9, client.EventList{Events: events(20, 21), Missed: 10, Since: first}, nil},
		{21, client.EventList{}, refused},
		{21, client.EventList{}, refused},
		{21, client.EventList{Events: events(22), Since: second}, nil}, // of another log
		{0, client.EventList{Events: events(1, 2, 22), Since: second}, nil},
		{22, client.EventList{}, refused},
		{22, client.EventList{Events: events(23), Since: second}, nil},
		{23, client.EventList{}, gone},
	}
	var said bytes.Buffer
	var shown []uint64
	next := 0
	f := follower{
		ask: func(_ context.Context, after uint64, limit int) (client.EventList, error) {
			s := steps[next]
			if next++; after != s.after || limit != client.MaxEvents {
				t.Errorf("step %d: asked for %d events after %d, want those after %d", next, limit, after, s.after)
			}
			return s.list, s.err
		},
		show: func(list []client.Event, first bool) error {
			for _, e := range list {
				shown = append(shown, e.ID)
			}
			if first {
				t.Error("the heading is shown again")
			}
			return nil
		},
		say: &said, since: first,
	}
	f.note(events(3, 7))
	tick := make(chan time.Time, len(steps))
	for range steps {
		tick <- time.Time{}
	}
	if err := f.run(t.Context(), tick); !errors.Is(err, gone) || next != len(steps) {
		t.Errorf("ended at step %d with %v", next, err)
	}
	if got := fmt.Sprint(shown); got != "[8 9 20 21 1 2 22 23]" {
		t.Errorf("showed %s", got)
	}
	lines := strings.Split(strings.TrimSpace(said.String()), "\n")
	if len(lines) != 4 || !strings.Contains(lines[0], "10 events missed") || !strings.Contains(lines[1], "waiting") ||
		!strings.Contains(lines[2], "restarted") || !strings.Contains(lines[3], "waiting") {
		t.Errorf("said %q", lines)
	}
}

// A webhook is not promised more than it gets.
func TestEventHelp(t *testing.T) {
	_, text, _ := command(t, nil, "event", "list", "--help")
	if strings.Contains(text, "gets all") || !strings.Contains(text, "tried for an hour (max_age)") {
		t.Error(text)
	}
}

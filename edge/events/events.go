// Package events keeps the log of the edge's changes of state and tells
// webhooks of them.
//
// New makes a Log; Add appends an event, and never waits for anything; Since
// reads the newest ones, which a bounded ring keeps. Apply (or Prepare and
// Commit) says which webhooks there are: each has a goroutine and a bounded
// queue of its own, so that one that hangs holds up neither Add nor another.
// An event reaches a webhook at least once and in order, unless it grew too
// old or too many were waiting, which is counted. Stop ends the webhooks,
// after a short grace in which they send what is waiting.
//
// The package never follows a redirect, and never logs a secret.
package events

import (
	"time"
)

// Event is one change of state. What does not apply is empty.
type Event struct {
	// ID counts from 1 since the edge started. Add gives it.
	ID uint64 `json:"id"`
	// Time is when it happened; Add fills it where it is zero.
	Time      time.Time `json:"time"`
	Kind      string    `json:"kind"` // "pool", "endpoint", "connector"…
	Pool      string    `json:"pool,omitempty"`
	Network   string    `json:"network,omitempty"`
	Endpoint  string    `json:"endpoint,omitempty"` // address and port
	Monitor   string    `json:"monitor,omitempty"`
	Connector string    `json:"connector,omitempty"`
	From      string    `json:"from,omitempty"`
	To        string    `json:"to,omitempty"`
	Why       string    `json:"why,omitempty"`
}

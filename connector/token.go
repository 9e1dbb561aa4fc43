package connector

import (
	"errors"
	"fmt"
	"strings"

	"github.com/warrenmesh/warren/connector/state"
	"github.com/warrenmesh/warren/edge/wire"
)

// sayToken says at the start what a token that was given will not be used for,
// or which edges of one that was given before are still to let this connector
// in, and sees that the next start knows. The caller has opened the state.
func (c *Connector) sayToken(edges []*edge) {
	if !c.spec.hasToken() {
		for _, e := range c.state.Invited() {
			name := strings.Join(e.URLs[:min(len(e.URLs), 1)], "")
			c.waiting = append(c.waiting, name)
			c.log.Warn("an edge of the token has never let this connector in", "edge", name, "token", e.TokenID,
				"hint", "start once more with the token, or with a new one that this edge makes")
		}
		return
	}
	id := c.spec.Token.ID.String()
	var invited []state.Edge
	for _, e := range c.spec.Token.Edges {
		invited = append(invited, state.Edge{PublicKey: e.PublicKey, URLs: e.URLs, TokenID: id})
	}
	if err := c.state.Invite(invited); err != nil {
		c.log.Warn("remembering failed", "err", err, "hint", fmt.Sprintf("make room in %s, and let this connector write there", c.spec.StateDir))
	}
	var names []string
	hint := ""
	for _, e := range edges {
		switch member, _ := e.membership(); {
		case !e.invited:
		case member == nil, !member.Confirmed, member.Ephemeral:
			return // it may be needed
		case e.ofAnotherToken(member):
			hint = "it is tried only where the edge turns out to have forgotten this connector"
			fallthrough
		default:
			names = append(names, "edge "+e.name())
		}
	}
	c.log.Info("the token is not used", "token", id, "reason", "this connector has enrolled with "+strings.Join(names, " and "), "hint", hint)
}

// tokenHint says whether the token is needed any more, and what for.
func (c *Connector) tokenHint() string {
	saved := make(map[wire.Key]bool)
	for _, e := range c.state.Edges() {
		saved[e.PublicKey] = e.Confirmed
	}
	var out, unsaved []string
	for _, name := range c.waiting {
		out = append(out, "edge "+name)
	}
	for _, e := range c.list() {
		e.mu.Lock()
		member, invited, gone := e.member, e.invited, e.gone
		e.mu.Unlock()
		switch {
		case errors.Is(gone, ErrRefused): // this token is of no use there
		case member == nil && invited, member != nil && !member.Confirmed:
			out = append(out, "edge "+e.name())
		case member != nil && !saved[member.PublicKey]:
			unsaved = append(unsaved, "edge "+e.name())
		}
	}
	var why []string
	if len(out) > 0 {
		why = append(why, strings.Join(out, " and ")+" has not let this connector in yet")
	}
	if len(unsaved) > 0 {
		why = append(why, "the enrolment with "+strings.Join(unsaved, " and ")+" could not be saved yet")
	}
	if len(why) > 0 {
		return "keep the token: " + strings.Join(why, ", and ")
	}
	return "the token is needed no more"
}

// afterRevocation says what to do once the edge has revoked this connector,
// where it was enrolled there; empty: the edge's own words are all.
func (e *edge) afterRevocation(err error) string {
	var refusal *wire.Refusal
	member, _ := e.membership()
	if member == nil || !errors.As(err, &refusal) || refusal.Code != wire.CodeRevoked {
		return ""
	}
	c := e.c
	text := fmt.Sprintf("; to let it in again remove %s and start with a new token", c.spec.StateDir)
	if n := len(c.state.Edges()); n > 1 {
		text += fmt.Sprintf(" of each of its %d edges", n)
	}
	if c.spec.PrivateKeyFile != "" {
		text += fmt.Sprintf(", and with another key in %s", c.spec.PrivateKeyFile)
	}
	if c.spec.hasToken() {
		text += "; the token that was given is not used, as this directory's key is the one that was revoked"
	}
	return text
}

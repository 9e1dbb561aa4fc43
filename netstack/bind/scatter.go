package bind

import (
	"math/bits"

	"golang.zx2c4.com/wireguard/conn"
)

// The kernel hands over several datagrams of one size as one message (UDP_GRO).
// So that each of them lands in a buffer of its own without a copy, a message's
// vectors are the first bytes of successive buffers, as many as the datagrams
// are expected to have: the guess. Where it is wrong the message is put
// together again and cut by copying. No guess loses a byte, because the last
// vector of each message is a whole buffer, which holds the largest message.

const (
	// maxPayload is the largest payload of a UDP datagram, and of a message.
	maxPayload = 1<<16 - 1 - 8

	// maxLanes bounds what wrong guesses leave over in one call.
	maxLanes = 64

	// fewLanes are always there.
	fewLanes = 8

	// patientGuess is how many messages of smaller datagrams it takes to lower
	// the guess. It is raised at once: a few large datagrams cost more to copy
	// than many small ones.
	patientGuess = 16

	// keptCarry is how much memory a scatter keeps for the next wrong guess.
	keptCarry = 256 << 10
)

// shape is how the buffers of one receive call make messages: lane after lane
// of length buffers, of which each but the lane's last one takes guess bytes.
// Length 0 is one message that goes to no buffer directly.
type shape struct{ lanes, length, guess int }

// vector is where the j-th part of a lane's message goes.
func (s shape) vector(bufs [][]byte, lane, j int) []byte {
	buf := bufs[lane*s.length+j]
	if j < s.length-1 {
		buf = buf[:s.guess]
	}
	return buf
}

// batch is the arguments of a receive function.
type batch struct {
	bufs  [][]byte
	sizes []int
	eps   []conn.Endpoint
}

func (b batch) from(i int) batch { return batch{b.bufs[i:], b.sizes[i:], b.eps[i:]} }
func (b batch) to(i int) batch   { return batch{b.bufs[:i], b.sizes[:i], b.eps[:i]} }

// message is what one message brought: size bytes in datagrams of segment
// bytes, the last of which may be shorter.
type message struct {
	size, segment int
	ep            *Endpoint
}

func (m message) datagrams() int {
	if m.size == 0 {
		return 1
	}
	return (m.size + m.segment - 1) / m.segment
}

// scatter gives each datagram its buffer. It belongs to one receive function.
type scatter struct {
	guess  int // bytes of a datagram
	long   int // datagrams of a message, the most of late
	many   int // messages of a call, the most of late
	misses int // messages of smaller datagrams since one of guess

	// What has no buffer yet, in order, and where it came from. Nothing that
	// came later overtakes it.
	carry []byte
	left  []carried

	spare     []byte // a message's place where the buffers are small ones
	truncated int    // datagrams that were larger than their buffer
}

// carried is a run of datagrams in carry.
type carried struct {
	at int
	message
}

// shape says how to lay out bufs, for a socket that gathers datagrams or not.
func (s *scatter) shape(bufs [][]byte, gathers bool) shape {
	n := len(bufs)
	if !gathers {
		return shape{lanes: n, length: 1}
	}
	for _, buf := range bufs {
		if len(buf) < maxPayload {
			if s.spare == nil {
				s.spare = make([]byte, 1<<16)
			}
			return shape{lanes: 1}
		}
	}
	length := 1
	if s.long > 1 && s.guess > 0 {
		// Room for a few more than there were, as far as they fit a message.
		ample := 1 << bits.Len(uint(s.long-1))
		length = min(max(s.long, min(ample, maxMessage/s.guess+1)), n)
	}
	// A lane that stays empty costs a few nanoseconds: no more of them than
	// twice of what came.
	return shape{lanes: min(n/length, max(2*s.many, fewLanes), maxLanes), length: length, guess: s.guess}
}

// learn takes the messages of a call into account.
func (s *scatter) learn(m message) {
	switch {
	case m.segment > s.guess:
		s.guess, s.misses = m.segment, 0
	case m.size <= m.segment: // one datagram, which fits
	case m.segment == s.guess:
		s.misses = 0
	default:
		if s.misses++; s.misses == patientGuess {
			s.guess, s.misses = m.segment, 0
		}
	}
}

// learnCall is told of a call how many messages it brought, and the most
// datagrams that one of them held.
func (s *scatter) learnCall(messages, most int) {
	s.many, s.long = ebb(s.many, messages), ebb(s.long, most)
}

// ebb returns the most of late: it rises at once and falls slowly.
func ebb(most, now int) int {
	if now < most {
		return most - (most-now+7)/8
	}
	return now
}

// place gives the datagrams of the message in a lane their buffers; those of
// the last message of a call may use the buffers behind it. It returns the end
// of the buffers in use; those of a lane that are not have size 0.
func (s *scatter) place(b batch, sh shape, lane int, last bool, m message) (end int) {
	start := lane * sh.length
	at := b.from(start)
	if !last {
		at = at.to(sh.length)
	}
	inPlace := 0
	switch n := m.datagrams(); {
	case len(s.left) > 0 || sh.length == 0:
	case sh.length == 1, n == 1 && m.size <= sh.guess, n > 1 && m.segment == sh.guess:
		inPlace = min(n, sh.length)
	}
	rest := m.size
	for i := range inPlace {
		at.sizes[i], at.eps[i] = min(rest, m.segment), m.ep
		rest -= at.sizes[i]
	}
	if rest > 0 || inPlace == 0 {
		s.gather(b, sh, lane, m, inPlace, rest)
		if len(s.left) == 1 {
			inPlace += s.deliver(at.from(inPlace))
		}
	}
	if !last {
		clear(at.sizes[inPlace:])
		clear(at.eps[inPlace:])
	}
	return start + inPlace
}

// gather copies the last rest bytes of a lane's message to the carry. Those of
// the first inPlace datagrams stay.
func (s *scatter) gather(b batch, sh shape, lane int, m message, inPlace, rest int) {
	c := carried{len(s.carry), message{rest, m.segment, m.ep}}
	switch {
	case sh.length == 0:
		s.carry = append(s.carry, s.spare[:rest]...)
	case inPlace > 0: // the lane is full, and the rest behind its last datagram
		s.carry = append(s.carry, b.bufs[lane*sh.length+sh.length-1][m.segment:m.segment+rest]...)
	default:
		for j := 0; rest > 0; j++ {
			part := sh.vector(b.bufs, lane, j)
			part = part[:min(len(part), rest)]
			s.carry = append(s.carry, part...)
			rest -= len(part)
		}
	}
	s.left = append(s.left, c)
}

// deliver hands over what was carried, as far as there are buffers, and
// returns how many it took.
func (s *scatter) deliver(b batch) (n int) {
	done := 0
	for ; n < len(b.bufs) && done < len(s.left); n++ {
		c := &s.left[done]
		size := min(c.size, c.segment)
		b.sizes[n], b.eps[n] = size, c.ep
		if size > len(b.bufs[n]) {
			s.truncated++
			b.sizes[n] = 0
		} else {
			copy(b.bufs[n], s.carry[c.at:c.at+size])
		}
		c.at += size
		if c.size -= size; c.size == 0 {
			done++
		}
	}
	if done < len(s.left) {
		s.left = s.left[:copy(s.left, s.left[done:])]
		return n
	}
	clear(s.left) // of endpoints
	s.left, s.carry = s.left[:0], s.carry[:0]
	if cap(s.carry) > keptCarry {
		s.carry = nil
	}
	return n
}

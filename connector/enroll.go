package connector

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/warrenmesh/warren/edge/wire"
	"github.com/warrenmesh/warren/netstack/tunnel"
)

// Timing of an enrolment. Joiners that hold one token share its bootstrap
// keys, and each that shakes hands takes the session of the key from whoever
// had it: an attempt is short, and the pauses between them grow, so that who
// waits disturbs nobody. An exchange takes four round trips.
const (
	enrolAlive    = 3 * time.Second // for the edge's first packet, in an attempt
	enrolExchange = 4 * time.Second // for the rest; grows with the attempts
	enrolSlowest  = 10 * time.Second
	// enrolSilent is how long nothing at all may come before that is said.
	enrolSilent = 10 * time.Second
	// enrolWithin is how long an edge may shake hands and not answer.
	enrolWithin = 60 * time.Second
	// A pause is from half of these to one and a half.
	enrolPause    = 200 * time.Millisecond
	enrolMaxPause = 4 * time.Second
)

// initiation is the size of a handshake's first message (wireguard.com/protocol).
const initiation = 148

// enrolAt registers public, this connector's own key, at one edge of its token.
// The answer's Edges hold that edge and nothing else. The error is a
// *wire.Refusal where the edge refuses, or a sentence that says why there is
// no answer; trying again may help unless it is a Refusal that is Final.
func (c *Connector) enrolAt(ctx context.Context, edge EdgeSpec, public wgtypes.Key) (wire.EnrollAnswer, error) {
	answer, err := c.newJoiner(edge, public).join(ctx)
	var refusal *wire.Refusal
	if err == nil || errors.As(err, &refusal) {
		return answer, err
	}
	return answer, fmt.Errorf("enrolling at edge %q: %w", edge, err)
}

// joiner enrols at one edge, once.
type joiner struct {
	token wire.Token
	edge  EdgeSpec
	who   wire.EnrollRequest // but for its Time
	deps  Deps
	local netip.Addr // WireGuard sends from it; the zero value: any
	log   *slog.Logger
	tried []*call // the addresses, in the order to try them
	met   bool    // a handshake was made, with whatever address
}

func (c *Connector) newJoiner(edge EdgeSpec, public wgtypes.Key) *joiner {
	return &joiner{
		token: c.spec.Token,
		edge:  edge,
		deps:  c.deps,
		local: c.spec.Listen.Addr(),
		log:   c.log.With("edge", edge.String()),
		who: wire.EnrollRequest{
			PublicKey: wire.Key{Key: public},
			Name:      plain(c.spec.Name, wire.MaxName),
			Hostname:  plain(hostname(), wire.MaxName),
			Version:   plain(c.deps.Version, wire.MaxText),
		},
	}
}

// call is what came of calling one address of the edge.
type call struct {
	at   netip.AddrPort
	sent uint64 // bytes
	why  error  // this machine's or the network's own word; nil: silence
}

// join tries the edge's addresses in turn until one answers.
func (j *joiner) join(ctx context.Context) (wire.EnrollAnswer, error) {
	if err := j.resolve(ctx); err != nil {
		return wire.EnrollAnswer{}, err
	}
	j.log.Info("enrolling", "token", j.token.ID, "addresses", j.addresses())
	start := time.Now()
	for n := 0; ; n++ {
		to := j.tried[n%len(j.tried)]
		answer, err := j.attempt(ctx, to, n)
		var refusal *wire.Refusal
		switch {
		case err == nil:
			return answer, nil
		case ctx.Err() != nil:
			return answer, context.Cause(ctx)
		case errors.As(err, &refusal) && refusal.Final(), time.Since(start) >= enrolWithin:
			return answer, err
		case !j.met && n+1 >= len(j.tried) && (time.Since(start) >= enrolSilent || j.hopeless()):
			return answer, j.silence(time.Since(start))
		case j.met:
			// Where it shook hands it may answer.
			j.tried = []*call{to}
		}
		j.log.Debug("enrolling failed", "attempt", n+1, "err", err)
		pause := min(enrolPause<<min(n, 10), enrolMaxPause)
		sleep(ctx, pause/2+rand.N(pause))
	}
}

// resolve finds the addresses to try.
func (j *joiner) resolve(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, resolveWithin)
	defer cancel()
	addrs, err := resolveURLs(ctx, j.deps.Resolver, j.edge.URLs)
	if err != nil {
		return err
	}
	for _, at := range addrs {
		j.tried = append(j.tried, &call{at: at})
	}
	return nil
}

// attempt opens a tunnel of its own as one of the token's bootstrap peers and
// asks through it.
func (j *joiner) attempt(ctx context.Context, to *call, n int) (wire.EnrollAnswer, error) {
	if to.why = j.deps.Reach.Route(to.at); to.why != nil {
		to.why = fmt.Errorf("this machine has no way to %s: %w", to.at, to.why)
		return wire.EnrollAnswer{}, to.why
	}
	keys := j.token.Bootstrap()
	device, err := j.deps.Tunnel(TunnelConfig{
		PrivateKey: keys[rand.N(len(keys))],
		Listen:     netip.AddrPortFrom(j.local, 0),
		Log:        j.log,
	})
	if err != nil {
		to.why = fmt.Errorf("opening a tunnel: %w", err)
		return wire.EnrollAnswer{}, to.why
	}
	defer device.Close()
	came := make(chan struct{}, 1)
	peer, err := device.Join(JoinConfig{
		Name:         j.edge.String(),
		PublicKey:    j.edge.PublicKey,
		PresharedKey: j.token.PresharedKey(),
		Endpoint:     to.at,
		OnState: func(s State) {
			if s.Alive {
				select {
				case came <- struct{}{}:
				default:
				}
			}
		},
	})
	if err != nil {
		to.why = fmt.Errorf("calling %s: %w", to.at, err)
		return wire.EnrollAnswer{}, to.why
	}
	if !j.answers(ctx, peer, came, to) {
		return wire.EnrollAnswer{}, fmt.Errorf("no answer from %s", to.at)
	}
	j.met = true
	return j.ask(ctx, device, peer, n)
}

// answers waits for the edge's first packet and notes what came of it.
func (j *joiner) answers(ctx context.Context, peer Peer, came <-chan struct{}, to *call) bool {
	timer := time.NewTimer(jittered(enrolAlive))
	defer timer.Stop()
	select {
	case <-came:
		return true
	case <-ctx.Done():
		return false
	case <-timer.C:
	}
	s := peer.State()
	to.sent += s.TxBytes
	if !s.LastHandshake.IsZero() { // and another joiner has taken the session since
		j.met = true
		return false
	}
	switch err := j.deps.Reach.Probe(ctx, to.at); {
	case errors.Is(err, errPortClosed):
		to.why = fmt.Errorf("nothing listens at UDP %s (port unreachable): does the edge run there, and is the port right?", to.at)
	case err != nil:
		to.why = fmt.Errorf("UDP to %s fails: %w", to.at, err)
	}
	return false
}

// ask sends the request and reads the answer.
func (j *joiner) ask(ctx context.Context, device Tunnel, peer Peer, n int) (wire.EnrollAnswer, error) {
	within := jittered(min(enrolExchange+time.Duration(n)*time.Second, enrolSlowest))
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	conn, err := device.Dial(ctx, netip.AddrPortFrom(peer.Overlay(), wire.EnrollPort))
	if err != nil {
		return wire.EnrollAnswer{}, fmt.Errorf("the edge shakes hands, but its enrolment port does not answer: %w", err)
	}
	line := newPoster(conn)
	defer line.close()
	who := j.who
	who.Time = j.deps.Wall()
	var answer wire.EnrollAnswer
	err = line.post(ctx, wire.PathEnroll, within, who, &answer)
	var refusal *wire.Refusal
	switch {
	case errors.As(err, &refusal):
		return wire.EnrollAnswer{}, refusal
	case err != nil:
		return wire.EnrollAnswer{}, fmt.Errorf("the edge shakes hands, but does not answer (others may be enrolling with the same token): %s", plain(err.Error(), wire.MaxText))
	}
	return j.check(answer)
}

// check refuses an answer that makes no sense, and takes from it what is
// about this edge: who says where the others are is their own token.
func (j *joiner) check(answer wire.EnrollAnswer) (wire.EnrollAnswer, error) {
	key := j.edge.PublicKey
	if !slices.ContainsFunc(answer.Edges, func(e wire.Edge) bool { return e.PublicKey.Key == key }) {
		return wire.EnrollAnswer{}, wire.Refuse(wire.CodeNotAllowed,
			"the token is for another edge: what answers at %s with the key %s speaks for other keys: make a new token there", j.edge, tunnel.Abbreviate(key))
	}
	urls := texts(toldURLs(answer.Edges, key))
	if len(urls) == 0 {
		urls = texts(j.edge.URLs)
	}
	answer.Edges = []wire.Edge{{PublicKey: wire.Key{Key: key}, URLs: urls}}
	answer.Name, answer.Network = plain(answer.Name, wire.MaxName), plain(answer.Network, wire.MaxName)
	if answer.Name == "" || answer.Network == "" {
		return wire.EnrollAnswer{}, errors.New("the edge's answer holds no name or no network: is it of another release?")
	}
	return answer, nil
}

// hopeless tells that it was said of every address why nothing can come from
// it.
func (j *joiner) hopeless() bool {
	return !slices.ContainsFunc(j.tried, func(c *call) bool { return c.why == nil })
}

func (j *joiner) addresses() (list []netip.AddrPort) {
	for _, c := range j.tried {
		list = append(list, c.at)
	}
	return list
}

// silence says what was sent, that nothing came back, and how to find out why:
// WireGuard answers nobody whom it does not know, so a closed firewall, another
// edge and a forgotten token look the same from here.
func (j *joiner) silence(after time.Duration) error {
	var words, silent []string
	var sent uint64
	port := uint16(0)
	for _, c := range j.tried {
		if c.why != nil {
			words = append(words, c.why.Error())
			continue
		}
		silent = append(silent, c.at.String())
		sent += c.sent
		port = c.at.Port()
	}
	if len(silent) > 0 {
		words = append(words, fmt.Sprintf("no answer from %s: %d handshake initiations (%d bytes each, UDP) were sent in %.0f s and nothing came back: "+
			"UDP is blocked on the way, or the edge there has another key than the token's %s, or does not know the token %s any more; from here they look the same. "+
			"Test at the edge: `tcpdump -n udp port %d and host ADDRESS` (this machine's, as seen there) shows whether they arrive, `warren token list` whether it knows the token",
			strings.Join(silent, " and "), sent/initiation, initiation, after.Seconds(), tunnel.Abbreviate(j.edge.PublicKey), j.token.ID, port))
	}
	return errors.New(strings.Join(words, "; "))
}

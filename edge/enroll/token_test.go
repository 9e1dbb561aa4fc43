package enroll

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/warrenmesh/warren/edge/wire"
)

func TestCreateToken(t *testing.T) {
	w := newWorld(t)
	created, token := w.token(func(r *TokenRequest) { r.Name, r.Routes = "berlin-1", prefixes("10.0.0.0/16", "2001:db8::/32") })
	info := created.Token
	if info.ID != token.ID.String() || info.State != TokenActive || info.Network != "berlin" || info.Name != "berlin-1" ||
		!info.Expires.Equal(w.clock.Now().Add(time.Hour)) || info.Reusable || !info.Forgotten.IsZero() || len(info.Routes) != 2 {
		t.Errorf("made %+v", info)
	}
	if len(token.Edges) != 1 || token.Edges[0].PublicKey.Key != w.self || token.Edges[0].URLs[0] != "fra1.example.net:51820" {
		t.Errorf("the token names %+v", token.Edges)
	}
	if created.Record != "" {
		t.Error("a record without another edge")
	}
	if g := w.tun.guests[joiner(token, 0)]; g.Port != wire.EnrollPort || g.PresharedKey != token.PresharedKey() {
		t.Errorf("the tunnel's guest is %+v", g)
	}
	w.clock.pass(time.Minute)
	_, eight := w.token(ephemeral)
	if list := w.Tokens(); len(list) != 2 || list[0].ID != eight.ID.String() || !list[0].Reusable || !list[0].Ephemeral {
		t.Errorf("listed %+v", list)
	}
	if len(w.tun.guests) != 1+wire.ReusableKeys {
		t.Errorf("%d guests", len(w.tun.guests))
	}
	w.check()
}

func TestTokenRequestsThatAreRefused(t *testing.T) {
	many := make([]netip.Prefix, wire.MaxRoutes+1)
	for i := range many {
		many[i] = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24)
	}
	other := wire.Edge{PublicKey: wire.Key{Key: newKey()}, URLs: []string{"a.example.net:51820"}}
	cases := []struct {
		name  string
		spec  func(*Spec)
		req   func(*TokenRequest, *world)
		kind  Kind
		words []string
	}{
		{"no such network", nil, func(r *TokenRequest, _ *world) { r.Network = "paris" }, Refused, []string{`"paris"`, "berlin, closed, tokyo"}},
		{"no network at all", nil, func(r *TokenRequest, _ *world) { r.Network = "" }, Refused, []string{`network ""`}},
		{"a network that lets none in", nil, func(r *TokenRequest, _ *world) { r.Network = "closed" }, Refused, []string{`"closed"`, "enroll = true"}},
		{"no route", nil, func(r *TokenRequest, _ *world) { r.Routes = nil }, BadRequest, []string{"at least one route"}},
		{"a route twice", nil, func(r *TokenRequest, _ *world) { r.Routes = prefixes("10.0.0.0/8", "10.0.0.0/8") }, BadRequest, []string{"10.0.0.0/8", "twice"}},
		{"host bits", nil, func(r *TokenRequest, _ *world) { r.Routes = prefixes("10.0.0.1/8") }, BadRequest, []string{`write "10.0.0.0/8"`}},
		{"mapped", nil, func(r *TokenRequest, _ *world) { r.Routes = prefixes("::ffff:10.0.0.0/104") }, BadRequest, []string{"route"}},
		{"invalid route", nil, func(r *TokenRequest, _ *world) { r.Routes = []netip.Prefix{{}} }, BadRequest, []string{"route"}},
		{"too many routes", nil, func(r *TokenRequest, _ *world) { r.Routes = many }, BadRequest, []string{"1025 routes", "1024"}},
		{"a route that the config refuses", nil, func(r *TokenRequest, _ *world) { r.Routes = prefixes("100.127.0.0/16") }, Refused, []string{"inner_sources"}},
		{"bad name", nil, func(r *TokenRequest, _ *world) { r.Name = "berlin 1" }, BadRequest, []string{`"berlin 1"`, "letters"}},
		{"long name", nil, func(r *TokenRequest, _ *world) { r.Name = strings.Repeat("x", 64) }, BadRequest, []string{"64 bytes", "63"}},
		{"the name of a declared connector", nil, func(r *TokenRequest, _ *world) { r.Name = "declared" }, Refused, []string{`"declared"`, "another name"}},
		{"the name of an enrolled connector", nil, func(r *TokenRequest, w *world) {
			_, token := w.token()
			w.enrolled(token, "berlin-1")
			r.Name = "berlin-1"
		}, Refused, []string{`"berlin-1"`, "revoke"}},
		{"too short", nil, func(r *TokenRequest, _ *world) { r.TTL = time.Second }, BadRequest, []string{"1s", "1 minute to 366 days"}},
		{"too long", nil, func(r *TokenRequest, _ *world) { r.TTL = MaxTTL + 1 }, BadRequest, []string{"366 days"}},
		{"negative", nil, func(r *TokenRequest, _ *world) { r.TTL = -time.Hour }, BadRequest, []string{"1 minute"}},
		{"nowhere to call", func(s *Spec) { s.Advertise = nil }, func(*TokenRequest, *world) {}, Refused, []string{"[wireguard] advertise is empty: connectors would not know where to call"}},
		{"this edge again", nil, func(r *TokenRequest, w *world) {
			r.Edges = []wire.Edge{{PublicKey: wire.Key{Key: w.self}, URLs: []string{"a:1"}}}
		}, BadRequest, []string{"this one", "leave it out"}},
		{"an edge twice", nil, func(r *TokenRequest, _ *world) { r.Edges = []wire.Edge{other, other} }, BadRequest, []string{"twice"}},
		{"an edge without an address", nil, func(r *TokenRequest, _ *world) { r.Edges = []wire.Edge{{PublicKey: other.PublicKey}} }, BadRequest, []string{"addresses"}},
		{"an edge with a bad address", nil, func(r *TokenRequest, _ *world) {
			r.Edges = []wire.Edge{{PublicKey: other.PublicKey, URLs: []string{"nowhere"}}}
		}, BadRequest, []string{"nowhere"}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, func(s *Spec) {
				s.Declared = []Declared{{Name: "declared", Network: "tokyo", PublicKey: newKey(), Routes: prefixes("10.9.0.0/16")}}
				if c.spec != nil {
					c.spec(s)
				}
			})
			req := TokenRequest{Network: "berlin", Routes: prefixes("10.0.0.0/16")}
			c.req(&req, w)
			_, err := w.CreateToken(req)
			wantError(t, err, c.kind, append(c.words, "creating a token")...)
			w.check()
		})
	}
}

func TestReusableTokensMayShareANameWithAConnector(t *testing.T) {
	w := newWorld(t)
	_, token := w.token()
	w.enrolled(token, "web")
	_, again := w.token(reusable, func(r *TokenRequest) { r.Name = "web" })
	if answer, _ := w.enrolled(again, ""); answer.Name != "web-2" {
		t.Errorf("it is called %q", answer.Name)
	}
}

func TestTooManyActiveTokens(t *testing.T) {
	w := newWorld(t)
	for i := range maxActiveTokens {
		id := string(rune(i))
		w.tokens[id] = &token{rec: tokenRecord{terms: terms{ID: id, Expires: w.clock.Now().Add(time.Minute)}}}
	}
	req := TokenRequest{Network: "berlin", Routes: prefixes("10.0.0.0/16")}
	_, err := w.CreateToken(req)
	wantError(t, err, Refused, "10000", "revoke some")
	w.clock.pass(time.Minute)
	if _, err := w.CreateToken(req); err != nil {
		t.Errorf("they have expired, but: %v", err)
	}
}

func TestRevokeToken(t *testing.T) {
	w := newWorld(t)
	created, token := w.token(reusable, func(r *TokenRequest) { r.Name = "web" })
	w.enrolled(token, "")
	pending := newKey()
	if _, refusal := w.register(token, pending, ""); refusal != nil {
		t.Fatal(refusal)
	}
	info, err := w.RevokeToken("web")
	if err != nil || info.State != TokenRevoked || info.ID != created.Token.ID || info.Used != 1 || info.Pending != 0 || !slices.Equal(info.Connectors, []string{"web"}) {
		t.Errorf("revoked: %+v, %v", info, err)
	}
	_, refusal := w.register(token, newKey(), "")
	wantRefusal(t, refusal, wire.CodeRevoked, "revoked on 2026-11-22 05:13:02 UTC")
	_, refusal = w.register(token, pending, "")
	wantRefusal(t, refusal, wire.CodeRevoked)
	_, refusal = w.poll(pending)
	wantRefusal(t, refusal, wire.CodeUnknown)
	if w.connector("web").State != ConnectorEnrolled {
		t.Error("the connector that was confirmed went too")
	}
	w.check()

	_, err = w.RevokeToken("web")
	wantError(t, err, Refused, "ended already", "revoked on")
	_, err = w.RevokeToken("nobody")
	wantError(t, err, NotFound, `"nobody"`, "warren token list")
	_, err = w.RevokeToken("")
	wantError(t, err, NotFound)
	w.token(reusable, func(r *TokenRequest) { r.Name = "web" })
	one, _ := w.token(reusable, func(r *TokenRequest) { r.Name = "web" })
	_, err = w.RevokeToken("web")
	wantError(t, err, Refused, "several", one.Token.ID)
	if _, err := w.RevokeToken(one.Token.ID); err != nil {
		t.Error(err)
	}
	if _, err := w.RevokeToken("web"); err != nil {
		t.Errorf("one of that name is left, but: %v", err)
	}
	w.check()
}

func TestImportToken(t *testing.T) {
	a, b := newWorld(t), newWorld(t)
	edges := []wire.Edge{{PublicKey: wire.Key{Key: b.self}, URLs: []string{"b.example.net:51820"}}}
	created, token := a.token(func(r *TokenRequest) { r.Name, r.Edges = "berlin-1", edges })
	if len(token.Edges) != 2 || len(created.Token.Edges) != 2 {
		t.Errorf("the token names %+v", token.Edges)
	}
	if strings.Contains(created.Record, "=") || !strings.HasPrefix(created.Record, "wrntr1_") {
		t.Errorf("record %q", created.Record)
	}
	info, err := b.ImportToken("\n" + created.Record + "\n")
	if err != nil {
		t.Fatal(err)
	}
	if !info.Imported || info.ID != created.Token.ID || info.Name != "berlin-1" || !info.Expires.Equal(created.Token.Expires) || !slices.Equal(info.Edges, created.Token.Edges) {
		t.Errorf("imported %+v", info)
	}
	key := newKey()
	for _, w := range []*world{a, b} { // one key enrols at both, independently
		if _, refusal := w.register(token, key, ""); refusal != nil {
			t.Fatal(refusal)
		}
		if answer, refusal := w.poll(key); refusal != nil || answer.Grant.Edges[0].PublicKey.Key != w.self {
			t.Errorf("granted %+v, %v", answer.Grant, refusal)
		}
		w.check()
	}
	_, err = b.ImportToken(created.Record)
	wantError(t, err, Refused, "already")
	b.restart()
	b.check()
}

func TestRecordsThatAreRefused(t *testing.T) {
	a, b := newWorld(t), newWorld(t)
	edges := []wire.Edge{{PublicKey: wire.Key{Key: b.self}, URLs: []string{"b.example.net:51820"}}}
	created, _ := a.token(func(r *TokenRequest) { r.Edges = edges })
	good, err := readRecord(created.Record)
	if err != nil {
		t.Fatal(err)
	}
	with := func(change func(*terms)) string {
		rec := good
		rec.Bootstrap = slices.Clone(rec.Bootstrap)
		change(&rec)
		return writeRecord(rec)
	}
	for _, c := range []struct {
		name   string
		record string
		kind   Kind
		words  []string
	}{
		{"empty", "", BadRequest, []string{"wrntr1_"}},
		{"the token itself", created.Text, BadRequest, []string{"the token itself", "wrntr1_"}},
		{"cut short", created.Record[:len(created.Record)/2], BadRequest, []string{"cut short"}},
		{"nothing but the prefix", "wrntr1_", BadRequest, []string{"cut short"}},
		{"a typo", strings.Replace(created.Record, "A", "B", 1), BadRequest, []string{"typo"}},
		{"too long", created.Record + strings.Repeat("A", maxRecord), BadRequest, []string{"typo"}},
		{"not for this edge", with(func(r *terms) { r.Edges = r.Edges[:1] }), Refused, []string{b.self.String(), "--edge"}},
		{"no such network", with(func(r *terms) { r.Network = "paris" }), Refused, []string{`"paris"`}},
		{"closed network", with(func(r *terms) { r.Network = "closed" }), Refused, []string{`"closed"`}},
		{"expired", with(func(r *terms) { r.Expires = b.clock.Now() }), Refused, []string{"expired on 2026-11-22 05:13:02 UTC"}},
		{"good for ever", with(func(r *terms) { r.Expires = b.clock.Now().Add(MaxTTL + 1) }), Refused, []string{"clock"}},
		{"bad route", with(func(r *terms) { r.Routes = prefixes("100.127.0.0/24") }), Refused, []string{"inner_sources"}},
		{"no route", with(func(r *terms) { r.Routes = nil }), BadRequest, []string{"route"}},
		{"bad name", with(func(r *terms) { r.Name = "a/b" }), BadRequest, []string{"letters"}},
		{"no key", with(func(r *terms) { r.Bootstrap = nil }), BadRequest, []string{"makes no sense"}},
		{"zero key", with(func(r *terms) { r.Bootstrap[0] = wire.Key{} }), BadRequest, []string{"makes no sense"}},
		{"no preshared key", with(func(r *terms) { r.Preshared = wire.Key{} }), BadRequest, []string{"makes no sense"}},
		{"too few keys", with(func(r *terms) { r.Reusable = true }), BadRequest, []string{"makes no sense"}},
		{"a bad id", with(func(r *terms) { r.ID = "../x" }), BadRequest, []string{"makes no sense"}},
		{"this edge's key", with(func(r *terms) { r.Bootstrap[0].Key = b.self }), Refused, []string{"known", "this edge's own"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := b.ImportToken(c.record)
			wantError(t, err, c.kind, append(c.words, "importing")...)
			if len(b.Tokens()) != 0 {
				t.Error("it was taken all the same")
			}
			b.check()
		})
	}
}

func TestTokensThatEndedAreToldForAWeek(t *testing.T) {
	w := newWorld(t)
	_, spent := w.token()
	_, key := w.enrolled(spent, "berlin-1")
	_, expired := w.token(func(r *TokenRequest) { r.TTL = time.Minute })
	_, revoked := w.token(reusable)
	if _, err := w.RevokeToken(revoked.ID.String()); err != nil {
		t.Fatal(err)
	}
	w.clock.pass(tellFor - time.Second)
	w.Sweep()
	w.restart()
	for _, token := range []wire.Token{spent, expired, revoked} {
		if _, ok := w.tun.KeyAt(overlayOf(joiner(token, 0))); !ok {
			t.Errorf("nobody with %v can be told any more", token)
		}
	}
	_, refusal := w.register(expired, newKey(), "")
	wantRefusal(t, refusal, wire.CodeExpired, "2026-11-22 05:14:02 UTC")
	if answer, refusal := w.register(spent, key, ""); refusal != nil || answer.Name != "berlin-1" {
		t.Errorf("the connector that spent it is told %+v, %v", answer, refusal)
	}
	w.check()
	w.clock.pass(time.Second)
	w.Sweep()
	if list := w.Tokens(); len(list) != 1 || list[0].ID != expired.ID.String() {
		t.Errorf("still there: %+v", list)
	}
	w.clock.pass(time.Minute)
	w.Sweep()
	if len(w.Tokens()) != 0 || len(w.tun.guests) != 0 {
		t.Errorf("still there: %+v and %d guests", w.Tokens(), len(w.tun.guests))
	}
	if w.connector("berlin-1").State != ConnectorEnrolled {
		t.Error("its connector went with the token")
	}
	w.check()
}

func TestTheOldestEndedTokensMakeRoom(t *testing.T) {
	w := newWorld(t)
	var all []wire.Token
	for range maxGuestsTold/wire.ReusableKeys + 2 {
		_, token := w.token(reusable)
		all = append(all, token)
		w.clock.pass(time.Second)
		if _, err := w.RevokeToken(token.ID.String()); err != nil {
			t.Fatal(err)
		}
	}
	if len(w.tun.guests) != maxGuestsTold {
		t.Errorf("%d guests, want %d", len(w.tun.guests), maxGuestsTold)
	}
	for i, token := range all {
		if _, ok := w.tun.KeyAt(overlayOf(joiner(token, 0))); ok != (i >= 2) {
			t.Errorf("token %d of %d can be told: %v", i, len(all), ok)
		}
	}
	w.check()
	w.restart()
	if len(w.tun.guests) != maxGuestsTold {
		t.Errorf("%d guests after a restart, want %d", len(w.tun.guests), maxGuestsTold)
	}
	w.check()
}

func TestATokenThatTheTunnelRefusesIsNone(t *testing.T) {
	w := newWorld(t)
	w.tun.broken, w.tun.after = errors.New("65536 peers already"), 3 // of its eight keys
	_, err := w.CreateToken(TokenRequest{Network: "berlin", Routes: prefixes("10.0.0.0/16"), Reusable: true})
	wantError(t, err, Unavailable, "65536 peers")
	if len(w.Tokens()) != 0 {
		t.Error("it is there")
	}
	w.check()
}

func TestCountsOfTokens(t *testing.T) {
	w := newWorld(t)
	w.token()
	_, spent := w.token()
	w.enrolled(spent, "a")
	w.token(func(r *TokenRequest) { r.TTL = time.Minute })
	w.clock.pass(2 * time.Minute)
	got := w.Counts()
	if got.Tokens[TokenActive] != 1 || got.Tokens[TokenSpent] != 1 || got.Tokens[TokenExpired] != 1 || got.Tokens[TokenRevoked] != 0 || len(got.Tokens) != 4 {
		t.Errorf("counted %v", got.Tokens)
	}
	if got.Enrollments[ResultPending] != 1 || got.Enrollments[ResultConfirmed] != 1 || got.Syncs != 1 {
		t.Errorf("counted %+v", got)
	}
}

// Who revokes a token may paste the token itself: its text is not for an error,
// which goes to a log.
func TestRevokingATokenByItsTextDoesNotRepeatIt(t *testing.T) {
	w := newWorld(t)
	created, _ := w.token(func(r *TokenRequest) {
		r.Edges = []wire.Edge{{PublicKey: wire.Key{Key: newKey()}, URLs: []string{"b.example.net:51820"}}}
	})
	for name, text := range map[string]string{
		"whole": created.Text, "with space before it": " " + created.Text + "\n", "in quotes": `"` + created.Text + `"`,
		"its beginning": created.Text[:20], "without its beginning": created.Text[2:], "its record": created.Record,
	} {
		_, err := w.RevokeToken(text)
		wantError(t, err, BadRequest, "write the token's ID or name, not the token itself")
		if strings.Contains(err.Error(), created.Text[8:20]) || strings.Contains(w.log.String(), created.Text[8:20]) {
			t.Errorf("%s: the token's text is in %q, or in the log", name, err)
		}
	}
	if _, err := w.RevokeToken(created.Token.ID); err != nil {
		t.Errorf("by its id: %v", err)
	}
	w.check()
}

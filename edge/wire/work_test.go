package wire

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

func TestCleanWork(t *testing.T) {
	at := netip.MustParseAddrPort("10.0.0.1:80")
	spec := WorkSpec{Check: json.RawMessage(`{"type":"tcp"}`), Interval: 5 * time.Second, Timeout: time.Second, Retries: 1}
	big := WorkSpec{Check: json.RawMessage(`{"ca":"` + strings.Repeat("x", MaxSpec) + `"}`)}
	many := func(n int) (out []Check) {
		for i := range n {
			out = append(out, Check{ID: uint64(i), Addr: at})
		}
		return out
	}
	for _, c := range []struct {
		name          string
		in, want      Work
		checks, names int
	}{
		{"nothing", Work{}, Work{}, 0, 0},
		{"all well", Work{Specs: []WorkSpec{spec}, Checks: []Check{{ID: 7, Addr: at}}, Names: []Name{{"db.internal."}}},
			Work{Specs: []WorkSpec{spec}, Checks: []Check{{ID: 7, Addr: at}}, Names: []Name{{"db.internal."}}}, 0, 0},
		{"no such spec", Work{Specs: []WorkSpec{spec}, Checks: []Check{{ID: 1, Spec: 1, Addr: at}, {ID: 2, Spec: -1, Addr: at}}},
			Work{Specs: []WorkSpec{spec}}, 2, 0},
		{"an id twice", Work{Specs: []WorkSpec{spec}, Checks: []Check{{ID: 1, Addr: at}, {ID: 1, Addr: at}}},
			Work{Specs: []WorkSpec{spec}, Checks: []Check{{ID: 1, Addr: at}}}, 1, 0},
		{"no address", Work{Specs: []WorkSpec{spec}, Checks: []Check{{ID: 1}}}, Work{Specs: []WorkSpec{spec}}, 1, 0},
		{"an address in disguise", Work{Specs: []WorkSpec{spec}, Checks: []Check{{ID: 1, Addr: netip.MustParseAddrPort("[::ffff:10.0.0.1]:80")}}},
			Work{Specs: []WorkSpec{spec}, Checks: []Check{{ID: 1, Addr: at}}}, 0, 0},
		{"specs that are none, and too long ones", Work{Specs: []WorkSpec{{}, {Check: json.RawMessage(`[]`)}, {Check: json.RawMessage(`{`)}, big, spec},
			Checks: []Check{{ID: 0, Spec: 0, Addr: at}, {ID: 1, Spec: 1, Addr: at}, {ID: 2, Spec: 2, Addr: at}, {ID: 3, Spec: 3, Addr: at}, {ID: 4, Spec: 4, Addr: at}}},
			Work{Specs: []WorkSpec{spec}, Checks: []Check{{ID: 4, Spec: 0, Addr: at}}}, 4, 0},
		{"times without bounds", Work{Specs: []WorkSpec{{Check: spec.Check, Interval: -1, Timeout: time.Hour, Retries: 99}, {Check: spec.Check, Interval: 1 << 62, Timeout: -1, Retries: -1}}},
			Work{Specs: []WorkSpec{{Check: spec.Check, Interval: MinCheckInterval, Timeout: MinCheckInterval, Retries: MaxRetries}, {Check: spec.Check, Interval: MaxCheckInterval, Timeout: time.Millisecond}}}, 0, 0},
		{"too many checks", Work{Specs: []WorkSpec{spec}, Checks: many(MaxChecks + 3)}, Work{Specs: []WorkSpec{spec}, Checks: many(MaxChecks)}, 3, 0},
		{"names", Work{Names: []Name{{""}, {"a b"}, {"a"}, {"a"}, {"ü"}, {strings.Repeat("a", MaxHost+1)}}}, Work{Names: []Name{{"a"}}}, 0, 5},
	} {
		t.Run(c.name, func(t *testing.T) {
			before, _ := json.Marshal(c.in.Checks)
			got := c.in
			if checks, names := got.Clean(); checks != c.checks || names != c.names {
				t.Errorf("left out %d checks and %d names, want %d and %d", checks, names, c.checks, c.names)
			}
			if fmt.Sprint(got) != fmt.Sprint(c.want) {
				t.Errorf("cleaned to\n%+v\nwant\n%+v", got, c.want)
			}
			if after, _ := json.Marshal(c.in.Checks); !bytes.Equal(before, after) {
				t.Error("the caller's array was written to")
			}
		})
	}
}

func TestCleanWorkRequest(t *testing.T) {
	a, b := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")
	r := WorkRequest{
		Results: []CheckResult{
			{ID: 1, RTT: -1, Expires: -1}, {ID: 2, RTT: 5, Error: "no\x1b[2J\n", Class: ClassRefused}, {ID: 3, RTT: 7, Class: "later"},
			{ID: 4, Class: ClassTimedOut}, {ID: 5, Error: "\n"}, {ID: 6, RTT: 9},
		},
		Names: []Found{
			{Host: "a", Addrs: []netip.Addr{a, netip.MustParseAddr("::ffff:10.0.0.1"), {}, b.WithZone("eth0")}, TTL: -1},
			{Host: "b c", Addrs: []netip.Addr{a}}, {Host: "none", TTL: 1 << 62}, {Host: "gone", Addrs: []netip.Addr{a}, NotFound: true},
			{Host: "err", Addrs: []netip.Addr{a}, Error: "broken"},
		},
	}
	r.Clean()
	want := WorkRequest{
		Results: []CheckResult{
			{ID: 1}, {ID: 2, Error: "no[2J", Class: ClassRefused}, {ID: 3, Error: "failed"},
			{ID: 4, Error: "failed", Class: ClassTimedOut}, {ID: 5, Error: "failed"}, {ID: 6, RTT: 9},
		},
		Names: []Found{
			{Host: "a", Addrs: []netip.Addr{a, b}}, {Host: "none", TTL: MaxTTL, Error: "no address"},
			{Host: "gone", Error: "no address", NotFound: true}, {Host: "err", Error: "broken"},
		},
	}
	if !reflect.DeepEqual(r, want) {
		t.Errorf("cleaned to\n%+v\nwant\n%+v", r, want)
	}
	r = WorkRequest{Results: make([]CheckResult, MaxResults+1), Names: slices.Repeat([]Found{{Host: "a"}}, MaxFound+1)}
	if r.Clean(); len(r.Results) != MaxResults || len(r.Names) != MaxFound {
		t.Errorf("%d results and %d names are left", len(r.Results), len(r.Names))
	}
}

// The largest messages within the bounds can be sent.
func TestLargestWorkFits(t *testing.T) {
	at := netip.MustParseAddrPort("[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535")
	var w Work
	for range MaxSpecs {
		w.Specs = append(w.Specs, WorkSpec{
			Check: json.RawMessage(`{"send":"` + strings.Repeat("<", MaxAllSpecs/MaxSpecs/6-4) + `"}`), Interval: MaxCheckInterval, Timeout: MaxCheckInterval, Retries: MaxRetries,
		})
	}
	for i := range MaxChecks {
		w.Checks = append(w.Checks, Check{ID: ^uint64(i), Spec: MaxSpecs - 1, Addr: at})
	}
	for i := range MaxNames {
		w.Names = append(w.Names, Name{Host: fmt.Sprintf("%0*d", MaxHost, i)})
	}
	if checks, names := w.Clean(); checks != 0 || names != 0 {
		t.Fatalf("%d checks and %d names are too many", checks, names)
	}
	fits(t, WorkAnswer{Revision: ^uint64(0), Work: w})

	var r WorkRequest
	for i := range MaxResults {
		r.Results = append(r.Results, CheckResult{ID: ^uint64(i), Error: strings.Repeat("<", MaxCheckError), Class: ClassUnreachable, Expires: 1 << 62})
	}
	for range MaxFound {
		n := Found{Host: strings.Repeat("a", MaxHost), TTL: MaxTTL}
		for i := range MaxAddrs {
			a := at.Addr().As16()
			a[0] = byte(i)
			n.Addrs = append(n.Addrs, netip.AddrFrom16(a))
		}
		r.Names = append(r.Names, n)
	}
	r.Clean()
	fits(t, r)
}

func fits(t *testing.T, message any) {
	t.Helper()
	body, err := json.Marshal(message)
	if err != nil || len(body) > MaxWorkBody || len(body) < MaxWorkBody/2 {
		t.Errorf("%T takes %d bytes (%v), of at most %d", message, len(body), err, MaxWorkBody)
	}
}

func FuzzWorkRequest(f *testing.F) { // the edge
	f.Add([]byte(`{"revision":7,"results":[{"id":1,"rtt":5},{"id":2,"error":"\u001b\ud800","class":"refused"},{"id":18446744073709551615,"class":"x"}]}`))
	f.Add([]byte(`{"names":[{"host":"db.internal","addrs":["10.0.0.1","::ffff:1.2.3.4","","fe80::1%eth0"],"ttl":-1},null,{"host":" "}]}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		var r WorkRequest
		if !decoded(t, body, &r) {
			return
		}
		r.Clean()
		if len(r.Results) > MaxResults || len(r.Names) > MaxFound {
			t.Fatalf("%d results, %d names", len(r.Results), len(r.Names))
		}
		for _, c := range r.Results {
			if c.Error == "" && c.Class != "" || len(c.Error) > MaxCheckError || !utf8.ValidString(c.Error) || c.RTT < 0 || c.RTT > MaxRTT || c.Error != "" && c.RTT != 0 {
				t.Fatalf("%+v", c)
			}
		}
		for _, n := range r.Names {
			if !isHost(n.Host) || len(n.Addrs) > MaxAddrs || (n.Error == "") != (len(n.Addrs) > 0) || n.TTL < 0 || n.TTL > MaxTTL {
				t.Fatalf("%+v", n)
			}
		}
		again := WorkRequest{Revision: r.Revision, Results: slices.Clone(r.Results), Names: slices.Clone(r.Names)}
		again.Clean()
		same(t, r, again)
	})
}

func FuzzWorkAnswer(f *testing.F) { // the connector
	f.Add([]byte(`{"revision":7,"specs":[{"check":{"type":"tcp"},"interval":5000000000,"timeout":1000000000},{"check":null}],"checks":[{"id":1,"addr":"10.0.0.1:80"},{"id":2,"spec":1,"addr":""}],"names":[{"host":"db"}]}`))
	f.Add([]byte(`{"specs":[null],"checks":[null,{"spec":-1}],"names":[null]}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		var a WorkAnswer
		if !decoded(t, body, &a) {
			return
		}
		a.Clean()
		if len(a.Specs) > MaxSpecs || len(a.Checks) > MaxChecks || len(a.Names) > MaxNames {
			t.Fatalf("%d specs, %d checks, %d names", len(a.Specs), len(a.Checks), len(a.Names))
		}
		for _, c := range a.Checks {
			s := a.Specs[c.Spec]
			if s.Interval < MinCheckInterval || s.Timeout > s.Interval || s.Timeout <= 0 || s.Retries > MaxRetries || !c.Addr.Addr().IsValid() {
				t.Fatalf("%+v of %+v", c, s)
			}
		}
		again := a
		if checks, names := again.Clean(); checks != 0 || names != 0 {
			t.Fatalf("cleaning again leaves out %d checks and %d names", checks, names)
		}
		same(t, a, again)
	})
}

func decoded(t *testing.T, body []byte, into any) bool {
	t.Helper()
	err := DecodeWork(bytes.NewReader(body), into)
	if err != nil && len(err.Error()) > 200 {
		t.Fatalf("the error is a message of its own: %v", err)
	}
	return err == nil
}

// same wants two messages to be one, and to fit.
func same(t *testing.T, a, b any) {
	t.Helper()
	first, err := json.Marshal(a)
	if err != nil || len(first) > MaxWorkBody {
		t.Fatalf("%d bytes, %v", len(first), err)
	}
	if second, err := json.Marshal(b); err != nil || !bytes.Equal(first, second) {
		t.Fatalf("%s became %s, %v", first, second, err)
	}
}

package load

import (
	"encoding/json"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestValidate(t *testing.T) {
	target := netip.MustParseAddrPort("127.0.0.1:1")
	six := netip.MustParseAddr("::1")
	good := Spec{Kind: KindRR, Target: target, Duration: time.Second}
	for name, test := range map[string]struct {
		edit func(*Spec)
		want []string // each a part of the error; none: valid
	}{
		"rr":                  {edit: func(s *Spec) {}},
		"rr at a rate":        {edit: func(s *Spec) { s.Rate, s.Streams, s.Size = 100, 64, 1 }},
		"bulk":                {edit: func(s *Spec) { s.Kind, s.Direction, s.Warmup = KindBulk, Both, time.Second }},
		"connect":             {edit: func(s *Spec) { s.Kind, s.Closer = KindConnect, ByOrigin }},
		"udp":                 {edit: func(s *Spec) { s.Kind, s.Size = KindUDP, 1200 }},
		"ping":                {edit: func(s *Spec) { s.Kind = KindPing }},
		"idle without an end": {edit: func(s *Spec) { s.Kind, s.Duration = KindIdle, 0 }},

		"nothing":               {func(s *Spec) { *s = Spec{} }, []string{`kind ""`, "target", "duration is missing"}},
		"unknown kind":          {func(s *Spec) { s.Kind = "flood" }, []string{`kind "flood"`}},
		"target without a port": {func(s *Spec) { s.Target = netip.MustParseAddrPort("127.0.0.1:0") }, []string{"target"}},
		"source of a family":    {func(s *Spec) { s.Sources = []netip.Addr{six, target.Addr()} }, []string{`source "::1"`}},
		"bulk nowhere":          {func(s *Spec) { s.Kind = KindBulk }, []string{`direction ""`}},
		"bulk sideways":         {func(s *Spec) { s.Kind, s.Direction = KindBulk, "left" }, []string{`direction "left"`}},
		"bulk at a rate":        {func(s *Spec) { s.Kind, s.Direction, s.Rate = KindBulk, Up, 1 }, []string{"rate 1"}},
		"bulk with a size":      {func(s *Spec) { s.Kind, s.Direction, s.Size = KindBulk, Up, 1 }, []string{"size 1"}},
		"rr with bulk's and connect's": {func(s *Spec) { s.Direction, s.Closer = Up, ByClient },
			[]string{`direction "up"`, `closer "client"`}},
		"connect without a closer": {func(s *Spec) { s.Kind = KindConnect }, []string{`closer ""`}},
		"ping of two":              {func(s *Spec) { s.Kind, s.Streams = KindPing, 2 }, []string{"streams 2"}},
		"small datagram":           {func(s *Spec) { s.Kind, s.Size = KindUDP, minDatagram-1 }, []string{"size 31"}},
		"large datagram":           {func(s *Spec) { s.Kind, s.Size = KindUDP, maxDatagram+1 }, []string{"size 8973"}},
		"large request":            {func(s *Spec) { s.Size = maxSize + 1 }, []string{"size 1048577"}},
		"below zero": {func(s *Spec) { s.Streams, s.Size, s.Warmup, s.Duration, s.Timeout, s.Rate = -1, -1, -1, -1, -1, -1 },
			[]string{"streams -1", "size -1", "warmup", "duration", "timeout", "rate -1"}},
		"too much": {func(s *Spec) { s.Streams, s.Warmup, s.Duration, s.Rate = 1e6, 2*time.Hour, 2*time.Hour, 1e8 },
			[]string{"streams", "warmup", "duration", "rate"}},
	} {
		t.Run(name, func(t *testing.T) {
			s := good
			test.edit(&s)
			err := s.Validate()
			if (err != nil) != (test.want != nil) {
				t.Fatalf("Validate() = %v", err)
			}
			for _, want := range test.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q does not say %q", err, want)
				}
			}
			if err == nil {
				throughJSON(t, s)
			} else if _, err := Run(t.Context(), s); err == nil {
				t.Error("Run takes it")
			}
		})
	}
}

// throughJSON proves that a spec crosses a process.
func throughJSON(t *testing.T, s Spec) {
	t.Helper()
	line, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	var back Spec
	if err := json.Unmarshal(line, &back); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(s, back) {
		t.Errorf("%s became %+v", line, back)
	}
}

// FuzzOrder: what an origin accepts as an order is within bounds.
func FuzzOrder(f *testing.F) {
	f.Add([]byte(`{"up":true,"seed":1,"buffer":4096,"warmup":0,"duration":1000}`))
	f.Add([]byte(`{"buffer":1e99}`))
	f.Add([]byte("GET / HTTP/1.1"))
	f.Fuzz(func(t *testing.T, line []byte) {
		o, err := parseOrder(line)
		if err == nil && (o.Buffer < 1 || o.Buffer > maxBuffer || o.Duration <= 0 || o.Warmup < 0 || o.Warmup+o.Duration > 2*maxDuration) {
			t.Errorf("%q became %+v", line, o)
		}
	})
}

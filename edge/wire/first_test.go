package wire

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
	"testing"
)

// A message costs memory by what is taken of it.
func TestLongListsAreCutAsTheyAreRead(t *testing.T) {
	many := func(key, element string) string {
		return `{"` + key + `":[` + strings.Repeat(element+",", (MaxWorkBody-100)/(len(element)+1)-1) + element + `],"revision":7}`
	}
	var r WorkRequest
	var a WorkAnswer
	for _, c := range []struct {
		key, element string
		into         any
		size         func() (length, capacity int)
		want         int
	}{
		{"results", "{}", &r, func() (int, int) { return len(r.Results), cap(r.Results) }, MaxResults},
		{"names", "{}", &r, func() (int, int) { return len(r.Names), cap(r.Names) }, MaxFound},
		{"specs", "{}", &a, func() (int, int) { return len(a.Specs), cap(a.Specs) }, MaxSpecs},
		{"checks", "{}", &a, func() (int, int) { return len(a.Checks), cap(a.Checks) }, MaxChecks},
		{"names", "{}", &a, func() (int, int) { return len(a.Names), cap(a.Names) }, MaxNames},
		{"names", `{"addrs":[` + strings.Repeat(`"",`, 1000) + `""]}`, &r, func() (int, int) { return len(r.Names[0].Addrs), cap(r.Names[0].Addrs) }, MaxAddrs},
	} {
		r, a = WorkRequest{}, WorkAnswer{}
		if err := DecodeWork(strings.NewReader(many(c.key, c.element)), c.into); err != nil {
			t.Errorf("%s: %v", c.key, err)
			continue
		}
		if length, capacity := c.size(); length != c.want || capacity > 2*c.want {
			t.Errorf("%s: %d are read, in room for %d, want %d", c.key, length, capacity, c.want)
		}
		if r.Revision+a.Revision != 7 {
			t.Errorf("%s: what comes behind is not read", c.key)
		}
	}
	for body, want := range map[string]string{
		`{"results":"x"}`: `field "results"`, `{"results":[{"id":"x"}]}`: `field "results.id"`, `{"names":[{"addrs":["x"]}]}`: "a time or a prefix",
	} {
		if err := DecodeWork(strings.NewReader(body), &r); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", body, err, want)
		}
	}
	if err := DecodeWork(strings.NewReader(`{"results":null,"names":[]}`), &r); err != nil || len(r.Results)+len(r.Names) != 0 {
		t.Errorf("%+v, %v", r, err)
	}
}

// FuzzFirst: the first elements are those that a decoder finds.
func FuzzFirst(f *testing.F) {
	for _, seed := range []string{
		`[]`, `[1]`, `[1,2,3,4,5]`, ` [1,2]`, `[[1,2],{"a":[1,2],"b":"],\"["},"x,\\",",",null , true]`, `"[1,2,3]"`, `{"a":[1,2]}`, "[\n1 ,\t2 ]", `[""`, ``, `["\\\"",2,3]`,
	} {
		f.Add([]byte(seed), byte(2))
	}
	f.Fuzz(func(t *testing.T, data []byte, n byte) {
		most := int(n) + 1
		before := bytes.Clone(data)
		got := first(data, most)
		if !bytes.Equal(before, data) {
			t.Fatalf("%q became %q", before, data)
		}
		var all, some []json.RawMessage
		if json.Unmarshal(data, &all) != nil || data[0] != '[' {
			return
		}
		if err := json.Unmarshal(got, &some); err != nil || len(some) != min(len(all), most) {
			t.Fatalf("the first %d of %s are %s, %v", most, data, got, err)
		}
		if !slices.EqualFunc(some, all[:len(some)], func(a, b json.RawMessage) bool { return bytes.Equal(a, b) }) {
			t.Fatalf("the first %d of %s are %s", most, data, got)
		}
	})
}

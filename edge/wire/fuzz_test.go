package wire

import (
	"bytes"
	"encoding/json"
	"testing"
)

// Each message is fuzzed as the side that reads it sees it.

func FuzzEnrollRequest(f *testing.F) { fuzz[EnrollRequest](f) } // the edge
func FuzzEnrollAnswer(f *testing.F)  { fuzz[EnrollAnswer](f) }  // the connector
func FuzzSyncRequest(f *testing.F)   { fuzz[SyncRequest](f) }   // the edge
func FuzzSyncAnswer(f *testing.F)    { fuzz[SyncAnswer](f) }    // the connector
func FuzzKeyRequest(f *testing.F)    { fuzz[KeyRequest](f) }    // the edge
func FuzzRefusal(f *testing.F)       { fuzz[Refusal](f) }       // the connector

// fuzz holds that Decode never panics and takes JSON objects alone, and that
// what it takes is encoded again, decodes to the same, and stays so.
func fuzz[M any](f *testing.F) {
	const key = `"AQIDBAUGBwgJCgsMDQ4PEBESExQVFhcYGRobHB0eHyA="`
	for _, seed := range []string{
		``, `null`, `[]`, `{}`, `{}{}`, `{"x":{"y":[1]}}`, `{"code":"busy","message":"\u001b[2J\ud800"}`, `{"CODE":1e999}`,
		`{"public_key":` + key + `,"name":"a","hostname":"b","version":"c","time":"2026-07-01T12:00:00.5+02:00"}`,
		`{"name":"a","network":"n","ephemeral":true,"edges":[{"public_key":` + key + `,"urls":["a:1"]},null],"time":"0001-01-01T00:00:00Z"}`,
		`{"revision":18446744073709551615,"report":{"started":"9999-12-31T23:59:59Z","load":{"load1":1e308,"memory":1},"errors":[{"count":1}]}}`,
		`{"revision":1,"grant":{"routes":["10.0.0.0/8","::/0",""],"edges":null,"max_tcp_flows":-1,"drain":true,"rotate":false}}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		var first, second M
		if err := Decode(bytes.NewReader(body), &first); err != nil {
			if len(err.Error()) > 200 {
				t.Fatalf("the error is a message of its own: %v", err)
			}
			return
		}
		if len(body) > MaxBody || !json.Valid(body) {
			t.Fatalf("decoded %q", body)
		}
		once, err := json.Marshal(first)
		if err != nil {
			t.Fatalf("decoded %q but cannot encode it: %v", body, err)
		}
		// Escapes and a null that became an object make a message longer.
		if len(once) > MaxBody {
			return
		}
		if err := Decode(bytes.NewReader(once), &second); err != nil {
			t.Fatalf("cannot decode %s: %v", once, err)
		}
		if twice, err := json.Marshal(second); err != nil || !bytes.Equal(once, twice) {
			t.Fatalf("%s became %s, %v", once, twice, err)
		}
	})
}

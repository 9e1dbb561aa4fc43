package host

import (
	"errors"
	"net/http"
	"net/http/pprof"
	"net/netip"
)

// HandleProfiles adds /debug/pprof/ to mux: the profiles of this process, as
// net/http/pprof makes them, which say where its processor time and its memory
// go.
//
//	go tool pprof http://127.0.0.1:9191/debug/pprof/profile?seconds=10
//
// A profile tells of code, never of keys or of what flows carry; but taking one
// costs processor time: see CheckProfiles.
func HandleProfiles(mux *http.ServeMux) {
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
}

// CheckProfiles says why profiles are not served at listen, nil where they may
// be: on a loopback address.
func CheckProfiles(listen string) error {
	at, err := netip.ParseAddrPort(listen)
	if err != nil || !at.Addr().Unmap().IsLoopback() {
		return errors.New("profiles are for this machine alone: listen on a loopback address, such as 127.0.0.1:9191, or leave pprof off")
	}
	return nil
}

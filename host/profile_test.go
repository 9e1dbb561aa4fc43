package host

import (
	"net/http"
	"net/http/httptest"
	"testing"
)

func TestHandleProfiles(t *testing.T) {
	mux := http.NewServeMux()
	HandleProfiles(mux)
	for _, path := range []string{"/debug/pprof/", "/debug/pprof/heap?gc=1", "/debug/pprof/profile?seconds=1", "/debug/pprof/cmdline"} {
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
		if w.Code != http.StatusOK || w.Body.Len() == 0 {
			t.Errorf("GET %s: %d with %d bytes", path, w.Code, w.Body.Len())
		}
	}
}

func TestCheckProfiles(t *testing.T) {
	for listen, ok := range map[string]bool{
		"127.0.0.1:9191": true, "[::1]:9191": true, "127.3.2.1:0": true,
		"": false, ":9191": false, "0.0.0.0:9191": false, "192.0.2.1:9191": false, "[::]:9191": false, "localhost:9191": false,
	} {
		if err := CheckProfiles(listen); (err == nil) != ok {
			t.Errorf("CheckProfiles(%q) = %v", listen, err)
		}
	}
}

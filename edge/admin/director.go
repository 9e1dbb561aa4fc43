package admin

import (
	"fmt"
	"net/http"
	"net/url"
	"strconv"

	"github.com/warrenmesh/warren/edge/admin/client"
)

func (s *Server) drainEndpoint(w http.ResponseWriter, r *http.Request) {
	request, err := decode[client.EndpointDrainRequest](r.Body)
	if err != nil {
		fail(w, err)
		return
	}
	addr, keep, err := request.Check()
	if err != nil {
		fail(w, badRequest(err))
		return
	}
	pool, err := s.control.DrainEndpoint(r.PathValue("name"), addr, keep, request.Off)
	if err != nil {
		fail(w, err)
		return
	}
	s.log.Info("drain of an endpoint asked for by an operator", "pool", pool.Name, "endpoint", addr, "keep", keep, "off", request.Off)
	answer(w, http.StatusOK, pool)
}

func (s *Server) events(w http.ResponseWriter, r *http.Request) {
	after, limit, err := parseEventQuery(r.URL.Query())
	if err != nil {
		fail(w, badRequest(err))
		return
	}
	found := s.source.Events(after, limit)
	if found.Events == nil {
		found.Events = []client.Event{}
	}
	answer(w, http.StatusOK, found)
}

// parseEventQuery reads the parameters of GET /v1/events.
func parseEventQuery(values url.Values) (after uint64, limit int, err error) {
	limit = client.DefaultEvents
	for key, given := range values {
		if len(given) != 1 {
			return 0, 0, fmt.Errorf("reading parameter %q: give it once", key)
		}
		switch key {
		case "after":
			if after, err = strconv.ParseUint(given[0], 10, 64); err != nil {
				return 0, 0, fmt.Errorf("reading after %q: use the id of an event", given[0])
			}
		case "limit":
			limit, err = strconv.Atoi(given[0])
			if err != nil || limit < 1 || limit > client.MaxEvents {
				return 0, 0, fmt.Errorf("reading limit %q: use 1 to %d", given[0], client.MaxEvents)
			}
		default:
			return 0, 0, fmt.Errorf("reading parameter %q: use after or limit", key)
		}
	}
	return after, limit, nil
}

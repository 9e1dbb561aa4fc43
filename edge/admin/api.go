package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/warrenmesh/warren/edge/admin/client"
)

// Handler returns the API. It is what Serve serves, for another listener or a
// test.
func (s *Server) Handler() http.Handler {
	routes := map[string]map[string]http.HandlerFunc{
		"/v1/status":             {http.MethodGet: show(s.source.Status)},
		"/v1/apps":               {http.MethodGet: show(list(s.source.Apps))},
		"/v1/pools":              {http.MethodGet: show(list(s.source.Pools))},
		"/v1/pools/{name}/drain": {http.MethodPost: s.drainEndpoint},
		"/v1/networks":           {http.MethodGet: show(list(s.source.Networks))},
		"/v1/connectors":         {http.MethodGet: show(list(s.source.Connectors))},
		"/v1/flows":              {http.MethodGet: s.flows},
		"/v1/flows/{id}":         {http.MethodDelete: s.killFlow},
		"/v1/events":             {http.MethodGet: s.events},
		"/v1/probe":              {http.MethodPost: s.probe},
		"/v1/reload":             {http.MethodPost: s.reload},
		"/v1/drain":              {http.MethodPost: s.drain},
	}
	maps.Copy(routes, s.enrollmentRoutes())
	mux := http.NewServeMux()
	for path, methods := range routes {
		mux.HandleFunc(path, byMethod(methods))
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		fail(w, &client.Error{Code: client.CodeNotFound, Message: fmt.Sprintf(
			"asking for %q: this edge has no such thing; is it older than the command?", r.URL.Path)})
	})
	return mux
}

// byMethod picks the handler of the request's method. HEAD is GET, whose body
// net/http leaves out.
func byMethod(methods map[string]http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		method := r.Method
		if method == http.MethodHead {
			method = http.MethodGet
		}
		if handle, ok := methods[method]; ok {
			r.Body = http.MaxBytesReader(w, r.Body, maxBody)
			handle(w, r)
			return
		}
		allowed := strings.Join(slices.Sorted(maps.Keys(methods)), ", ")
		w.Header().Set("Allow", allowed)
		fail(w, &client.Error{Code: client.CodeMethod, Message: fmt.Sprintf(
			"asking %q with %s: use %s", r.URL.Path, r.Method, allowed)})
	}
}

// show answers with what read returns.
func show[T any](read func() T) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { answer(w, http.StatusOK, read()) }
}

// list makes an empty list of none: [] in JSON, and not null.
func list[T any](read func() []T) func() []T {
	return func() []T {
		if items := read(); items != nil {
			return items
		}
		return []T{}
	}
}

func (s *Server) flows(w http.ResponseWriter, r *http.Request) {
	q, err := parseFlowQuery(r.URL.Query())
	if err != nil {
		fail(w, badRequest(err))
		return
	}
	found := s.source.Flows(q)
	if found.Flows == nil {
		found.Flows = []client.Flow{}
	}
	answer(w, http.StatusOK, found)
}

func (s *Server) killFlow(w http.ResponseWriter, r *http.Request) {
	id, err := strconv.ParseUint(r.PathValue("id"), 10, 64)
	if err != nil {
		fail(w, badRequest(fmt.Errorf("reading flow id %q: write a number from the list of flows", r.PathValue("id"))))
		return
	}
	if !s.control.KillFlow(id) {
		fail(w, &client.Error{Code: client.CodeNotFound, Message: fmt.Sprintf("ending flow %d: no such flow is open", id)})
		return
	}
	s.log.Info("flow ended by an operator", "flow", id)
	answer(w, http.StatusOK, struct{}{})
}

func (s *Server) probe(w http.ResponseWriter, r *http.Request) {
	request, err := decode[client.ProbeRequest](r.Body)
	if err != nil {
		fail(w, err)
		return
	}
	proto, addr, err := request.Check()
	if err != nil {
		fail(w, badRequest(err))
		return
	}
	request.Proto, request.Address = proto, addr.String()
	act(w, r, func(ctx context.Context) (client.ProbeResult, error) { return s.control.Probe(ctx, request) })
}

func (s *Server) reload(w http.ResponseWriter, r *http.Request) {
	if _, err := decode[struct{}](r.Body); err != nil {
		fail(w, err)
		return
	}
	s.log.Info("reload asked for by an operator")
	act(w, r, s.control.Reload)
}

func (s *Server) drain(w http.ResponseWriter, r *http.Request) {
	request, err := decode[client.DrainRequest](r.Body)
	if err != nil {
		fail(w, err)
		return
	}
	s.log.Info("drain asked for by an operator", "off", request.Off)
	act(w, r, func(ctx context.Context) (client.DrainResult, error) { return s.control.Drain(ctx, request) })
}

// act runs one Control call within its time and answers with the outcome.
func act[T any](w http.ResponseWriter, r *http.Request, do func(context.Context) (T, error)) {
	ctx, cancel := context.WithTimeout(r.Context(), actionTimeout)
	defer cancel()
	result, err := do(ctx)
	if err != nil {
		fail(w, err)
		return
	}
	answer(w, http.StatusOK, result)
}

// decode reads a body of one JSON object. No body is the zero value. A field
// that this release does not know is refused: ignoring it would do something
// else than what was asked for.
func decode[T any](body io.Reader) (request T, err error) {
	decoder := json.NewDecoder(body)
	decoder.DisallowUnknownFields()
	err = decoder.Decode(&request)
	if errors.Is(err, io.EOF) {
		return request, nil
	}
	if err == nil {
		_, err = decoder.Token()
		if errors.Is(err, io.EOF) {
			return request, nil
		}
		if err == nil {
			err = errors.New("more follows the JSON object")
		}
	}
	var large *http.MaxBytesError
	if errors.As(err, &large) {
		return request, &client.Error{Code: client.CodeTooLarge, Message: fmt.Sprintf(
			"reading the request: its body is longer than %d bytes", large.Limit)}
	}
	return request, badRequest(fmt.Errorf("reading the request: %w", err))
}

// parseFlowQuery reads the parameters of GET /v1/flows.
func parseFlowQuery(values url.Values) (client.FlowQuery, error) {
	q := client.FlowQuery{Limit: client.DefaultFlows}
	for key, given := range values {
		if len(given) != 1 {
			return q, fmt.Errorf("reading parameter %q: give it once", key)
		}
		switch key {
		case "app":
			q.App = given[0]
		case "network":
			q.Network = given[0]
		case "connector":
			q.Connector = given[0]
		case "limit":
			n, err := strconv.Atoi(given[0])
			if err != nil || n < 1 || n > client.MaxFlows {
				return q, fmt.Errorf("reading limit %q: use 1 to %d", given[0], client.MaxFlows)
			}
			q.Limit = n
		default:
			return q, fmt.Errorf("reading parameter %q: use app, network, connector or limit", key)
		}
	}
	return q, nil
}

func badRequest(err error) error {
	return &client.Error{Code: client.CodeBadRequest, Message: err.Error()}
}

// statusOf is the HTTP status of an Error's code.
func statusOf(code string) int {
	switch code {
	case client.CodeBadRequest:
		return http.StatusBadRequest
	case client.CodeNotFound:
		return http.StatusNotFound
	case client.CodeMethod:
		return http.StatusMethodNotAllowed
	case client.CodeTooLarge:
		return http.StatusRequestEntityTooLarge
	case client.CodeRefused:
		return http.StatusConflict
	case client.CodeTimedOut:
		return http.StatusGatewayTimeout
	}
	return http.StatusInternalServerError
}

// fail answers with err. What wraps a *client.Error keeps its code, and the
// message of the whole.
func fail(w http.ResponseWriter, err error) {
	body := client.Error{Code: client.CodeInternal, Message: err.Error()}
	var known *client.Error
	switch {
	case errors.As(err, &known):
		body.Code = known.Code
	case errors.Is(err, context.DeadlineExceeded):
		body.Code = client.CodeTimedOut
	}
	answer(w, statusOf(body.Code), body)
}

func answer(w http.ResponseWriter, status int, body any) {
	text, err := json.Marshal(body)
	if err != nil { // a float that is not a number, say
		status = http.StatusInternalServerError
		text, _ = json.Marshal(client.Error{Code: client.CodeInternal, Message: "encoding the answer: " + err.Error()})
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = w.Write(append(text, '\n')) // the far end may be gone
}

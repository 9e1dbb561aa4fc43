package enroll

import (
	"context"
	"encoding/json"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/warrenmesh/warren/edge/wire"
)

// method answers one kind of request of the peer with that key: it reads the
// body with decode.
type method func(ctx context.Context, key wgtypes.Key, decode func(into any) *wire.Refusal) (answer any, refusal *wire.Refusal)

func (r *Registry) serveEnroll(_ context.Context, key wgtypes.Key, decode func(any) *wire.Refusal) (any, *wire.Refusal) {
	var req wire.EnrollRequest
	var answer wire.EnrollAnswer
	refusal := decode(&req)
	if refusal == nil {
		answer, refusal = r.enroll(key, req)
	}
	if refusal != nil {
		r.metrics.enrolled(string(refusal.Code))
	}
	return answer, refusal
}

func (r *Registry) serveSync(ctx context.Context, key wgtypes.Key, decode func(any) *wire.Refusal) (any, *wire.Refusal) {
	var req wire.SyncRequest
	if refusal := decode(&req); refusal != nil {
		return nil, refusal
	}
	at, ok := placeOf(ctx)
	if !ok {
		answer, refusal := r.sync(ctx, key, req)
		return answer, refusal
	}
	if refusal := r.arrive(key, req); refusal != nil {
		return nil, refusal
	}
	return lookParked(at, &syncPoll{r, key, req.Revision})
}

func (r *Registry) serveKey(_ context.Context, key wgtypes.Key, decode func(any) *wire.Refusal) (any, *wire.Refusal) {
	var req wire.KeyRequest
	if refusal := decode(&req); refusal != nil {
		return nil, refusal
	}
	return struct{}{}, r.changeKey(key, req)
}

// handler answers the requests at one port.
type handler struct {
	registry *Registry
	port     port
	lot      *lot // nil: nothing is parked
	stopping context.Context
}

// ServeHTTP implements http.Handler.
func (h *handler) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	// From here on, so that a body which nobody wants cannot dawdle either.
	// The server lifts it once it has all of the body.
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(bodyWithin))
	if c := parkable(w, req); c != nil && h.lot != nil {
		req = req.WithContext(context.WithValue(req.Context(), parkKey{}, place{h.lot, c}))
	}
	answer, refusal := h.answer(w, req)
	if p, ok := answer.(parking); ok {
		err := p.park(w)
		if err == nil {
			return
		}
		h.registry.log.Error(err.Error())
		refusal = wire.Refuse(wire.CodeUnavailable, "this edge cannot hold a request now: call again")
	}
	status, body, err := encode(answer, refusal)
	if err != nil {
		h.registry.log.Error("answering a connector: " + err.Error())
	}
	if h.stopping.Err() != nil {
		w.Header().Set("Connection", "close")
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(answerWithin))
	w.WriteHeader(status)
	if c, ok := req.Context().Value(connKey{}).(*conn); ok && refusal == nil {
		c.answered.Store(true)
	}
	_, _ = w.Write(body) // who does not hear it asks again
}

// encoded is an answer that is JSON already.
type encoded []byte

// encode is the status and the body of an answer, or of a refusal where there
// is one.
func encode(answer any, refusal *wire.Refusal) (status int, body []byte, err error) {
	status = http.StatusOK
	if refusal != nil {
		answer, status = refusal, statusOf(refusal.Code)
	}
	if body, ok := answer.(encoded); ok {
		return status, body, nil
	}
	if body, err = json.Marshal(answer); err != nil {
		return http.StatusInternalServerError, nil, err
	}
	return status, body, nil
}

// answer finds out who asks for what, and asks the registry.
func (h *handler) answer(w http.ResponseWriter, req *http.Request) (any, *wire.Refusal) {
	key, ok := h.registry.peers.KeyAt(addrOf(req.RemoteAddr))
	if !ok {
		return nil, wire.Refuse(wire.CodeBusy, "this edge does not know any more who asks: shake hands anew")
	}
	do, refusal := h.find(req)
	if refusal != nil {
		return nil, refusal
	}
	return do(req.Context(), key, func(into any) *wire.Refusal {
		read, limit := wire.Decode, h.port.maxBody
		if _, wide := into.(*wire.WorkRequest); wide {
			read, limit = wire.DecodeWork, wire.MaxWorkBody
		}
		if err := read(http.MaxBytesReader(w, req.Body, limit), into); err != nil {
			return wire.Refuse(wire.CodeBadRequest, "%s", clean(err.Error(), wire.MaxText))
		}
		return nil
	})
}

// find is the method for a request's path.
func (h *handler) find(req *http.Request) (method, *wire.Refusal) {
	path := req.URL.Path
	if do, ok := h.port.methods[path]; ok {
		if req.Method != http.MethodPost {
			return nil, wire.Refuse(wire.CodeBadRequest, "%s wants POST, not %s", path, clean(req.Method, wire.MaxName))
		}
		return do, nil
	}
	if rest, ok := strings.CutPrefix(path, "/v"); ok {
		version, _, _ := strings.Cut(rest, "/")
		if n, err := strconv.ParseUint(version, 10, 32); err == nil && n != wire.Version {
			return nil, wire.Refuse(wire.CodeVersion, "this edge speaks version %d of the protocol, not %d: install the same release at both ends", wire.Version, n)
		}
	}
	return nil, wire.Refuse(wire.CodeUnknown, "this edge has no %q here, but %s", clean(path, wire.MaxText/2),
		strings.Join(slices.Sorted(maps.Keys(h.port.methods)), " and "))
}

// statusOf is the HTTP status of a refusal, for those who look on: programs
// read the code.
func statusOf(code wire.Code) int {
	switch code {
	case wire.CodeBadRequest, wire.CodeVersion:
		return http.StatusBadRequest
	case wire.CodeUnknown:
		return http.StatusNotFound
	case wire.CodeKnownKey:
		return http.StatusConflict
	case wire.CodeBusy:
		return http.StatusTooManyRequests
	case wire.CodeUnavailable:
		return http.StatusServiceUnavailable
	}
	return http.StatusForbidden
}

package admin

import (
	"context"
	"net/http"

	"github.com/warrenmesh/warren/edge/admin/client"
)

// enrollmentRoutes are the paths of tokens, and of actions on a connector.
func (s *Server) enrollmentRoutes() map[string]map[string]http.HandlerFunc {
	return map[string]map[string]http.HandlerFunc{
		"/v1/tokens":                   {http.MethodGet: show(list(s.control.Tokens)), http.MethodPost: s.createToken},
		"/v1/tokens/import":            {http.MethodPost: s.importToken},
		"/v1/tokens/{id}":              {http.MethodDelete: s.revokeToken},
		"/v1/connectors/{name}/revoke": {http.MethodPost: s.revokeConnector},
		"/v1/connectors/{name}/grant":  {http.MethodPost: s.grantConnector},
		"/v1/connectors/{name}/rotate": {http.MethodPost: s.rotateConnector},
		"/v1/connectors/{name}/drain":  {http.MethodPost: s.drainConnector},
	}
}

func (s *Server) createToken(w http.ResponseWriter, r *http.Request) {
	request, err := decode[client.TokenRequest](r.Body)
	if err != nil {
		fail(w, err)
		return
	}
	request, routes, err := request.Check()
	if err != nil {
		fail(w, badRequest(err))
		return
	}
	act(w, r, func(context.Context) (client.CreatedToken, error) { return s.control.CreateToken(request, routes) })
}

func (s *Server) importToken(w http.ResponseWriter, r *http.Request) {
	request, err := decode[client.ImportRequest](r.Body)
	if err != nil {
		fail(w, err)
		return
	}
	act(w, r, func(context.Context) (client.Token, error) { return s.control.ImportToken(request.Record) })
}

func (s *Server) revokeToken(w http.ResponseWriter, r *http.Request) {
	if _, err := decode[struct{}](r.Body); err != nil {
		fail(w, err)
		return
	}
	act(w, r, func(context.Context) (client.Token, error) { return s.control.RevokeToken(r.PathValue("id")) })
}

func (s *Server) revokeConnector(w http.ResponseWriter, r *http.Request) {
	if _, err := decode[struct{}](r.Body); err != nil {
		fail(w, err)
		return
	}
	actOn(w, r, s.control.RevokeConnector)
}

func (s *Server) grantConnector(w http.ResponseWriter, r *http.Request) {
	request, err := decode[client.GrantRequest](r.Body)
	if err != nil {
		fail(w, err)
		return
	}
	routes, err := request.Check()
	if err != nil {
		fail(w, badRequest(err))
		return
	}
	actOn(w, r, func(name string) (client.ConnectorResult, error) {
		return s.control.GrantConnector(name, routes)
	})
}

func (s *Server) rotateConnector(w http.ResponseWriter, r *http.Request) {
	if _, err := decode[struct{}](r.Body); err != nil {
		fail(w, err)
		return
	}
	actOn(w, r, s.control.RotateConnector)
}

func (s *Server) drainConnector(w http.ResponseWriter, r *http.Request) {
	request, err := decode[client.DrainRequest](r.Body)
	if err != nil {
		fail(w, err)
		return
	}
	actOn(w, r, func(name string) (client.ConnectorResult, error) {
		return s.control.DrainConnector(name, request.Off)
	})
}

// actOn does one thing to the connector that the path names.
func actOn(w http.ResponseWriter, r *http.Request, do func(name string) (client.ConnectorResult, error)) {
	act(w, r, func(context.Context) (client.ConnectorResult, error) { return do(r.PathValue("name")) })
}

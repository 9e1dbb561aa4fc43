package admin

import (
	"context"
	"net/http"

	"github.com/warrenmesh/warren/edge/admin/client"
)

// enrollmentRoutes are the paths of tokens, and of actions on a connector.
func (s *Server) enrollmentRoutes() map[string]map[string]http.HandlerFunc {
	return map[string]map[string]http.HandlerFunc{
		"/v1/tokens":                   {http.MethodGet: show(list(s.enrollment.Tokens)), http.MethodPost: s.createToken},
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
	request, _, err = request.Check()
	if err != nil {
		fail(w, badRequest(err))
		return
	}
	act(w, r, func(context.Context) (client.CreatedToken, error) {
		made, err := s.enrollment.CreateToken(request)
		if err == nil {
			s.log.Info("token created by an operator", "token", made.Token.ID, "network", made.Token.Network, "routes", made.Token.Routes,
				"expires", made.Token.Expires, "reusable", made.Token.Reusable, "ephemeral", made.Token.Ephemeral)
		}
		return made, err
	})
}

func (s *Server) importToken(w http.ResponseWriter, r *http.Request) {
	request, err := decode[client.ImportRequest](r.Body)
	if err != nil {
		fail(w, err)
		return
	}
	act(w, r, func(context.Context) (client.Token, error) {
		token, err := s.enrollment.ImportToken(request.Record)
		if err == nil {
			s.log.Info("token imported by an operator", "token", token.ID, "network", token.Network, "routes", token.Routes)
		}
		return token, err
	})
}

func (s *Server) revokeToken(w http.ResponseWriter, r *http.Request) {
	if _, err := decode[struct{}](r.Body); err != nil {
		fail(w, err)
		return
	}
	act(w, r, func(context.Context) (client.Token, error) {
		token, err := s.enrollment.RevokeToken(r.PathValue("id"))
		if err == nil {
			s.log.Info("token revoked by an operator", "token", token.ID)
		}
		return token, err
	})
}

func (s *Server) revokeConnector(w http.ResponseWriter, r *http.Request) {
	if _, err := decode[struct{}](r.Body); err != nil {
		fail(w, err)
		return
	}
	s.actOn(w, r, "connector revoked by an operator", s.enrollment.RevokeConnector)
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
	s.actOn(w, r, "connector granted other routes by an operator", func(name string) (client.ConnectorResult, error) {
		return s.enrollment.GrantConnector(name, routes)
	}, "routes", request.Routes)
}

func (s *Server) rotateConnector(w http.ResponseWriter, r *http.Request) {
	if _, err := decode[struct{}](r.Body); err != nil {
		fail(w, err)
		return
	}
	s.actOn(w, r, "connector asked for a new key by an operator", s.enrollment.RotateConnector)
}

func (s *Server) drainConnector(w http.ResponseWriter, r *http.Request) {
	request, err := decode[client.DrainRequest](r.Body)
	if err != nil {
		fail(w, err)
		return
	}
	s.actOn(w, r, "drain of a connector asked for by an operator", func(name string) (client.ConnectorResult, error) {
		return s.enrollment.DrainConnector(name, request.Off)
	}, "off", request.Off)
}

// actOn does one thing to the connector that the path names, and logs what was
// done.
func (s *Server) actOn(w http.ResponseWriter, r *http.Request, what string, do func(string) (client.ConnectorResult, error), args ...any) {
	name := r.PathValue("name")
	act(w, r, func(context.Context) (client.ConnectorResult, error) {
		result, err := do(name)
		if err == nil {
			s.log.Info(what, append([]any{"connector", name}, args...)...)
		}
		return result, err
	})
}

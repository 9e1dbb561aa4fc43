package events

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Headers of a call beyond HTTP's own.
const (
	// SignatureHeader holds "sha256=" and the HMAC-SHA256 of the body.
	SignatureHeader = "Warren-Signature"
	// IDHeader is the same in every attempt to tell the same events, so that
	// a webhook can pass over what it has (draft-ietf-httpapi-idempotency-key-header).
	IDHeader = "Idempotency-Key"
)

const (
	maxAnswer  = 4 << 10  // of an answer's body that is read, bytes
	maxHeaders = 64 << 10 // of an answer's headers
)

// newTransport makes a transport that bounds what it takes from a webhook.
func newTransport() *http.Transport {
	return &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		ForceAttemptHTTP2:      true,
		MaxIdleConnsPerHost:    2,
		IdleConnTimeout:        90 * time.Second,
		TLSHandshakeTimeout:    10 * time.Second,
		MaxResponseHeaderBytes: maxHeaders,
	}
}

// newClient makes a client that follows no redirect: it would carry the
// events, and the token, to where the operator has not sent them.
func newClient(rt http.RoundTripper) *http.Client {
	return &http.Client{
		Transport:     rt,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// refusal is an answer that is no success.
type refusal struct {
	what  string
	final bool          // the same call will hardly ever succeed
	after time.Duration // Retry-After
}

func (r *refusal) Error() string { return r.what }

// post makes one attempt. Its error holds neither the URL's path nor a secret.
func (h *hook) post(body []byte, id string) error {
	ctx, cancel := context.WithTimeout(h.ctx, h.spec.Timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, h.spec.URL, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("posting to %q: the URL cannot be used", redact(h.spec.URL))
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", "warren")
	req.Header.Set(IDHeader, id)
	if h.token != "" {
		req.Header.Set("Authorization", "Bearer "+h.token)
	}
	if h.key != nil {
		req.Header.Set(SignatureHeader, Sign(h.key, body))
	}
	answer, err := h.client.Do(req)
	if err != nil {
		var u *url.Error // it quotes the whole URL
		if errors.As(err, &u) {
			err = u.Err
		}
		if h.tells(err.Error()) {
			err = errEcho
		}
		return fmt.Errorf("posting to %q: %w", redact(h.spec.URL), err)
	}
	defer func() { _ = answer.Body.Close() }()
	_, _ = io.CopyN(io.Discard, answer.Body, maxAnswer) // so that the conn can be used again
	if answer.StatusCode/100 == 2 {
		return nil
	}
	return fmt.Errorf("posting to %q: %w", redact(h.spec.URL), refuse(answer))
}

// errEcho stands for an error that quotes what is no HTTP.
var errEcho = errors.New("what it answers is no HTTP that makes sense, and not shown: it may hold a secret")

// tells reports whether an error's text may hold what is nobody's to read: the
// transport quotes an answer that it cannot parse, and some servers send back
// what they were sent.
func (h *hook) tells(text string) bool {
	if strings.Contains(text, "malformed") {
		return true
	}
	secrets := []string{h.token}
	if u, err := url.Parse(h.spec.URL); err == nil {
		secrets = append(secrets, u.Path, u.EscapedPath(), u.RawQuery)
	}
	return slices.ContainsFunc(secrets, func(s string) bool {
		quoted := strconv.Quote(s)
		return len(s) > 1 && (strings.Contains(text, s) || strings.Contains(text, quoted[1:len(quoted)-1]))
	})
}

// refuse judges an answer that is no success. It leaves out the body, which may
// repeat the URL or the token in any form.
func refuse(answer *http.Response) *refusal {
	code := answer.StatusCode
	r := &refusal{what: strings.TrimSpace(fmt.Sprintf("it answered %d %s", code, http.StatusText(code)))}
	switch {
	case code/100 == 3:
		r.final = true
		r.what = fmt.Sprintf("it answered %d, a redirect, which is not followed", code)
		if to, err := answer.Location(); err == nil {
			r.what += fmt.Sprintf(": if %q is right, put its URL into the config", redact(to.String()))
		}
	case code == http.StatusRequestTimeout, code == http.StatusTooEarly, code == http.StatusTooManyRequests:
	case code/100 == 4:
		r.final = true
	}
	// RFC 9110 section 10.2.3; the form with a date is not worth a parser.
	if s, err := strconv.ParseUint(answer.Header.Get("Retry-After"), 10, 31); err == nil {
		r.after = time.Duration(s) * time.Second
	}
	return r
}

// Sign is the value of SignatureHeader for a body. Whoever receives one
// computes the same and compares with hmac.Equal.
func Sign(key, body []byte) string {
	mac := hmac.New(sha256.New, key)
	_, _ = mac.Write(body) // never fails
	return "sha256=" + hex.EncodeToString(mac.Sum(nil))
}

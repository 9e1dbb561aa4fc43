package check

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// tls connects and completes a handshake.
func (c *Check) tls(ctx context.Context, d Dialer, addr netip.AddrPort) Result {
	s, err := open(ctx, d, "tcp", addr)
	if err != nil {
		return Result{Err: err}
	}
	defer s.end()
	_, expires, err := c.handshake(s, addr, nil)
	return Result{RTT: s.opened, Err: err, Expires: expires}
}

// handshake makes a TLS client of the session. expires is when the endpoint's
// certificate ends, where one came, whatever is wrong with it. The TLS conn
// needs no close of its own.
func (c *Check) handshake(s *session, addr netip.AddrPort, protocols []string) (conn *tls.Conn, expires time.Time, err error) {
	name := c.spec.ServerName
	if name == "" {
		name = addr.Addr().WithZone("").Unmap().String()
	}
	conn = tls.Client(s.Conn, &tls.Config{
		ServerName: name,
		RootCAs:    c.roots,
		MinVersion: tls.VersionTLS12,
		NextProtos: protocols,
		// Nobody is sent there because of the certificate: the operator asked
		// that any will do.
		InsecureSkipVerify: c.spec.Insecure,
	})
	err = conn.Handshake() // ends with ctx, which the session is bound to
	if err == nil {
		return conn, conn.ConnectionState().PeerCertificates[0].NotAfter, nil
	}
	var unverified *tls.CertificateVerificationError
	if !errors.As(err, &unverified) {
		return nil, time.Time{}, fault("the TLS handshake", err)
	}
	if len(unverified.UnverifiedCertificates) > 0 {
		expires = unverified.UnverifiedCertificates[0].NotAfter
	}
	var invalid x509.CertificateInvalidError
	if errors.As(unverified.Err, &invalid) && invalid.Reason == x509.Expired && time.Now().After(invalid.Cert.NotAfter) {
		return nil, expires, fmt.Errorf("the certificate ended on %s", invalid.Cert.NotAfter.UTC().Format(time.DateOnly))
	}
	return nil, expires, fmt.Errorf("verifying the certificate for %q: %s", name, plain(unverified.Err.Error()))
}

// authorities reads PEM text; nil for none.
func authorities(pem string) (*x509.CertPool, error) {
	if pem == "" {
		return nil, nil
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM([]byte(pem)) {
		return nil, errors.New("no certificate in PEM form")
	}
	return pool, nil
}

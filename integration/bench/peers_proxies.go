package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"path/filepath"
	"strings"
	"time"

	"github.com/warrenmesh/warren/integration/proc"
	"github.com/warrenmesh/warren/integration/require"
)

// nameFRP is the peer that some goals are set against.
const nameFRP = "frp"

// startFRP is frp with its defaults (TLS, one multiplexed TCP connection), TLS
// enforced, and a log that does not write a line for each connection.
func startFRP(k *kit) *running {
	const shared = "auth.method = \"token\"\nauth.token = \"bench\"\nlog.to = \"console\"\nlog.level = \"warn\"\n"
	server := fmt.Sprintf("bindAddr = %q\nbindPort = 7000\nproxyBindAddr = %q\ntransport.tls.force = true\n", edgePublic, edgePublic)
	client := fmt.Sprintf("serverAddr = %q\nserverPort = 7000\n", edgePublic)
	proxies := eachPort(func(b *strings.Builder, protocol string, port uint16) {
		fmt.Fprintf(b, "\n[[proxies]]\nname = \"%s-%d\"\ntype = %q\nlocalIP = %q\nlocalPort = %d\nremotePort = %d\n",
			protocol, port, protocol, originAddr, port, port)
	})
	edge := k.program(k.w.edge, "frps", "-c", k.file("frps.toml", server+shared))
	waitPort(k.s, k.w.edge, edge, portOf(7000))
	return both(edge, k.program(k.w.dc, "frpc", "-c", k.file("frpc.toml", client+shared+proxies)))
}

// startChisel is chisel with reverse tunnels: SSH within one WebSocket.
func startChisel(k *kit) *running {
	edge := k.program(k.w.edge, "chisel", "server", "--host", edgePublic.String(), "--port", "7001", "--reverse", "--auth", "bench:bench")
	const says = "Fingerprint "
	waitFor(k.s, edge, says)
	_, fingerprint, _ := strings.Cut(edge.Output(), says)
	waitPort(k.s, k.w.edge, edge, portOf(7001))
	args := []string{"client", "--fingerprint", strings.Fields(fingerprint)[0], "--auth", "bench:bench", "http://" + at(edgePublic, 7001)}
	args = append(args, strings.Fields(eachPort(func(b *strings.Builder, protocol string, port uint16) {
		suffix := ""
		if protocol == "udp" {
			suffix = "/udp"
		}
		fmt.Fprintf(b, "R:%s:%s%s\n", at(edgePublic, port), at(originAddr, port), suffix)
	}))...)
	return both(edge, k.program(k.w.dc, "chisel", args...))
}

// startRathole is rathole with TLS.
func startRathole(k *kit) *running {
	certificate, key := selfSigned(k, "edge")
	k.file("edge.crt", certificate)
	k.file("edge.key", key)
	pfx := filepath.Join(k.dir(), "edge.pfx")
	proc.Must(k.s, proc.Here{}, proc.Spec{Path: require.Tool(k.s, "openssl", "openssl"), Args: []string{"pkcs12", "-export", "-out", pfx,
		"-inkey", filepath.Join(k.dir(), "edge.key"), "-in", filepath.Join(k.dir(), "edge.crt"), "-passout", "pass:bench"}})
	server := fmt.Sprintf("[server]\nbind_addr = %q\ndefault_token = \"bench\"\n[server.transport]\ntype = \"tls\"\n[server.transport.tls]\npkcs12 = %q\npkcs12_password = \"bench\"\n",
		at(edgePublic, 7003), pfx)
	client := fmt.Sprintf("[client]\nremote_addr = %q\ndefault_token = \"bench\"\n[client.transport]\ntype = \"tls\"\n[client.transport.tls]\ntrusted_root = %q\nhostname = \"edge\"\n",
		at(edgePublic, 7003), filepath.Join(k.dir(), "edge.crt"))
	server += eachPort(func(b *strings.Builder, protocol string, port uint16) {
		fmt.Fprintf(b, "[server.services.%s-%d]\ntype = %q\nbind_addr = %q\n", protocol, port, protocol, at(edgePublic, port))
	})
	client += eachPort(func(b *strings.Builder, protocol string, port uint16) {
		fmt.Fprintf(b, "[client.services.%s-%d]\ntype = %q\nlocal_addr = %q\n", protocol, port, protocol, at(originAddr, port))
	})
	serverFile, clientFile := k.file("server.toml", server), k.file("client.toml", client)
	edge := k.program(k.w.edge, "rathole", "--server", serverFile)
	waitPort(k.s, k.w.edge, edge, portOf(7003))
	return both(edge, k.program(k.w.dc, "rathole", "--client", clientFile))
}

// selfSigned makes a certificate for a name, and its key, in PEM.
func selfSigned(k *kit, name string) (certificate, key string) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		k.s.Fatalf("making a key: %v", err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		k.s.Fatalf("making a certificate: %v", err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		k.s.Fatalf("writing a key: %v", err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})),
		string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}))
}

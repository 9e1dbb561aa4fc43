package origins

import (
	"bufio"
	"context"
	"fmt"
	"net/netip"
	"strings"

	"github.com/warrenmesh/warren/integration/netns"
	"github.com/warrenmesh/warren/integration/proc"
	"github.com/warrenmesh/warren/integration/require"
)

// NginxConfig says what the web server serves.
type NginxConfig struct {
	Addr netip.AddrPort
	// Files maps a path without its leading slash to content.
	Files map[string]string
}

// Nginx starts nginx and returns once it has answered a request.
func Nginx(tb require.TB, host Host, cfg NginxConfig) *proc.Process {
	tb.Helper()
	path := require.Tool(tb, "nginx", "nginx-light")
	dir := netns.Directory(tb, "nginx")
	for name, content := range cfg.Files {
		write(tb, 0o644, content, dir, "html", name)
	}
	conf := write(tb, 0o644, fmt.Sprintf(`
daemon off;
worker_processes 2;
pid %[1]s/nginx.pid;
error_log stderr warn;
events { worker_connections 4096; }
http {
	access_log off;
	client_body_temp_path %[1]s/body;
	proxy_temp_path %[1]s/proxy;
	fastcgi_temp_path %[1]s/fastcgi;
	uwsgi_temp_path %[1]s/uwsgi;
	scgi_temp_path %[1]s/scgi;
	server {
		listen %[2]s;
		root %[1]s/html;
		add_header X-Served-To $remote_addr;
	}
}
`, dir, cfg.Addr), dir, "nginx.conf")
	netns.Give(tb, dir)
	attr, _, _ := netns.Ordinary()
	server := proc.Start(tb, host, proc.Spec{Path: path, Args: []string{"-p", dir, "-e", "stderr", "-c", conf}, Attr: attr})
	await(tb, server, "nginx", func(ctx context.Context) error {
		conn, err := host.Dial(ctx, "tcp", cfg.Addr.String())
		if err != nil {
			return err
		}
		defer conn.Close()
		deadline, _ := ctx.Deadline()
		conn.SetDeadline(deadline)
		if _, err := fmt.Fprintf(conn, "GET / HTTP/1.0\r\n\r\n"); err != nil {
			return err
		}
		status, err := bufio.NewReader(conn).ReadString('\n')
		if err == nil && !strings.HasPrefix(status, "HTTP/1.1 ") {
			err = fmt.Errorf("it answered %q", status)
		}
		return err
	})
	return server
}

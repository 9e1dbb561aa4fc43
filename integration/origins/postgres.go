package origins

import (
	"context"
	"fmt"
	"net/netip"
	"path/filepath"

	"github.com/warrenmesh/warren/integration/netns"
	"github.com/warrenmesh/warren/integration/proc"
	"github.com/warrenmesh/warren/integration/require"
)

// PostgresUser is the superuser of the databases that Postgres makes; anybody
// who reaches the address may be it.
const PostgresUser = "warren"

// Postgres makes a database cluster, starts the server on addr, and returns
// once a query has been answered there. The database is "postgres".
func Postgres(tb require.TB, host Host, addr netip.AddrPort) *proc.Process {
	tb.Helper()
	initdb := require.Tool(tb, "initdb", "postgresql")
	path := require.Tool(tb, "postgres", "postgresql")
	psql := require.Tool(tb, "psql", "postgresql-client")
	dir := netns.Directory(tb, "postgres")
	attr, _, _ := netns.Ordinary()
	data := filepath.Join(dir, "data")
	proc.Must(tb, host, proc.Spec{Path: initdb, Attr: attr, Dir: dir, Args: []string{
		"--pgdata", data, "--username", PostgresUser, "--auth", "trust",
		"--encoding", "UTF8", "--locale", "C", "--no-sync", "--no-instructions",
	}})
	// initdb lets only the loopback in.
	write(tb, 0o600, "host all all all trust\n", data, "pg_hba.conf")
	server := proc.Start(tb, host, proc.Spec{Path: path, Attr: attr, Dir: dir,
		// SIGINT is the fast shutdown: open sessions do not hold it up.
		StopSignal: 2,
		Args: []string{
			"-D", data, "-h", addr.Addr().String(), "-p", fmt.Sprint(addr.Port()), "-k", dir,
			// The data are worth nothing after the test: no fsync, little memory.
			"-F", "-c", "full_page_writes=off", "-c", "shared_buffers=16MB",
			"-c", "max_connections=50", "-c", "autovacuum=off", "-c", "dynamic_shared_memory_type=mmap",
		}})
	await(tb, server, "postgres", func(ctx context.Context) error {
		_, err := proc.Run(ctx, host, proc.Spec{Path: psql, Args: PsqlArgs(addr, "-c", "select 1")})
		return err
	})
	return server
}

// PsqlArgs are psql's arguments for a session at addr, without start-up files
// and stopping at the first error, with more at the end.
func PsqlArgs(addr netip.AddrPort, more ...string) []string {
	return append([]string{
		"--no-psqlrc", "--no-align", "--tuples-only", "--quiet", "--set", "ON_ERROR_STOP=1",
		"--host", addr.Addr().String(), "--port", fmt.Sprint(addr.Port()),
		"--username", PostgresUser, "--dbname", "postgres",
	}, more...)
}

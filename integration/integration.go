// Package integration holds the tests that see Warren whole: the real daemons
// over the loopback and between hosts in network namespaces with real servers
// behind them, the architecture test, and the test that runs README.md.
//
// Run it with go test ./integration. A test skips where a tool or a right is
// missing and says which; with WARREN_REQUIRE_ALL=1 that is a failure. The
// parts that other tests and the benchmarks use are packages of their own:
// require, proc, netns, origins, daemon and guide.
//
// Nothing of Warren may import this package or those below it.
package integration

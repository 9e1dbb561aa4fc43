package netx_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"testing"

	"github.com/warrenmesh/warren/netstack/netx"
)

func TestClassify(t *testing.T) {
	wrap := func(errno syscall.Errno) error {
		return &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", errno)}
	}
	cases := []struct {
		name string
		err  error
		want error
	}{
		{"nothing", nil, nil},
		{"known, wrapped", fmt.Errorf("dialling: %w", netx.ErrNoRoute), netx.ErrNoRoute},
		{"refused by the kernel", wrap(syscall.ECONNREFUSED), netx.ErrRefused},
		{"no host", wrap(syscall.EHOSTUNREACH), netx.ErrUnreachable},
		{"no network", wrap(syscall.ENETUNREACH), netx.ErrUnreachable},
		{"host down", wrap(syscall.EHOSTDOWN), netx.ErrUnreachable},
		{"kernel gave up", wrap(syscall.ETIMEDOUT), netx.ErrTimedOut},
		{"context's deadline", fmt.Errorf("dialling: %w", context.DeadlineExceeded), netx.ErrTimedOut},
		{"conn's deadline", &net.OpError{Op: "read", Err: os.ErrDeadlineExceeded}, netx.ErrTimedOut},
		{"cancelled", context.Canceled, nil},
		{"reset", wrap(syscall.ECONNRESET), nil},
		{"end of stream", io.EOF, nil},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			if got := netx.Classify(c.err); got != c.want {
				t.Errorf("Classify(%v) = %v, want %v", c.err, got, c.want)
			}
		})
	}
}

// aborter is a conn that has an Abort of its own.
type aborter struct {
	net.Conn
	aborted bool
}

func (a *aborter) Abort() { a.aborted = true }

func TestAbortAsksTheConn(t *testing.T) {
	a := &aborter{}
	netx.Abort(a)
	if !a.aborted {
		t.Error("the conn's own Abort was not called")
	}
}

func TestAbortOfAKernelSocketIsAReset(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	near, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	far, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	netx.Abort(near)
	if _, err := far.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the other end read %v, want a reset", err)
	}
}

func TestAbortOfAnythingElseCloses(t *testing.T) {
	a, b := net.Pipe()
	defer b.Close()
	netx.Abort(a)
	if _, err := a.Read(make([]byte, 1)); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("read after Abort: %v", err)
	}
}

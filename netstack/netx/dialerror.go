package netx

import (
	"context"
	"errors"
	"net"
	"strings"
	"syscall"
)

// DialError is a failed dial or ping. It wraps Class and Err, and reads as What
// and Err.
type DialError struct {
	// What was being done: `dialling "tcp/10.0.0.10:5432"`.
	What string
	// Class is one of the Err values, or nil where the caller gave up.
	Class error
	// Err is the cause.
	Err error
}

// Error is "what: cause".
func (e *DialError) Error() string { return e.What + ": " + e.Err.Error() }

// Unwrap returns the class and the cause.
func (e *DialError) Unwrap() []error {
	if e.Class == nil {
		return []error{e.Err}
	}
	return []error{e.Class, e.Err}
}

// ClassifyDial says which of the Err values a dial under ctx failed with; nil
// where ctx was cancelled. What is no refusal and no silence is unreachable: no
// permission, no descriptor, no such name.
func ClassifyDial(ctx context.Context, err error) error {
	if errors.Is(ctx.Err(), context.Canceled) {
		return nil
	}
	if class := Classify(err); class != nil {
		return class
	}
	return ErrUnreachable
}

// WithoutAddresses takes the addresses off a kernel's error, where a DialError
// has them already.
func WithoutAddresses(err error) error {
	var op *net.OpError
	if errors.As(err, &op) && op == err {
		return op.Err
	}
	return err
}

// NoDescriptor reports whether err is the process's limit of descriptors
// (EMFILE) or the machine's (ENFILE). A resolver keeps only the words of what
// stopped it.
func NoDescriptor(err error) bool {
	if errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) {
		return true
	}
	var dns *net.DNSError
	return errors.As(err, &dns) && strings.Contains(dns.Err, syscall.EMFILE.Error())
}

//go:build linux

package bind

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// What the kernel would read of a message.

func unsafeVectors(h *unix.Msghdr) []unix.Iovec { return unsafe.Slice(h.Iov, int(h.Iovlen)) }
func unsafeBytes(v unix.Iovec) []byte           { return unsafe.Slice(v.Base, int(v.Len)) }
func unsafeControl(h *unix.Msghdr) []byte       { return unsafe.Slice(h.Control, int(h.Controllen)) }

//go:build !linux

package relay

import "syscall"

// rawRead and rawWrite are explained where they gain something.
func rawRead(fd uintptr, b []byte) (int, error)  { return syscall.Read(int(fd), b) }
func rawWrite(fd uintptr, b []byte) (int, error) { return syscall.Write(int(fd), b) }

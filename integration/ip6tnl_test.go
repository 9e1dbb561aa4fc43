package integration

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/warrenmesh/warren/integration/netns"
)

// startIP6Tunnel is an ip6tnl with encaplimit none for kernels without one: a
// TUN interface, and a raw socket for each of the two protocols of RFC 2473
// section 3 (4: IPv4 within IPv6, 41: IPv6 within IPv6). The kernel makes and
// takes off the outer header, so nothing here is Warren's. It ends with the
// test.
func startIP6Tunnel(t *testing.T, host *netns.Host, name string, local, remote netip.Addr) error {
	t.Helper()
	var inner *os.File
	outer := map[int]*os.File{}
	var wg sync.WaitGroup
	t.Cleanup(func() {
		for _, file := range outer {
			file.Close()
		}
		if inner != nil {
			inner.Close()
		}
		wg.Wait()
	})
	err := host.Do(func() (err error) {
		if inner, err = openTUN(name); err != nil {
			return err
		}
		for _, protocol := range []int{unix.IPPROTO_IPIP, unix.IPPROTO_IPV6} {
			if outer[protocol], err = openRaw(protocol, local, remote); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, file := range outer {
		wg.Go(func() { pump(file, func([]byte) *os.File { return inner }) })
	}
	wg.Go(func() {
		pump(inner, func(packet []byte) *os.File {
			if packet[0]>>4 == 4 {
				return outer[unix.IPPROTO_IPIP]
			}
			return outer[unix.IPPROTO_IPV6]
		})
	})
	return nil
}

// pump moves packets until from is closed. A packet that cannot be written is
// lost, as on any wire.
func pump(from *os.File, to func(packet []byte) *os.File) {
	buf := make([]byte, 1<<16)
	for {
		n, err := from.Read(buf)
		switch {
		case errors.Is(err, os.ErrClosed):
			return
		case err == nil && n > 0:
			to(buf[:n]).Write(buf[:n])
		}
	}
}

// openTUN makes a TUN interface on the calling thread's host.
func openTUN(name string) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("opening /dev/net/tun: %w", err)
	}
	request, err := unix.NewIfreq(name)
	if err == nil {
		request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TUNSETIFF, uintptr(unsafe.Pointer(request))); errno != 0 {
			err = fmt.Errorf("making the interface %q: %w", name, errno)
		}
	}
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// openRaw opens a socket for one protocol between two addresses.
func openRaw(protocol int, local, remote netip.Addr) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, protocol)
	if err != nil {
		return nil, fmt.Errorf("opening a raw socket of protocol %d: %w", protocol, err)
	}
	if err = unix.Bind(fd, &unix.SockaddrInet6{Addr: local.As16()}); err == nil {
		err = unix.Connect(fd, &unix.SockaddrInet6{Addr: remote.As16()})
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("joining %s and %s: %w", local, remote, err)
	}
	return os.NewFile(uintptr(fd), "raw"), nil
}

package impair

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// maxPacket is the largest packet of a TUN device.
const maxPacket = 64 << 10

// Device is a TUN device: each Read and each Write is one packet.
type Device struct{ file *os.File }

// Open makes a TUN device of that name in the network namespace of the
// calling thread. It lives until Close; its MTU and addresses are the
// caller's to set.
func Open(name string) (*Device, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf(`opening "/dev/net/tun": %w`, err)
	}
	request, err := unix.NewIfreq(name)
	if err == nil {
		request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("making the TUN device %q: %w", name, err)
	}
	return &Device{file: os.NewFile(uintptr(fd), name)}, nil
}

func (d *Device) Read(p []byte) (int, error)  { return d.file.Read(p) }
func (d *Device) Write(p []byte) (int, error) { return d.file.Write(p) }

// Close takes the device away.
func (d *Device) Close() error { return d.file.Close() }

// Router carries packets between two devices. Make it with Start.
type Router struct {
	ends [2]io.ReadWriteCloser
	ways [2]*way
	wg   sync.WaitGroup
}

// Start runs a router between two devices, which it owns from then on.
func Start(spec Spec, a, b io.ReadWriteCloser) *Router {
	r := &Router{ends: [2]io.ReadWriteCloser{a, b}}
	for i := range r.ways {
		w := &way{queue: NewQueue(spec, uint64(i)), wake: make(chan struct{}, 1), done: make(chan struct{})}
		r.ways[i] = w
		r.wg.Go(func() { w.take(r.ends[i]) })
		r.wg.Go(func() { w.give(r.ends[1-i]) })
	}
	return r
}

// Close takes both devices away and waits for what ran between them.
func (r *Router) Close() {
	for _, end := range r.ends {
		end.Close()
	}
	r.wg.Wait()
}

// way is one direction.
type way struct {
	wake chan struct{} // the queue has a packet that is due earlier than all before
	done chan struct{} // take has ended

	mu    sync.Mutex
	queue *Queue
	spare [][]byte // buffers for packets
}

// take reads packets into the queue until the device is closed.
func (w *way) take(from io.Reader) {
	defer close(w.done)
	buf := make([]byte, maxPacket)
	for {
		n, err := from.Read(buf)
		if errors.Is(err, os.ErrClosed) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrClosedPipe) {
			return
		}
		if err != nil {
			time.Sleep(time.Millisecond) // a device that is down; it comes up
			continue
		}
		w.mu.Lock()
		packet := append(w.buffer(), buf[:n]...)
		before, was := w.queue.Due()
		if !w.queue.Push(time.Now(), packet) {
			w.spare = append(w.spare, packet)
		}
		after, is := w.queue.Due()
		w.mu.Unlock()
		if is && (!was || after.Before(before)) {
			select {
			case w.wake <- struct{}{}:
			default:
			}
		}
	}
}

// buffer is an empty buffer. The caller holds mu.
func (w *way) buffer() []byte {
	if n := len(w.spare); n > 0 {
		b := w.spare[n-1]
		w.spare = w.spare[:n-1]
		return b[:0]
	}
	return nil
}

// give writes packets when they are due, until take has ended.
func (w *way) give(to io.Writer) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		w.mu.Lock()
		now := time.Now()
		packet, ok := w.queue.Pop(now)
		due, waiting := w.queue.Due()
		w.mu.Unlock()
		if ok {
			to.Write(packet) // what the device refuses, the cable has lost
			w.mu.Lock()
			w.spare = append(w.spare, packet)
			w.mu.Unlock()
			continue
		}
		if !waiting {
			due = now.Add(time.Hour)
		}
		timer.Reset(due.Sub(now))
		select {
		case <-w.done:
			return
		case <-w.wake:
		case <-timer.C:
		}
	}
}

package main

import (
	"context"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"github.com/coreos/go-systemd/v22/daemon"
)

// signals turns what the kernel, or a service manager, tells a daemon into
// what the daemon takes:
//
//	first SIGTERM or SIGINT → ctx ends: drain
//	second                  → force is closed: stop now
//	SIGHUP                  → a value on reload; as SIGTERM where nothing can
//	                          be reloaded: the terminal has gone
type signals struct {
	ctx    context.Context
	force  chan struct{}
	reload chan struct{} // capacity 1: two in a row are one

	caught chan os.Signal
	done   sync.WaitGroup
	quit   context.CancelFunc
}

// catchSignals starts to listen; stop ends it. reloads tells that the daemon
// takes from reload.
func catchSignals(parent context.Context, reloads bool) *signals {
	running, quit := context.WithCancel(parent)
	ctx, drain := context.WithCancel(running)
	s := &signals{
		ctx: ctx, quit: quit,
		force: make(chan struct{}), reload: make(chan struct{}, 1),
		caught: make(chan os.Signal, 4),
	}
	signal.Notify(s.caught, syscall.SIGTERM, syscall.SIGINT)
	if reloads || !signal.Ignored(syscall.SIGHUP) { // nohup(1) means what it says
		signal.Notify(s.caught, syscall.SIGHUP)
	}
	s.done.Go(func() {
		defer drain()
		asked := 0
		for {
			select {
			case <-running.Done():
				return
			case sig := <-s.caught:
				if sig == syscall.SIGHUP && reloads {
					s.askReload()
					continue
				}
				switch asked++; asked {
				case 1:
					notify(daemon.SdNotifyStopping)
					drain()
				case 2:
					close(s.force)
				}
			}
		}
	})
	return s
}

func (s *signals) askReload() {
	select {
	case s.reload <- struct{}{}:
	default:
	}
}

// stop gives the signals back to the kernel.
func (s *signals) stop() {
	signal.Stop(s.caught)
	s.quit()
	s.done.Wait()
}

// notify tells a service manager what the daemon's state is; without
// NOTIFY_SOCKET there is none (sd_notify(3)).
func notify(state string) {
	// Whoever set NOTIFY_SOCKET does not listen: there is nobody to tell.
	_, _ = daemon.SdNotify(false, state)
}

// notifyReloading announces a reload; READY=1 ends it.
func notifyReloading() {
	notify(daemon.SdNotifyReloading + "\n" + daemon.SdNotifyMonotonicUsec())
}

func notifyReady() { notify(daemon.SdNotifyReady) }

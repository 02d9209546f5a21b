package daemon

import (
	"log/slog"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	sd "github.com/coreos/go-systemd/v22/daemon"
)

// supervisor tells systemd how the daemon is (sd_notify(3)), and reads the
// files of TLS again on SIGHUP.
type supervisor struct {
	log   *slog.Logger
	tell  bool
	certs *tlsFiles // nil: none
	e     *engine
	hup   chan os.Signal
	done  chan struct{}
	once  sync.Once
	wg    sync.WaitGroup
}

// Reloads reports whether SIGHUP has the daemon read files again, and not end.
func (o *Options) Reloads() bool {
	return !o.Spawned && (o.Listening.TLS != TLS{} || os.Getenv("NOTIFY_SOCKET") != "")
}

// supervised says that the daemon is ready and returns what goes on saying how
// it is. A daemon started on demand has its starter's environment, but not its
// supervisor.
func (o *Options) supervised(e *engine, certs *tlsFiles, log *slog.Logger) *supervisor {
	s := &supervisor{log: log, tell: !o.Spawned, certs: certs, e: e, hup: make(chan os.Signal, 1), done: make(chan struct{})}
	var tick <-chan time.Time
	var ticker *time.Ticker
	if s.tell {
		every, err := sd.SdWatchdogEnabled(false)
		if err != nil {
			log.Warn("watchdog", "err", err)
		} else if every > 0 {
			ticker = time.NewTicker(every / 2)
			tick = ticker.C
		}
	}
	if o.Reloads() {
		signal.Notify(s.hup, syscall.SIGHUP)
	}
	s.wg.Go(func() {
		if ticker != nil {
			defer ticker.Stop()
		}
		for {
			select {
			case <-s.done:
				return
			case <-s.hup:
				s.reload()
			case <-tick:
				// Stuck locks are what the watchdog is there for: then this
				// does not come back either.
				s.notify(sd.SdNotifyWatchdog + "\n" + s.status())
			}
		}
	})
	s.notify(sd.SdNotifyReady + "\n" + s.status())
	return s
}

// status looks at what every request needs.
func (s *supervisor) status() string {
	s.e.mu.Lock()
	mounts := len(s.e.mounts)
	s.e.mu.Unlock()
	return "STATUS=" + count(mounts, "mount") + ", " + count(s.e.images.Len(), "image")
}

func (s *supervisor) reload() {
	s.notify(sd.SdNotifyReloading + "\n" + sd.SdNotifyMonotonicUsec())
	if s.certs != nil {
		if err := s.certs.read(); err != nil {
			s.log.Error("reload: what was read before stays", "err", err)
		} else {
			s.log.Info("reloaded", "certificate", s.certs.files.Cert)
		}
	}
	s.e.daemonEvent("reload")
	s.notify(sd.SdNotifyReady)
}

func (s *supervisor) notify(state string) {
	if !s.tell {
		return
	}
	if _, err := sd.SdNotify(false, state); err != nil {
		s.log.Warn("sd_notify", "err", err)
	}
}

// stopping says that the daemon leaves, once, and nothing after that.
func (s *supervisor) stopping() {
	s.once.Do(func() {
		signal.Stop(s.hup)
		close(s.done)
		s.wg.Wait()
		s.notify(sd.SdNotifyStopping)
	})
}

package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/imgfs/imgfs/internal/engineapi"
)

// Options say how a daemon runs. The zero value serves the default store.
type Options struct {
	Paths Paths         // as from Locate; zero: Locate("")
	Idle  time.Duration // without mounts and requests, until it exits; 0: one minute, < 0: never
	// Spawned: started by Start. Readiness is told on descriptor 3, standard
	// error goes to the log file, and a store whose last daemon is just
	// leaving is waited for.
	Spawned bool
	// Foreground: live mounts are unmounted when ctx ends or a signal comes;
	// otherwise they are left for the next daemon, which mounts them again.
	Foreground bool
	// CacheLimit is how many bytes of layers are kept on disk before those that
	// nobody has read for longest are dropped, to be fetched again; 0: no limit.
	CacheLimit int64
	// Listening says where the daemon listens beside its own socket.
	Listening Listening
	// MetricsAddr is HOST:PORT, or unix://PATH, of Prometheus' metrics; "": none.
	MetricsAddr string
	// DebugAddr is the same for pprof and expvar, on loopback alone.
	DebugAddr string
	Logger    *slog.Logger // nil: the log file of the store
	Level     slog.Level   // of the log file
	JSON      bool         // the log file is in JSON
	// Serving, if not nil, is called once the socket answers.
	Serving func()
}

const (
	defaultIdle = time.Minute
	// leaveTimeout bounds the wait for requests in progress, once cancelled.
	leaveTimeout = 10 * time.Second
	// lockTimeout bounds the wait of a spawned daemon for one that is leaving.
	lockTimeout = 30 * time.Second
	// gcPercent keeps the heap of a daemon that mostly maps files near what
	// is live; a pull's garbage is short-lived and large.
	gcPercent = 50
	// openingPercent is for as long as records are read, most of which stay: to
	// look for garbage among them time and again takes a fifth of a start.
	openingPercent = 400
)

// Run serves a store until ctx ends, SIGTERM or SIGINT comes, a client asks
// it to stop, or it has been idle. It returns nil for all of these.
func Run(ctx context.Context, o Options) error {
	var ready *os.File
	if o.Spawned {
		syscall.CloseOnExec(readyFD)
		ready = os.NewFile(readyFD, "ready")
	}
	err := run(ctx, o, func() {
		tellReady(ready, nil)
		ready = nil
	})
	tellReady(ready, err)
	return err
}

// run is Run; serving is called once the socket answers.
func run(ctx context.Context, o Options, serving func()) (err error) {
	ctx, stopSignals := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT)
	defer stopSignals()
	p := o.Paths
	if p.Root == "" {
		if p, err = Locate(""); err != nil {
			return err
		}
	}
	if err := p.makeRoot(); err != nil {
		return err
	}
	if err := p.makeRuntime(); err != nil {
		return err
	}
	unlock, err := p.lock(ctx, o.Spawned)
	if err != nil {
		return err
	}
	defer unlock.store()
	defer unlock.start()

	log := o.Logger
	if log == nil {
		f, err := openLog(p.logFile(), o.Spawned)
		if err != nil {
			return err
		}
		defer f.Close()
		log = NewLogger(f, o.JSON, o.Level)
	}
	debug.SetGCPercent(openingPercent)
	if err := raiseFiles(); err != nil {
		log.Warn("limit of open files", "err", err)
	}

	idle := o.Idle
	if idle == 0 {
		idle = defaultIdle
	}
	act := newActivity(idle)
	defer act.stop()
	// What cannot be listened on is said before anything is done; who comes
	// early waits.
	hosts, certs, err := o.Listening.open(ctx, p.Socket, act, log)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	defer closeAll(hosts)
	watchers, err := o.openWatchers(ctx, log)
	if err != nil {
		return err
	}
	defer watchers.close()
	e, err := openEngine(p, o.CacheLimit, act, log)
	debug.SetGCPercent(gcPercent)
	if err != nil {
		return err
	}
	defer close(e.gone)
	defer unlock.store() // before gone
	keep := !o.Foreground
	defer func() { err = errors.Join(err, e.close(keep)) }()
	e.mendOwners()
	stale := e.staleOwners()
	e.reconcile(ctx)
	e.sweepUppers(ctx)
	// Only now: what they held may be all that a mount has.
	if err := e.dropOwners(stale); err != nil {
		return err
	}
	if err := e.sweepRecords(); err != nil {
		return err
	}

	l, err := listenOwn(p, act, log)
	if err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	requests, cancelRequests := context.WithCancel(context.WithoutCancel(ctx))
	defer cancelRequests()
	srv := engineapi.NewServer(counted{e}, log)
	srv.Handler = e.observe(srv.Handler)
	srv.ConnState = track
	srv.BaseContext = func(net.Listener) context.Context { return requests }
	all := append([]*listener{l}, hosts...)
	served := make(chan error, len(all))
	for _, l := range all {
		l.refused = func() { e.figures.refused.Add(1) }
		go func() { served <- srv.Serve(l) }()
		log.Info("serving", "version", engineapi.ThisBuild().String(), "pid", os.Getpid(), "root", p.Root, "address", l.Addr().String())
	}
	o.Listening.warn(hosts, log)
	watchers.serve(e)
	unlock.start()
	sup := o.supervised(e, certs, log)
	defer sup.stopping()
	e.daemonEvent("start")
	serving()
	e.layers.Look()
	if o.Serving != nil {
		o.Serving()
	}

	why, running := "", len(all)
	select {
	case <-ctx.Done():
		why = "interrupted"
	case <-e.stop:
		why = "asked to"
	case <-act.expired:
		why = "idle"
	case err = <-served:
		why = "not listening any more"
		running--
	}
	if err != nil {
		log.Error("leaving", "why", why, "err", err)
	} else {
		log.Info("leaving", "why", why)
	}
	sup.stopping()
	e.daemonEvent("stop")
	// Closes the listeners, and with them removes the sockets; what was let in
	// is answered, if with an error.
	act.stop()
	cancelRequests()
	end, cancel := context.WithTimeout(context.Background(), leaveTimeout)
	defer cancel()
	if e := srv.Shutdown(end); e != nil {
		log.Warn("requests did not end", "err", e)
		srv.Close()
	}
	for range running {
		if serr := <-served; !errors.Is(serr, http.ErrServerClosed) {
			err = errors.Join(err, serr)
		}
	}
	return err
}

// locks are the two locks of a daemon; releasing one twice is allowed.
type locks struct{ storeLock, startLock *os.File }

// lock takes the store's lock and, unless a starter holds it for us, the
// start lock.
func (p Paths) lock(ctx context.Context, spawned bool) (*locks, error) {
	var l locks
	var err error
	if spawned {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, lockTimeout)
		defer cancel()
	} else if l.startLock, err = waitLock(ctx, p.startLock()); err != nil {
		return nil, err
	}
	if l.storeLock, err = lockStore(ctx, p, spawned); err != nil {
		l.start()
		return nil, err
	}
	return &l, nil
}

func (l *locks) store() {
	if l.storeLock != nil {
		l.storeLock.Close()
		l.storeLock = nil
	}
}

func (l *locks) start() {
	if l.startLock != nil {
		l.startLock.Close()
		l.startLock = nil
	}
}

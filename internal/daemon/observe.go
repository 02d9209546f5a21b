package daemon

import (
	"context"
	"errors"
	"expvar"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
)

// NewLogger returns a logger that writes to w, as text or JSON, what is at
// least of level.
func NewLogger(w io.Writer, json bool, level slog.Level) *slog.Logger {
	o := &slog.HandlerOptions{Level: level}
	if json {
		return slog.New(slog.NewJSONHandler(w, o))
	}
	return slog.New(slog.NewTextHandler(w, o))
}

// watchers serves those who watch the daemon: its metrics and its insides.
type watchers struct {
	log            *slog.Logger
	metrics, debug net.Listener // nil: not asked for
	servers        []*http.Server
	wg             sync.WaitGroup
}

// openWatchers listens; serve begins to answer.
func (o *Options) openWatchers(ctx context.Context, log *slog.Logger) (*watchers, error) {
	w := &watchers{log: log}
	var err error
	if w.metrics, err = listenWatcher(ctx, o.MetricsAddr, false); err != nil {
		return nil, fmt.Errorf("metrics: %w", err)
	}
	// A profile tells what is in memory.
	if w.debug, err = listenWatcher(ctx, o.DebugAddr, true); err != nil {
		w.close()
		return nil, fmt.Errorf("debug: %w", err)
	}
	return w, nil
}

// listenWatcher listens at HOST:PORT or unix://PATH; nil for "".
func listenWatcher(ctx context.Context, addr string, loopback bool) (net.Listener, error) {
	if addr == "" {
		return nil, nil
	}
	if !strings.Contains(addr, "://") {
		addr = "tcp://" + addr
	}
	h, err := ParseHost(addr)
	if err != nil {
		return nil, err
	}
	switch h.Proto {
	case "unix":
		return Listening{}.listenUnix(h.Addr, "")
	case "tcp":
		l, err := Listening{InsecureTCP: !loopback}.listenTCP(ctx, h.Addr)
		if fault.KindOf(err) == fault.Invalid && loopback {
			err = fault.WithHint(fault.New(fault.Invalid, "%s: not a loopback address", h.Addr), "for example: 127.0.0.1:6060")
		}
		return l, err
	}
	return nil, fault.New(fault.Invalid, "%s: HOST:PORT or unix://PATH", addr)
}

// serve answers from now on.
func (w *watchers) serve(e *engine) {
	if w.metrics != nil {
		mux := http.NewServeMux()
		mux.Handle("GET /metrics", promhttp.HandlerFor(e.newRegistry(), promhttp.HandlerOpts{
			ErrorLog:            slog.NewLogLogger(w.log.Handler(), slog.LevelWarn),
			MaxRequestsInFlight: 4, Timeout: 30 * time.Second,
		}))
		w.start("metrics", w.metrics, mux)
	}
	if w.debug != nil {
		mux := http.NewServeMux()
		mux.HandleFunc("GET /debug/pprof/", pprof.Index)
		mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
		mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
		mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
		mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
		mux.Handle("GET /debug/vars", expvar.Handler())
		w.start("debug", w.debug, mux)
	}
}

const (
	// maxWatchers is how many connections watchers have at once.
	maxWatchers = 32
	// watchTime bounds a request of theirs: a profile takes as long as it is
	// asked to.
	watchTime = 5 * time.Minute
)

func (w *watchers) start(what string, nl net.Listener, h http.Handler) {
	srv := &http.Server{
		Handler:           noPages(h),
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      watchTime,
		IdleTimeout:       2 * time.Minute, // a scrape a minute
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(w.log.Handler(), slog.LevelDebug),
	}
	w.servers = append(w.servers, srv)
	l := &listener{Listener: nl, act: newActivity(-1), log: w.log, crowd: newCrowd(maxWatchers, maxWatchers)}
	w.log.Info("serving "+what, "address", nl.Addr().String())
	w.wg.Go(func() {
		if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			w.log.Error("not listening any more", "what", what, "err", err)
		}
	})
}

// noPages refuses requests that a browser makes for somebody's page.
func noPages(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if engineapi.OfPage(r) {
			http.Error(w, "requests of web pages are not served", http.StatusForbidden)
			return
		}
		h.ServeHTTP(w, r)
	})
}

// close ends all of them.
func (w *watchers) close() {
	for _, s := range w.servers {
		s.Close()
	}
	w.wg.Wait()
	for _, l := range []net.Listener{w.metrics, w.debug} {
		if l != nil {
			l.Close() // again, where it was served
		}
	}
}

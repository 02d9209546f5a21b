package daemon

import (
	"context"
	"errors"
	"log/slog"
	"time"
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
	Logger     *slog.Logger // nil: the log file of the store
	// Serving, if not nil, is called once the socket answers.
	Serving func()
}

// Run serves a store until ctx ends, SIGTERM or SIGINT comes, a client asks
// it to stop, or it has been idle. It returns nil for all of these.
func Run(ctx context.Context, o Options) error {
	return errors.New("daemon: not there yet")
}

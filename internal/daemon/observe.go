package daemon

import (
	"context"
	"io"
	"log/slog"
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

// watchers are the servers of those who watch the daemon.
type watchers struct{}

func (o *Options) openWatchers(ctx context.Context, log *slog.Logger) (*watchers, error) {
	return &watchers{}, nil
}

func (w *watchers) serve(e *engine) {}
func (w *watchers) close()          {}

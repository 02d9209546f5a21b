package daemon

import (
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// maxLog bounds the log file, in bytes; the one before it is kept as .1.
const maxLog = 4 << 20

// logFile is the daemon's log: an io.Writer for slog.
type logFile struct {
	path   string
	stderr bool // descriptor 2 follows, so that a crash's stack is in it too

	mu   sync.Mutex // guards the rest
	f    *os.File
	size int64
}

func openLog(path string, stderr bool) (*logFile, error) {
	l := &logFile{path: path, stderr: stderr}
	if err := l.openLocked(); err != nil {
		return nil, fmt.Errorf("log: %w", err)
	}
	return l, nil
}

// Preconditions: l.mu is held, or l is not shared yet.
func (l *logFile) openLocked() error {
	f, err := os.OpenFile(l.path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	st, err := f.Stat()
	if err == nil && l.stderr {
		err = unix.Dup3(int(f.Fd()), 2, 0)
	}
	if err != nil {
		f.Close()
		return err
	}
	if l.f != nil {
		l.f.Close()
	}
	l.f, l.size = f, st.Size()
	return nil
}

// Write appends one record. A log that cannot be rotated goes on growing
// rather than stopping the daemon.
func (l *logFile) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.size+int64(len(b)) > maxLog && l.size > 0 {
		if os.Rename(l.path, l.path+".1") == nil {
			l.openLocked() // on failure the renamed file goes on
		}
	}
	n, err := l.f.Write(b)
	l.size += int64(n)
	return n, err
}

func (l *logFile) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.f.Close()
}

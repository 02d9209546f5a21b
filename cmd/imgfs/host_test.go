package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imgfs/imgfs/internal/daemon"
)

// TestHost reaches a daemon at an address, which is not the store's own.
func TestHost(t *testing.T) {
	dir := t.TempDir()
	socket := "unix://" + filepath.Join(dir, "public")
	t.Setenv("IMGFS_ROOT", filepath.Join(dir, "of this shell"))
	start := func() chan error {
		t.Helper()
		ended, serving := make(chan error, 1), make(chan struct{})
		o := daemon.Options{
			Paths:     daemon.Paths{Root: filepath.Join(dir, "store"), Runtime: filepath.Join(dir, "run"), Socket: filepath.Join(dir, "run/s")},
			Listening: daemon.Listening{Hosts: []string{socket}}, Serving: func() { close(serving) },
		}
		go func() { ended <- daemon.Run(context.Background(), o) }()
		select {
		case <-serving:
		case err := <-ended:
			t.Fatal(err)
		}
		return ended
	}
	try := func(want int, text string, args ...string) {
		t.Helper()
		var out, errs bytes.Buffer
		code := run(args, &out, &errs)
		if all := out.String() + errs.String(); code != want || !strings.Contains(all, text) {
			t.Errorf("imgfs %s: %d %s", strings.Join(args, " "), code, all)
		}
	}
	ended := start()
	try(0, "", "-H", socket, "images", "-q")
	try(0, "", "images", "-q", "--host", socket)
	try(8, "unix:///nowhere: no daemon answers", "-H", "unix:///nowhere", "images")
	try(2, "Invalid protocol format.", "-H", "nonsense", "images")
	try(2, "a daemon is reached at unix:// or tcp://", "-H", "fd://", "images")
	try(2, "a mount needs a daemon of this machine", "-H", "tcp://127.0.0.1:1", "mount", "x", t.TempDir())
	t.Setenv("IMGFS_HOST", socket)
	try(0, "", "images", "-q")
	try(0, "Root:", "status", "--format", "Root: {{.Root}}")
	try(0, "", "daemon", "stop")
	if err := <-ended; err != nil {
		t.Error(err)
	}
	t.Setenv("IMGFS_HOST", "")
	ended = start()
	try(0, "", "daemon", "stop", "-H", socket)
	if err := <-ended; err != nil {
		t.Error(err)
	}
	ended = start()
	try(0, "", "-H", socket, "daemon", "stop")
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "of this shell")); !os.IsNotExist(err) {
		t.Errorf("the store of this shell: %v", err)
	}

	t.Setenv("IMGFS_ROOT", filepath.Join(dir, "store"))
	try(2, "Invalid protocol format.", "daemon", "-H", "0.0.0.0:2375")
	try(2, "not a loopback address", "daemon", "-H", "tcp://0.0.0.0:0")
	try(3, "no socket was passed by systemd", "daemon", "-H", "fd://")
	try(2, `log format "xml"`, "daemon", "--log-format", "xml")
	t.Setenv("IMGFS_TLSVERIFY", "1")
	try(2, "a certificate and its key are needed", "daemon")
}

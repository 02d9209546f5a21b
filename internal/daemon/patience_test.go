package daemon

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
	"github.com/imgfs/imgfs/internal/imgtest"
)

// TestOnError has a registry fail in the middle of a mount: reads of what is
// not here fail at once, or wait as long as they were told, and work again as
// soon as it answers, while what is here is read all along.
func TestOnError(t *testing.T) {
	needFUSE(t)
	files := bigTree(9)
	layer := estargz(t, tarOf(t, files))
	reg := imgtest.NewRegistry(t, imgtest.RegistryOptions{})
	img := pushImage(t, reg, "x", "1", layer)
	blob := string(id.BlobOf(layer.blob))
	mount := func(t *testing.T, onError string) (d *running, dir string) {
		reg.Heal()
		d = runDaemon(t, Options{})
		dir = mountDir(t)
		_, err := mountAs(testContext(t), d.client, img.ref, dir, func(r *engineapi.MountRequest) { r.OnError = onError })
		if err != nil {
			t.Fatal(err)
		}
		wantTree(t, dir, content{"share/007": files["share/007"]})
		return d, dir
	}
	down := imgtest.Fault{On: imgtest.KindBlob, Match: blob, Status: http.StatusServiceUnavailable}

	t.Run("eio", func(t *testing.T) {
		d, dir := mount(t, "eio")
		reg.Inject(down)
		if _, err := readFile(filepath.Join(dir, "bin/0")); !errors.Is(err, unix.EIO) {
			t.Errorf("read: %v", err)
		}
		wantTree(t, dir, content{"share/007": files["share/007"]})
		st, err := d.client.Status(testContext(t))
		if err != nil || len(st.Faults) != 1 {
			t.Errorf("status: %+v, %v", st.Faults, err)
		}
		reg.Heal()
		wantTree(t, dir, content{"bin/0": files["bin/0"]}) // not remembered
	})
	t.Run("retry", func(t *testing.T) {
		_, dir := mount(t, "retry=1m")
		down := down
		down.Times = 8
		reg.Inject(down)
		wantTree(t, dir, content{"bin/1": files["bin/1"]})
	})
	t.Run("retry, in vain", func(t *testing.T) {
		_, dir := mount(t, "retry=300ms")
		reg.Inject(down)
		start := time.Now()
		if _, err := readFile(filepath.Join(dir, "bin/0")); !errors.Is(err, unix.EIO) {
			t.Errorf("read: %v", err)
		}
		if since := time.Since(start); since < 300*time.Millisecond {
			t.Errorf("gave up after %v", since)
		}
	})
}

// TestPatience is the device's own clock: an outage is borne from its first
// failure on, whoever met it, and not at all by who never met the registry.
func TestPatience(t *testing.T) {
	t.Parallel()
	now := time.Now()
	for _, tt := range []struct {
		name  string
		met   bool
		since time.Duration // of the outage
		want  time.Duration
	}{
		{"a fresh outage", true, 0, time.Minute},
		{"in the middle of one", true, 20 * time.Second, 40 * time.Second},
		{"long over", true, 2 * time.Minute, -time.Minute},
		{"never met", false, 0, 0},
	} {
		r := newReads(time.Minute, nil)
		r.met.Store(tt.met)
		d := &device{reads: r, pulse: &pulse{}}
		if got := d.rest(now.Add(-tt.since)); got > tt.want || got < tt.want-time.Second {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
	p := &pulse{}
	first := p.failed()
	if again := p.failed(); !again.Equal(first) {
		t.Errorf("a second failure moved the outage from %v to %v", first, again)
	}
	p.beat()
	if p.since.Load() != 0 {
		t.Error("bytes do not end an outage")
	}
}

// TestInterrupted has a signal end a read that waits for a registry.
func TestInterrupted(t *testing.T) {
	needFUSE(t)
	files := bigTree(10)
	layer := estargz(t, tarOf(t, files))
	reg := imgtest.NewRegistry(t, imgtest.RegistryOptions{})
	pushImage(t, reg, "x", "1", layer)
	var silent atomic.Bool
	var once sync.Once
	asked, over := make(chan struct{}), make(chan struct{})
	behind, err := url.Parse(reg.URL)
	if err != nil {
		t.Fatal(err)
	}
	proxy := httputil.NewSingleHostReverseProxy(behind)
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if silent.Load() {
			once.Do(func() { close(asked) })
			<-over // the kernel reads ahead in nobody's name, and goes on waiting
			return
		}
		proxy.ServeHTTP(w, req)
	}))
	defer front.Close()
	defer close(over)
	c := spawned(t, newStore(t))
	dir := mountDir(t)
	if _, err := mountAs(testContext(t), c, front.Listener.Addr().String()+"/x:1", dir); err != nil {
		t.Fatal(err)
	}
	silent.Store(true)
	ctx, cancel := context.WithCancel(testContext(t))
	defer cancel()
	cat := exec.CommandContext(ctx, "cat", filepath.Join(dir, "bin/0"))
	if err := cat.Start(); err != nil {
		t.Fatal(err)
	}
	<-asked
	cancel() // SIGKILL
	if err := cat.Wait(); err == nil {
		t.Error("cat ended well")
	}
}

// TestSealed mounts with --verify sealed: nothing is shown before all of it is
// proven, and what is not what it says is not shown at all.
func TestSealed(t *testing.T) {
	needFUSE(t)
	files := bigTree(11)
	layer := estargz(t, tarOf(t, files))
	liar := layer
	liar.diff = plain([]byte("other")).diff
	reg := imgtest.NewRegistry(t, imgtest.RegistryOptions{})
	good, bad := pushImage(t, reg, "x", "1", layer), pushImage(t, reg, "x", "2", liar)
	d := runDaemon(t, Options{})
	sealed := func(r *engineapi.MountRequest) { r.Verify = engineapi.VerifySealed }
	dir := mountDir(t)
	// Lazily first, so that there is something to be completed. Who lies comes
	// first, and the other all the same to what is his.
	for _, img := range []*pushed{bad, good} {
		m, err := mountAs(testContext(t), d.client, img.ref, dir)
		if err != nil {
			t.Fatal(err)
		}
		unmounted(t, d.client, m)
	}
	m, err := mountAs(testContext(t), d.client, good.ref, dir, sealed)
	if err != nil {
		t.Fatal(err)
	}
	reg.Forget()
	wantTree(t, dir, files)
	asked(t, reg, "a sealed mount", 0, 0)
	unmounted(t, d.client, m)
	if _, err := mountAs(testContext(t), d.client, bad.ref, dir, sealed); fault.KindOf(err) != fault.Integrity {
		t.Errorf("an image that lies of its layer: %v", err)
	}
}

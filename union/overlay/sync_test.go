package overlay

import (
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/imgfs/imgfs/internal/lower"
	"golang.org/x/sys/unix"
)

// TestSyncTwice: the second of two who sync a new file is not told that it has
// its name before that is so.
func TestSyncTwice(t *testing.T) {
	u := newUnmounted(t)
	var out fuse.EntryOut
	in := fuse.MknodIn{InHeader: fuse.InHeader{NodeId: lower.Root}, Mode: unix.S_IFREG | 0o644}
	if s := u.Mknod(nil, &in, "f", &out); s != fuse.OK {
		t.Fatal(s)
	}
	n := u.get(out.NodeId)
	done := make(chan error, 2)
	u.mu.Lock() // which a sync needs, to find the directory
	under := 0
	for range 2 {
		go func() { done <- u.syncName(n) }()
		under++
		select {
		case err := <-done:
			under--
			t.Errorf("synced already, %v", err)
		case <-time.After(50 * time.Millisecond):
		}
	}
	u.mu.Unlock()
	for range under {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if n.synced.Load() != n.placed.Load() {
		t.Error("it is synced again and again")
	}
}

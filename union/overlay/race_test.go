package overlay_test

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"github.com/imgfs/imgfs/internal/imgtest"
	"github.com/imgfs/imgfs/union/overlay"
	"golang.org/x/sys/unix"
)

// TestOneCopyForAll: while a lower file is copied up, because many write to
// their own part of it at once, whoever reads sees the lower's bytes or what
// was written, and at the end all that was written is there.
func TestOneCopyForAll(t *testing.T) {
	const size, part = 3 << 20, 64 << 10
	for _, k := range []kind{asRoot, rootless} {
		t.Run(k.name, func(t *testing.T) {
			for round := range 4 {
				u := start(t, k, chain{fmt.Sprintf("dir . mtime=1\nfile f size=%d mtime=1\nlink g f mtime=1\n", size)})
				want := imgtest.Pattern(size)
				old := bytes.Clone(want)
				var all sync.WaitGroup
				for w := range 8 {
					off := int64(w*5*part + round*1000)
					tag := fmt.Sprint("w", w)
					copy(want[off:], pattern(tag, off, part))
					fd, err := u.r.at([]string{"f", "g"}[w&1], unix.O_RDWR, 0)
					must(t, err)
					all.Go(func() {
						defer unix.Close(fd)
						if err := put(fd, off, part, tag); err != nil {
							t.Errorf("write at %d: %v", off, err)
						}
						b := make([]byte, part)
						if n, err := unix.Pread(fd, b, off); n != part || !bytes.Equal(b, pattern(tag, off, part)) {
							t.Errorf("who wrote at %d reads something else: %d, %v", off, n, err)
						}
					})
				}
				for w := range 4 {
					fd, err := u.r.at("g", unix.O_RDONLY, 0)
					must(t, err)
					r := rand.New(rand.NewPCG(uint64(w), uint64(round)))
					all.Go(func() {
						defer unix.Close(fd)
						b := make([]byte, 4096)
						for range 200 {
							off := r.IntN(size/4096) * 4096
							n, err := unix.Pread(fd, b, int64(off))
							if err == unix.EINTR {
								continue
							}
							for i := range b {
								if n != len(b) || b[i] != old[off+i] && b[i] != want[off+i] {
									t.Errorf("byte %d of %d, %v is neither the lower's nor written", off+i, n, err)
									return
								}
							}
						}
					})
				}
				all.Go(func() {
					for i := range 20 {
						u2 := fmt.Sprintf("chmod f %o", 0o600+i%8)
						if got := u.r.do(u2); got != "ok" {
							t.Errorf("%s: %s", u2, got)
						}
					}
				})
				all.Wait()
				for _, name := range []string{"f", "g"} {
					fd, err := u.r.at(name, unix.O_RDONLY, 0)
					must(t, err)
					got, err := get(fd, 0, size+1)
					must(t, err, unix.Close(fd))
					if got != readAs(want) {
						t.Errorf("%s: %s, want %s", name, got, readAs(want))
					}
				}
				must(t, u.remount())
				if got := u.r.do("stat f"); got != fmt.Sprintf("100603 0:0 nlink=2 size=%d", size) {
					t.Error(got)
				}
				must(t, u.close())
			}
		})
	}
}

// TestKillUnderLoad kills the server in the middle of many operations. The
// upper is in order after each: it can be mounted, all of it can be read, the
// next mount shows the same, and its check finds nothing.
func TestKillUnderLoad(t *testing.T) {
	rounds := 4
	if *long {
		rounds = 40
	}
	for _, k := range []kind{asRoot, rootless} {
		t.Run(k.name, func(t *testing.T) {
			r := rand.New(rand.NewPCG(max(1, *seed), 0x6c6f_6164))
			u := start(t, k, workerChain(r, k.can, 3))
			for round := range rounds {
				var all sync.WaitGroup
				must(t, u.close())
				u.Kill = 1 + r.Int64N(400)
				must(t, u.mount())
				u.Kill = 0
				for w := range 4 {
					to, err := openRoot(u.at)
					must(t, err)
					g := opGenerator{r: rand.New(rand.NewPCG(uint64(w), uint64(round)+*seed)), can: k.can}
					all.Go(func() {
						defer to.close()
						for range 2000 {
							if got := to.do(g.next(to)); got == "ENOTCONN" || got == "ECONNABORTED" {
								return
							}
						}
					})
				}
				all.Wait()
				u.r.close()
				if err := unix.Unmount(u.at, unix.MNT_DETACH); err != nil {
					t.Fatalf("round %d: %v", round, err)
				}
				u.in.Close()
				u.cmd.Wait()
				if err := u.mount(); err != nil {
					t.Fatalf("round %d: %v", round, err)
				}
				before, err := takeSnapshot(u.r.fd, k.masks)
				if err != nil {
					t.Fatalf("round %d: %v\n%s", round, err, &u.errs)
				}
				must(t, u.remount())
				after, err := takeSnapshot(u.r.fd, k.masks)
				must(t, err)
				if d := differences(before.lines, after.lines); d != "" {
					t.Errorf("round %d: two mounts differ: %s", round, d)
				}
				if err := sound(u); err != nil {
					t.Fatalf("round %d: %v", round, err)
				}
				must(t, u.mount())
			}
		})
	}
}

// TestNobodyWaitsForALayer: while data of a layer is awaited, to be read and to
// be copied, all that does not need it goes on, on that very file as well.
func TestNobodyWaitsForALayer(t *testing.T) {
	began, wait := make(chan struct{}, 8), make(chan struct{})
	m := startCounted(t, chain{"dir . mtime=1\nfile f size=100000 mtime=1\nfile r size=100000 mtime=1\n", "dir d mtime=1\nfile other size=5000 mtime=1\nfile d/x size=10 mtime=1\n"},
		func(m *counted, _ *overlay.Options) {
			m.data[0].fill = func(ctx context.Context, _, _ int64) error {
				select {
				case <-wait:
					return nil
				default:
				}
				began <- struct{}{}
				select {
				case <-wait:
					return nil
				case <-ctx.Done():
					return ctx.Err()
				}
			}
		})
	r, err := openRoot(m.at)
	must(t, err)
	defer r.close()
	var all sync.WaitGroup
	for op, want := range map[string]string{"append f 10 t": "ok", "cat r": readAs(imgtest.Pattern(100000))} {
		all.Go(func() {
			if got := r.do(op); got != want {
				t.Errorf("%s: %s", op, got)
			}
		})
		<-began
	}
	for _, op := range []string{
		"list .", "stat f", "chmod f 600", "chown f 1 1", "times f 5", "setxattr f user.a v", "link f g", "rename f h", "unlink g", "rename h d/f", "stat d/f",
		"chmod r 600", "rename r d/r", "stat d/r", "append other 10 t", "cat other", "create new 644", "mkdir dir 755", "rename d dir/d", "append dir/d/x 10 t",
		"rename other new", "rmtree new", "symlink s t", "unlink s", "unlink dir/d/f", "list dir/d", "unlink dir/d/r", "rmtree dir",
	} {
		if got := r.do(op); strings.HasPrefix(got, "E") {
			t.Errorf("%s: %s", op, got)
		}
	}
	close(wait)
	all.Wait()
}

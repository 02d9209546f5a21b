package fs

import (
	"fmt"
	"io"
	"log"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// goFuse serves c by go-fuse's own loop, for comparison.
func goFuse(b *testing.B, c *Chain, dir string) func() {
	fd, err := Mount(dir, "test:go-fuse", MountFlags{})
	if err != nil {
		b.Fatal(err)
	}
	o := (&Server{log: slog.New(slog.DiscardHandler)}).mountOptions()
	o.Logger = log.New(io.Discard, "", 0)
	s, err := fuse.NewServer(c, "/dev/fd/"+strconv.Itoa(fd), o)
	if err != nil {
		b.Fatal(err)
	}
	go s.Serve()
	return func() {
		Unmount(dir, false)
		s.Wait()
	}
}

// BenchmarkRoundTrip is a LOOKUP of a name not asked for before.
func BenchmarkRoundTrip(b *testing.B) {
	p := pack(b, makeTree(b, 1, 10), 1)
	run := func(b *testing.B, dir string) {
		var st unix.Stat_t
		for i := 0; b.Loop(); i++ {
			unix.Lstat(fmt.Sprintf("%s/absent-%d", dir, i), &st)
		}
	}
	b.Run("imgfs", func(b *testing.B) {
		dir := b.TempDir()
		serveCold(b, NewChain(p.img, p.data(), Options{}), dir, MountFlags{})
		run(b, dir)
	})
	b.Run("go-fuse", func(b *testing.B) {
		dir := b.TempDir()
		defer goFuse(b, NewChain(p.img, p.data(), Options{}), dir)()
		run(b, dir)
	})
}

// BenchmarkTree is find -printf and cat of all of 20,000 files, by other
// processes, per run: cold (a fresh mount, dropped caches) and hot, of the
// mount, of the same by go-fuse's loop, and of the original directory.
// $FS_BENCH_TREE names another directory to pack.
func BenchmarkTree(b *testing.B) {
	root := os.Getenv("FS_BENCH_TREE")
	if root == "" {
		root = makeTree(b, 800, 25)
	}
	p := pack(b, root, 10)
	work := map[string]string{
		"find": `find "$0" -printf "%p %s %m %T@ %u %i\n" >/dev/null`,
		"read": `find "$0" -type f -print0 | xargs -0 cat >/dev/null`,
	}
	fresh := func(kind, dir string) func() {
		switch kind {
		case "imgfs":
			s, c := fdServe(b, p, dir)
			return func() { Unmount(dir, false); s.Wait(); c() }
		case "go-fuse":
			return goFuse(b, NewChain(p.img, p.data(), Options{}), dir)
		}
		return func() {}
	}
	for _, name := range []string{"find", "read"} {
		for _, kind := range []string{"native", "imgfs", "go-fuse"} {
			dir := root
			if kind != "native" {
				dir = filepath.Join(b.TempDir())
			}
			run := func(b *testing.B) {
				if out, err := exec.Command("sh", "-c", work[name], dir).CombinedOutput(); err != nil {
					b.Fatalf("%v %s", err, out)
				}
			}
			b.Run(name+"/cold/"+kind, func(b *testing.B) {
				for range b.N {
					b.StopTimer()
					done := fresh(kind, dir)
					exec.Command("sync").Run()
					os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0)
					b.StartTimer()
					run(b)
					b.StopTimer()
					done()
					b.StartTimer()
				}
			})
			b.Run(name+"/hot/"+kind, func(b *testing.B) {
				done := fresh(kind, dir)
				defer done()
				run(b)
				b.ResetTimer()
				for range b.N {
					run(b)
				}
			})
		}
	}
}

func fdServe(b *testing.B, p *packed, dir string) (*Server, func()) {
	fd, err := Mount(dir, "test:image", MountFlags{})
	if err != nil {
		b.Fatal(err)
	}
	s, err := Serve(b.Context(), NewChain(p.img, p.data(), Options{}), fd, Options{})
	if err != nil {
		b.Fatal(err)
	}
	return s, func() {}
}

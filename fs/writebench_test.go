package fs

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// withoutAdmin runs do in a thread without CAP_SYS_ADMIN, as a server that
// somebody else has mounted for.
func withoutAdmin(t testing.TB, do func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // the thread ends with the goroutine
		head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var data [2]unix.CapUserData
		err := unix.Capget(&head, &data[0])
		data[0].Effective &^= 1 << unix.CAP_SYS_ADMIN
		if err == nil {
			err = unix.Capset(&head, &data[0])
		}
		if err != nil {
			t.Error(err)
			return
		}
		do()
	}()
	<-done
}

// kinds are the ways to serve a directory for writing.
var kinds = []string{"native", "passthrough", "handles", "no-open", "writeback", "writeback-no-open", "go-fuse"}

// serveKind shows root, an empty directory, in one of the kinds.
func serveKind(b testing.TB, kind, root string) (dir string, done func()) {
	b.Helper()
	if kind == "native" {
		return root, func() {}
	}
	dir = b.TempDir()
	fd, err := Mount(dir, "test:"+kind, MountFlags{Writable: true})
	if err != nil {
		b.Fatal(err)
	}
	if kind == "go-fuse" {
		lo, err := fs.NewLoopbackRoot(root)
		if err != nil {
			b.Fatal(err)
		}
		sec := time.Second
		s, err := fuse.NewServer(fs.NewNodeFS(lo, &fs.Options{EntryTimeout: &sec, AttrTimeout: &sec}), "/dev/fd/"+strconv.Itoa(fd), &fuse.MountOptions{MaxWrite: maxWrite})
		if err != nil {
			b.Fatal(err)
		}
		go s.Serve()
		return dir, func() {
			if err := Unmount(dir, false); err != nil {
				b.Error(err)
			}
			s.Wait()
		}
	}
	l := newLoopback(b, root)
	l.pass = kind == "passthrough"
	if kind == "no-open" || kind == "writeback-no-open" {
		l.open = func(*fuse.OpenIn) fuse.Status { return fuse.ENOSYS }
	}
	var s *Server
	serve := func() { s, err = Serve(context.Background(), l, fd, Options{}) }
	if kind == "writeback" || kind == "writeback-no-open" {
		withoutAdmin(b, serve)
	} else {
		serve()
	}
	if err != nil {
		b.Fatal(err)
	}
	return dir, func() {
		if err := Unmount(dir, false); err != nil {
			b.Error(err)
		}
		s.Wait()
	}
}

// BenchmarkWrite is what writers do, in other processes: $FS_BENCH_DIR names
// where (a directory on the file system to be measured).
func BenchmarkWrite(b *testing.B) {
	needRoot(b)
	base := os.Getenv("FS_BENCH_DIR")
	if base == "" {
		base = b.TempDir()
	}
	self, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	for _, job := range []string{"write1G", "write256M4k", "rewrite4k", "create", "createclose", "unlink", "rename", "readall", "append"} {
		for _, kind := range kinds {
			b.Run(job+"/"+kind, func(b *testing.B) {
				for b.Loop() {
					b.StopTimer()
					root, err := os.MkdirTemp(base, "bench")
					if err != nil {
						b.Fatal(err)
					}
					dir, done := serveKind(b, kind, root)
					cmd := exec.Command(self)
					cmd.Env = append(os.Environ(), "FS_HELPER=bench", "FS_JOB="+job, "FS_TARGET="+dir)
					b.StartTimer()
					out, err := cmd.CombinedOutput()
					b.StopTimer()
					if err != nil {
						b.Fatalf("%v %s", err, out)
					}
					var ns int64
					fmt.Sscan(string(out), &ns)
					b.ReportMetric(float64(ns)/1e6, "ms")
					done()
					os.RemoveAll(root)
					b.StartTimer()
				}
			})
		}
	}
}

const benchFiles = 10000

// benchMain does a job and prints how long it took.
func benchMain() int {
	dir := os.Getenv("FS_TARGET")
	err := func() error {
		start := time.Now()
		name := func(i int) string { return filepath.Join(dir, "f"+strconv.Itoa(i)) }
		make := func(n int) error {
			for i := range n {
				fd, err := unix.Open(name(i), unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, 0o644)
				if err != nil {
					return err
				}
				unix.Write(fd, []byte("some bytes\n"))
				unix.Close(fd)
			}
			return nil
		}
		switch job := os.Getenv("FS_JOB"); job {
		case "write1G", "rewrite4k":
			fd, err := unix.Open(name(0), unix.O_RDWR|unix.O_CREAT, 0o644)
			if err != nil {
				return err
			}
			buf := [1 << 20]byte{1}
			for range 1 << 10 {
				if _, err := unix.Write(fd, buf[:]); err != nil {
					return err
				}
			}
			if job == "rewrite4k" {
				start = time.Now()
				for i := range 50000 {
					if _, err := unix.Pwrite(fd, buf[:4096], int64(i*7919%(1<<18))*4096); err != nil {
						return err
					}
				}
			}
			if err := unix.Close(fd); err != nil {
				return err
			}
		case "write256M4k":
			fd, err := unix.Open(name(0), unix.O_RDWR|unix.O_CREAT, 0o644)
			if err != nil {
				return err
			}
			buf := [4096]byte{1}
			for range 1 << 16 {
				if _, err := unix.Write(fd, buf[:]); err != nil {
					return err
				}
			}
			if err := unix.Close(fd); err != nil {
				return err
			}
		case "create":
			for i := range benchFiles {
				if err := unix.Mkdir(name(i), 0o755); err != nil {
					return err
				}
			}
		case "createclose":
			if err := make(benchFiles); err != nil {
				return err
			}
		case "unlink", "rename", "readall", "append":
			if err := make(benchFiles); err != nil {
				return err
			}
			var buf [4096]byte
			round := func() error {
				for i := range benchFiles {
					var err error
					switch job {
					case "unlink":
						err = unix.Unlink(name(i))
					case "rename":
						err = unix.Rename(name(i), name(i)+"x")
					default:
						var fd int
						how := unix.O_RDONLY
						if job == "append" {
							how = unix.O_WRONLY | unix.O_APPEND
						}
						if fd, err = unix.Open(name(i), how, 0); err != nil {
							return err
						}
						if job == "append" {
							_, err = unix.Write(fd, buf[:100])
						} else {
							_, err = unix.Read(fd, buf[:])
						}
						unix.Close(fd)
					}
					if err != nil {
						return err
					}
				}
				return nil
			}
			if job == "readall" {
				if err := round(); err != nil {
					return err
				}
			}
			start = time.Now()
			if err := round(); err != nil {
				return err
			}
		}
		fmt.Println(time.Since(start).Nanoseconds())
		return nil
	}()
	if err != nil {
		fmt.Println(err)
		return 1
	}
	return 0
}

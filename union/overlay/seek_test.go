package overlay_test

import (
	"fmt"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// TestSeekMapped: what was written through a mapping is no hole either.
func TestSeekMapped(t *testing.T) {
	for _, k := range []kind{asRoot, rootless} {
		t.Run(k.name, func(t *testing.T) {
			m := startApart(t, k, chain{"file sparse sparse=1.0 size=1000000 map=0+4096"})
			fd := m.open("sparse", unix.O_RDWR)
			defer m.close(fd)
			b, err := unix.Mmap(fd, 0, 1000000, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
			m.must(err)
			b[500000] = 'x'
			off, err := unix.Seek(fd, 8192, unix.SEEK_DATA)
			if err != nil || off > 500000 || off < 400000 {
				t.Errorf("data at %d, %v", off, err)
			}
			m.must(unix.Munmap(b))
		})
	}
}

// TestSeekMany: more than the server has workers seek in what they have just
// written, for which the kernel has to write that first.
func TestSeekMany(t *testing.T) {
	u := start(t, rootless, chain{"dir d mode=0777"})
	const n = 300
	var fds [n]int
	for i := range n {
		fd, err := u.r.at(fmt.Sprint("d/f", i), unix.O_RDWR|unix.O_CREAT, 0o644)
		must(t, err)
		fds[i] = fd
	}
	var all sync.WaitGroup
	begin := make(chan struct{})
	for _, fd := range fds {
		all.Go(func() {
			defer unix.Close(fd)
			<-begin
			for off := int64(0); off < 1<<20; off += 256 << 10 {
				unix.Pwrite(fd, make([]byte, 256<<10), off)
				if got, err := unix.Seek(fd, off, unix.SEEK_DATA); err != nil || got != off {
					t.Errorf("data at %d, %v", got, err)
					return
				}
			}
		})
	}
	close(begin)
	all.Wait()
}

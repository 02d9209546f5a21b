package fs

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/imgfs/imgfs/internal/erofs"
	"github.com/imgfs/imgfs/internal/imgtest"
	"github.com/imgfs/imgfs/internal/lower"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	switch os.Getenv("FS_HELPER") {
	case "":
	case "bench":
		os.Exit(benchMain())
	default:
		os.Exit(helperMain())
	}
	os.Exit(imgtest.Main(m))
}

func needRoot(t testing.TB) {
	t.Helper()
	imgtest.Need(t, os.Geteuid() == 0, "root")
	_, err := os.Stat(fuseDevice)
	imgtest.Need(t, err == nil, fuseDevice)
}

// publicDir is a temporary directory that other users can reach.
func publicDir(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// file is a layer's data file as tests have it: always full.
type file struct {
	f    *os.File
	fill func(ctx context.Context, off, n int64) error // nil: present
}

func (f *file) Fill(ctx context.Context, off, n, _ int64) (*os.File, error) {
	if f.fill == nil {
		return f.f, nil
	}
	return f.f, f.fill(ctx, off, n)
}

// packed is a chain index and its data files.
type packed struct {
	img   *erofs.Image
	index string
	files []*file
}

func (p *packed) data() []lower.Data {
	d := make([]lower.Data, len(p.files))
	for i, f := range p.files {
		d[i] = f
	}
	return d
}

// packer writes a directory of the host as an index over n data files, in turn.
type packer struct {
	t      testing.TB
	b      *erofs.Builder
	files  []*file
	sizes  []int64
	turn   int
	linked map[uint64]erofs.Ref
}

// pack packs root, as an independent way to the same tree: it is read by
// lstat, readdir and read alone. Holes of 4096 bytes and more stay holes.
func pack(t testing.TB, root string, n int) *packed {
	t.Helper()
	dir := publicDir(t)
	p := &packer{t: t, linked: map[uint64]erofs.Ref{}}
	devices := make([]erofs.Device, n)
	for i := range n {
		f, err := os.Create(filepath.Join(dir, "data"+string(rune('a'+i%26))+strings.Repeat("x", i/26)))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		p.files = append(p.files, &file{f: f})
		p.sizes = append(p.sizes, 0)
		devices[i] = erofs.Device{Tag: strings.Repeat("0", 60) + string([]byte{'a' + byte(i%16), 'a', '0', 'a'}), Blocks: 1 << 24}
	}
	p.b = erofs.NewBuilder(devices, "imgfs.chain.1")
	p.add(root)
	for i, size := range p.sizes {
		devices[i].Blocks = uint32((size + 511) / 512)
		p.b.SetDevice(i, devices[i])
		if err := p.files[i].f.Truncate((size + 511) &^ 511); err != nil {
			t.Fatal(err)
		}
	}
	index := filepath.Join(dir, "index")
	var buf bytes.Buffer
	if _, err := p.b.WriteTo(&buf); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(index, buf.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	img, err := erofs.Open(index)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { img.Close() })
	return &packed{img: img, index: index, files: p.files}
}

// add adds path and all below it.
func (p *packer) add(path string) erofs.Ref {
	var st unix.Stat_t
	p.check(unix.Lstat(path, &st))
	if r, ok := p.linked[st.Ino]; ok {
		return r
	}
	in := &erofs.Inode{
		Mode: st.Mode, UID: st.Uid, GID: st.Gid, Rdev: encodeDev(st.Rdev),
		Mtime: st.Mtim.Sec, MtimeNsec: uint32(st.Mtim.Nsec), Xattrs: readXattrs(p.t, path),
	}
	if st.Mode&unix.S_IFMT != unix.S_IFCHR && st.Mode&unix.S_IFMT != unix.S_IFBLK {
		in.Rdev = 0
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		p.content(in, path, st.Size, st.Blocks*512 < st.Size)
	case unix.S_IFLNK:
		to, err := os.Readlink(path)
		p.check(err)
		in.Target = to
	}
	r, err := p.b.Add(in)
	p.check(err)
	if st.Nlink > 1 && st.Mode&unix.S_IFMT != unix.S_IFDIR {
		p.linked[st.Ino] = r
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		names, err := os.ReadDir(path)
		p.check(err)
		for _, e := range names {
			p.check(p.b.Link(r, e.Name(), p.add(filepath.Join(path, e.Name()))))
		}
	}
	return r
}

func (p *packer) check(err error) {
	if err != nil {
		p.t.Helper()
		p.t.Fatal(err)
	}
}

// content appends a file to the next data file: whole, or a sparse one in
// pieces of 4096 bytes.
func (p *packer) content(in *erofs.Inode, path string, size int64, sparse bool) {
	in.Size = uint64(size)
	if size == 0 {
		return
	}
	d := p.turn % len(p.files)
	p.turn++
	b, err := os.ReadFile(path)
	p.check(err)
	const piece = 4096
	step := len(b)
	if sparse {
		in.ChunkBits = 3 // 4096 / 512
		step = piece
	} else {
		for erofs.BlockSize<<in.ChunkBits < len(b) {
			in.ChunkBits++
		}
	}
	zero := make([]byte, piece)
	for off := 0; off < len(b); off += step {
		part := b[off:min(len(b), off+step)]
		if sparse && bytes.Equal(part, zero[:len(part)]) {
			in.Chunks = append(in.Chunks, erofs.Chunk{Block: erofs.HoleBlock})
			continue
		}
		in.Chunks = append(in.Chunks, erofs.Chunk{Device: d, Block: uint32(p.sizes[d] / 512)})
		_, err := p.files[d].f.WriteAt(part, p.sizes[d])
		p.check(err)
		p.sizes[d] += (int64(len(part)) + 511) &^ 511
	}
}

func encodeDev(dev uint64) uint32 {
	major, minor := unix.Major(dev), unix.Minor(dev)
	return minor&0xff | major<<8 | (minor&^0xff)<<12
}

func readXattrs(t testing.TB, path string) []erofs.Xattr {
	buf := make([]byte, 64<<10)
	n, err := unix.Llistxattr(path, buf)
	if err != nil {
		return nil
	}
	var out []erofs.Xattr
	for _, name := range strings.Split(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00") {
		if name == "" {
			continue
		}
		v := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(path, name, v)
		if err != nil {
			t.Fatal(path, name, err)
		}
		out = append(out, erofs.Xattr{Name: name, Value: v[:n]})
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Name < out[j].Name })
	return out
}

// serve mounts p on a fresh directory and unmounts it at the end of the test.
func serve(t testing.TB, p *packed, o MountFlags) (string, *Server) {
	t.Helper()
	needRoot(t)
	return serveOn(t, NewChain(p.img, p.data(), Options{}), t.TempDir(), o)
}

func serveOn(t testing.TB, rfs fuse.RawFileSystem, target string, o MountFlags) (string, *Server) {
	t.Helper()
	s := serveCold(t, rfs, target, o)
	settlePoll(t, target)
	return target, s
}

// serveCold does not touch the mount: the test must open its files by other
// processes alone, see settlePoll.
func serveCold(t testing.TB, rfs fuse.RawFileSystem, target string, o MountFlags) *Server {
	t.Helper()
	return serveAs(t, rfs, target, o, func(serve func()) { serve() })
}

// serveAs has as call Serve.
func serveAs(t testing.TB, rfs fuse.RawFileSystem, target string, o MountFlags, as func(serve func())) *Server {
	t.Helper()
	fd, err := Mount(target, "test:image", o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	var s *Server
	as(func() {
		s, err = Serve(ctx, rfs, fd, Options{Logger: slog.New(slog.NewTextHandler(testWriter{t}, nil))})
	})
	if err != nil {
		Unmount(target, true)
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if at, err := MountAt(target); err == nil && at != nil {
			if err := Unmount(target, false); err != nil {
				t.Error(err)
				Unmount(target, true)
			}
		}
		if err := s.Wait(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// settlePoll has the kernel learn that there is no FUSE_POLL. Go adds each file
// it opens to its poller by an epoll_ctl that the scheduler is not told of; on
// a mount of the same process this would wait for a server that a garbage
// collection has stopped, which waits for the epoll_ctl.
func settlePoll(t testing.TB, root string) {
	var find func(dir string) bool
	find = func(dir string) bool {
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			path := filepath.Join(dir, e.Name())
			if e.IsDir() && find(path) {
				return true
			}
			if !e.Type().IsRegular() {
				continue
			}
			fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				continue
			}
			defer unix.Close(fd)
			unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
			return true
		}
		return false
	}
	find(root)
}

type testWriter struct{ testing.TB }

func (w testWriter) Write(p []byte) (int, error) {
	os.Stderr.Write(p)
	return len(p), nil
}

// remount unmounts and serves again: the kernel knows nothing any more.
func remount(t testing.TB, p *packed, target string, s *Server) *Server {
	t.Helper()
	if err := Unmount(target, false); err != nil {
		t.Fatal(err)
	}
	s.Wait()
	return serveCold(t, NewChain(p.img, p.data(), Options{}), target, MountFlags{})
}

// listing describes a tree: one line per path with all that lstat, readlink,
// listxattr and a hash of the content tell, but for what cannot be equal.
func listing(t testing.TB, root string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, path)
		out[rel] = describe(t, path)
		if fi, err := os.Lstat(path); err != nil || fi.Mode().Type() != d.Type() && path != root {
			t.Errorf("%s: d_type %v, lstat %v", rel, d.Type(), err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func describe(t testing.TB, path string) string {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Error(path, err)
		return ""
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%o %d:%d mtime=%d.%09d", st.Mode, st.Uid, st.Gid, st.Mtim.Sec, st.Mtim.Nsec)
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		fmt.Fprintf(&b, " nlink=%d", st.Nlink)
	case unix.S_IFREG:
		fmt.Fprintf(&b, " nlink=%d size=%d", st.Nlink, st.Size)
		f, err := os.Open(path)
		if err != nil {
			t.Error(err)
			break
		}
		defer f.Close()
		h := sha256.New()
		if _, err := io.Copy(h, f); err != nil {
			t.Error(err)
		}
		fmt.Fprintf(&b, " sha256=%x", h.Sum(nil)[:8])
	case unix.S_IFLNK:
		to, err := os.Readlink(path)
		fmt.Fprintf(&b, " nlink=%d size=%d -> %q %v", st.Nlink, st.Size, to, err)
	default:
		fmt.Fprintf(&b, " nlink=%d rdev=%d:%d", st.Nlink, unix.Major(st.Rdev), unix.Minor(st.Rdev))
	}
	for _, x := range readXattrs(t, path) {
		fmt.Fprintf(&b, " %s=%q", x.Name, x.Value)
	}
	return b.String()
}

// sameTree compares two trees entry by entry.
func sameTree(t testing.TB, want, got string) {
	t.Helper()
	w, g := listing(t, want), listing(t, got)
	for path, line := range w {
		if g[path] != line {
			t.Errorf("%s:\n got  %s\n want %s", path, g[path], line)
		}
	}
	for path := range g {
		if _, ok := w[path]; !ok {
			t.Errorf("%s: not in the original", path)
		}
	}
}

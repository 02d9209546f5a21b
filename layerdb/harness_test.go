package layerdb

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/dgraph-io/badger/v4"

	"github.com/imgfs/imgfs/internal/erofs"
	"github.com/imgfs/imgfs/internal/id"
	"github.com/imgfs/imgfs/internal/imgtest"
	"github.com/imgfs/imgfs/internal/metadb"
)

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		child()
	}
	os.Exit(imgtest.Main(m))
}

// place is a state directory, opened, closed and opened again.
type place struct {
	*Store
	t      testing.TB
	dir    string
	db     *badger.DB
	opts   Options
	merges []string // "PARENTDEVICES+TOP" of each merge
}

func newPlace(t testing.TB) *place {
	p := &place{t: t, dir: t.TempDir()}
	p.open()
	t.Cleanup(p.close)
	return p
}

func (p *place) open() {
	p.t.Helper()
	var err error
	if p.db, err = metadb.Open(filepath.Join(p.dir, "meta")); err != nil {
		p.t.Fatal(err)
	}
	p.opts.Merge = func(w io.Writer, parent *erofs.Image, top []*erofs.Image) error {
		n := 0
		if parent != nil {
			n = len(parent.Devices())
		}
		p.merges = append(p.merges, fmt.Sprintf("%d+%d", n, len(top)))
		return mergeFlat(w, parent, top)
	}
	if p.Store, err = Open(p.dir, p.db, p.opts); err != nil {
		p.t.Fatal(err)
	}
}

func (p *place) close() {
	p.t.Helper()
	if p.Store == nil {
		return
	}
	if err := p.Store.Close(); err != nil {
		p.t.Error(err)
	}
	if err := metadb.Close(p.db); err != nil {
		p.t.Error(err)
	}
	p.Store = nil
}

func (p *place) reopen() {
	p.t.Helper()
	p.close()
	p.open()
}

// put stores a layer made of an imgtest.Tar text and returns its diffID.
func (p *place) put(text string) id.LayerKey {
	p.t.Helper()
	stream := tarOf(p.t, text)
	spec := specOf(stream, stream)
	if _, _, err := p.Ensure(context.Background(), spec, nil); err != nil {
		p.t.Fatal(err)
	}
	return spec.DiffID.Key()
}

// names lists a directory of the store.
func (p *place) names(sub string) []string {
	p.t.Helper()
	names, err := readNames(filepath.Join(p.dir, sub))
	if err != nil {
		p.t.Fatal(err)
	}
	slices.Sort(names)
	return names
}

// nothing fails the test unless the store is empty, tmp/ included.
func (p *place) nothing() {
	p.t.Helper()
	for _, sub := range []string{"layers", "chains", "tmp"} {
		if names := p.names(sub); len(names) > 0 {
			p.t.Errorf("%s/ holds %q, want nothing", sub, names)
		}
	}
}

// content returns a file of the layer's root, read by its own index.
func (p *place) content(d id.LayerKey, name string) ([]byte, error) {
	l, err := p.Layer(d)
	if err != nil {
		return nil, err
	}
	defer l.Release()
	return readFile(l.Image(), []*Data{l.Data()}, name)
}

func readFile(img *erofs.Image, data []*Data, name string) ([]byte, error) {
	n, _, err := img.Lookup(img.Root(), []byte(name))
	if err != nil {
		return nil, err
	}
	var a erofs.Attr
	if err := img.Stat(n, &a); err != nil {
		return nil, err
	}
	out := make([]byte, a.Size)
	for off := uint64(0); off < a.Size; {
		e, err := img.Extent(n, off)
		if err != nil {
			return nil, err
		}
		if !e.Hole {
			f, err := data[e.Device].Fill(context.Background(), int64(e.Off), int64(e.Len), int64(e.Off+e.Len))
			if err != nil {
				return nil, err
			}
			if _, err := f.ReadAt(out[off:off+e.Len], int64(e.Off)); err != nil {
				return nil, err
			}
		}
		off += e.Len
	}
	return out, nil
}

// source is a blob that counts how often it is opened.
type source struct {
	blob  []byte
	opens atomic.Int32
}

func (s *source) open(context.Context) (io.ReadCloser, error) {
	s.opens.Add(1)
	return io.NopCloser(bytes.NewReader(s.blob)), nil
}

// specOf describes an honest layer.
func specOf(blob, stream []byte) Spec {
	src := &source{blob: blob}
	return Spec{Blob: id.BlobOf(blob), Size: int64(len(blob)), DiffID: id.DiffIDFrom(sha256.Sum256(stream)), Open: src.open}
}

// counted describes an honest plain layer, and counts how often it is fetched.
func counted(stream []byte) (Spec, *source) {
	src := &source{blob: stream}
	spec := specOf(stream, stream)
	spec.Open = src.open
	return spec, src
}

func tarOf(t testing.TB, text string) []byte {
	t.Helper()
	b, err := imgtest.Tar(text)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// pipe runs a program, which the test needs, on input.
func pipe(t testing.TB, input []byte, command ...string) []byte {
	t.Helper()
	imgtest.Program(t, command[0])
	c := exec.Command(command[0], command[1:]...)
	c.Stdin = bytes.NewReader(input)
	var stderr bytes.Buffer
	c.Stderr = &stderr
	out, err := c.Output()
	if err != nil {
		t.Fatalf("%q: %v: %s", command, err, stderr.Bytes())
	}
	return out
}

// mergeFlat is the Merge of these tests: the regular files of the layers'
// roots, of equal names the highest. Package union has the real one.
func mergeFlat(w io.Writer, parent *erofs.Image, top []*erofs.Image) error {
	var devices []erofs.Device
	files := map[string]erofs.Inode{}
	for _, img := range append([]*erofs.Image{parent}, top...) {
		if img == nil {
			continue
		}
		base := len(devices)
		devices = append(devices, img.Devices()...)
		var failed error
		err := img.ReadDir(img.Root(), 0, func(e *erofs.Dirent) bool {
			var a erofs.Attr
			if failed = img.Stat(e.NID, &a); failed != nil || a.Mode&0o170000 != 0o100000 {
				return failed == nil
			}
			in := erofs.Inode{Mode: a.Mode, Size: a.Size, Mtime: a.Mtime}
			if a.Size > 0 {
				var chunks []erofs.Chunk
				if in.ChunkBits, chunks, failed = img.Chunks(e.NID); failed != nil {
					return false
				}
				for _, c := range chunks {
					c.Device += base
					in.Chunks = append(in.Chunks, c)
				}
			}
			files[string(e.Name)] = in
			return true
		})
		if err == nil {
			err = failed
		}
		if err != nil {
			return err
		}
	}
	b := erofs.NewBuilder(devices, chainLabel)
	root, err := b.Add(&erofs.Inode{Mode: 0o040755})
	if err != nil {
		return err
	}
	for name, in := range files {
		ref, err := b.Add(&in)
		if err == nil {
			err = b.Link(root, name, ref)
		}
		if err != nil {
			return err
		}
	}
	_, err = b.WriteTo(w)
	return err
}

// openFiles counts this process's descriptors of files below dir.
func openFiles(t testing.TB, dir string) int {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, fd := range fds {
		to, err := os.Readlink("/proc/self/fd/" + fd.Name())
		if err == nil && filepath.Base(to) == "data" && len(to) > len(dir) && to[:len(dir)] == dir {
			n++
		}
	}
	return n
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

package daemon

import (
	"context"
	"io"
	"log/slog"
	"path"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/internal/erofs"
	"github.com/imgfs/imgfs/layerdb"
)

// foresight fetches beside a program that is started what its dynamic linker is
// about to open: it would ask for one file after another, a round trip each.
type foresight struct {
	ctx    context.Context
	cancel context.CancelFunc
	log    *slog.Logger
	img    *erofs.Image
	data   []*layerdb.Data
	wg     sync.WaitGroup

	mu   sync.Mutex // guards the rest, and that nothing begins after the end
	seen map[part]bool
	dir  string // where the linker is, and with it most libraries; "" if not known yet
}

// maxForeseen is how many files are looked at for one mount.
const maxForeseen = 512

func newForesight(chain *layerdb.Chain, log *slog.Logger) *foresight {
	s := &foresight{log: log, img: chain.Image(), data: chain.Data(), seen: map[part]bool{}}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s
}

// end stops what is under way, and waits for that.
func (s *foresight) end() {
	s.mu.Lock()
	s.cancel()
	s.mu.Unlock()
	s.wg.Wait()
}

// began is told of the file whose first bytes came in: it lies in [off, end) of
// the data of a layer.
func (s *foresight) began(index int, off, end int64) {
	at := part{index, off, end - off}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.seen[at] || len(s.seen) >= maxForeseen || s.ctx.Err() != nil {
		return
	}
	s.seen[at] = true
	s.wg.Go(func() { s.look(at) })
}

// look fetches what a program, or a library, and its linker will read first.
func (s *foresight) look(at part) {
	d := s.data[at.Index]
	p, err := readProgram(reading{s.ctx, d, at}, at.Len)
	if err != nil {
		return // it is no ELF, or cannot be read, which is for its reader to hear
	}
	if p.interp != "" {
		if n, real, err := resolveIn(s.img, p.interp, true); err == nil {
			s.mu.Lock()
			s.dir = "/" + path.Dir(real)
			s.mu.Unlock()
			s.file(n)
		}
	}
	for _, name := range p.needed {
		s.library(name, p.runpath)
	}
	for i := range p.parts {
		p.parts[i].Off += at.Off
	}
	if err := d.Prefetch(s.ctx, p.parts); err != nil && s.ctx.Err() == nil {
		s.log.Debug("foresight", "err", err)
	}
}

// library looks for a library where the linker does, as far as that can be told
// from the program.
func (s *foresight) library(name string, dirs []string) {
	if strings.Contains(name, "/") {
		dirs, name = []string{path.Dir(name)}, path.Base(name)
	} else {
		s.mu.Lock()
		dir := s.dir
		s.mu.Unlock()
		dirs = append(dirs[:len(dirs):len(dirs)], dir, "/usr/local/lib", "/lib64", "/usr/lib64", "/lib", "/usr/lib")
	}
	for _, dir := range dirs {
		if !path.IsAbs(dir) {
			continue
		}
		if n, _, err := resolveIn(s.img, path.Join(dir, name), true); err == nil {
			s.file(n)
			return
		}
	}
}

// file looks at a file of the tree that is about to be read.
func (s *foresight) file(n erofs.NID) {
	var a erofs.Attr
	if err := s.img.Stat(n, &a); err != nil || a.Mode&unix.S_IFMT != unix.S_IFREG {
		return
	}
	x, err := s.img.Extent(n, 0)
	if err != nil || x.Hole || x.Device >= len(s.data) {
		return
	}
	s.began(x.Device, int64(x.Off), int64(x.Off+x.Len))
}

// reading is a file that lies in a layer's data.
type reading struct {
	ctx context.Context
	d   *layerdb.Data
	at  part
}

// ReadAt implements io.ReaderAt.
func (r reading) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off > r.at.Len-int64(len(p)) {
		return 0, io.ErrUnexpectedEOF
	}
	f, err := r.d.Fill(r.ctx, r.at.Off+off, int64(len(p)), r.at.Off+off+int64(len(p)))
	if err != nil {
		return 0, err
	}
	return f.ReadAt(p, r.at.Off+off)
}

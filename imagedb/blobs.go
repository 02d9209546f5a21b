package imagedb

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/internal/id"
)

// stamp is the size and the time of a file. Nothing of ours changes one, so
// one of another stamp is one that somebody else has touched, and is read
// through before it is believed again. The zero stamp is that of no file.
type stamp struct {
	size int64 // bytes
	time int64 // of the last change, in nanoseconds since 1970
}

func (s *Store) blobPath(hex string) string { return filepath.Join(s.blobs, hex) }

// look reads the configs through that somebody has touched; what is wrong with
// them ends up in Broken.
func (s *Store) look() {
	s.watch.mu.Lock()
	defer s.watch.mu.Unlock()
	if !s.watch.changed() {
		return
	}
	for _, i := range s.touched() {
		_, _ = s.Get(i)
	}
}

// touched returns the images whose config's file is not the one last looked at.
func (s *Store) touched() []id.ImageID {
	at := -1 // all files are missing
	if dir, err := os.Open(s.blobs); err == nil {
		defer dir.Close()
		at = int(dir.Fd())
	}
	type file struct {
		i    id.ImageID
		seen stamp
	}
	s.mu.Lock()
	files := make([]file, len(s.order))
	for n, e := range s.order {
		files[n] = file{e.ID, e.seen}
	}
	s.mu.Unlock()
	var mu sync.Mutex // guards list
	var list []id.ImageID
	var wg sync.WaitGroup
	part := max(1, (len(files)+runtime.GOMAXPROCS(0)-1)/runtime.GOMAXPROCS(0))
	for len(files) > 0 {
		some := files[:min(part, len(files))]
		files = files[len(some):]
		wg.Go(func() {
			for _, f := range some {
				if stampAt(at, f.i.Hex()) != f.seen {
					mu.Lock()
					list = append(list, f.i)
					mu.Unlock()
				}
			}
		})
	}
	wg.Wait()
	return list
}

// stampAt returns the stamp of a file in an open directory, the zero stamp if
// there is none.
func stampAt(dir int, name string) stamp {
	var st unix.Stat_t
	if err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		return stamp{}
	}
	return stamp{st.Size, st.Mtim.Nano()}
}

// maxBlob is the longest config or manifest that is read.
const maxBlob = 64 << 20

// readFile reads a blob that this package wrote, and returns what it was.
func readFile(path string) ([]byte, stamp, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, stamp{}, err
	}
	defer f.Close()
	st, err := f.Stat()
	switch {
	case err != nil:
		return nil, stamp{}, err
	case !st.Mode().IsRegular() || st.Size() > maxBlob:
		return nil, stamp{}, fmt.Errorf("%s is no file of this store", filepath.Base(path))
	}
	b := make([]byte, st.Size())
	if _, err := f.ReadAt(b, 0); err != nil {
		return nil, stamp{}, err
	}
	return b, stamp{st.Size(), st.ModTime().UnixNano()}, nil
}

// readBlobs fills in config and manifest, and returns what the config's file
// was. If only its time is not that of written, as in a copy of the store, it
// is set right. A manifest that is lost is no damage: only a push would miss it.
func (s *Store) readBlobs(i *Image, written stamp) (stamp, error) {
	path := s.blobPath(i.ID.Hex())
	c, seen, err := readFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return seen, errors.New("its config is not there")
	}
	if err != nil {
		return seen, err
	}
	if got := id.ImageIDOf(c); got != i.ID {
		return seen, fmt.Errorf("failed to verify: %s: what is there has digest %s", i.ID, got)
	}
	i.Config = c
	if seen.size == written.size && seen.time != written.time && os.Chtimes(path, time.Time{}, time.Unix(0, written.time)) == nil {
		seen = written // where that is not allowed the file is read again next time
	}
	if i.ManifestDigest == "" {
		return seen, nil
	}
	m, _, err := readFile(s.blobPath(i.ManifestDigest.Hex()))
	switch {
	case err == nil && id.BlobOf(m) == i.ManifestDigest:
		i.Manifest = m
	default:
		s.log.Warn("manifest is lost", "image", i.ID, "manifest", i.ManifestDigest, "err", err)
	}
	return seen, nil
}

// writeBlob stores b under its hexadecimal digest, synced.
func (s *Store) writeBlob(hex string, b []byte) (st stamp, err error) {
	defer func() {
		if err != nil {
			err = diskError(fmt.Errorf("image store: %w", err))
		}
	}()
	f, err := os.CreateTemp(s.blobs, "tmp-")
	if err != nil {
		return st, err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	defer f.Close()
	if _, err := f.Write(b); err != nil {
		return st, err
	}
	if err := f.Sync(); err != nil {
		return st, err
	}
	info, err := f.Stat()
	if err != nil {
		return st, err
	}
	if err := os.Rename(f.Name(), s.blobPath(hex)); err != nil {
		return st, err
	}
	return stamp{info.Size(), info.ModTime().UnixNano()}, syncDir(s.blobs)
}

func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

// Keep moves the file of a layer's blob, synced and proven by the caller, into
// the store: a layer made here has no registry to be had from again, and is to
// be pushed as it was made. It stays while an image has the layer; Sweep takes
// one that no image has.
func (s *Store) Keep(path string, b id.Blob) error {
	if err := os.Rename(path, s.blobPath(b.Hex())); err != nil {
		return diskError(fmt.Errorf("image store: %w", err))
	}
	return syncDir(s.blobs)
}

// blobs calls visit with the names of the files that an image may have here:
// config, manifest and, if it was made here, the blobs of its layers (see
// Keep). It stops when visit returns false.
func (e *entry) blobs(visit func(hex string) bool) {
	ok := visit(e.ID.Hex()) && (e.ManifestDigest == "" || visit(e.ManifestDigest.Hex()))
	for n := 0; ok && n < len(e.Layers); n++ {
		if b := e.Layers[n].Blob; b != "" {
			ok = visit(b.Hex())
		}
	}
}

// OpenKept opens a blob that Keep has stored. fs.ErrNotExist if there is none;
// what it holds is for the reader to prove.
func (s *Store) OpenKept(b id.Blob) (*os.File, error) {
	f, err := os.Open(s.blobPath(b.Hex()))
	if err != nil {
		return nil, fmt.Errorf("images: %w", err)
	}
	return f, nil
}

// dropBlobs removes the files of an image that is no more, or not as it was,
// unless an image needs them. What it cannot remove is left for Sweep.
//
// Preconditions: s.change is held.
func (s *Store) dropBlobs(old *entry) {
	drop := map[string]bool{}
	old.blobs(func(hex string) bool {
		if _, err := os.Lstat(s.blobPath(hex)); err == nil { // of most layers there is none
			drop[hex] = true
		}
		return true
	})
	for _, e := range s.order {
		if len(drop) == 0 {
			return
		}
		e.blobs(func(hex string) bool {
			delete(drop, hex)
			return len(drop) > 0
		})
	}
	for hex := range drop {
		if err := os.Remove(s.blobPath(hex)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			s.log.Warn("removal of an image's file", "err", err)
		}
	}
}

// Sweep removes the files that no image needs and returns their size. It does
// nothing while an image's record is lost: the files may be all there is of it.
func (s *Store) Sweep() (reclaimed int64, err error) {
	s.change.Lock()
	defer s.change.Unlock()
	needed := make(map[string]bool, 3*len(s.order))
	for _, e := range s.order {
		if e.lost {
			return 0, nil
		}
		e.blobs(func(hex string) bool {
			needed[hex] = true
			return true
		})
	}
	entries, err := os.ReadDir(s.blobs)
	if err != nil {
		return 0, fmt.Errorf("image store: %w", err)
	}
	for _, e := range entries {
		if needed[e.Name()] {
			continue
		}
		if st, err := e.Info(); err == nil {
			reclaimed += st.Size()
		}
		if err := os.Remove(filepath.Join(s.blobs, e.Name())); err != nil {
			return reclaimed, fmt.Errorf("image store: %w", err)
		}
	}
	return reclaimed, nil
}

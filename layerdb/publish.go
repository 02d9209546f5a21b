package layerdb

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/imgfs/imgfs/internal/id"
	"github.com/imgfs/imgfs/internal/toc"
)

// pass brings in one layer: see the package's doc. On error nothing is left.
func (s *Store) pass(ctx context.Context, spec Spec, f *flight) (id.LayerKey, error) {
	slots := s.slots
	if f.want.aside {
		slots = s.aside
	}
	select {
	case slots <- struct{}{}:
		defer func() { <-slots }()
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
	if old, ok := s.remains(spec.DiffID.Key()); ok {
		local := Spec{DiffID: spec.DiffID, Open: func(context.Context) (io.ReadCloser, error) { return openPart(s.dataPath(old.Key), old.StreamSize) }}
		if key, err := s.passTo(ctx, local, &old, f); err == nil || ctx.Err() != nil {
			return key, err
		}
	}
	key, err := s.passTo(ctx, spec, nil, f)
	if errors.Is(err, errWrongBlob) && ctx.Err() == nil {
		// Damaged on its way, perhaps, or by a mirror: what is opened again
		// comes whole, and from the next endpoint. Once, as docker does.
		s.log.Warn("layer is fetched again", "layer", spec.DiffID, "blob", spec.Blob, "err", err)
		key, err = s.passTo(ctx, spec, nil, f)
	}
	if err != nil {
		err = s.layerError(spec.DiffID, spec.Blob, err)
	}
	return key, err
}

// remains returns the record of a damaged layer whose data may be whole: then
// a new index can be had without the network.
func (s *Store) remains(k id.LayerKey) (LayerInfo, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.layers[k]
	if l == nil || l.info.StreamSize == 0 || s.lookLocked(l).lazy {
		return LayerInfo{}, false
	}
	return l.info, true
}

// openPart opens the first size bytes of a file.
func openPart(path string, size int64) (io.ReadCloser, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	return struct {
		io.Reader
		io.Closer
	}{io.LimitReader(f, size), f}, nil
}

// passTo is pass for a blob from the network, or, with the record old, for the
// data file that a damaged layer has left.
func (s *Store) passTo(ctx context.Context, spec Spec, old *LayerInfo, f *flight) (id.LayerKey, error) {
	dir, forget, err := s.tempDir("pass-")
	if err != nil {
		return "", err
	}
	defer forget()
	w, err := s.newWalk(dir, max(spec.Size, 0))
	if err != nil {
		return "", err
	}
	defer w.close()
	got, err := s.run(ctx, spec, f, w.take)
	if err != nil {
		return "", err
	}
	step, _ := f.now()
	step.Status = StatusExtracting
	f.report(step)

	info := LayerInfo{
		Key: got.diff.Key(), DiffID: got.diff, Form: toc.Stream, Sealed: true,
		Blob: spec.Blob, BlobSize: got.size, Compression: got.spans.Kind().String(),
	}
	if old != nil {
		info.Blob, info.BlobSize, info.Compression = old.Blob, old.BlobSize, old.Compression
	}
	if err := w.finish(dir, &info); err != nil {
		return "", err
	}
	if info.Blob != "" {
		if err := s.writeTables(dir, &info, s.spansOf(got, old), w); err != nil {
			return "", err
		}
	}
	if err := ctx.Err(); err != nil {
		return "", err
	}
	if spec.DiffID == "" && spec.Hold != nil {
		if err := spec.Hold(info.Key); err != nil {
			return "", err
		}
	}
	return info.Key, s.publish(dir, info)
}

// spansOf returns the span table of a pass, encoded: the one that its reader
// made, or, of the data file that old has left, the one that lies beside it.
// nil: there is none.
func (s *Store) spansOf(got *passed, old *LayerInfo) []byte {
	if old == nil {
		t, err := got.spans.Table(got.size)
		if err != nil {
			s.log.Info("a layer cannot be read at random", "layer", got.diff, "err", err)
			return nil
		}
		return t.Encode()
	}
	b, err := os.ReadFile(filepath.Join(s.layerDir(old.Key), spansFile))
	if err != nil || id.BlobOf(b) != old.Spans.Sum {
		return nil
	}
	return b
}

// writeTables writes what a layer is fetched by once it was evicted, and
// published by. A blob that cannot be read at random has neither.
func (s *Store) writeTables(dir string, info *LayerInfo, spans []byte, w *walk) (err error) {
	if spans == nil {
		return nil
	}
	if info.Spans, err = writeBytes(filepath.Join(dir, spansFile), spans); err != nil {
		return err
	}
	skeleton, err := w.skeleton.Finish(info.StreamSize)
	if err != nil {
		s.log.Info("a layer's index cannot be published", "layer", info.Key, "err", err)
		return nil
	}
	info.Table, err = writeBytes(filepath.Join(dir, skeletonFile), skeleton)
	return err
}

// publish makes what is in dir, all of it but its record, the layer, for
// everybody and for good. Of two that end together the later is dropped.
func (s *Store) publish(dir string, info LayerInfo) error {
	info.Created = time.Now().UTC().Truncate(time.Second)
	if err := writeJSON(filepath.Join(dir, recordFile), info); err != nil {
		return err
	}
	if err := syncDir(dir); err != nil {
		return err
	}
	changes := map[string][]byte{}
	if info.Sealed && info.Blob != "" {
		changes[blobKey+info.Blob.Hex()] = []byte(info.Key.Hex())
	}
	s.mu.Lock()
	old := s.layers[info.Key]
	whole := old != nil && old.info.Damage == ""
	if whole {
		s.provenLocked(&info)
	}
	s.mu.Unlock()
	if whole {
		return s.update(changes)
	}
	name := layerKey + info.Key.Hex()
	if old != nil {
		// What is known of the old directory must not be said of the new one.
		if err := s.update(map[string][]byte{name: nil}); err != nil {
			return err
		}
	}
	s.mu.Lock()
	old = s.layers[info.Key]
	if old != nil && old.info.Damage == "" {
		s.mu.Unlock()
		return nil
	}
	target := s.layerDir(info.Key)
	grave, err := s.buryLocked(target)
	if err == nil {
		err = os.Rename(dir, target)
	}
	if err == nil {
		if old != nil {
			s.forgetLocked(old)
		}
		l := s.addLocked(info)
		if old != nil { // blobs that were proven stay so
			l.more = slices.DeleteFunc(append(old.more, old.info.Blob), func(b id.Blob) bool { return s.blobs[b] != info.Key || b == info.Blob })
		}
		l.checked = true
		s.lookLocked(l)
		if info.Sealed {
			s.landedLocked(info.DiffID)
		}
	}
	s.mu.Unlock()
	grave()
	if err != nil {
		return err
	}
	if err := syncDir(filepath.Join(s.dir, "layers")); err != nil {
		return err
	}
	changes[name] = copyOf(&info)
	return s.update(changes)
}

// tempDir makes a directory in tmp/. forget removes it, unless it was renamed.
func (s *Store) tempDir(pattern string) (dir string, forget func(), err error) {
	// The name is noted before a sweep can see the directory.
	s.mu.Lock()
	defer s.mu.Unlock()
	dir, err = os.MkdirTemp(filepath.Join(s.dir, "tmp"), pattern)
	if err != nil {
		return "", nil, err
	}
	name := filepath.Base(dir)
	s.tmp[name] = true
	return dir, func() {
		if err := os.RemoveAll(dir); err != nil {
			s.log.Warn("temporary directory stays until the next start", "dir", dir, "err", err)
		}
		s.mu.Lock()
		delete(s.tmp, name)
		s.mu.Unlock()
	}, nil
}

// buryLocked moves a directory, if it exists, out of sight. The function it
// returns, never nil, is called without the lock: it removes the directory and
// returns the bytes that were allocated to it.
//
// Preconditions: s.mu is held.
func (s *Store) buryLocked(path string) (func() int64, error) {
	name := "dead-" + filepath.Base(path)
	for n := 0; s.tmp[name]; n++ {
		name = fmt.Sprintf("dead-%d-%s", n, filepath.Base(path))
	}
	grave := filepath.Join(s.dir, "tmp", name)
	if err := os.Rename(path, grave); err != nil {
		if os.IsNotExist(err) {
			err = nil
		}
		return func() int64 { return 0 }, err
	}
	s.tmp[name] = true
	return func() int64 {
		bytes, err := diskUsage(grave)
		if err == nil {
			err = os.RemoveAll(grave)
		}
		if err != nil {
			s.log.Warn("removed layer stays until the next start", "dir", grave, "err", err)
		}
		s.mu.Lock()
		delete(s.tmp, name)
		s.mu.Unlock()
		return bytes
	}, nil
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		return fmt.Errorf("sync: %w", err)
	}
	return nil
}

package layerdb

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
	"github.com/imgfs/imgfs/internal/layertar"
)

// pass brings in one layer: see the package's doc. On error nothing is left.
func (s *Store) pass(ctx context.Context, spec Spec, f *flight) error {
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if old, ok := s.remains(spec.DiffID.Key()); ok {
		local := Spec{DiffID: spec.DiffID, Open: func(context.Context) (io.ReadCloser, error) {
			return openPart(s.dataPath(spec.DiffID.Key()), old.StreamSize)
		}}
		if err := s.passTo(ctx, local, &old, f); err == nil || ctx.Err() != nil {
			return err
		}
	}
	err := s.passTo(ctx, spec, nil, f)
	if errors.Is(err, errWrongBlob) && ctx.Err() == nil {
		// Damaged on its way, perhaps, or by a mirror: what is opened again
		// comes whole, and from the next endpoint. Once, as docker does.
		s.log.Warn("layer is fetched again", "layer", spec.DiffID, "err", err)
		err = s.passTo(ctx, spec, nil, f)
	}
	if err != nil {
		err = s.layerError(spec.DiffID.Key(), spec.Blob, err)
	}
	return err
}

// remains returns the record of a damaged layer whose data may be whole: then
// a new index can be had without the network.
func (s *Store) remains(d id.LayerKey) (LayerInfo, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.layers[d]
	if l == nil || l.info.StreamSize == 0 {
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
func (s *Store) passTo(ctx context.Context, spec Spec, old *LayerInfo, f *flight) error {
	dir, forget, err := s.tempDir("pass-")
	if err != nil {
		return err
	}
	defer forget()
	data, err := os.OpenFile(filepath.Join(dir, "data"), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer data.Close()
	// The stream is hardly ever shorter than the blob; do not even begin what
	// cannot end.
	if err := checkSpace(data, max(spec.Size, 0)); err != nil {
		return err
	}
	w := &walk{x: layertar.NewIndexer(s.opts.Limits), data: dataWriter{f: data}}
	kind, err := s.run(ctx, spec, f, w.take)
	if err != nil {
		return err
	}
	step, _ := f.now()
	step.Status = StatusExtracting
	f.report(step)

	info := LayerInfo{Key: spec.DiffID.Key(), DiffID: spec.DiffID, Blob: spec.Blob, BlobSize: step.Current, Compression: string(kind)}
	if old != nil {
		info.Blob, info.BlobSize, info.Compression = old.Blob, old.BlobSize, old.Compression
	}
	var sum layertar.Summary
	info.Index, err = writeFile(filepath.Join(dir, "index"), func(out io.Writer) error {
		var err error
		sum, err = w.x.Finish(out, spec.DiffID.Hex())
		return err
	})
	if err != nil {
		return err
	}
	if err := w.data.finish(&sum); err != nil {
		return err
	}
	if err := data.Sync(); err != nil {
		return err
	}
	st, err := data.Stat()
	if err != nil {
		return err
	}
	info.StreamSize, info.DataSize, info.DataTime = sum.StreamSize, sum.DataSize, st.ModTime().UnixNano()
	info.Content, info.Entries, info.Files = sum.Content, sum.Entries, sum.Files
	info.Created = time.Now().UTC().Truncate(time.Second)
	record, err := writeJSON(filepath.Join(dir, "record"), info)
	if err != nil {
		return err
	}
	if err := syncDir(dir); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return s.publish(dir, info, record)
}

// publish makes a finished pass the layer, for everybody and for good. Of two
// passes that end together the later is dropped.
func (s *Store) publish(dir string, info LayerInfo, record []byte) error {
	s.mu.Lock()
	old := s.layers[info.Key]
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
		s.layers[info.Key] = &layer{info: info, checked: true}
		if info.Blob != "" {
			s.blobs[info.Blob] = info.Key
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
	changes := map[string][]byte{layerKey + info.Key.Hex(): record}
	if info.Blob != "" {
		changes[blobKey+info.Blob.Hex()] = []byte(info.Key.Hex())
	}
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

// Verify reads the layer's data once and compares it with the diffID.
// fault.Integrity if it is not the same; the layer counts as absent then.
func (s *Store) Verify(ctx context.Context, d id.LayerKey) error {
	h, err := s.Layer(d)
	if err != nil {
		return err
	}
	defer h.Release()
	got, err := digestOf(ctx, io.NewSectionReader(h.Data().File(), 0, h.Info().StreamSize))
	if err != nil {
		return fmt.Errorf("layer %s: %w", d.Short(), err)
	}
	if got.Key() == d {
		return nil
	}
	err = fault.New(fault.Integrity, "layer %s: its data on disk is that of %s", d.Short(), got)
	s.mu.Lock()
	defer s.mu.Unlock()
	if l := s.layers[d]; l == h.layer {
		l.info.Damage = err.Error()
		s.problemLocked("%v", err)
	}
	return err
}

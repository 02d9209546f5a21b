package layerdb

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/imgfs/imgfs/internal/erofs"
	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
	"github.com/imgfs/imgfs/internal/layertar"
	"github.com/imgfs/imgfs/internal/toc"
)

// Complete brings in all bytes of a layer that are missing. Progress, which may
// be nil, is told bytes done, of how many, if there is anything to do; it is
// never called twice at a time. Complete does not seal; see [Store.Seal].
func (s *Store) Complete(ctx context.Context, k id.LayerKey, progress func(done, total int64)) error {
	h, err := s.openLayer(k, false)
	if err != nil {
		return err
	}
	defer h.Release()
	if err := h.data.Complete(ctx, progress); err != nil {
		return fmt.Errorf("layer %s: %w", k.Short(), s.diskError(err))
	}
	return nil
}

// Seal completes a layer and proves it: that its bytes are the stream whose
// diffID its image's config claims, and that its index is that of this stream.
// From then on it is found by that diffID. A layer that is sealed already is
// not completed. Progress is as that of Complete.
//
// A layer in form packed has no stream: its blob passes once, from its start,
// and what is missing is taken from it. That needs room on disk for blob and
// stream while it lasts.
//
// fault.Integrity if anything is not as promised: the layer is bad then, and
// never served again. Other errors say that it could not be found out.
func (s *Store) Seal(ctx context.Context, k id.LayerKey, progress func(done, total int64)) error {
	h, err := s.openLayer(k, true)
	if err != nil {
		return err
	}
	defer h.Release()
	done, err := h.layer.claim(ctx)
	if err != nil {
		return err
	}
	defer done()
	return s.seal(ctx, h, progress)
}

// claim makes the caller the only one who seals or verifies l, until done.
func (l *layer) claim(ctx context.Context) (done func(), err error) {
	select {
	case l.work <- struct{}{}:
		return func() { <-l.work }, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// seal is Seal for an open layer.
//
// Preconditions: the caller has claimed the layer.
func (s *Store) seal(ctx context.Context, h *Layer, progress func(done, total int64)) error {
	info := h.Info()
	if info.Sealed {
		return nil
	}
	prove := s.proveStream
	if info.Form == toc.Packed {
		prove = s.provePacked
	}
	lie, err := prove(ctx, h, &info, progress)
	if lie != nil {
		err = fault.New(fault.Integrity, "is not what its image promises: %w", lie)
		s.spoil(h.layer, fmt.Errorf("layer %s: %w", info.Key.Short(), err))
	}
	if err != nil {
		return fmt.Errorf("layer %s: %w", info.Key.Short(), s.diskError(err))
	}
	return s.amend(h.layer, func(i *LayerInfo) { i.Sealed = true })
}

// sealLocked has a layer sealed in the background whose last byte came in. One
// in form packed is not: that would fetch its blob, which nobody asked for.
//
// Preconditions: s.mu is held.
func (s *Store) sealLocked(l *layer) {
	if s.closed || l.sealing || l.info.Sealed || l.info.Bad != "" || l.info.Form != toc.Stream {
		return
	}
	l.sealing = true
	key := l.info.Key
	s.wg.Go(func() {
		err := s.guard("seal", func() error { return s.Seal(s.ctx, key, nil) })
		if err != nil && s.ctx.Err() == nil {
			s.log.Warn("layer was not sealed", "layer", key, "err", err)
		}
		s.mu.Lock()
		l.sealing = false
		s.mu.Unlock()
	})
}

// padding is how many records of zeros may stand behind the end of an archive:
// tar(1) fills up its last block of 20.
const padding = 20

// proveStream proves a layer whose data is its stream. lie says what is not as
// promised; err, why that could not be found out.
func (s *Store) proveStream(ctx context.Context, h *Layer, info *LayerInfo, progress func(done, total int64)) (lie, err error) {
	if err := h.data.Complete(ctx, progress); err != nil {
		return nil, err
	}
	sum := sha256.New()
	x := layertar.NewIndexer(s.opts.Limits)
	r := h.data.reader(ctx)
	b := make([]byte, outBuffer)
	for off := int64(0); off < info.StreamSize; {
		n, err := r.ReadAt(b[:min(int64(len(b)), info.StreamSize-off)], off)
		if err != nil && (err != io.EOF || n == 0) {
			return nil, err
		}
		off += int64(n)
		sum.Write(b[:n])
		if lie == nil {
			_, lie = x.Write(b[:n]) // the diffID is the better reason, if it is wrong too
		}
	}
	got := id.DiffIDFrom([sha256.Size]byte(sum.Sum(nil)))
	for n := 0; info.Kind == toc.Soci && got != info.DiffID && n < padding; n++ {
		// SOCI's index ends where the archive does.
		sum.Write(zeros[:erofs.BlockSize])
		got = id.DiffIDFrom([sha256.Size]byte(sum.Sum(nil)))
	}
	if got != info.DiffID {
		return newWrongDiff(info.DiffID, got), nil
	}
	if lie != nil {
		return lie, nil
	}
	// An index depends on nothing but the stream, to the last byte.
	index := sha256.New()
	if _, err := x.Finish(index, info.Key.Hex()); err != nil {
		return err, nil
	}
	if id.BlobFrom([sha256.Size]byte(index.Sum(nil))) != info.Index.Sum {
		return fmt.Errorf("its %s index lists other files than it has", info.Kind), nil
	}
	return nil, nil
}

// provePacked proves a layer that is kept as payloads alone, by a pass of its
// blob that gives stream and index anew, to be compared.
func (s *Store) provePacked(ctx context.Context, h *Layer, info *LayerInfo, progress func(done, total int64)) (lie, err error) {
	dir, forget, err := s.tempDir("seal-")
	if err != nil {
		return nil, err
	}
	defer forget()
	blob, err := os.OpenFile(filepath.Join(dir, "blob"), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	defer h.data.from.use(nil) // who has begun to read the file keeps it open
	w, err := s.newWalk(dir, info.BlobSize+info.StreamSize)
	if err != nil {
		return nil, err
	}
	defer w.close()
	spec := Spec{DiffID: info.DiffID, Blob: info.Blob, Size: info.BlobSize, Open: func(ctx context.Context) (io.ReadCloser, error) {
		src, err := h.data.from.now(ctx)
		if err != nil {
			return nil, err
		}
		body, err := src.Range(ctx, 0, info.BlobSize)
		if err != nil {
			return nil, err
		}
		if err := blob.Truncate(0); err != nil {
			return nil, err
		}
		return &taken{ReadCloser: body, copy: io.NewOffsetWriter(blob, 0), size: info.BlobSize, progress: progress}, nil
	}}
	_, err = s.run(ctx, spec, newFlight(want{}, info.BlobSize, nil), w.take)
	switch {
	case errors.Is(err, errWrongBlob):
		h.data.from.Blame(0, info.BlobSize) // somebody else may have the right one
		return nil, err
	case fault.KindOf(err) == fault.Integrity && ctx.Err() == nil:
		return err, nil
	case err != nil:
		return nil, err
	}
	h.data.from.use(blob)
	if err := h.data.Complete(ctx, nil); err != nil {
		return nil, err
	}
	fresh := LayerInfo{Key: info.Key}
	if err := w.finish(dir, &fresh); err != nil {
		if fault.KindOf(err) == fault.Integrity {
			return err, nil
		}
		return nil, err
	}
	img, err := erofs.Open(filepath.Join(dir, "index"))
	if err != nil {
		return nil, err
	}
	defer img.Close()
	c := comparison{
		ctx:    ctx,
		kept:   side{h.img, h.data.reader(ctx)},
		stream: side{img, w.data.f},
	}
	return c.trees()
}

// taken is a blob on its way, of which a copy is kept.
type taken struct {
	io.ReadCloser
	copy       *io.OffsetWriter
	done, size int64
	progress   func(done, total int64) // nil: nobody wants to know
}

func (t *taken) Read(p []byte) (int, error) {
	n, err := t.ReadCloser.Read(p)
	if n > 0 {
		if _, werr := t.copy.Write(p[:n]); werr != nil {
			return 0, werr
		}
		t.done += int64(n)
		if t.progress != nil {
			t.progress(t.done, t.size)
		}
	}
	return n, err
}

// Verify compares what is here of a layer with what is known of it: every span
// with its checksum, or all of a layer that was never evicted with its diffID.
// With repair, what is damaged is dropped, to be fetched again, if it can be. A
// layer that turns out to be complete and is not sealed is sealed. bad is how
// many spans were damaged; one, if it is the layer as a whole.
//
// fault.Integrity if anything is damaged and was not repaired. A layer that was
// damaged as a whole counts as absent then.
func (s *Store) Verify(ctx context.Context, k id.LayerKey, repair bool) (bad int, err error) {
	open := s.openLayer
	if repair && s.foundDamaged(k) {
		open = s.openUnchecked
	}
	h, err := open(k, true)
	if err != nil {
		return 0, err
	}
	defer h.Release()
	done, err := h.layer.claim(ctx)
	if err != nil {
		return 0, err
	}
	defer done()
	if f := h.data.lazy.Load(); f != nil {
		if bad, err = f.Verify(ctx, repair); err != nil {
			return bad, fmt.Errorf("layer %s: %w", k.Short(), err)
		}
		switch {
		case bad > 0 && !repair:
			return bad, fault.New(fault.Integrity, "layer %s: %d spans of its data on disk are damaged", k.Short(), bad)
		case bad > 0:
			s.problem("layer %s: %d damaged spans of its data are fetched again", k.Short(), bad)
		case f.Whole() && h.Info().Form == toc.Stream:
			return 0, s.seal(ctx, h, nil)
		}
		return bad, nil
	}
	got, err := digestOf(ctx, io.NewSectionReader(h.data.reader(ctx), 0, h.Info().StreamSize))
	if err != nil {
		return 0, fmt.Errorf("layer %s: %w", k.Short(), err)
	}
	if got.Key() == k {
		s.undamaged(h.layer)
		return 0, nil
	}
	err = fault.New(fault.Integrity, "layer %s: its data on disk is that of %s", k.Short(), got)
	if repair {
		_, eerr := s.evict(ctx, h)
		if eerr == nil {
			s.undamaged(h.layer)
			s.problem("layer %s: its damaged data is fetched again", k.Short())
			return 1, nil
		}
		s.log.Info("damaged layer cannot be fetched span by span", "layer", k, "err", eerr)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if l := s.layers[k]; l == h.layer {
		l.info.Damage = err.Error()
		s.problemLocked("%v", err)
	}
	return 1, err
}

// undamaged has a layer count as present again.
func (s *Store) undamaged(l *layer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l.info.Damage = ""
}

// foundDamaged reports whether Verify has found a layer damaged that was well
// when it was opened first, so that no more than its data is wrong.
func (s *Store) foundDamaged(k id.LayerKey) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.layers[k]
	return l != nil && l.checked && l.info.Damage != "" && l.info.Bad == ""
}

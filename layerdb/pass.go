package layerdb

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync/atomic"

	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
	"github.com/imgfs/imgfs/internal/layertar"
	"github.com/imgfs/imgfs/internal/span"
	"github.com/imgfs/imgfs/internal/toc"
)

// The two rings of a pass: 1.5 MiB of blob and 2 MiB of stream in flight.
const (
	inBuffers  = 6
	inBuffer   = 256 << 10
	inLeast    = 64 << 10 // a buffer goes on when it holds this much
	outBuffers = 4
	outBuffer  = 512 << 10 // a multiple of holeUnit
)

// stages is a pass's pipeline: three goroutines, and between them two rings of
// buffers that are handed over, never copied.
//
//	download: body -> sha256 -> in
//	inflate:  in -> decompressor -> out
//	take:     out -> sha256, tar walk, data file
type stages struct {
	ctx    context.Context
	in     ring
	out    ring
	giveUp atomic.Bool // the tar is bad: the rest of the stream is of no use
	cpus   chan struct{}

	// What download and inflate found; read after both have ended.
	blobSum  [sha256.Size]byte
	blobSize int64
	readErr  error // of the body
	spans    *span.Reader
	flateErr error // of the decompressor
}

// ring hands buffers from one goroutine to another and back.
type ring struct{ full, free chan []byte }

func newRing(buffers, size int) ring {
	r := ring{make(chan []byte, buffers), make(chan []byte, buffers)}
	for range buffers {
		r.free <- make([]byte, size)
	}
	return r
}

// take receives from c, or returns why ctx ended.
func take(ctx context.Context, c <-chan []byte) ([]byte, error) {
	select {
	case b, ok := <-c:
		if !ok {
			return nil, io.EOF
		}
		return b, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// passed is what a run found the blob to be.
type passed struct {
	diff  id.DiffID
	size  int64 // bytes of the blob
	spans *span.Reader
}

// run brings the stream of spec's blob to sink, buffer by buffer, and proves
// blob and stream. The error says which promise was broken, the one furthest
// up the pipeline: a damaged blob is not reported as a damaged tar.
func (s *Store) run(ctx context.Context, spec Spec, f *flight, sink func([]byte) error) (*passed, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	p := &stages{ctx: ctx, in: newRing(inBuffers, inBuffer), out: newRing(outBuffers, outBuffer), cpus: s.cpus}
	downloaded, inflated := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(downloaded)
		defer close(p.in.full)
		p.readErr = s.guard("download", func() error { return p.download(spec, f) }, cancel)
	}()
	go func() {
		defer close(inflated)
		defer close(p.out.full)
		p.flateErr = s.guard("inflate", p.inflate, cancel)
	}()

	sum, size, sinkErr := sha256.New(), int64(0), error(nil)
	for b := range p.out.full {
		if sinkErr == nil {
			sum.Write(b)
			size += int64(len(b))
			if size > s.opts.MaxStream {
				sinkErr = fault.New(fault.Integrity, "is larger than %d bytes when uncompressed, which is the limit", s.opts.MaxStream)
			} else {
				sinkErr = sink(b)
			}
			switch {
			case sinkErr == nil:
			case isDamage(sinkErr):
				p.giveUp.Store(true) // the blob is read to its end all the same: is it the one promised?
			default:
				cancel(sinkErr)
			}
		}
		p.out.free <- b[:cap(b)]
	}
	<-inflated
	<-downloaded

	switch {
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case p.readErr != nil:
		return nil, p.readErr
	}
	if err := p.proveBlob(spec); err != nil {
		return nil, err
	}
	if p.flateErr != nil && !p.giveUp.Load() {
		if fault.KindOf(p.flateErr) != fault.Failed {
			return nil, p.flateErr
		}
		return nil, fault.New(fault.Integrity, "blob is what its manifest promised, but cannot be uncompressed: %w", p.flateErr)
	}
	if sinkErr != nil {
		return nil, sinkErr
	}
	got := id.DiffIDFrom([sha256.Size]byte(sum.Sum(nil)))
	if spec.DiffID != "" && got != spec.DiffID {
		return nil, newWrongDiff(spec.DiffID, got)
	}
	return &passed{diff: got, size: p.blobSize, spans: p.spans}, nil
}

// newWrongDiff is the error about content that is not what a config claims.
func newWrongDiff(claimed, got id.DiffID) error {
	return fault.New(fault.Integrity, "wrong diff id calculated on extraction: the image config says %s, the content is %s", claimed, got)
}

// guard is f, whose panic becomes its error and is told to whoever waits for f
// in another way. Foreign bytes must not end a daemon that serves mounts, should
// a parser of them, ours or another's, have a fault that no fuzzing found.
func (s *Store) guard(what string, f func() error, tell ...func(error)) (err error) {
	defer func() {
		v := recover()
		if v == nil {
			return
		}
		s.log.Error("panic", "in", what, "value", v, "stack", string(debug.Stack()))
		err = fault.New(fault.Failed, "internal error: %s: panic: %v", what, v)
		for _, t := range tell {
			t(err)
		}
	}()
	return f()
}

// download is the first stage.
func (p *stages) download(spec Spec, f *flight) error {
	body, err := spec.Open(context.WithValue(p.ctx, tellKey{}, f))
	if err != nil {
		return err
	}
	defer body.Close()
	sum := sha256.New()
	defer func() { p.blobSum = [sha256.Size]byte(sum.Sum(nil)) }()
	step := Step{Status: StatusDownloading, Total: max(spec.Size, 0)}
	f.report(step)
	told := int64(0)
	for {
		b, err := take(p.ctx, p.in.free)
		if err != nil {
			return err
		}
		n, rerr := io.ReadAtLeast(body, b, inLeast)
		sum.Write(b[:n])
		p.blobSize += int64(n)
		if spec.Size > 0 && p.blobSize > spec.Size {
			return newWrongBlob("blob %s is longer than the %d bytes its manifest says", spec.Blob, spec.Size)
		}
		p.in.full <- b[:n] // has room for every buffer
		if p.blobSize-told >= min(512<<10, max(spec.Size/100, 1)) {
			told = p.blobSize
			step.Current = told
			f.report(step)
		}
		switch {
		case rerr == io.EOF || rerr == io.ErrUnexpectedEOF:
			step.Status, step.Current = StatusVerifying, p.blobSize
			f.report(step)
			return nil
		case rerr != nil:
			return rerr
		}
	}
}

// errWrongBlob is in the chain of every error about a blob that is not the one
// its manifest promised.
var errWrongBlob = errors.New("blob is not the one promised")

// wrongBlob is an error that wraps errWrongBlob, whose text would say it twice.
type wrongBlob struct{ error }

func (wrongBlob) Unwrap() error { return errWrongBlob }

func newWrongBlob(format string, args ...any) error {
	return &fault.Error{Kind: fault.Integrity, Err: wrongBlob{fmt.Errorf(format, args...)}}
}

// proveBlob compares the blob with what was promised of it.
func (p *stages) proveBlob(spec Spec) error {
	got := id.BlobFrom(p.blobSum)
	switch {
	case spec.Size > 0 && p.blobSize != spec.Size:
		return newWrongBlob("blob %s ends after %d of the %d bytes its manifest says", spec.Blob, p.blobSize, spec.Size)
	case spec.Blob != "" && got != spec.Blob:
		return newWrongBlob("filesystem layer verification failed for digest %s: what arrived is %s", spec.Blob, got)
	}
	return nil
}

// errGaveUp is returned by the second stage's writer after giveUp.
var errGaveUp = errors.New("stream is of no use")

// inflate is the second stage. Whatever it meets, it then reads the blob to
// its end, for the first stage to hash.
func (p *stages) inflate() error {
	cpu := &slot{p: p}
	if err := cpu.acquire(); err != nil {
		return err
	}
	defer cpu.release()
	r, w := &ringReader{p: p, cpu: cpu}, &ringWriter{p: p, cpu: cpu}
	p.spans = span.NewReader(r, span.Options{})
	_, err := p.spans.WriteTo(w)
	if err == nil {
		err = w.flush()
	}
	for {
		if rerr := r.next(); rerr == io.EOF {
			return err
		} else if rerr != nil {
			return rerr
		}
	}
}

// slot is the second stage's claim to one of the store's processors. It is
// held only while there is something to inflate and somewhere to put it.
type slot struct {
	p    *stages
	held bool
}

func (s *slot) acquire() error {
	select {
	case s.p.cpus <- struct{}{}:
		s.held = true
		return nil
	case <-s.p.ctx.Done():
		return context.Cause(s.p.ctx)
	}
}

func (s *slot) release() {
	if s.held {
		<-s.p.cpus
		s.held = false
	}
}

// take receives a buffer, and gives up the processor if it has to wait for it.
func (s *slot) take(c <-chan []byte) ([]byte, error) {
	select {
	case b, ok := <-c:
		if !ok {
			return nil, io.EOF
		}
		return b, nil
	default:
	}
	s.release()
	b, err := take(s.p.ctx, c)
	if err != nil {
		return nil, err
	}
	return b, s.acquire()
}

// ringReader reads the ring in.
type ringReader struct {
	p    *stages
	cpu  *slot
	b    []byte // being read
	rest []byte // of b
}

// next replaces the buffer that is read.
func (r *ringReader) next() error {
	if r.b != nil {
		r.p.in.free <- r.b[:cap(r.b)]
	}
	var err error
	r.b, err = r.cpu.take(r.p.in.full)
	r.rest = r.b
	return err
}

func (r *ringReader) Read(p []byte) (int, error) {
	for len(r.rest) == 0 {
		if err := r.next(); err != nil {
			return 0, err
		}
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// ringWriter fills the ring out.
type ringWriter struct {
	p   *stages
	cpu *slot
	b   []byte // being filled
	n   int    // bytes in b
}

func (w *ringWriter) Write(p []byte) (int, error) {
	total := len(p)
	for len(p) > 0 {
		if w.b == nil {
			var err error
			if w.b, err = w.cpu.take(w.p.out.free); err != nil {
				return total - len(p), err
			}
		}
		k := copy(w.b[w.n:], p)
		w.n += k
		p = p[k:]
		if w.n == len(w.b) {
			if err := w.flush(); err != nil {
				return total - len(p), err
			}
		}
	}
	return total, nil
}

// ReadFrom fills the ring from r directly.
func (w *ringWriter) ReadFrom(r io.Reader) (total int64, err error) {
	for {
		if w.b == nil {
			if w.b, err = w.cpu.take(w.p.out.free); err != nil {
				return total, err
			}
		}
		n, rerr := r.Read(w.b[w.n:])
		w.n += n
		total += int64(n)
		if w.n == len(w.b) {
			if err := w.flush(); err != nil {
				return total, err
			}
		}
		if rerr == io.EOF {
			return total, nil
		}
		if rerr != nil {
			return total, rerr
		}
	}
}

// flush hands over what there is.
func (w *ringWriter) flush() error {
	if w.p.giveUp.Load() {
		return errGaveUp
	}
	if w.n > 0 {
		w.p.out.full <- w.b[:w.n] // has room for every buffer
		w.b, w.n = nil, 0
	}
	return nil
}

// isDamage reports whether an error of the tar walk is about the bytes, which
// may then not be the right ones, and not about the disk or a limit.
func isDamage(err error) bool {
	return fault.KindOf(err) == fault.Integrity
}

// walk is the third stage's sink: the tar walk and the data file.
type walk struct {
	x        *layertar.Indexer
	skeleton *toc.SkeletonWriter
	data     dataWriter
}

// newWalk makes the data file in dir, if the disk has room for size bytes.
func (s *Store) newWalk(dir string, size int64) (*walk, error) {
	data, err := os.OpenFile(filepath.Join(dir, "data"), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	// The stream is hardly ever shorter than the blob; do not even begin what
	// cannot end.
	if err := checkSpace(data, size); err != nil {
		data.Close()
		return nil, err
	}
	w := &walk{x: layertar.NewIndexer(s.opts.Limits), skeleton: toc.NewSkeleton(), data: dataWriter{f: data}}
	w.x.Record(w.skeleton.Record)
	return w, nil
}

func (w *walk) take(b []byte) error {
	if err := w.data.write(b); err != nil {
		return err
	}
	_, err := w.x.Write(b)
	return err
}

// finish writes the index, gives the data file its last form, syncs both, and
// notes in info what they are.
func (w *walk) finish(dir string, info *LayerInfo) error {
	sum, err := writeIndex(dir, w.x, info)
	if err != nil {
		return err
	}
	if err := w.data.finish(&sum); err != nil {
		return err
	}
	if err := w.data.f.Sync(); err != nil {
		return err
	}
	st, err := w.data.f.Stat()
	if err != nil {
		return err
	}
	info.StreamSize, info.DataTime = sum.StreamSize, st.ModTime().UnixNano()
	return nil
}

// writeIndex finishes x as the index in dir, and notes in info what it holds.
func writeIndex(dir string, x *layertar.Indexer, info *LayerInfo) (sum layertar.Summary, err error) {
	info.Index, err = writeFile(filepath.Join(dir, "index"), func(out io.Writer) error {
		var err error
		sum, err = x.Finish(out, info.Key.Hex())
		return err
	})
	info.DataSize, info.Content, info.Entries, info.Files = sum.DataSize, sum.Content, sum.Entries, sum.Files
	return sum, err
}

// close closes the data file.
func (w *walk) close() { w.data.f.Close() }

// layerError names the layer in front of what befell it.
func (s *Store) layerError(d id.DiffID, b id.Blob, err error) error {
	name := d.Short()
	switch {
	case b != "":
		name = b.Short()
	case d == "":
		return fmt.Errorf("layer: %w", s.diskError(err))
	}
	return fmt.Errorf("layer %s: %w", name, s.diskError(err))
}

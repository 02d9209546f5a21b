package layerdb

import (
	"bytes"
	"context"
	"io"
	"strings"
	"testing"

	"github.com/imgfs/imgfs/internal/erofs"
	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
)

// faulty panics when what it holds has been read.
type faulty struct{ io.Reader }

func (f faulty) Read(p []byte) (int, error) {
	n, err := f.Reader.Read(p)
	if err == io.EOF {
		panic("faulty reader")
	}
	return n, err
}

func (faulty) Close() error { return nil }

// TestPanic has each goroutine of a pass and of a merge panic: it is an error
// for who waits, nothing is left, and the store goes on.
func TestPanic(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	p := newPlace(t)
	want := func(what string, err error) {
		t.Helper()
		if err == nil || fault.KindOf(err) != fault.Failed || !strings.Contains(err.Error(), what+": panic: ") {
			t.Errorf("%s: got %v", what, err)
		}
	}
	big := make([]byte, 4<<20) // more than the rings hold

	spec := specOf(big, big)
	spec.Open = func(context.Context) (io.ReadCloser, error) { return faulty{bytes.NewReader(big)}, nil }
	_, _, err := p.Ensure(ctx, spec, nil)
	want("download", err)

	cpus := p.cpus
	p.cpus = make(chan struct{})
	close(p.cpus) // sending panics
	_, _, err = p.Ensure(ctx, specOf(big, big), nil)
	p.cpus = cpus
	want("inflate", err)

	slots := p.slots
	p.slots = make(chan struct{})
	close(p.slots)
	_, _, err = p.Ensure(ctx, specOf(big, big), nil)
	p.slots = slots
	want("layer", err)
	p.nothing()

	diffs := []id.LayerKey{p.put("file a one")}
	merge := p.Store.opts.Merge
	p.Store.opts.Merge = func(io.Writer, *erofs.Image, []*erofs.Image) error { panic("faulty merge") }
	_, err = p.Chain(ctx, diffs)
	p.Store.opts.Merge = merge
	want("merge", err)
	if got := p.read(diffs, "a"); got != "one" {
		t.Errorf("after the panics: %q", got)
	}
	if names := p.names("tmp"); len(names) > 0 {
		t.Errorf("tmp/ holds %q", names)
	}
}

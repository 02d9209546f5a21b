package layerdb

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"testing"

	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
)

// register stores a layer made of an imgtest.Tar text on parent.
func (p *place) register(parent id.ChainKey, text string) *Ref {
	p.t.Helper()
	r, err := p.Register(context.Background(), bytes.NewReader(tarOf(p.t, text)), parent, nil)
	if err != nil {
		p.t.Fatal(err)
	}
	return r
}

// released ends a use and fails the test unless that frees just these layers.
func released(t *testing.T, r *Ref, want ...id.LayerKey) {
	t.Helper()
	freed, err := r.Release()
	slices.Sort(want)
	if err != nil || !slices.Equal(freed, want) {
		t.Errorf("freed %v, %v; want %v", freed, err, want)
	}
}

// TestRegister has layers live as long as a stack that they are part of is
// used, and no longer: docker's layer store.
func TestRegister(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	one := p.register("", "file a 1")
	two := p.register(one.Chain(), "file b 2")
	three := p.register(two.Chain(), "file c 3")
	other := p.register(one.Chain(), "file d 4")
	if two.Parent() != one.Chain() || one.Parent() != "" || two.Chain() != id.Stack(two.Layers()) || len(three.Layers()) != 3 {
		t.Errorf("stacks: %v on %v, %v", two.Chain(), two.Parent(), three.Layers())
	}
	// The same stream on the same stack is the same layer, used twice.
	again := p.register(one.Chain(), "file b 2")
	if again.Chain() != two.Chain() {
		t.Errorf("again: %v, want %v", again.Chain(), two.Chain())
	}
	released(t, one) // still beneath the others
	released(t, two)
	released(t, again)
	released(t, three, three.Top(), two.Top())
	released(t, other, other.Top(), one.Top())
	p.nothing()
}

func TestGet(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	absent := id.Stack([]id.LayerKey{"sha256:" + id.LayerKey(id.BlobOf(nil).Hex())})
	if _, err := p.Get(absent); fault.KindOf(err) != fault.NotFound || err.Error() != "layer does not exist: "+string(absent) {
		t.Errorf("absent: %v", err)
	}
	if _, err := p.Get(""); fault.KindOf(err) != fault.NotFound {
		t.Errorf("the empty stack: %v", err)
	}
	one := p.register("", "file a 1")
	two := p.register(one.Chain(), "file b 2")
	got, err := p.Get(one.Chain()) // the lower part of a stack is one
	if err != nil || !slices.Equal(got.Layers(), one.Layers()) {
		t.Fatalf("%v, %v", got, err)
	}
	released(t, one)
	released(t, two, two.Top())
	if _, err := p.Get(two.Chain()); !errors.Is(err, errAbsent) {
		t.Errorf("released: %v", err)
	}
	released(t, got, got.Top())
	if _, err := got.Release(); fault.KindOf(err) != fault.Invalid || !errors.Is(err, errNotRetained) {
		t.Errorf("released twice: %v", err)
	}
	p.nothing()

	// What a named owner holds is to be had after a restart; a Ref is not held
	// then, nor does it keep anything.
	one = p.register("", "file a 1")
	two = p.register(one.Chain(), "file b 2")
	if err := p.Retain("image:x", one.Layers()); err != nil {
		t.Fatal(err)
	}
	p.reopen()
	if _, err := p.Get(two.Chain()); !errors.Is(err, errAbsent) {
		t.Errorf("after a restart: %v", err)
	}
	if got, err = p.Get(one.Chain()); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Release("image:x"); err != nil {
		t.Fatal(err)
	}
	if !p.Has(one.Top()) {
		t.Error("a layer that is used was removed")
	}
	released(t, got, one.Top())
	if _, err := p.GC(context.Background()); err != nil {
		t.Fatal(err)
	}
	p.nothing()
}

// TestRegisterRefuses has nothing left of what is refused.
func TestRegisterRefuses(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	ctx := context.Background()
	good := tarOf(t, "file a 1")
	absent := id.Stack([]id.LayerKey{"sha256:" + id.LayerKey(id.BlobOf(nil).Hex())})
	if _, err := p.Register(ctx, bytes.NewReader(good), absent, nil); !errors.Is(err, errAbsent) {
		t.Errorf("on an absent stack: %v", err)
	}
	for name, stream := range map[string][]byte{
		"no tar":          bytes.Repeat([]byte("no tar"), 200),
		"a tar that ends": good[:400],
		"gzip that ends":  pipe(t, good, "gzip", "-c")[:40],
		"half a bzip2":    []byte("BZh91AY&SY"),
		"lz4":             []byte("\x04\x22\x4d\x18 and so on"),
		"no header":       bytes.Repeat([]byte{0xff}, 1024),
	} {
		if r, err := p.Register(ctx, bytes.NewReader(stream), "", nil); err == nil {
			t.Errorf("%s: %v", name, r.Chain())
		}
	}
	want := errors.New("the client has gone")
	if _, err := p.Register(ctx, io.MultiReader(bytes.NewReader(good[:600]), failing{want}), "", nil); !errors.Is(err, want) {
		t.Errorf("a stream that fails: %v", err)
	}
	gone, cancel := context.WithCancel(ctx)
	r, w := io.Pipe()
	done := make(chan error)
	go func() {
		_, err := p.Register(gone, r, "", nil)
		done <- err
	}()
	if _, err := w.Write(good[:600]); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("a caller who left: %v", err)
	}
	w.CloseWithError(want)
	if owners := p.Owners(""); len(owners) > 0 {
		t.Errorf("owners are left: %q", owners)
	}
	p.close()
	p.open()
	p.nothing()
}

// TestMaxDepth stacks as many layers as docker allows, and one more.
func TestMaxDepth(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	stream := tarOf(t, "file a 1")
	var top *Ref
	var chain id.ChainKey
	for n := range MaxDepth {
		r, err := p.Register(context.Background(), bytes.NewReader(stream), chain, nil)
		if err != nil {
			t.Fatalf("layer %d: %v", n+1, err)
		}
		if top != nil {
			released(t, top)
		}
		top, chain = r, r.Chain()
	}
	_, err := p.Register(context.Background(), bytes.NewReader(stream), chain, nil)
	if fault.KindOf(err) != fault.Invalid || !errors.Is(err, errMaxDepth) {
		t.Errorf("layer %d: %v", MaxDepth+1, err)
	}
	released(t, top, top.Top())
	p.nothing()
}

// TestEnsureUnknown brings in streams of which nothing is known before, in
// every compression, at once: each is a layer by its own digest.
func TestEnsureUnknown(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	stream := tarOf(t, "file a 1")
	want := id.DiffIDFrom(sha256.Sum256(stream))
	blobs := map[string][]byte{"none": stream, "gzip": pipe(t, stream, "gzip", "-c")}
	for _, name := range []string{"bzip2", "xz", "zstd"} {
		cmd := exec.Command(name, "-c")
		cmd.Stdin = bytes.NewReader(stream)
		out, err := cmd.Output()
		if err != nil {
			t.Logf("without %s: %v", name, err)
			continue
		}
		blobs[name] = out
	}
	for name, blob := range blobs {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPlace(t)
			held := id.LayerKey("")
			key, existed, err := p.Ensure(context.Background(), Spec{
				Open: func(context.Context) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(blob)), nil },
				Hold: func(k id.LayerKey) error { held = k; return p.Retain("x", []id.LayerKey{k}) },
			}, nil)
			if err != nil || existed || key != want.Key() || held != key {
				t.Fatalf("%s (held: %s), %v, %v; want %s", key, held, existed, err, want)
			}
			info, err := p.Info(key)
			if err != nil || info.Compression != name || info.Blob != "" || !info.Sealed {
				t.Errorf("%+v, %v", info, err)
			}
			if _, err := p.GC(context.Background()); err != nil || !p.Has(key) {
				t.Errorf("collected: %v", err)
			}
		})
	}
	refuses := errors.New("no")
	_, _, err := p.Ensure(context.Background(), Spec{
		Open: func(context.Context) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(stream)), nil },
		Hold: func(id.LayerKey) error { return refuses },
	}, nil)
	if !errors.Is(err, refuses) {
		t.Errorf("refused by Hold: %v", err)
	}
	p.nothing()
}

func TestBlobsOf(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	stream := tarOf(t, "file a 1")
	var want []id.Blob
	for n, blob := range [][]byte{stream, pipe(t, stream, "gzip", "-c"), append(pipe(t, stream, "gzip", "-c"), "tail"...)} {
		spec := specOf(blob, stream)
		want = append(want, spec.Blob)
		if n > 0 {
			spec.DiffID = "" // else it is here already
		}
		if _, _, err := p.Ensure(context.Background(), spec, nil); err != nil {
			t.Fatal(err)
		}
	}
	slices.Sort(want)
	diff := id.DiffIDFrom(sha256.Sum256(stream))
	for range 2 {
		if got := p.BlobsOf(diff); !slices.Equal(got, want) {
			t.Errorf("%v, want %v", got, want)
		}
		p.reopen()
	}
	if got := p.BlobsOf(id.DiffID(fmt.Sprintf("sha256:%064d", 1))); got != nil {
		t.Errorf("of an unknown one: %v", got)
	}
}

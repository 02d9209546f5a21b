package union

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/imgfs/imgfs/internal/erofs"
	"github.com/imgfs/imgfs/internal/layertar"
)

var seed = flag.Uint64("seed", 0, "seed of the one random chain to merge, 0 for many")

// TestRandomChains: whichever way a chain is made, the bytes are the same, or
// the error is.
func TestRandomChains(t *testing.T) {
	first, last := uint64(1), uint64(2000)
	if *seed != 0 {
		first, last = *seed, *seed
	} else if testing.Short() {
		last = 200
	}
	failures, links := 0, 0
	for n := first; n <= last && !t.Failed(); n++ {
		specs := randomLayers(rand.New(rand.NewPCG(n, 0)))
		var layers []*erofs.Image
		for i, lines := range specs {
			layers = append(layers, buildLayer(t, i+1, lines...))
			links += strings.Count(strings.Join(lines, ";"), "=>")
		}
		img, err := mergeEveryWay(t, layers)
		if err != nil {
			failures++
		} else {
			list(t, img)
		}
		if t.Failed() {
			t.Logf("-seed %d: %q", n, specs)
		}
	}
	// A generator of nothing but errors, or none, would show little.
	if n := int(last - first + 1); n > 1 && (failures == 0 || failures > n/2 || links < n/4) {
		t.Errorf("%d of %d chains refused, %d links", failures, n, links)
	}
}

// randomLayers returns the lines of up to 6 layers over few names, so that they
// meet in every way.
func randomLayers(r *rand.Rand) [][]string {
	layers := make([][]string, 1+r.IntN(6))
	for i := range layers {
		g := generator{r: r, layer: i}
		if r.IntN(3) == 0 {
			g.lines = append(g.lines, "r")
		}
		if r.IntN(12) == 0 {
			g.lines = append(g.lines, "o .")
		}
		g.directory("", 0)
		layers[i] = g.lines
	}
	return layers
}

type generator struct {
	r     *rand.Rand
	layer int
	lines []string
	files []string
}

func (g *generator) directory(prefix string, depth int) {
	for _, name := range []string{"a", "b", "c", "d"} {
		if g.r.IntN(5) > 2 {
			continue
		}
		path := prefix + name
		switch k := g.r.IntN(16); {
		case k < 6 && depth < 3:
			g.lines = append(g.lines, []string{"d", "d", "i", "i", "o", "O"}[k]+" "+path)
			g.directory(path+"/", depth+1)
		case k < 8:
			g.lines = append(g.lines, "s "+path+" -> "+g.target())
		case k < 10 && g.layer > 0:
			g.lines = append(g.lines, "w "+path)
		case k == 10 && g.layer > 0 && g.r.IntN(3) == 0:
			g.lines = append(g.lines, "h "+path+" => "+g.path())
		case k == 11 && len(g.files) > 0:
			g.lines = append(g.lines, "n "+path+" = "+g.files[g.r.IntN(len(g.files))])
		case k == 12:
			g.lines = append(g.lines, "c "+path)
		default:
			g.lines = append(g.lines, "f "+path)
			g.files = append(g.files, path)
		}
	}
}

func (g *generator) path() string {
	parts := make([]string, 1+g.r.IntN(3))
	for i := range parts {
		parts[i] = string(rune('a' + g.r.IntN(4)))
	}
	return strings.Join(parts, "/")
}

func (g *generator) target() string {
	return []string{"", "", "/", "../", "../../", "./"}[g.r.IntN(6)] + g.path()
}

// FuzzMerge merges two layers on top of a third, of which any may be damaged.
// It must end, and say why it refuses.
func FuzzMerge(f *testing.F) {
	sound := func(layer int, s string) []byte {
		return imageBytes(f, layer, split(s, ";")...)
	}
	f.Add(sound(1, "d etc; f etc/a; s l -> etc"), sound(2, "f l/b; w etc/a"), sound(3, "h x => l/b; o etc"))
	f.Add(sound(1, "r; f a; n b = a"), sound(2, "h c => a; w b"), sound(3, "f a/b; c d"))
	f.Add(sound(1, "s a -> b; s b -> a; s c -> ../../d"), sound(2, "O c; f c/x"), sound(3, "f a/x"))
	f.Fuzz(func(t *testing.T, a, b, c []byte) {
		var layers []*erofs.Image
		for _, raw := range [][]byte{a, b, c} {
			img, err := erofs.New(raw)
			if err != nil {
				continue
			}
			layers = append(layers, img)
		}
		var chain bytes.Buffer
		if _, err := Merge(&chain, layers); err != nil {
			return
		}
		// What was accepted is a chain like any other.
		img, err := erofs.New(chain.Bytes())
		if err != nil {
			t.Fatal(err)
		}
		var again bytes.Buffer
		if _, err := Extend(&again, img, nil); err != nil || !bytes.Equal(again.Bytes(), chain.Bytes()) {
			t.Fatalf("the chain's own chain differs: %v", err)
		}
	})
}

// imageBytes is buildLayer as bytes.
func imageBytes(t testing.TB, layer int, lines ...string) []byte {
	t.Helper()
	var buf bytes.Buffer
	if _, err := layerBuilder(t, layer, lines...).WriteTo(&buf); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// TestDamagedLayers: a layer whose directories lead into each other, or to
// nowhere, is refused.
func TestDamagedLayers(t *testing.T) {
	lower := buildLayer(t, 1, "d d", "f d/a")
	base := imageBytes(t, 2, "d d", "d d/e", "d d/e/f", "f d/e/f/x")
	refused := 0
	for at := 1024 + 512; at < len(base); at++ { // behind the superblock
		for _, v := range []byte{0, 0xff, base[at] + 1, base[at] ^ 0x80} {
			b := bytes.Clone(base)
			b[at] = v
			img, err := erofs.New(b)
			if err != nil {
				continue
			}
			if _, err := Merge(io.Discard, []*erofs.Image{lower, img}); err != nil {
				refused++
			}
		}
	}
	if refused < 100 {
		t.Errorf("%d damaged layers refused", refused)
	}
	for name, damage := range map[string]func(nids map[string]erofs.NID) (dir string, to erofs.NID){
		"a directory in itself":         func(n map[string]erofs.NID) (string, erofs.NID) { return "d/e", n["d"] },
		"the root in a directory":       func(n map[string]erofs.NID) (string, erofs.NID) { return "d/e", n["."] },
		"a directory in two":            func(n map[string]erofs.NID) (string, erofs.NID) { return "d/e", n["g"] },
		"an entry beyond the image":     func(n map[string]erofs.NID) (string, erofs.NID) { return "d/e", 1 << 40 },
		"an entry at the largest nid":   func(n map[string]erofs.NID) (string, erofs.NID) { return "d/e", 1<<64 - 1 },
		"an entry in the superblock":    func(n map[string]erofs.NID) (string, erofs.NID) { return "d/e", 1024 / 32 },
		"a directory where a file was":  func(n map[string]erofs.NID) (string, erofs.NID) { return "d/x", n["g"] },
		"an entry of the reserved nids": func(n map[string]erofs.NID) (string, erofs.NID) { return "d/x", 0 },
	} {
		raw := imageBytes(t, 1, "d d", "d d/e", "f d/x", "d g")
		nids := map[string]erofs.NID{}
		img := openImage(t, raw)
		nids["."] = img.Root()
		for _, p := range []string{"d", "g", "d/e", "d/x"} {
			nids[p] = lookupPath(t, img, p)
		}
		path, to := damage(nids)
		if !replaceNID(raw, nids[path], to) {
			t.Fatalf("%s: entry of %s not found", name, path)
		}
		_, err := Merge(io.Discard, []*erofs.Image{openImage(t, raw)})
		if !errors.Is(err, erofs.ErrCorrupt) {
			t.Errorf("%s: %v, want ErrCorrupt", name, err)
		}
	}
}

func lookupPath(t testing.TB, img *erofs.Image, path string) erofs.NID {
	t.Helper()
	nid := img.Root()
	for name := range strings.SplitSeq(path, "/") {
		var err error
		if nid, _, err = img.Lookup(nid, []byte(name)); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
	}
	return nid
}

// replaceNID changes the entries of an inode, but its own ".", to another's.
func replaceNID(raw []byte, from, to erofs.NID) bool {
	var old, repl [8]byte
	for i := range 8 {
		old[i], repl[i] = byte(uint64(from)>>(8*i)), byte(uint64(to)>>(8*i))
	}
	found := false
	for i := 1536; i+12 <= len(raw); i += 4 {
		if !bytes.Equal(raw[i:i+8], old[:]) || raw[i+11] != 0 {
			continue
		}
		copy(raw[i:], repl[:])
		found = true
	}
	return found
}

func TestWrongKindOfIndex(t *testing.T) {
	layer := buildLayer(t, 1, "f a")
	var chain bytes.Buffer
	if _, err := Merge(&chain, []*erofs.Image{layer}); err != nil {
		t.Fatal(err)
	}
	img := openImage(t, chain.Bytes())
	if _, err := Merge(io.Discard, []*erofs.Image{img}); !errors.Is(err, erofs.ErrCorrupt) {
		t.Errorf("chain as a layer: %v", err)
	}
	if _, err := Extend(io.Discard, layer, nil); !errors.Is(err, erofs.ErrCorrupt) {
		t.Errorf("layer as a chain: %v", err)
	}
	b := erofs.NewBuilder(nil, layertar.Label)
	if _, err := b.Add(&erofs.Inode{Mode: 0o40755}); err != nil {
		t.Fatal(err)
	}
	if _, err := Merge(io.Discard, []*erofs.Image{writeImage(t, b)}); !errors.Is(err, erofs.ErrCorrupt) {
		t.Errorf("layer without a device: %v", err)
	}
}

// TestDeepTree: depth costs no more than width. It is beyond what layertar
// lets into a layer.
func TestDeepTree(t *testing.T) {
	const depth = 20_000
	deep := func(layer int, last string) *erofs.Image {
		b := erofs.NewBuilder([]erofs.Device{{Tag: fmt.Sprint(layer)}}, layertar.Label)
		var parent erofs.Ref
		for i := range depth {
			in := impliedDir()
			ref, err := b.Add(&in)
			if err == nil && i > 0 {
				name := "d"
				if i == depth-1 {
					name = last
				}
				err = b.Link(parent, name, ref)
			}
			if err != nil {
				t.Fatal(err)
			}
			parent = ref
		}
		return writeImage(t, b)
	}
	stats, err := Merge(io.Discard, []*erofs.Image{deep(1, "x"), deep(2, "y")})
	if err != nil || stats.Names != depth+1 {
		t.Errorf("%+v, %v", stats, err)
	}
}

// TestWalkBudget: implied directories over symlinks that lead each other a
// dance are refused before they cost much.
func TestWalkBudget(t *testing.T) {
	var lower, upper []string
	lower = append(lower, "d x", "s l0 -> x")
	for i := range 200 {
		lower = append(lower, fmt.Sprintf("s l%d -> %sl%d", i+1, strings.Repeat("x/../", 700), i))
	}
	for i := range 100 {
		lower = append(lower, fmt.Sprintf("s m%d -> l200", i))
		upper = append(upper, fmt.Sprintf("f m%d/f%d", i, i))
	}
	_, err := mergeEveryWay(t, []*erofs.Image{buildLayer(t, 1, lower...), buildLayer(t, 2, upper...)})
	if !errors.Is(err, erofs.ErrLimit) {
		t.Errorf("error %v, want ErrLimit", err)
	}
	// One of them is fine.
	_, err = mergeEveryWay(t, []*erofs.Image{buildLayer(t, 1, lower...), buildLayer(t, 2, upper[0])})
	if err != nil {
		t.Error(err)
	}
}

type failingWriter struct{}

func (failingWriter) Write([]byte) (int, error) { return 0, io.ErrShortWrite }

func TestWriteError(t *testing.T) {
	if _, err := Merge(failingWriter{}, []*erofs.Image{buildLayer(t, 1, "f a")}); !errors.Is(err, io.ErrShortWrite) {
		t.Errorf("error %v", err)
	}
}

// TestManyDevices: what the format cannot hold is refused with a sentence.
func TestManyDevices(t *testing.T) {
	const limit = 16000 // devices, more or less: the root's nid has 16 bits
	var layers []*erofs.Image
	for i := range 500 {
		layers = append(layers, buildLayer(t, i+1, fmt.Sprintf("f f%d", i)))
	}
	if _, err := Merge(io.Discard, layers); err != nil {
		t.Fatal(err)
	}
	one := layers[0]
	for len(layers) < limit+500 {
		layers = append(layers, one)
	}
	if _, err := Merge(io.Discard, layers); !errors.Is(err, erofs.ErrLimit) {
		t.Errorf("%d layers: %v", len(layers), err)
	}
}

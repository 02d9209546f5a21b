package daemon

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/klauspost/compress/gzip"

	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
	"github.com/imgfs/imgfs/internal/imgtest"
	"github.com/imgfs/imgfs/internal/span"
	"github.com/imgfs/imgfs/internal/toc"
)

// noPatience has reads fail at once.
func noPatience(r *engineapi.MountRequest) { r.OnError = "eio" }

// noPrefetch has nothing fetched that is not read.
func noPrefetch(r *engineapi.MountRequest) { r.Prefetch = "none" }

// wantEIO checks that a file cannot be read, and returns why that is.
func wantEIO(t testing.TB, d *running, path string) string {
	t.Helper()
	if got, err := readFile(path); !errors.Is(err, unix.EIO) {
		t.Errorf("%s: %d bytes, %v; want EIO", path, len(got), err)
	}
	st, err := d.client.Status(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	var why []string
	for _, f := range st.Faults {
		why = append(why, f.Reason)
	}
	return strings.Join(why, "\n")
}

// TestDamagedRanges is regression 10 for a lazy layer: wrong bytes from a
// mirror are had from the origin, and are EIO only while that has no better.
func TestDamagedRanges(t *testing.T) {
	needFUSE(t)
	files := bigTree(31)
	for name, layer := range map[string]testLayer{"estargz": estargz(t, tarOf(t, files)), "our-index": gzipped(t, tarOf(t, files))} {
		t.Run(name, func(t *testing.T) {
			mirror := imgtest.NewRegistry(t, imgtest.RegistryOptions{})
			origin := imgtest.NewRegistry(t, imgtest.RegistryOptions{})
			for _, reg := range []*imgtest.Registry{mirror, origin} {
				img := pushImage(t, reg, "x", "1", layer)
				if layer.notes == nil {
					pushIndex(t, reg, img, nil)
				}
			}
			d := runDaemon(t, Options{})
			dir := mountDir(t)
			_, err := mountAs(testContext(t), d.client, "far.example/x:1", dir, noPatience, noPrefetch, func(r *engineapi.MountRequest) {
				r.Registry = mirrored(t, mirror, origin)
			})
			if err != nil {
				t.Fatal(err)
			}
			flip := imgtest.Fault{On: imgtest.KindBlob, Match: string(id.BlobOf(layer.blob)), Flip: true}
			mirror.Inject(flip) // in the middle of the blob: bin/2
			origin.Inject(flip)
			wantTree(t, dir, content{"share/007": files["share/007"]})
			if why := wantEIO(t, d, filepath.Join(dir, "bin/2")); !strings.Contains(why, "digest") {
				t.Errorf("the reason is %q", why)
			}
			wantTree(t, dir, content{"share/007": files["share/007"]})
			origin.Heal()
			origin.Forget()
			wantTree(t, dir, content{"bin/2": files["bin/2"]}) // not remembered
			if origin.Count(imgtest.KindBlob) == 0 {
				t.Error("the origin was not asked")
			}
			wantTree(t, dir, files)
		})
	}
}

// TestTagMoves has a registry change what a tag names during a mount, which
// stays with its digest, and then lose the layer.
func TestTagMoves(t *testing.T) {
	needFUSE(t)
	old, young := bigTree(32), bigTree(33)
	layer := estargz(t, tarOf(t, old))
	reg := imgtest.NewRegistry(t, imgtest.RegistryOptions{})
	img := pushImage(t, reg, "x", "1", layer)
	d := runDaemon(t, Options{})
	dir := mountDir(t)
	m, err := mountAs(testContext(t), d.client, img.ref, dir, noPatience, noPrefetch)
	if err != nil {
		t.Fatal(err)
	}
	moved := pushImage(t, reg, "x", "1", estargz(t, tarOf(t, young)))
	wantTree(t, dir, content{"bin/0": old["bin/0"], "etc/empty": ""})

	other := mountDir(t)
	n, err := mountAs(testContext(t), d.client, moved.ref, other, func(r *engineapi.MountRequest) { r.Pull = "always" })
	if err != nil || n.ImageID == m.ImageID {
		t.Fatalf("%s, was %s: %v", n.ImageID, m.ImageID, err)
	}
	wantTree(t, other, young)
	wantTree(t, dir, content{"bin/1": old["bin/1"]})

	reg.Inject(imgtest.Fault{On: imgtest.KindBlob, Match: string(id.BlobOf(layer.blob)), Status: http.StatusNotFound})
	if why := wantEIO(t, d, filepath.Join(dir, "bin/3")); !strings.Contains(why, "404") && !strings.Contains(why, "not found") {
		t.Errorf("the reason is %q", why)
	}
	wantTree(t, dir, content{"bin/0": old["bin/0"], "bin/1": old["bin/1"]})
}

// TestTokenServerDown has tokens run out in the middle of a mount, answered as
// registries do, while their server is down: regressions 1 and 2.
func TestTokenServerDown(t *testing.T) {
	needFUSE(t)
	files := bigTree(34)
	for _, stale := range []int{http.StatusUnauthorized, http.StatusBadRequest} {
		reg := imgtest.NewRegistry(t, imgtest.RegistryOptions{Auth: "token", StaleStatus: stale})
		img := pushImage(t, reg, "x", "1", estargz(t, tarOf(t, files)))
		d := runDaemon(t, Options{})
		dir := mountDir(t)
		if _, err := mountAs(testContext(t), d.client, img.ref, dir, noPatience, noPrefetch); err != nil {
			t.Fatal(err)
		}
		reg.ExpireTokens()
		wantTree(t, dir, content{"bin/0": files["bin/0"]})
		reg.ExpireTokens()
		reg.Inject(imgtest.Fault{On: imgtest.KindToken, Status: http.StatusServiceUnavailable})
		if why := wantEIO(t, d, filepath.Join(dir, "bin/3")); !strings.Contains(why, "token") {
			t.Errorf("%d: the reason is %q", stale, why)
		}
		wantTree(t, dir, content{"bin/0": files["bin/0"]})
		reg.Heal()
		wantTree(t, dir, content{"bin/3": files["bin/3"]})
	}
}

// TestAlteredCache alters the files of a layer of which some is here, while no
// daemon runs: nothing wrong is ever read, and what is lost is fetched again.
func TestAlteredCache(t *testing.T) {
	needFUSE(t)
	files := bigTree(35)
	for _, name := range []string{"bin/1", "bin/2", "bin/3", "bin/big"} { // there are many cases
		delete(files, name)
	}
	stream := tarOf(t, files)
	cut := func(name string) error { return os.Truncate(name, 700) }
	flip := func(name string) error {
		b, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		for i := len(b) / 50; i < len(b); i += len(b)/50 + 1 {
			b[i] ^= 0x55
		}
		return os.WriteFile(name, b, 0o600)
	}
	for _, layer := range []struct {
		name string
		testLayer
		keeps []string // files of the layer
	}{
		{"estargz", estargz(t, stream), []string{"data", "present", "spans", "index", "record"}},
		{"our-index", gzipped(t, stream), []string{"data", "present", "spans", "skeleton", "index", "record"}},
	} {
		reg := imgtest.NewRegistry(t, imgtest.RegistryOptions{})
		img := pushImage(t, reg, "x", "1", layer.testLayer)
		if layer.notes == nil {
			pushIndex(t, reg, img, nil)
		}
		for _, file := range layer.keeps {
			for how, damage := range map[string]func(string) error{"cut": cut, "altered": flip, "gone": os.Remove} {
				t.Run(layer.name+", "+file+" "+how, func(t *testing.T) {
					p := newStore(t)
					d := runDaemon(t, Options{Paths: p})
					dir := mountDir(t)
					m, err := mountAs(testContext(t), d.client, img.ref, dir, noPatience, noPrefetch)
					if err != nil {
						t.Fatal(err)
					}
					wantTree(t, dir, content{"bin/0": files["bin/0"], "share/007": files["share/007"]})
					unmounted(t, d.client, m)
					d.end(t)
					names, err := filepath.Glob(filepath.Join(p.Root, "layers/*", file))
					if err != nil || len(names) != 1 {
						t.Fatal(names, err)
					}
					if err := damage(names[0]); err != nil {
						t.Fatal(err)
					}
					d = runDaemon(t, Options{Paths: p})
					if m, err = mountAs(testContext(t), d.client, img.ref, dir, noPatience, noPrefetch); err != nil {
						t.Fatal(err)
					}
					wantTree(t, dir, files)
					unmounted(t, d.client, m)
				})
			}
		}
	}
}

// membersOf returns a tar as a layer of gzip members of 1 MiB each, and a span
// for each of them.
func membersOf(t testing.TB, stream []byte) (l testLayer, spans []span.Entry) {
	t.Helper()
	var out bytes.Buffer
	for off := 0; off < len(stream); off += 1 << 20 {
		from, part := out.Len(), stream[off:min(off+1<<20, len(stream))]
		w := gzip.NewWriter(&out)
		if _, err := w.Write(part); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		sum := sha256.Sum256(out.Bytes()[from:])
		spans = append(spans, span.Entry{Off: int64(off), Len: int64(len(part)), From: int64(from), To: int64(out.Len()), Header: true, Blob: &sum})
	}
	l = plain(stream)
	l.mediaType, l.blob = tarGzip, out.Bytes()
	return l, spans
}

// TestLyingSpans gives indexes beside an image whose spans lie. What a digest
// or a header can tell is found when it is read; that the middle of a file was
// taken from elsewhere, when all of the layer is here.
func TestLyingSpans(t *testing.T) {
	needFUSE(t)
	files := bigTree(36)
	stream := tarOf(t, files)
	layer, _ := membersOf(t, stream)
	for _, tt := range []struct {
		name string
		lie  func(s []span.Entry) []span.Entry
		big  string // what bin/big is: "" all right, "EIO", "sealed": either, and found in the end
	}{
		{"honest", func(s []span.Entry) []span.Entry { return s }, ""},
		{"digests", func(s []span.Entry) []span.Entry {
			for i := range s {
				s[i].Blob = s[0].Blob
			}
			return s
		}, "EIO"},
		{"one span for all", func(s []span.Entry) []span.Entry {
			for i := range s[:len(s)-1] {
				s[i].From, s[i].To, s[i].Blob = s[0].From, s[0].To, s[0].Blob
			}
			return s
		}, "EIO"},
		{"the middle of a file is another's", func(s []span.Entry) []span.Entry {
			// bin/big begins behind bin/0 to bin/3, of 3 MiB each.
			s[15].From, s[15].To, s[15].Blob = s[14].From, s[14].To, s[14].Blob
			return s
		}, "sealed"},
		{"more than a member has", func(s []span.Entry) []span.Entry {
			s[1].Len++
			for i := range s[2:] {
				s[i+2].Off++
			}
			return s[:len(s)-1]
		}, "EIO"},
		{"blocks where members begin", func(s []span.Entry) []span.Entry {
			for i := range s {
				s[i].Header = false
			}
			return s
		}, "EIO"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, spans := membersOf(t, stream)
			b := span.NewBuilder(span.Gzip, int64(len(layer.blob)))
			for _, e := range tt.lie(spans) {
				if err := b.Add(e); err != nil {
					t.Fatal(err)
				}
			}
			table, err := b.Table()
			if err != nil {
				t.Fatal(err)
			}
			reg := imgtest.NewRegistry(t, imgtest.RegistryOptions{})
			img := pushImage(t, reg, "x", "1", layer)
			pushIndexes(t, reg, img, nil, func(l testLayer) []byte { return indexWith(t, l, table) })
			d := runDaemon(t, Options{})
			dir := mountDir(t)
			m, err := mountAs(testContext(t), d.client, img.ref, dir, noPatience, noPrefetch)
			if err != nil {
				t.Fatal(err)
			}
			switch got, err := readFile(filepath.Join(dir, "bin/big")); {
			case tt.big == "" && (err != nil || got != files["bin/big"]):
				t.Errorf("%d bytes, %v", len(got), err)
			case tt.big == "EIO" && (!errors.Is(err, unix.EIO) && got != files["bin/big"]):
				t.Errorf("%d bytes, %v; want EIO", len(got), err)
			}
			unmounted(t, d.client, m)
			// The image itself is good, which is all that --verify sealed shows.
			m, err = mountAs(testContext(t), d.client, img.ref, dir, func(r *engineapi.MountRequest) { r.Verify = engineapi.VerifySealed })
			if err != nil {
				t.Fatalf("sealed: %v (%v)", err, fault.KindOf(err))
			}
			wantTree(t, dir, files)
			unmounted(t, d.client, m)
		})
	}
}

// indexWith is our index of a layer with other spans.
func indexWith(t testing.TB, l testLayer, spans *span.Table) []byte {
	t.Helper()
	honest, err := toc.Decode(toc.Own, ownIndex(t, l), toc.Descriptor{Blob: id.BlobOf(l.blob), Size: int64(len(l.blob)), MediaType: l.mediaType, DiffID: l.diff})
	if err != nil {
		t.Fatal(err)
	}
	return toc.EncodeLayer(honest.Raw, spans)
}

// TestRestoredOffline is regression 46 for a lazy image: its daemon is killed,
// the registry goes, and the next daemon brings the mount back; what is here is
// read, and the rest fails.
func TestRestoredOffline(t *testing.T) {
	needFUSE(t)
	files := bigTree(37)
	p := newStore(t)
	c := spawned(t, p)
	dir := mountDir(t)
	t.Run("online", func(t *testing.T) { // the registry ends with it
		reg := imgtest.NewRegistry(t, imgtest.RegistryOptions{Auth: "token", Username: "user", Password: "secret"})
		img := pushImage(t, reg, "x", "1", estargz(t, tarOf(t, files)))
		_, err := mountAs(testContext(t), c, img.ref, dir, noPatience, noPrefetch, func(r *engineapi.MountRequest) {
			r.Registry = engineapi.RegistryOptions{Username: "user", Password: "secret"}
		})
		if err != nil {
			t.Fatal(err)
		}
		wantTree(t, dir, content{"bin/0": files["bin/0"], "share/007": files["share/007"]})
		killDaemon(t, p)
	})
	if list, err := c.Mounts(testContext(t)); err != nil || len(list) != 1 {
		t.Fatalf("mounts: %+v, %v", list, err)
	}
	wantTree(t, dir, content{"bin/0": files["bin/0"], "share/007": files["share/007"], "etc/empty": ""})
	start := time.Now()
	if _, err := readFile(filepath.Join(dir, "bin/3")); !errors.Is(err, unix.EIO) {
		t.Errorf("what is not here: %v", err)
	}
	if since := time.Since(start); since > engineapi.DefaultPatience/2 {
		t.Errorf("it took %v to say so", since)
	}
}

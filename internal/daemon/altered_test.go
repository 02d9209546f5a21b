package daemon

import (
	"crypto/rand"
	"os"
	"path/filepath"
	"testing"

	"github.com/imgfs/imgfs/internal/imgtest"
)

// TestAlteredUnderDaemon alters the data of a layer of which some is here, while
// a daemon runs. Who mounts it next reads what is right, and so does the next
// daemon after a clean stop.
func TestAlteredUnderDaemon(t *testing.T) {
	needFUSE(t)
	files := bigTree(42)
	stream := tarOf(t, files)
	for name, layer := range map[string]testLayer{"estargz": estargz(t, stream), "our-index": gzipped(t, stream)} {
		for how, alter := range map[string]func(f *os.File, size int64) error{
			"cut": func(f *os.File, _ int64) error { return f.Truncate(4096) },
			"altered": func(f *os.File, size int64) error {
				b := make([]byte, size)
				rand.Read(b)
				_, err := f.WriteAt(b, 0)
				return err
			},
		} {
			t.Run(name+", "+how, func(t *testing.T) {
				reg := imgtest.NewRegistry(t, imgtest.RegistryOptions{})
				img := pushImage(t, reg, "x", "1", layer)
				if layer.notes == nil {
					pushIndex(t, reg, img, nil)
				}
				p := newStore(t)
				d := runDaemon(t, Options{Paths: p})
				dir := mountDir(t)
				some := content{"bin/0": files["bin/0"], "share/007": files["share/007"]}
				for _, restart := range []bool{false, true} {
					m, err := mountAs(testContext(t), d.client, img.ref, dir, noPatience, noPrefetch)
					if err != nil {
						t.Fatal(err)
					}
					wantTree(t, dir, some)
					names, err := filepath.Glob(filepath.Join(p.Root, "layers/*/data"))
					if err != nil || len(names) != 1 {
						t.Fatal(names, err)
					}
					f, err := os.OpenFile(names[0], os.O_RDWR, 0)
					if err != nil {
						t.Fatal(err)
					}
					defer f.Close()
					st, err := f.Stat()
					if err != nil {
						t.Fatal(err)
					}
					if err := alter(f, st.Size()); err != nil {
						t.Fatal(err)
					}
					unmounted(t, d.client, m)
					if restart {
						d.end(t)
						d = runDaemon(t, Options{Paths: p})
					}
					if m, err = mountAs(testContext(t), d.client, img.ref, dir, noPatience, noPrefetch); err != nil {
						t.Fatal(err)
					}
					wantTree(t, dir, some)
					unmounted(t, d.client, m)
				}
			})
		}
	}
}

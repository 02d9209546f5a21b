package daemon

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/imgfs/imgfs/fs"
	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/erofs"
	"github.com/imgfs/imgfs/internal/id"
	"github.com/imgfs/imgfs/internal/imgtest"
)

// imageCache is where images made from Debian packages are kept across runs.
const imageCache = "/var/tmp/imgfs-test"

// TestRealImage pulls real images from Debian's docker-registry and mounts
// them with both drivers. What the kernel shows then is compared, entry by
// entry, with the index and with what umoci unpacks. (Package union compares
// the index with podman, too.) And it can be lived in.
func TestRealImage(t *testing.T) {
	needFUSE(t)
	host := imgtest.Distribution(t, "", "")
	skopeo, umoci := imgtest.Program(t, "skopeo"), imgtest.Program(t, "umoci")
	p := newStore(t)
	c := spawned(t, p)
	for _, spec := range []imgtest.DebianSpec{imgtest.DebianSmall(), imgtest.DebianBig()} {
		t.Run(spec.Name, func(t *testing.T) {
			if testing.Short() && len(spec.Layers) > 5 {
				t.Skip("-short: the big image takes a minute")
			}
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
			defer cancel()
			layout, err := imgtest.Debian(ctx, imageCache, spec)
			imgtest.Need(t, err == nil, fmt.Sprint("a Debian image: ", err))
			ref := host + "/" + spec.Name + ":1"
			rootfs := filepath.Join(t.TempDir(), "rootfs")
			for _, command := range [][]string{
				{skopeo, "copy", "--quiet", "--insecure-policy", "--dest-tls-verify=false", "oci:" + layout + ":latest", "docker://" + ref},
				{umoci, "raw", "unpack", "--image", layout + ":latest", rootfs},
			} {
				if out, err := exec.CommandContext(ctx, command[0], command[1:]...).CombinedOutput(); err != nil {
					t.Fatalf("%v: %v\n%s", command, err, out)
				}
			}
			unpacked := listDir(t, rootfs)
			for _, driver := range drivers {
				dir := mountDir(t)
				m, err := driver.mount(t, ctx, c, ref, dir)
				if err != nil {
					t.Fatalf("%s: %v", driver.name, err)
				}
				for range 2 { // from the store, and from the kernel's caches
					mounted := listDir(t, dir)
					sameListing(t, driver.name+" and the index", mounted, listChain(t, ctx, c, p, m))
					sameListing(t, driver.name+" and umoci", asUmoci(mounted), asUmoci(unpacked))
				}
				out, err := exec.CommandContext(ctx, "chroot", dir, "/bin/sh", "-c", "id -u; ls -d /etc; grep ^ID= /etc/os-release; sha256sum /bin/sh | wc -l").CombinedOutput()
				if err != nil || string(out) != "0\n/etc\nID=debian\n1\n" {
					t.Errorf("%s: chroot: %v\n%s", driver.name, err, out)
				}
				if err := fs.Unmount(dir, false); err != nil {
					t.Fatal(err)
				}
				if err := c.WaitGone(ctx, m.ID); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// directoryLinks is what file systems may count as they like, and umoci's
// archive/tar cannot read: an attribute with an empty value.
var directoryLinks = regexp.MustCompile(`(?m)^(\S+ d \S+ \S+) n[0-9]+ `)

func asUmoci(listing string) string {
	return strings.ReplaceAll(directoryLinks.ReplaceAllString(listing, "$1 "), ` user.empty=""`, "")
}

func listDir(t testing.TB, dir string) string {
	t.Helper()
	s, err := imgtest.ListDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// listChain lists a mount's tree from its files in the store.
func listChain(t testing.TB, ctx context.Context, c *engineapi.Client, p Paths, m engineapi.Mount) string {
	t.Helper()
	image, err := c.Inspect(ctx, string(m.ImageID), engineapi.InspectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var data []io.ReaderAt
	for _, l := range image.RootFS.Layers {
		d, err := id.ParseDiffID(string(l))
		if err != nil {
			t.Fatal(err)
		}
		f, err := os.Open(filepath.Join(p.Root, "layers", d.Hex(), "data"))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		data = append(data, f)
	}
	img, err := erofs.Open(filepath.Join(p.Root, "chains", m.ChainID.Hex(), "index"))
	if err != nil {
		t.Fatal(err)
	}
	defer img.Close()
	return imgtest.List(img, func(dev int, b []byte, off int64) error {
		_, err := data[dev].ReadAt(b, off)
		return err
	})
}

// sameListing reports the lines in which two listings differ.
func sameListing(t testing.TB, what, got, want string) {
	t.Helper()
	if got == want {
		t.Logf("%s: %d entries are the same", what, strings.Count(got, "\n"))
		return
	}
	g, w := lines(got), lines(want)
	reported := 0
	report := func(format string, args ...any) {
		if reported++; reported <= 20 {
			t.Errorf(what+": "+format, args...)
		}
	}
	for l := range g {
		if !w[l] {
			report("only in the first: %s", l)
		}
	}
	for l := range w {
		if !g[l] {
			report("only in the second: %s", l)
		}
	}
	if reported == 0 {
		t.Errorf("%s: the order differs", what)
	}
}

func lines(s string) map[string]bool {
	m := map[string]bool{}
	for l := range strings.Lines(s) {
		m[strings.TrimSuffix(l, "\n")] = true
	}
	return m
}

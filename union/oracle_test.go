package union

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/imgfs/imgfs/internal/erofs"
	"github.com/imgfs/imgfs/internal/imgtest"
	"github.com/imgfs/imgfs/internal/layertar"
	"golang.org/x/sys/unix"
)

// imageCache is where images made from Debian packages are kept across runs.
const imageCache = "/var/tmp/imgfs-test"

// TestOracle compares the chain of real images, entry by entry, with what two
// independent unpackers make of them: umoci, which unpacks all layers into one
// directory, and podman, with the store named below.
func TestOracle(t *testing.T) {
	for _, tt := range []struct {
		spec  imgtest.DebianSpec
		store string // podman's
		long  bool
	}{
		// Only the vfs store, a copy of the tree per layer, can unpack hard
		// links to layers below.
		{imgtest.DebianSmall(), "vfs", false},
		{imgtest.DebianBig(), "overlay", true},
	} {
		t.Run(tt.spec.Name, func(t *testing.T) {
			imgtest.Need(t, os.Geteuid() == 0, "root")
			for _, name := range []string{"umoci", "podman", "debootstrap"} {
				imgtest.Program(t, name)
			}
			if tt.long && testing.Short() {
				t.Skip("-short: the big image takes minutes")
			}
			layout, err := imgtest.Debian(t.Context(), imageCache, tt.spec)
			imgtest.Need(t, err == nil, fmt.Sprintf("%s: %v", tt.spec.Name, err))
			ours := indexTree(t, layout)
			t.Run("umoci", func(t *testing.T) {
				compareTrees(t, ours, hostTree(t, unpackUmoci(t, layout)), umociDiffers)
			})
			t.Run("podman", func(t *testing.T) {
				differs := podmanVFSDiffers
				if tt.store == "overlay" {
					differs = podmanOverlayDiffers
				}
				compareTrees(t, ours, hostTree(t, unpackPodman(t, layout, tt.store)), differs)
			})
		})
	}
}

// file is all that is compared of one name.
type file struct {
	mode, uid, gid uint32
	rdev           uint32 // new_encode_dev form
	nlink          uint32 // of directories 0
	size           int64  // of regular files and symlinks
	mtime          string // seconds.nanoseconds
	target         string
	xattrs         string   // name="value" sorted
	sum            [32]byte // of regular files
	group          string   // the first name of the inode, in order of path
}

func encodeDev(rdev uint64) uint32 {
	major, minor := unix.Major(rdev), unix.Minor(rdev)
	return minor&0xff | major<<8 | minor&^0xff<<12
}

func formatXattrs(m map[string]string) string {
	var b strings.Builder
	for _, k := range slices.Sorted(maps.Keys(m)) {
		fmt.Fprintf(&b, "%s=%q ", k, m[k])
	}
	return b.String()
}

// setGroups names each inode by the first of its names.
func setGroups[K comparable](tree map[string]*file, inode map[string]K) {
	first := map[K]string{}
	for _, p := range slices.Sorted(maps.Keys(tree)) {
		if tree[p].nlink < 2 {
			continue
		}
		if first[inode[p]] == "" {
			first[inode[p]] = p
		}
		tree[p].group = first[inode[p]]
	}
}

// hostTree returns what lstat and the like tell of all files below dir.
func hostTree(t *testing.T, dir string) map[string]*file {
	t.Helper()
	tree, inode := map[string]*file{}, map[string]uint64{}
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		f := &file{mode: st.Mode, uid: st.Uid, gid: st.Gid, mtime: fmt.Sprintf("%d.%09d", st.Mtim.Sec, st.Mtim.Nsec)}
		tree[name], inode[name] = f, st.Ino
		xattrs, err := hostXattrs(path)
		if err != nil {
			return err
		}
		f.xattrs = formatXattrs(xattrs)
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			f.nlink = uint32(st.Nlink)
		}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			f.size = st.Size
			h, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
			if err != nil {
				return err
			}
			defer h.Close()
			sum := sha256.New()
			if _, err := io.Copy(sum, h); err != nil {
				return err
			}
			sum.Sum(f.sum[:0])
		case unix.S_IFLNK:
			f.size = st.Size
			f.target, err = os.Readlink(path)
			return err
		case unix.S_IFCHR, unix.S_IFBLK:
			f.rdev = encodeDev(st.Rdev)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	setGroups(tree, inode)
	return tree
}

func hostXattrs(path string) (map[string]string, error) {
	buf := make([]byte, 1<<16)
	n, err := unix.Llistxattr(path, buf)
	if err != nil {
		return nil, err
	}
	xattrs := map[string]string{}
	for name := range strings.SplitSeq(string(buf[:n]), "\x00") {
		if name == "" || strings.HasPrefix(name, "trusted.overlay.") {
			continue
		}
		value := make([]byte, 1<<16)
		n, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			return nil, err
		}
		xattrs[name] = string(value[:n])
	}
	return xattrs, nil
}

// indexTree merges the layers of an OCI layout and reads the chain: the
// metadata from the index, the content from the layers' uncompressed tars.
func indexTree(t *testing.T, layout string) map[string]*file {
	t.Helper()
	layers, data := layoutLayers(t, layout)
	var chain bytes.Buffer
	stats, err := Merge(&chain, layers)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d layers, %d names, %d inodes, index of %d bytes", stats.Layers, stats.Names, stats.Inodes, stats.Size)
	return readChain(t, openImage(t, chain.Bytes()), data)
}

// chainTree is readChain with data files in memory.
func chainTree(t *testing.T, img *erofs.Image, data [][]byte) map[string]*file {
	t.Helper()
	var files []io.ReaderAt
	for _, b := range data {
		files = append(files, bytes.NewReader(b))
	}
	return readChain(t, img, files)
}

// readChain reads a chain, and the content of its files from data.
func readChain(t *testing.T, img *erofs.Image, data []io.ReaderAt) map[string]*file {
	t.Helper()
	tree, inode := map[string]*file{}, map[string]erofs.NID{}
	var walk func(name string, nid erofs.NID)
	walk = func(name string, nid erofs.NID) {
		f, err := indexFile(img, data, nid)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		tree[name], inode[name] = f, nid
		if f.mode&unix.S_IFMT != unix.S_IFDIR {
			return
		}
		if err := img.ReadDir(nid, 0, func(e *erofs.Dirent) bool {
			if n := string(e.Name); n != "." && n != ".." {
				walk(filepath.Join(name, n), e.NID)
			}
			return true
		}); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	walk(".", img.Root())
	setGroups(tree, inode)
	return tree
}

func indexFile(img *erofs.Image, data []io.ReaderAt, nid erofs.NID) (*file, error) {
	var a erofs.Attr
	if err := img.Stat(nid, &a); err != nil {
		return nil, err
	}
	f := &file{mode: a.Mode, uid: a.UID, gid: a.GID, rdev: a.Rdev, mtime: fmt.Sprintf("%d.%09d", a.Mtime, a.MtimeNsec)}
	xattrs := map[string]string{}
	if err := img.Xattrs(nid, func(name string, value []byte) bool {
		xattrs[name] = string(value)
		return true
	}); err != nil {
		return nil, err
	}
	f.xattrs = formatXattrs(xattrs)
	if a.Mode&unix.S_IFMT != unix.S_IFDIR {
		f.nlink = a.Nlink
	}
	switch a.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		target, err := img.ReadLink(nid)
		f.target, f.size = string(target), int64(a.Size)
		return f, err
	case unix.S_IFREG:
		f.size = int64(a.Size)
		sum := sha256.New()
		for off := uint64(0); off < a.Size; {
			e, err := img.Extent(nid, off)
			if err != nil {
				return nil, err
			}
			var r io.Reader = bytes.NewReader(make([]byte, e.Len))
			if !e.Hole {
				r = io.NewSectionReader(data[e.Device], int64(e.Off), int64(e.Len))
			}
			n, err := io.Copy(sum, r)
			if err != nil || n != int64(e.Len) {
				return nil, fmt.Errorf("extent at %d: %d of %d bytes: %w", off, n, e.Len, err)
			}
			off += e.Len
		}
		sum.Sum(f.sum[:0])
	}
	return f, nil
}

// layoutLayers indexes the layers of the image in an OCI layout of one image.
// The layers' data files are open until the test ends.
func layoutLayers(t testing.TB, layout string) (layers []*erofs.Image, data []io.ReaderAt) {
	t.Helper()
	type desc struct{ Digest string }
	read := func(v any, path string) {
		b, err := os.ReadFile(filepath.Join(layout, path))
		if err == nil {
			err = json.Unmarshal(b, v)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	blob := func(d desc) string { return filepath.Join("blobs", strings.Replace(d.Digest, ":", "/", 1)) }
	var index struct{ Manifests []desc }
	var manifest struct{ Layers []desc }
	read(&index, "index.json")
	read(&manifest, blob(index.Manifests[0]))
	dir := t.TempDir()
	for i, l := range manifest.Layers {
		f, err := os.Create(filepath.Join(dir, fmt.Sprint(i)))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		layers = append(layers, indexLayer(t, filepath.Join(layout, blob(l)), f))
		data = append(data, f)
	}
	return layers, data
}

// indexLayer indexes a gzip-compressed layer and writes its data file.
func indexLayer(t testing.TB, blob string, data *os.File) *erofs.Image {
	t.Helper()
	f, err := os.Open(blob)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	x := layertar.NewIndexer(layertar.Limits{})
	if _, err := io.Copy(io.MultiWriter(data, x), z); err != nil {
		t.Fatal(err)
	}
	var index bytes.Buffer
	sum, err := x.Finish(&index, filepath.Base(blob))
	if err != nil {
		t.Fatal(err)
	}
	if len(sum.Annex) > 0 {
		t.Fatal("the layer has an annex")
	}
	return openImage(t, index.Bytes())
}

func unpackUmoci(t *testing.T, layout string) string {
	t.Helper()
	rootfs := filepath.Join(t.TempDir(), "rootfs")
	run(t, "umoci", "raw", "unpack", "--image", layout+":latest", rootfs)
	return rootfs
}

func unpackPodman(t *testing.T, layout, store string) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "podman-") // short: podman allows 50 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	podman := func(args ...string) string {
		return run(t, "podman", append([]string{
			"--root", filepath.Join(dir, "root"), "--runroot", filepath.Join(dir, "run"), "--storage-driver", store,
		}, args...)...)
	}
	image := podman("pull", "-q", "oci:"+layout+":latest")
	at := podman("image", "mount", image)
	t.Cleanup(func() {
		podman("image", "umount", "-f", image)
		// The overlay store is a bind mount of itself, which podman leaves.
		unix.Unmount(filepath.Join(dir, "root", store), 0)
	})
	return at
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	var out, errs bytes.Buffer
	c := exec.Command(name, args...)
	c.Stdout, c.Stderr = &out, &errs
	if err := c.Run(); err != nil {
		t.Fatalf("%s %s: %v\n%s%s", name, strings.Join(args, " "), err, out.Bytes(), errs.Bytes())
	}
	return strings.TrimSpace(out.String())
}

// compareTrees compares entry by entry. differs changes what is ours to what an
// unpacker that is known to do otherwise makes of it.
func compareTrees(t *testing.T, ours, theirs map[string]*file, differs func(path string, ours, theirs *file)) {
	t.Helper()
	names := maps.Clone(ours)
	maps.Copy(names, theirs)
	reported, known := 0, 0
	report := func(format string, args ...any) {
		if reported++; reported <= 40 {
			t.Errorf(format, args...)
		}
	}
	for _, p := range slices.Sorted(maps.Keys(names)) {
		a, b := ours[p], theirs[p]
		if a == nil || b == nil {
			report("%q: here %v, there %v", p, a != nil, b != nil)
			continue
		}
		adjusted, there := *a, *b
		differs(p, &adjusted, &there)
		if adjusted != *a || there != *b {
			known++
		}
		if adjusted != there {
			report("%q:\n ours   %+v\n theirs %+v", p, adjusted, there)
		}
	}
	t.Logf("%d entries compared, %d differ, %d in the known ways only", len(names), reported, known)
}

// What the unpackers do otherwise, or cannot show. All three read tars with Go's
// archive/tar, for whose readers an extended attribute with an empty value is
// absent (containerd reads the records themselves, and has it; so do we).

const emptyXattr = `user.empty="" `

func umociDiffers(_ string, ours, _ *file) {
	ours.xattrs = strings.Replace(ours.xattrs, emptyXattr, "", 1)
}

// podmanDiffers is what both of podman's stores have in common. Where podman
// and umoci differ we are with umoci, as the image specification is.
func podmanDiffers(path string, ours, theirs *file) {
	ours.xattrs = strings.Replace(ours.xattrs, emptyXattr, "", 1)
	if strings.HasPrefix(ours.mtime, "-") {
		ours.mtime = "0.000000000" // no times before 1970
	}
	if path == "." {
		ours.mtime = theirs.mtime // the root's time is that of the unpacking
	}
}

// podmanVFSDiffers: this store copies the tree for each layer. The copy loses
// attributes outside user and security.capability, and links of anything but
// regular files; the unpacking leaves a directory the attributes it had, and
// changes the time of those that it puts links into.
func podmanVFSDiffers(path string, ours, theirs *file) {
	podmanDiffers(path, ours, theirs)
	if ours.mode&unix.S_IFMT != unix.S_IFREG {
		ours.nlink, ours.group = theirs.nlink, theirs.group
	}
	switch path {
	case "odd/dir":
		ours.mtime = theirs.mtime
		ours.xattrs = `user.dir="d" `
	case "odd/kept":
		ours.xattrs = `user.binary="\x00\xff\x00" user.one="1" `
	}
}

// podmanOverlayDiffers: this store unpacks each layer into a directory of its
// own and has the kernel merge them. It makes the root 0555 whatever the layers
// say; the kernel shows the link count of the layer's file, removed names included.
func podmanOverlayDiffers(path string, ours, theirs *file) {
	podmanDiffers(path, ours, theirs)
	switch path {
	case ".":
		ours.mode = theirs.mode
	case "odd/links/a", "odd/links/c":
		ours.nlink = 3
	}
}

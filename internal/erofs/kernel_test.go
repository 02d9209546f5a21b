package erofs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// mountKernel mounts an image with the kernel's EROFS and returns where. The
// mount goes with the test.
func mountKernel(t *testing.T, image []byte, devices []string) string {
	t.Helper()
	index := filepath.Join(t.TempDir(), "index")
	if err := os.WriteFile(index, image, 0o600); err != nil {
		t.Fatal(err)
	}
	at := t.TempDir()
	switch err := mountErofs(at, index, devices); {
	case err == nil:
	case os.Getenv("IMGFS_REQUIRE_FUSE") != "1" && (errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENOTBLK)):
		t.Skipf("the kernel cannot mount EROFS from a file here (root and Linux 6.12 needed): %v", err)
	default:
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(at, 0); err != nil {
			t.Errorf("unmount %s: %v", at, err)
			unix.Unmount(at, unix.MNT_DETACH) // a failed comparison may hold descriptors
		}
	})
	return at
}

func mountErofs(at, index string, devices []string) error {
	fs, err := unix.Fsopen("erofs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return fmt.Errorf("fsopen: %w", err)
	}
	defer unix.Close(fs)
	if err := unix.FsconfigSetString(fs, "source", index); err != nil {
		return fmt.Errorf("source: %w", err)
	}
	for _, d := range devices {
		if err := unix.FsconfigSetString(fs, "device", d); err != nil {
			return fmt.Errorf("device %s: %w", d, err)
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		var log [4096]byte
		n, _ := unix.Read(fs, log[:])
		return fmt.Errorf("create: %w %s", err, log[:max(n, 0)])
	}
	mnt, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV)
	if err != nil {
		return fmt.Errorf("fsmount: %w", err)
	}
	defer unix.Close(mnt)
	if err := unix.MoveMount(mnt, "", unix.AT_FDCWD, at, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("move_mount: %w", err)
	}
	return nil
}

// compareKernel compares the tree mounted at root with what the reader says.
func compareKernel(t *testing.T, m *Image, root string, devices []string) {
	t.Helper()
	var data []*os.File
	for _, d := range devices {
		f, err := os.Open(d)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		data = append(data, f)
	}
	seen := 0
	var walk func(path string, n NID)
	walk = func(path string, n NID) {
		seen++
		names, nids := compareInode(t, m, n, root, path, data)
		for i := range names {
			walk(strings.TrimPrefix(path+"/"+names[i], "/"), nids[i])
		}
	}
	walk("", m.Root())
	t.Logf("%d paths compared", seen)
}

// compareInode compares one inode; it returns a directory's entries.
func compareInode(t *testing.T, m *Image, n NID, root, path string, data []*os.File) (names []string, nids []NID) {
	t.Helper()
	var a Attr
	if err := m.Stat(n, &a); err != nil {
		t.Fatalf("stat %q: %v", path, err)
	}
	dirfd, name := openParent(t, root+"/"+path)
	defer unix.Close(dirfd)
	var st unix.Stat_t
	if err := unix.Fstatat(dirfd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		t.Fatalf("lstat %q: %v", path, err)
	}
	const form = "ino=%d %o %d:%d nlink=%d rdev=%#x size=%d mtime=%d.%09d"
	kernel := fmt.Sprintf(form, st.Ino, st.Mode, st.Uid, st.Gid, st.Nlink, encodeDev(st.Rdev), st.Size, st.Mtim.Sec, st.Mtim.Nsec)
	reader := fmt.Sprintf(form, n, a.Mode, a.UID, a.GID, a.Nlink, a.Rdev, a.Size, a.Mtime, a.MtimeNsec)
	if kernel != reader {
		t.Errorf("%q\nkernel %s\nreader %s", path, kernel, reader)
	}
	compareXattrs(t, m, n, fmt.Sprintf("/proc/self/fd/%d/%s", dirfd, name), path)
	switch a.Mode & modeType {
	case modeSymlink:
		buf := make([]byte, 8192)
		size, err := unix.Readlinkat(dirfd, name, buf)
		target, err2 := m.ReadLink(n)
		if err != nil || err2 != nil || !bytes.Equal(buf[:size], target) {
			t.Errorf("%q: target %.40q %v, reader %.40q %v", path, buf[:max(size, 0)], err, target, err2)
		}
	case modeRegular, modeDir:
		fd, err := unix.Openat(dirfd, name, unix.O_RDONLY, 0)
		if err != nil {
			t.Fatalf("open %q: %v", path, err)
		}
		f := os.NewFile(uintptr(fd), path)
		defer f.Close()
		if a.Mode&modeType == modeRegular {
			compareData(t, m, n, a.Size, f, data, path)
			return nil, nil
		}
		want, err := f.Readdirnames(-1)
		if err != nil {
			t.Fatalf("list %q: %v", path, err)
		}
		m.ReadDir(n, 0, func(e *Dirent) bool {
			if s := string(e.Name); s != "." && s != ".." {
				names, nids = append(names, s), append(nids, e.NID)
			}
			return true
		})
		if !slices.Equal(names, want) {
			t.Errorf("%q: kernel lists %d names, reader %d", path, len(want), len(names))
		}
	}
	return names, nids
}

// openParent opens the directory of a path that may be longer than PATH_MAX.
func openParent(t *testing.T, path string) (int, string) {
	t.Helper()
	parts := strings.Split(path, "/")
	fd, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	for len(parts) > 1 {
		n := min(len(parts)-1, 8)
		part := "./" + strings.Join(parts[:n], "/")
		parts = parts[n:]
		next, err := unix.Openat(fd, part, unix.O_PATH|unix.O_DIRECTORY, 0)
		unix.Close(fd)
		if err != nil {
			t.Fatalf("%q: %v", path, err)
		}
		fd = next
	}
	if parts[0] == "" {
		return fd, "."
	}
	return fd, parts[0]
}

// encodeDev returns the kernel's new_encode_dev form of a stat(2) device number.
func encodeDev(dev uint64) uint32 {
	major, minor := unix.Major(dev), unix.Minor(dev)
	return minor&0xff | major<<8 | minor&^0xff<<12
}

func compareXattrs(t *testing.T, m *Image, n NID, proc, path string) {
	t.Helper()
	list := make([]byte, 65536)
	size, err := unix.Llistxattr(proc, list)
	if err != nil {
		t.Fatalf("listxattr %q: %v", path, err)
	}
	kernel := strings.Split(string(list[:size]), "\x00")
	kernel = kernel[:len(kernel)-1]
	sort.Strings(kernel)
	var reader []string
	value := make([]byte, 65536)
	err = m.Xattrs(n, func(name string, want []byte) bool {
		reader = append(reader, name)
		size, err := unix.Lgetxattr(proc, name, value)
		if err != nil || !bytes.Equal(value[:max(size, 0)], want) {
			t.Errorf("%q: xattr %s: kernel %.20q %v, reader %.20q", path, name, value[:max(size, 0)], err, want)
		}
		return true
	})
	if err != nil || !slices.Equal(kernel, reader) {
		t.Errorf("%q: xattrs: kernel %q, reader %q %v", path, kernel, reader, err)
	}
}

// compareData compares a file's bytes with those that its extents name: all of
// a small one, 64 KiB here and there of a large one.
func compareData(t *testing.T, m *Image, n NID, size uint64, f *os.File, data []*os.File, path string) {
	t.Helper()
	starts, span := []uint64{0}, uint64(4<<20)
	if size > span {
		span = 64 << 10
		starts = []uint64{0, 1 << 20, 1<<32 - 5, 8 << 30, size - span}
	}
	for _, from := range starts {
		want := make([]byte, min(span, size-from))
		for off := from; off < from+uint64(len(want)); {
			e, err := m.Extent(n, off)
			if err != nil {
				t.Fatalf("extent of %q at %d: %v", path, off, err)
			}
			l := min(e.Len, from+uint64(len(want))-off)
			if !e.Hole {
				if _, err := data[e.Device].ReadAt(want[off-from:][:l], int64(e.Off)); err != nil {
					t.Fatalf("data of %q at %d: %v", path, off, err)
				}
			}
			off += l
		}
		got := make([]byte, len(want))
		if _, err := f.ReadAt(got, int64(from)); err != nil && (err != io.EOF || len(want) > 0) {
			t.Fatalf("read %q at %d: %v", path, from, err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%q: bytes at %d differ", path, from)
		}
	}
}

func TestKernelZoo(t *testing.T) {
	devices, tree := zoo()
	image := write(t, build(t, devices, "imgfs.chain.1", tree))
	data := zooData(t)
	at := mountKernel(t, image, data)
	compareKernel(t, open(t, image), at, data)
}

func TestKernelRandom(t *testing.T) {
	data := zooData(t)
	devices, _ := zoo()
	for seed := range uint64(5) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			image := write(t, build(t, devices, "", randomTree(seed)))
			compareKernel(t, open(t, image), mountKernel(t, image, data), data)
		})
	}
}

func TestKernelManyDevices(t *testing.T) {
	const count = 127 // as many as an image may have layers
	dir := t.TempDir()
	tree := []entry{{path: "", in: Inode{Mode: dirMode}}}
	var devices []Device
	var data []string
	for i := range count {
		content := bytes.Repeat([]byte(fmt.Sprintf("layer %03d ", i)), 200+i)
		path := filepath.Join(dir, fmt.Sprint(i))
		blocks := uint32(len(content)+BlockSize-1) / BlockSize
		content = append(content, make([]byte, int(blocks)*BlockSize-len(content))...)
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		data = append(data, path)
		devices = append(devices, Device{fmt.Sprintf("%064x", i), blocks})
		tree = append(tree, entry{path: fmt.Sprintf("file%d", i), in: oneChunk(1500+uint64(i), i, 1)})
	}
	image := write(t, build(t, devices, "", tree))
	at := mountKernel(t, image, data)
	compareKernel(t, open(t, image), at, data)
}

func TestKernelBigDirectory(t *testing.T) {
	tree := []entry{{path: "", in: Inode{Mode: dirMode}}, {path: "big", in: Inode{Mode: dirMode}}}
	for i := range 20_000 {
		tree = append(tree, entry{path: fmt.Sprintf("big/%x", i*2654435761), in: Inode{Mode: regular, UID: uint32(i)}})
	}
	image := write(t, build(t, nil, "", tree))
	compareKernel(t, open(t, image), mountKernel(t, image, nil), nil)
}

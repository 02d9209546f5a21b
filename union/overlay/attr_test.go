package overlay_test

import (
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// TestPrivileges: who writes to a file, or truncates it, takes set-uid and
// set-gid from it, unless he is root; so does a change of its owner.
func TestPrivileges(t *testing.T) {
	m := startCounted(t, chain{"dir d mode=0777\nfile d/low size=100 mode=6777 uid=5\nfile d/group size=100 mode=2767"}, nil)
	asNobody := func(script string) {
		t.Helper()
		out, err := exec.Command("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "sh", "-c", script, "sh", m.path("d")).CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v: %s", script, err, out)
		}
	}
	mode := func(name string) uint32 { return m.stat(name).Mode & 0o7777 }
	for _, c := range []struct {
		what  string
		do    func()
		after uint32
	}{
		{"a write", func() { asNobody(`echo x >> "$1"/f`) }, 0o777},
		{"an overwrite", func() { asNobody(`echo x 1<> "$1"/f`) }, 0o777},
		{"a truncation", func() { asNobody(`: > "$1"/f`) }, 0o777},
		{"fallocate", func() { asNobody(`fallocate -l 10000 "$1"/f`) }, 0o777},
		{"chown", func() { m.must(unix.Chown(m.path("d/f"), 7, 7)) }, 0o777},
		{"root's write", func() {
			fd := m.open("d/f", unix.O_WRONLY)
			m.pwrite(fd, "x", 0)
			m.close(fd)
		}, 0o6777},
	} {
		m.write("d/f", "x")
		m.must(unix.Chmod(m.path("d/f"), 0o6777))
		m.stat("d/f")
		c.do()
		if got := mode("d/f"); got != c.after {
			t.Errorf("after %s: mode %o, want %o", c.what, got, c.after)
		}
	}
	asNobody(`echo x >> "$1"/low; echo x >> "$1"/group`)
	if a, b := mode("d/low"), mode("d/group"); a != 0o777 || b != 0o2767 {
		t.Errorf("lower files: modes %o, %o, want 777, 2767", a, b)
	}
	// While it is open in passthrough, too.
	fd := m.open("d/open", unix.O_WRONLY|unix.O_CREAT)
	m.must(unix.Fchmod(fd, 0o4777))
	m.stat("d/open")
	asNobody(`echo x >> "$1"/open`)
	if got := mode("d/open"); got != 0o777 {
		t.Errorf("file open elsewhere: mode %o", got)
	}
	m.close(fd)
}

// TestXattrs: large ones, many, the errors of getxattr(2), and the names that
// are the format's own.
func TestXattrs(t *testing.T) {
	m := startCounted(t, chain{"file low x xattr:user.a=b"}, nil)
	m.write("up", "x")
	for _, name := range []string{"low", "up"} {
		p := m.path(name)
		buf := make([]byte, 70000)
		get := func(attr string, size int) string {
			n, err := unix.Lgetxattr(p, attr, buf[:size])
			if err != nil {
				return err.Error()
			}
			if size == 0 {
				return fmt.Sprint(n)
			}
			return string(buf[:n])
		}
		set := func(attr, value string, flags int) error { return unix.Lsetxattr(p, attr, []byte(value), flags) }
		m.must(set("user.a", "value", 0))
		large := strings.Repeat("v", 3000)
		m.must(set("user.large", large, unix.XATTR_CREATE))
		for i := range 20 {
			m.must(set(fmt.Sprintf("user.n%02d", i), fmt.Sprint(i), 0))
		}
		m.must(set("trusted.overlay.opaque", "y", 0))
		for _, c := range [][2]string{
			{get("user.a", 100), "value"}, {get("user.a", 0), "5"}, {get("user.a", 2), unix.ERANGE.Error()},
			{get("user.none", 100), unix.ENODATA.Error()}, {get("user.large", 4000), large}, {get("user.n17", 10), "17"},
			{get("trusted.overlay.opaque", 10), "y"}, {get("trusted.overlay.metacopy", 10), unix.ENODATA.Error()},
			{get("trusted.overlay.imgfs.nid", 10), unix.ENODATA.Error()},
		} {
			if c[0] != c[1] {
				t.Errorf("%s: %.20q, want %.20q", name, c[0], c[1])
			}
		}
		for _, c := range []struct {
			got, want error
		}{
			{set("user.a", "x", unix.XATTR_CREATE), unix.EEXIST},
			{set("user.none", "x", unix.XATTR_REPLACE), unix.ENODATA},
			{unix.Lremovexattr(p, "user.none"), unix.ENODATA},
			{set("user.containers.override_stat", "0:0:0777", 0), unix.EPERM},
			{set("user.fuseoverlayfs.x", "x", 0), unix.EPERM},
			{unix.Lremovexattr(p, "user.n03"), nil},
		} {
			if c.got != c.want {
				t.Errorf("%s: %v, want %v", name, c.got, c.want)
			}
		}
		n, err := unix.Llistxattr(p, buf)
		m.must(err)
		got := strings.Split(strings.TrimRight(string(buf[:n]), "\x00"), "\x00")
		if len(got) != 2+19+1 {
			t.Errorf("%s: listed %q", name, got)
		}
		if _, err := unix.Llistxattr(p, buf[:10]); err != unix.ERANGE {
			t.Errorf("%s: list into 10 bytes: %v", name, err)
		}
	}
	// What is the user's stays the user's on disk.
	if _, err := unix.Lgetxattr(m.onDisk("up"), "trusted.overlay.overlay.opaque", nil); err != nil {
		t.Error(err)
	}
}

// TestXattrOfSymlink: one that points into the mount itself is not followed,
// which would hang everybody.
func TestXattrOfSymlink(t *testing.T) {
	m := startCounted(t, chain{"file f x"}, nil)
	m.must(unix.Symlink(m.path("f"), m.path("l")))
	m.must(unix.Lsetxattr(m.path("l"), "trusted.x", []byte("l"), 0))
	buf := make([]byte, 10)
	if n, err := unix.Lgetxattr(m.path("l"), "trusted.x", buf); err != nil || string(buf[:n]) != "l" {
		t.Errorf("%q, %v", buf[:max(n, 0)], err)
	}
	if _, err := unix.Lgetxattr(m.path("f"), "trusted.x", buf); err != unix.ENODATA {
		t.Errorf("the target: %v", err)
	}
	m.must(unix.Lutimes(m.path("l"), []unix.Timeval{{Sec: 5}, {Sec: 6}}))
	if st := m.stat("l"); st.Mtim.Sec != 6 {
		t.Errorf("time %v", st.Mtim)
	}
}

// TestTimes: before 1970, after 2038, to the nanosecond, one without the other.
func TestTimes(t *testing.T) {
	m := startCounted(t, chain{"file low x mtime=9"}, nil)
	for _, c := range []unix.Timespec{{Sec: -100, Nsec: 5}, {Sec: 1 << 32, Nsec: 999999999}, {Sec: 0}} {
		ts := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, c}
		m.must(unix.UtimesNanoAt(unix.AT_FDCWD, m.path("low"), ts, unix.AT_SYMLINK_NOFOLLOW))
		if st := m.stat("low"); st.Mtim != c || st.Atim.Sec != 9 {
			t.Errorf("%v, set %v; access %v", st.Mtim, c, st.Atim)
		}
	}
	before := m.stat("low").Ctim
	m.must(unix.Chmod(m.path("low"), 0o600))
	if after := m.stat("low").Ctim; unix.TimespecToNsec(after) <= unix.TimespecToNsec(before) {
		t.Errorf("change time %v, was %v", after, before)
	}
}

// TestInodeFlags: what lsattr and chattr ask.
func TestInodeFlags(t *testing.T) {
	m := startCounted(t, chain{"dir d\nfile d/f x"}, nil)
	const nodump, immutable = 0x40, 0x10
	ioctl := func(name string, request uintptr, v uint32) (uint32, error) {
		fd := m.open(name, unix.O_RDONLY)
		defer m.close(fd)
		var arg [8]byte
		binary.NativeEndian.PutUint32(arg[:], v)
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(unsafe.Pointer(&arg)))
		if errno != 0 {
			return 0, errno
		}
		return binary.NativeEndian.Uint32(arg[:]), nil
	}
	for _, name := range []string{"d/f", "d"} {
		if v, err := ioctl(name, unix.FS_IOC_GETFLAGS, 0); v != 0 || err != nil {
			t.Errorf("%s: %#x, %v", name, v, err)
		}
		if _, err := ioctl(name, unix.FS_IOC_SETFLAGS, nodump); err != nil {
			t.Errorf("%s: set: %v", name, err)
		}
		if v, err := ioctl(name, unix.FS_IOC_GETFLAGS, 0); v != nodump || err != nil {
			t.Errorf("%s: %#x, %v", name, v, err)
		}
		if _, err := ioctl(name, unix.FS_IOC_SETFLAGS, immutable); err != unix.EOPNOTSUPP {
			t.Errorf("%s: set immutable: %v", name, err)
		}
	}
}

// TestManyFiles: descriptors are kept for some of the files, not for all.
func TestManyFiles(t *testing.T) {
	m := startCounted(t, chain{"dir d"}, nil)
	for i := range 1500 {
		m.write(fmt.Sprint("d/", i), "x")
	}
	fds, err := os.ReadDir("/proc/self/fd")
	m.must(err)
	if len(fds) > 512+256+100 {
		t.Errorf("%d descriptors are open", len(fds))
	}
	for i := range 1500 {
		if got := m.read(fmt.Sprint("d/", i)); got != "x" {
			t.Fatalf("%d: %q", i, got)
		}
	}
}

// TestStatfs: the space is the upper's, the names are ours.
func TestStatfs(t *testing.T) {
	m := startCounted(t, chain{"file f x"}, nil)
	var here, disk unix.Statfs_t
	m.must(unix.Statfs(m.at, &here))
	m.must(unix.Statfs(m.upper, &disk))
	if here.Namelen != 255 || here.Blocks*uint64(here.Frsize) != disk.Blocks*uint64(disk.Frsize) {
		t.Errorf("%+v, the upper has %+v", here, disk)
	}
}

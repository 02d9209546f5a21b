package fs

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/imgfs/imgfs/internal/erofs"
	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/imgtest"
	"github.com/imgfs/imgfs/internal/lower"
	"golang.org/x/sys/unix"
)

// helperMain is the test binary as another process, maybe another user's: it
// mounts $FS_TARGET, serves it, runs $FS_RUN (or, without, says "ready" and
// waits until it is unmounted) and unmounts.
func helperMain() int {
	err := func() error {
		target := os.Getenv("FS_TARGET")
		img, err := erofs.Open(os.Getenv("FS_INDEX"))
		if err != nil {
			return err
		}
		var data []lower.Data
		for _, path := range strings.Split(os.Getenv("FS_DATA"), ":") {
			f, err := os.Open(path)
			if err != nil {
				return err
			}
			data = append(data, &file{f: f})
		}
		var rfs fuse.RawFileSystem = NewChain(img, data, Options{})
		flags := MountFlags{Suid: os.Getenv("FS_SUID") != ""}
		if root := os.Getenv("FS_LOOPBACK"); root != "" {
			flags.Writable = true
			if rfs, err = openLoopback(root); err != nil {
				return err
			}
		}
		upper := os.Getenv("FS_UPPER")
		var fd int
		var mnt *os.File
		if upper == "" {
			fd, err = Mount(target, "test:helper", flags)
		} else {
			mnt, fd, err = MountDetached("test:helper", MountFlags{})
		}
		if err != nil {
			return err
		}
		s, err := Serve(context.Background(), rfs, fd, Options{})
		if err == nil && upper != "" {
			err = MountOverlay(target, "test:helper", Overlay{Lower: mnt, Upper: upper, User: true}, MountFlags{})
			mnt.Close()
		}
		if err != nil {
			return errors.Join(err, Unmount(target, true))
		}
		run := os.Getenv("FS_RUN")
		if run == "" {
			fmt.Println("ready")
			return s.Wait()
		}
		cmd := exec.Command("sh", "-c", run)
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		return errors.Join(cmd.Run(), Unmount(target, false), s.Wait())
	}()
	if err != nil {
		fmt.Printf("%v: %v (%s)\n", fault.KindOf(err), err, fault.HintOf(err))
		return 1
	}
	return 0
}

// helper returns the command of helperMain, behind the given prefix.
func helper(t *testing.T, p *packed, target, run string, prefix ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	args := append(prefix, self)
	cmd := exec.Command(args[0], args[1:]...)
	var paths []string
	for _, f := range p.files {
		paths = append(paths, f.f.Name())
	}
	cmd.Env = append(os.Environ(), "FS_HELPER=1", "FS_TARGET="+target, "FS_RUN="+run, "FS_INDEX="+p.index, "FS_DATA="+strings.Join(paths, ":"))
	return cmd
}

// startHelper starts helperMain and waits until it serves.
func startHelper(t *testing.T, p *packed, target string, prefix ...string) *exec.Cmd {
	t.Helper()
	cmd := helper(t, p, target, "", prefix...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if line != "ready\n" {
		t.Fatalf("helper: %q %v", line, err)
	}
	return cmd
}

func kindIs(t *testing.T, err error, kind fault.Kind, parts ...string) {
	t.Helper()
	if err == nil {
		t.Fatal("no error")
	}
	if fault.KindOf(err) != kind {
		t.Errorf("%v: kind %v, want %v", err, fault.KindOf(err), kind)
	}
	all := err.Error() + "\n" + fault.HintOf(err)
	if strings.Contains(err.Error(), "\n") {
		t.Errorf("more than one line: %q", err)
	}
	for _, p := range parts {
		if !strings.Contains(all, p) {
			t.Errorf("%q lacks %q", all, p)
		}
	}
}

func TestMountErrors(t *testing.T) {
	p := pack(t, makeTree(t, 1, 1), 1)
	dir := t.TempDir()
	name := filepath.Join(dir, "file")
	if err := os.WriteFile(name, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	mount := func(target string, o MountFlags) error {
		fd, err := Mount(target, "test:image", o)
		if err == nil {
			unix.Close(fd)
			Unmount(target, true)
		}
		return err
	}
	kindIs(t, mount(filepath.Join(dir, "absent"), MountFlags{}), fault.NotFound, "no such directory", "mkdir -p "+dir+"/absent")
	kindIs(t, mount(name, MountFlags{}), fault.Invalid, "not a directory")
	kindIs(t, mount(dir, MountFlags{}), fault.Conflict, "not empty", "--nonempty")
	if err := mount(dir, MountFlags{NonEmpty: true}); err != nil {
		t.Error(err)
	}
	// Replaced by a symlink since it was checked, itself or above.
	elsewhere, link := t.TempDir(), filepath.Join(dir, "link")
	if err := errors.Join(os.Mkdir(filepath.Join(elsewhere, "sub"), 0o755), os.Symlink(elsewhere, link)); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{link, filepath.Join(link, "sub")} {
		kindIs(t, mount(path, MountFlags{NonEmpty: true, Checked: true}), fault.Conflict, path+": has been replaced and is "+elsewhere)
	}
	target, _ := serve(t, p, MountFlags{})
	kindIs(t, mount(target, MountFlags{}), fault.Conflict, "has mounted test:image here already", "imgfs umount")
	kindIs(t, Unmount(dir, false), fault.NotFound, "not a mountpoint")
	kindIs(t, Unmount(filepath.Join(dir, "absent/x"), false), fault.NotFound, "does not exist")
	kindIs(t, MountErofs(filepath.Join(dir, "absent"), p.index, nil, MountFlags{}), fault.NotFound, "no such directory")

	for _, c := range []struct{ name, setup, want string }{
		{"no /dev/fuse", "mount -t tmpfs none /dev", "unavailable: /dev/fuse: no such file or directory (modprobe fuse"},
		{"no device behind it", "mount -t tmpfs none /dev && mknod /dev/fuse c 10 77", "unavailable: /dev/fuse: "},
	} {
		t.Run(c.name, func(t *testing.T) {
			cmd := helper(t, p, t.TempDir(), "true", "unshare", "-m", "sh", "-c", c.setup+` && exec "$0"`)
			if out, err := cmd.Output(); err == nil || !strings.HasPrefix(string(out), c.want) {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
}

func TestUnmount(t *testing.T) {
	p := pack(t, makeTree(t, 1, 3), 1)
	for _, c := range []struct {
		name string
		do   func(dir string) error
	}{
		{"imgfs", func(dir string) error { return Unmount(dir, false) }},
		{"umount", func(dir string) error { return exec.Command("umount", dir).Run() }},
		{"fusermount3", func(dir string) error { return exec.Command("fusermount3", "-u", dir).Run() }},
		{"lazy", func(dir string) error { return Unmount(dir, true) }},
		{"through a symlink", func(dir string) error {
			link := filepath.Join(t.TempDir(), "link")
			return errors.Join(os.Symlink(dir, link), Unmount(link, false))
		}},
		{"through symlinks, a slash behind", func(dir string) error {
			first, second := filepath.Join(t.TempDir(), "first"), filepath.Join(t.TempDir(), "second")
			return errors.Join(os.Symlink(dir+"/", first), os.Symlink(first, second), Unmount(second, false))
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir, s := serve(t, p, MountFlags{})
			if err := c.do(dir); err != nil {
				t.Fatal(err)
			}
			if err := s.Wait(); err != nil {
				t.Error(err)
			}
			if at, err := MountAt(dir); err != nil || at != nil {
				t.Errorf("%v %v", at, err)
			}
		})
	}
	t.Run("closed server", func(t *testing.T) {
		dir, s := serve(t, p, MountFlags{})
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(filepath.Join(dir, "x")); !isErrno(err, unix.ENOTCONN) {
			t.Errorf("%v, want ENOTCONN", err)
		}
		_, err := Mount(dir, "x", MountFlags{})
		kindIs(t, err, fault.Conflict, "imgfs umount")
	})
	t.Run("killed server", func(t *testing.T) {
		needRoot(t)
		dir := t.TempDir()
		cmd := startHelper(t, p, dir)
		cmd.Process.Kill()
		cmd.Wait()
		if _, err := os.Stat(filepath.Join(dir, "x")); !isErrno(err, unix.ENOTCONN) {
			t.Errorf("%v, want ENOTCONN", err)
		}
		if err := Unmount(dir, false); err != nil {
			t.Error(err)
		}
	})
}

func TestBusy(t *testing.T) {
	p := pack(t, makeTree(t, 1, 3), 1)
	dir, _ := serve(t, p, MountFlags{})
	for _, c := range []struct{ name, script, how string }{
		{"cwd", `cd "$0/dir-0" && echo && exec sleep 60`, "working directory " + dir + "/dir-0"},
		{"open file", `exec 5<"$0/dir-0/file-1" && echo && exec sleep 60`, "open file " + dir + "/dir-0/file-1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			cmd := exec.Command("sh", "-c", c.script, dir)
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			bufio.NewReader(out).ReadString('\n')
			err = Unmount(dir, false)
			// The shell may or may not have become sleep by now.
			kindIs(t, err, fault.Conflict, fmt.Sprintf("busy: held by pid %d (s", cmd.Process.Pid), c.how, "--lazy")
			cmd.Process.Kill()
			cmd.Wait()
		})
	}
	t.Run("mount", func(t *testing.T) {
		above := filepath.Join(dir, "dir-0")
		if err := unix.Mount("none", above, "tmpfs", 0, ""); err != nil {
			t.Fatal(err)
		}
		kindIs(t, Unmount(dir, false), fault.Conflict, "mount "+above)
		if err := unix.Unmount(above, 0); err != nil {
			t.Error(err)
		}
	})
}

// asUser is a prefix of commands. Where udev does not run /dev/fuse is root's
// alone: in a mount namespace of its own the user gets one as udev makes it.
func asUser(t *testing.T) []string {
	device := filepath.Join(publicDir(t), "fuse")
	return []string{"unshare", "-m", "sh", "-c", `mknod -m 666 ` + device + ` c 10 229 && mount --bind ` + device +
		` /dev/fuse && setpriv --reuid=65534 --regid=65534 --clear-groups "$0"; rc=$?; rm ` + device + `; exit $rc`}
}

func TestRootless(t *testing.T) {
	root := makeTree(t, 5, 5)
	p := pack(t, root, 2)
	run := func(t *testing.T, dir string, prefix ...string) string {
		t.Helper()
		out, err := helper(t, p, dir, `diff -r "$ROOT" "$FS_TARGET" && stat -f -c %T "$FS_TARGET" && grep -c " fuse.imgfs " /proc/self/mountinfo >&2`, prefix...).CombinedOutput()
		if err != nil {
			t.Errorf("%v: %s", err, out)
		}
		return string(out)
	}
	t.Setenv("ROOT", root)
	mine := func(t *testing.T) string {
		dir := publicDir(t)
		if err := os.Chown(dir, 65534, 65534); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	t.Run("fusermount3", func(t *testing.T) {
		_, err := findFusermount()
		imgtest.Need(t, err == nil, "fusermount3")
		asUser := asUser(t)
		run(t, mine(t), asUser...) // its Unmount goes through fusermount3, too
		for _, c := range []struct{ name, want, suid string }{
			{"foreign directory", "denied: mount ", ""}, // not the user's own
			{"suid", "denied: ", "1"},
		} {
			cmd := helper(t, p, publicDir(t), "true", asUser...)
			cmd.Env = append(cmd.Env, "FS_SUID="+c.suid)
			if out, err := cmd.Output(); err == nil || !strings.HasPrefix(string(out), c.want) || bytes.Count(out, []byte("\n")) != 1 {
				t.Errorf("%s: %v: %s", c.name, err, out)
			}
		}
	})
	t.Run("unshare -Urm", func(t *testing.T) {
		run(t, t.TempDir(), "unshare", "-Urm")
	})
}

func TestChroot(t *testing.T) {
	needRoot(t)
	busybox, err := exec.LookPath("busybox")
	imgtest.Need(t, err == nil, "busybox-static")
	root := t.TempDir()
	b, err := os.ReadFile(busybox)
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{
		os.MkdirAll(filepath.Join(root, "bin"), 0o755),
		os.MkdirAll(filepath.Join(root, "dev"), 0o755),
		os.WriteFile(filepath.Join(root, "bin/busybox"), b, 0o755),
		unix.Mknod(filepath.Join(root, "dev/zero"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 5))),
		unix.Chmod(filepath.Join(root, "dev/zero"), 0o666),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	p := pack(t, root, 1)
	for _, c := range []struct {
		name  string
		flags MountFlags
		want  string
	}{
		{"suid and dev", MountFlags{Suid: true, Dev: true}, "4\n"},
		{"neither", MountFlags{}, "0\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir, _ := serve(t, p, c.flags)
			cmd := exec.Command("chroot", dir, "/bin/busybox", "sh", "-c", `/bin/busybox head -c 4 /dev/zero | /bin/busybox wc -c`)
			if out, err := cmd.Output(); err != nil || string(out) != c.want {
				t.Errorf("bytes from a device: %q %v", out, err)
			}
			var st unix.Statfs_t
			if err := unix.Statfs(dir, &st); err != nil {
				t.Fatal(err)
			}
			if st.Flags&unix.ST_NOSUID == 0 != c.flags.Suid || st.Flags&unix.ST_NODEV == 0 != c.flags.Dev {
				t.Errorf("flags %#x of %+v", st.Flags, c.flags)
			}
		})
	}
}

func TestMountErofs(t *testing.T) {
	needRoot(t)
	root := makeTree(t, 16, 16)
	for _, devices := range []int{1, 127} {
		t.Run(fmt.Sprint(devices), func(t *testing.T) {
			p := pack(t, root, devices)
			var paths []string
			for _, f := range p.files {
				paths = append(paths, f.f.Name())
			}
			dir := t.TempDir()
			if err := MountErofs(dir, p.index, paths, MountFlags{}); err != nil {
				imgtest.Need(t, fault.KindOf(err) != fault.Unavailable, "EROFS of files: "+err.Error())
				t.Fatal(err)
			}
			defer func() {
				if err := Unmount(dir, false); err != nil {
					t.Error(err)
				}
			}()
			sameTree(t, root, dir)
			at, err := MountAt(dir)
			if err != nil || at == nil || at.Type != "erofs" {
				t.Fatalf("%+v %v", at, err)
			}
			for _, flag := range []string{"ro", "nosuid", "nodev", "noatime"} {
				if !strings.Contains(","+at.Options+",", ","+flag+",") {
					t.Errorf("options %s lack %s", at.Options, flag)
				}
			}
		})
	}
	t.Run("errors", func(t *testing.T) {
		p := pack(t, root, 1)
		junk := filepath.Join(t.TempDir(), "junk")
		if err := os.WriteFile(junk, make([]byte, 8192), 0o644); err != nil {
			t.Fatal(err)
		}
		kindIs(t, MountErofs(t.TempDir(), junk, nil, MountFlags{}), fault.Unavailable, "driver erofs: ", "--driver fuse")
		err := MountErofs(t.TempDir(), p.index, []string{"/absent"}, MountFlags{})
		kindIs(t, err, fault.KindOf(err), "driver erofs: ", "--driver fuse")
	})
}

func TestMountinfo(t *testing.T) {
	const in = "36 35 98:0 /mnt1 /mnt/with\\040blank\\134 rw,noatime master:1 shared:7 - ext3 /dev/root rw,errors=continue\n" +
		"46 27 0:42 / /tmp/x ro,nosuid - fuse.imgfs docker.io/library/a:1 ro,user_id=0\n" +
		"47 27 0:43 / /tmp/y rw - tmpfs  rw\n"
	got, err := parseMountinfo([]byte(in))
	if err != nil || len(got) != 3 {
		t.Fatal(got, err)
	}
	if m := got[0]; m.Target != `/mnt/with blank\` || m.Dev != "98:0" || m.Root != "/mnt1" || m.Imgfs() || m.Source != "/dev/root" {
		t.Errorf("%+v", m)
	}
	if m := got[1]; m.ID != 46 || m.Parent != 27 || !m.Imgfs() || m.Source != "docker.io/library/a:1" || m.Options != "ro,nosuid" {
		t.Errorf("%+v", m)
	}
	if m := got[2]; m.Source != "" || m.Super != "rw" {
		t.Errorf("%+v", m)
	}
	for _, bad := range []string{"x", "1 2 3:4 / / rw - ext4", "a 2 3:4 / / rw - ext4 x rw", "1 2 34 / / rw - ext4 x rw", "1 2 3:4 / / rw ext4 x rw"} {
		if _, err := parseMountinfo([]byte(bad)); !errors.Is(err, errMountinfo) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func FuzzMountinfo(f *testing.F) {
	f.Add([]byte("36 35 98:0 /a\\040 /b\\ rw,noatime master:1 - ext3 /dev/root rw\n"))
	f.Add([]byte("1 2 3:4 / / rw - t  \n\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		all, err := parseMountinfo(b)
		if err == nil && len(all) > bytes.Count(b, []byte("\n"))+1 {
			t.Errorf("%d mounts of %q", len(all), b)
		}
	})
}

package overlay_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// secret stands in a file outside every upper; a mount must never show it.
const secret = "this lies outside the upper"

// damage is what somebody has done to the diff/ of an upper.
type damage struct {
	name string
	do   func(t *testing.T, diff string)
	// foreign: what was put there belongs to root, not to the server.
	foreign bool
	// refused: the mount may be refused, with a part of the message.
	refused string
	// says are operations and what they answer; "" in place of an answer: anything.
	says [][2]string
}

func must(t *testing.T, errs ...error) {
	t.Helper()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
}

func mark(t *testing.T, path, name, value string) {
	t.Helper()
	must(t, unix.Lsetxattr(path, "trusted.overlay."+name, []byte(value), 0))
}

func damages() []damage {
	untouched := [2]string{"stat x", "100644 0:0 nlink=1 size=5000"}
	// An upper directory "r" that says it is a lower one.
	redirect := func(name, to string, says ...[2]string) damage {
		return damage{name: "redirect of a directory: " + name, says: append(says, untouched), do: func(t *testing.T, diff string) {
			must(t, os.Mkdir(diff+"/r", 0o755), os.WriteFile(diff+"/r/own", []byte("own"), 0o644))
			mark(t, diff+"/r", "redirect", to)
		}}
	}
	// An upper file "r" whose data is said to be in the lower.
	metacopy := func(name, to string, says ...[2]string) damage {
		return damage{name: "metacopy: " + name, says: append(says, untouched), do: func(t *testing.T, diff string) {
			must(t, os.WriteFile(diff+"/r", nil, 0o644), os.Truncate(diff+"/r", 5000))
			mark(t, diff+"/r", "metacopy", "")
			if to != "" {
				mark(t, diff+"/r", "redirect", to)
			}
		}}
	}
	nid := func(name, value string) damage {
		return damage{name: "identity: " + name, says: [][2]string{
			{"cat r", "own"}, {"cat r2", "own"}, {"cat x", "x"}, {"stat r", "100644 0:0 nlink=1 size=3"}, untouched,
			{"append r 1 t", "ok"}, {"stat r2", "100644 0:0 nlink=1 size=3"}, untouched,
		}, do: func(t *testing.T, diff string) {
			for _, n := range []string{"/r", "/r2"} {
				must(t, os.WriteFile(diff+n, []byte("own"), 0o644))
				mark(t, diff+n, "imgfs.nid", value)
			}
		}}
	}
	all := []damage{
		redirect("outside", "/../../../../../etc"),
		redirect("up", ".."),
		redirect("itself", "."),
		redirect("empty", ""),
		redirect("the root", "/"),
		redirect("nothing there", "/nope/nope", [2]string{"stat r/own", ""}),
		redirect("a file", "/d/f1"),
		redirect("a symlink", "/s"),
		redirect("through dots", "/d/../d/sub"),
		redirect("double slash", "//d//sub/"),
		redirect("NUL", "/d\x00/sub"),
		redirect("long", "/"+strings.Repeat("d/", 1000)),
		redirect("bytes", "\xff\xfe\x01\n"),
		redirect("a directory that is there as well", "/d"),
		redirect("relative", "d"),
		redirect("relative with slashes", "d/sub"),
		metacopy("nothing below", "", [2]string{"cat r", "EIO"}),
		metacopy("nothing there", "/nope", [2]string{"cat r", "EIO"}),
		metacopy("a directory", "/d", [2]string{"cat r", "EIO"}),
		metacopy("a symlink", "/s", [2]string{"cat r", "EIO"}),
		metacopy("a fifo", "/p", [2]string{"cat r", "EIO"}),
		metacopy("outside", "/../outside", [2]string{"cat r", "EIO"}),
		metacopy("another file", "/y"), // which has 6000 bytes
		metacopy("a shorter file", "/gone"),
		nid("no number", "x"),
		nid("zero", "0"),
		nid("the root", "36"),
		nid("beyond", "99999999999"),
		nid("overflow", "99999999999999999999999999"),
		nid("negative", "-1"),
	}
	for n := 32; n < 140; n += 9 {
		all = append(all, nid(fmt.Sprint("number ", n), fmt.Sprint(n)))
	}
	for _, v := range []string{"", "n", "x", "yy", strings.Repeat("y", 5000)} {
		all = append(all, damage{name: fmt.Sprintf("opaque of %d bytes %.2q", len(v), v), says: [][2]string{untouched, {"mkdir d/new 755", "ok"}},
			do: func(t *testing.T, diff string) {
				must(t, os.Mkdir(diff+"/d", 0o755))
				if err := unix.Lsetxattr(diff+"/d", "trusted.overlay.opaque", []byte(v), 0); err != nil {
					t.Skip(err)
				}
			}})
	}
	return append(all, []damage{
		{name: "two directories are the same lower one", says: [][2]string{untouched, {"rmtree r1", ""}, {"rmtree r2", ""}},
			do: func(t *testing.T, diff string) {
				for _, n := range []string{"/r1", "/r2"} {
					must(t, os.Mkdir(diff+n, 0o755))
					mark(t, diff+n, "redirect", "/d/sub")
				}
			}},
		{name: "a directory is its own lower's parent", says: [][2]string{untouched, {"rmtree d", ""}},
			do: func(t *testing.T, diff string) {
				must(t, os.MkdirAll(diff+"/d/sub", 0o755))
				mark(t, diff+"/d/sub", "redirect", "/d")
			}},
		{name: "the root is redirected", says: [][2]string{untouched},
			do: func(t *testing.T, diff string) { mark(t, diff, "redirect", "/d") }},
		{name: "whiteouts of nothing", says: [][2]string{untouched, {"stat none", "ENOENT"}, {"mkdir none 755", "ok"}, {"create own/none 644", "ok"},
			{"unlink own/none", "ok"}, {"rmdir own", "ok"}},
			do: func(t *testing.T, diff string) {
				must(t, unix.Mknod(diff+"/none", unix.S_IFCHR, 0), os.Mkdir(diff+"/own", 0o755), unix.Mknod(diff+"/own/none", unix.S_IFCHR, 0))
			}},
		{name: "linked whiteouts, as the kernel makes them", says: [][2]string{{"stat x", "ENOENT"}, {"stat y", "ENOENT"}, {"create x 644", "ok"}, {"stat x", "100644 0:0 nlink=1 size=0"}, {"stat y", "ENOENT"}},
			do: func(t *testing.T, diff string) {
				must(t, unix.Mknod(diff+"/x", unix.S_IFCHR, 0), os.Link(diff+"/x", diff+"/y"))
			}},
		{name: "a whiteout with attributes", says: [][2]string{{"stat x", "ENOENT"}, {"create x 644", "ok"}},
			do: func(t *testing.T, diff string) {
				must(t, unix.Mknod(diff+"/x", unix.S_IFCHR|0o777, 0))
				mark(t, diff+"/x", "opaque", "y")
				mark(t, diff+"/x", "metacopy", "")
			}},
		{name: "marks on what cannot have them", says: [][2]string{untouched, {"stat fifo", "010644 0:0 nlink=1 size=0"}, {"rename fifo fifo2", "ok"}, {"unlink fifo2", "ok"}, {"unlink link", "ok"}},
			do: func(t *testing.T, diff string) {
				must(t, unix.Mkfifo(diff+"/fifo", 0o644), os.Symlink("d", diff+"/link"))
				for _, n := range []string{"/fifo", "/link"} {
					for _, m := range []string{"opaque", "redirect", "metacopy", "imgfs.nid", "whiteout"} {
						mark(t, diff+n, m, "/d")
					}
				}
			}},
		{name: "symlinks that lead out", says: [][2]string{untouched, {"setxattr out trusted.x v", "ok"}, {"chown out 7 7", "ok"}, {"times out 5", "ok"},
			{"chmod d 700", "ENOENT"}, {"unlink out", "ok"}, {"create d/f 644", "ENOENT"}},
			do: func(t *testing.T, diff string) {
				outside := filepath.Join(filepath.Dir(filepath.Dir(diff)), "outside")
				must(t, os.Symlink(outside, diff+"/out"), os.Symlink(outside+"/dir", diff+"/d"), os.Symlink(outside+"/file", diff+"/h1"))
			}},
		{name: "a directory where the lower has a file, and the other way round", says: [][2]string{{"list x", "../4 ./4"}, {"rmdir x", "ok"}, {"stat x", "ENOENT"}, {"stat d", "100644 0:0 nlink=1 size=3"}, {"unlink d", "ok"}, {"mkdir d 755", "ok"}, {"list d", "../4 ./4"}},
			do: func(t *testing.T, diff string) {
				must(t, os.Mkdir(diff+"/x", 0o755), os.WriteFile(diff+"/d", []byte("own"), 0o644))
			}},
		{name: "directories deeper than a path is long", says: [][2]string{untouched, {"rmtree deep", "ok"}},
			do: func(t *testing.T, diff string) {
				fd, err := unix.Open(diff, unix.O_PATH, 0)
				must(t, err)
				for i := range 1500 {
					name := "deep"
					if i > 0 {
						name = "d"
					}
					must(t, unix.Mkdirat(fd, name, 0o755))
					next, err := unix.Openat(fd, name, unix.O_PATH, 0)
					must(t, err, unix.Close(fd))
					fd = next
				}
				unix.Close(fd)
			}},
		{name: "diff is a symlink", refused: "diff", do: func(t *testing.T, diff string) {
			must(t, os.Rename(diff, diff+".real"), os.Symlink(filepath.Join(filepath.Dir(filepath.Dir(diff)), "outside"), diff))
		}},
		{name: "stage is a symlink", refused: "stage", do: func(t *testing.T, diff string) {
			stage := filepath.Join(filepath.Dir(diff), "stage")
			must(t, os.Remove(stage), os.Symlink(filepath.Join(filepath.Dir(filepath.Dir(diff)), "outside"), stage))
		}},
		{name: "upper.json is a fifo", refused: "upper.json", do: func(t *testing.T, diff string) {
			info := filepath.Join(filepath.Dir(diff), "upper.json")
			must(t, os.Remove(info), unix.Mkfifo(info, 0o644))
		}},
		{name: "upper.json is cut", refused: "upper.json", do: func(t *testing.T, diff string) {
			must(t, os.Truncate(filepath.Join(filepath.Dir(diff), "upper.json"), 20))
		}},
		{name: "lock is a symlink", refused: "lock", do: func(t *testing.T, diff string) {
			lock := filepath.Join(filepath.Dir(diff), "lock")
			must(t, os.Remove(lock), os.Symlink(filepath.Join(filepath.Dir(filepath.Dir(diff)), "outside", "file"), lock))
		}},
	}...)
}

// overrides are damages to a rootless upper.
func overrides() []damage {
	sound := [2]string{"stat x", "100644 0:0 nlink=1 size=5000"}
	// On a file and on a directory.
	override := func(v string, says ...[2]string) damage {
		return damage{name: fmt.Sprintf("override %.20q", v), says: append(says, sound), do: func(t *testing.T, diff string) {
			must(t, os.WriteFile(diff+"/r", []byte("own"), 0o644), os.Mkdir(diff+"/rd", 0o755), os.WriteFile(diff+"/rd/f", []byte("own"), 0o644))
			for _, n := range []string{"/r", "/rd"} {
				if err := unix.Lsetxattr(diff+n, "user.containers.override_stat", []byte(v), 0); err != nil {
					t.Skip(err)
				}
			}
		}}
	}
	all := []damage{
		override("5:6:0100600", [2]string{"stat r", "100600 5:6 nlink=1 size=3"}, [2]string{"stat rd", ""}),
		override("5:6:0600", [2]string{"stat r", "100600 5:6 nlink=1 size=3"}, [2]string{"stat rd", "040600 5:6"}, [2]string{"cat rd/f", "own"}),
		override("0:0:0644:char-1-3", [2]string{"stat r", "020644 0:0 nlink=1 size=0"}, [2]string{"unlink r", "ok"}),
		override("0:0:0644:char-0-0"), // no whiteout can come of it
	}
	for _, v := range []string{"", ":", "::", "a:b:c", "garbage", "0:0", "-1:-1:0644", "4294967296:0:0644", "4294967295:4294967295:0644", "0:0:999", "0:0:77777777777777777777777",
		"0:0:0644:", "0:0:0644:nosuch", "0:0:0644:char", "0:0:0644:char-1", "0:0:0644:char-x-y", "0:0:0644:block-99999999999-1",
		"0:0:0755:dir", "0:0:0644:file", "0:0:0777:symlink", "0:0:0644:pipe", "0:0:0644:socket", "0:0:0040755", "0:0:0120777", "0:0:0644\x00", strings.Repeat("0", 1000) + ":0:0644"} {
		all = append(all, override(v))
	}
	return append(all, []damage{
		{name: "what the daemon may not read", says: [][2]string{sound, {"list r", "EIO"}, {"cat rf", "EACCES"}, {"stat x", "100644 0:0 nlink=1 size=5000"}}, foreign: true,
			do: func(t *testing.T, diff string) {
				must(t, os.Mkdir(diff+"/r", 0o700), os.WriteFile(diff+"/r/f", nil, 0o600), os.WriteFile(diff+"/rf", []byte(secret), 0o600))
			}},
		{name: "what the daemon's own mode forbids", says: [][2]string{sound, {"rmtree r", ""}, {"unlink rf", "ok"}},
			do: func(t *testing.T, diff string) {
				must(t, os.Mkdir(diff+"/r", 0o700), os.WriteFile(diff+"/r/f", []byte("own"), 0o644), os.WriteFile(diff+"/rf", []byte("own"), 0o644),
					os.Chmod(diff+"/r", 0), os.Chmod(diff+"/rf", 0))
			}},
	}...)
}

// TestDamagedRootlessUpper is TestDamagedUpper for the overrides.
func TestDamagedRootlessUpper(t *testing.T) {
	needRoot(t)
	for _, d := range overrides() {
		t.Run(d.name, func(t *testing.T) { damaged(t, rootless, d) })
	}
}

// TestDamagedUpper: whatever an upper holds, the server stands, shows nothing
// from outside, changes nothing there, and what is sound can be read.
func TestDamagedUpper(t *testing.T) {
	needRoot(t)
	for _, d := range damages() {
		t.Run(d.name, func(t *testing.T) { damaged(t, asRoot, d) })
	}
}

func damaged(t *testing.T, k kind, d damage) {
	u := start(t, k, killChain())
	if err := u.close(); err != nil {
		t.Fatal(err)
	}
	outside := filepath.Join(filepath.Dir(u.Upper), "outside")
	must(t, os.MkdirAll(outside+"/dir", 0o755), os.WriteFile(outside+"/file", []byte(secret), 0o644), os.WriteFile(outside+"/dir/f", []byte(secret), 0o644))
	diff := filepath.Join(u.Upper, "diff")
	d.do(t, diff)
	if u.uid != 0 && !d.foreign {
		must(t, filepath.WalkDir(diff, func(path string, _ fs.DirEntry, err error) error {
			return errors.Join(err, os.Lchown(path, u.uid, u.uid))
		}))
	}
	hostBefore := hostTree(t, outside)
	err := u.mount()
	switch {
	case err != nil && d.refused != "" && strings.Contains(err.Error(), d.refused) && !strings.Contains(err.Error(), "panic"):
	case err != nil:
		t.Fatal(err)
	default:
		walkAll(t, u)
		for _, s := range d.says {
			if got := u.r.do(s[0]); got != answer(s) && s[1] != "" {
				t.Errorf("%s: %s, want %s\n%s", s[0], got, answer(s), &u.errs)
			}
		}
		walkAll(t, u)
		if err := u.remount(); err != nil {
			t.Fatal(err)
		}
		walkAll(t, u)
	}
	if after := hostTree(t, outside); after != hostBefore {
		t.Errorf("outside the upper:\n%swas\n%s", after, hostBefore)
	}
}

// answer expands what cat says of known contents.
func answer(s [2]string) string {
	if !strings.HasPrefix(s[0], "cat ") {
		return s[1]
	}
	content := []byte(s[1])
	switch s[1] {
	case "EIO", "EACCES", "ENOENT", "":
		return s[1]
	case "x":
		content = (&layerEntry{size: 5000}).content()
	}
	return readAs(content)
}

// walkAll looks at everything that can be reached, errors or not, within
// bounds: a tree of an upper's and a chain's entries has no more than both.
func walkAll(t *testing.T, u *unionTarget) {
	t.Helper()
	seen := 0
	var walk func(dir, depth int)
	walk = func(dir, depth int) {
		entries, err := listDir(dir)
		if err != nil {
			return
		}
		for _, e := range entries {
			if e.name == "." || e.name == ".." || seen > 20000 {
				continue
			}
			seen++
			var st unix.Stat_t
			if unix.Fstatat(dir, e.name, &st, unix.AT_SYMLINK_NOFOLLOW) != nil {
				continue
			}
			xattrsOf(proc(dir)+"/"+e.name, true)
			switch st.Mode & unix.S_IFMT {
			case unix.S_IFDIR:
				fd, err := openat(dir, e.name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW)
				if err == nil {
					walk(fd, depth+1)
					unix.Close(fd)
				}
			case unix.S_IFREG:
				fd, err := openat(dir, e.name, unix.O_RDONLY|unix.O_NOFOLLOW)
				if err != nil {
					continue
				}
				buf := make([]byte, 1<<20)
				n, _ := unix.Read(fd, buf)
				if bytes.Contains(buf[:max(n, 0)], []byte(secret)) {
					t.Errorf("%s shows what is outside", e.name)
				}
				unix.Close(fd)
			}
		}
	}
	fd, err := u.r.at(".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatalf("%v\n%s", err, &u.errs)
	}
	defer unix.Close(fd)
	walk(fd, 0)
	if seen == 0 || seen > 20000 {
		t.Errorf("%d entries", seen)
	}
	if got := u.r.do("cat y"); got != readAs((&layerEntry{size: 6000}).content()) && got != "ENOENT" {
		t.Errorf("a sound file: %s\n%s", got, &u.errs)
	}
}

// hostTree describes a directory of the host, all attributes included.
func hostTree(t *testing.T, dir string) string {
	t.Helper()
	fd, err := openat(unix.AT_FDCWD, dir, unix.O_PATH|unix.O_DIRECTORY)
	must(t, err)
	defer unix.Close(fd)
	s, err := takeSnapshot(fd, masks{})
	must(t, err)
	return differences(map[string]string{}, s.lines)
}

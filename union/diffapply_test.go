package union

import (
	"archive/tar"
	"bytes"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/imgfs/imgfs/internal/erofs"
	"golang.org/x/sys/unix"
)

const diffBase = `
	mkdir etc; printf '127.0.0.1 localhost' >etc/hosts; ln etc/hosts etc/hosts.allow
	mkdir -p usr/local/lib; printf '\0\0' >usr/local/lib/libnothing.so; ln -s libnothing.so usr/local/lib/libnothing.so.2
	mkdir home; mkdir -m 700 home/derek`

// TestDiffApply has containerd's test suite for appliers of layers (FSSuite of
// containerd/continuity, TestSymlinks of containerd/pkg/archive): a directory is
// changed in steps, each step becomes a layer, and the chain of the layers so
// far has to be what the directory is.
func TestDiffApply(t *testing.T) {
	for name, steps := range map[string][]string{
		"Basic": {
			diffBase,
			`printf '127.0.0.1 localhost.localdomain' >etc/hosts; echo /dev/sda1 >etc/fstab; chmod 600 etc/fstab
			 : >etc/badfile; chmod 666 etc/badfile; echo '#ZSH is just better' >home/derek/.zshrc`,
			`rm etc/badfile; mv home/derek home/notderek`,
			`rm -r usr; rm etc/hosts.allow`,
			`rm -r home; mkdir -p home/derek; chmod 700 home/derek; echo '#not going away' >home/derek/.bashrc; ln etc/hosts etc/hosts.allow`,
		},
		"Deletion": {
			`mkdir -p test/somedir; mkdir -m 700 lib; : >lib/hidden`,
			`: >test/a; : >test/b; mkdir test/otherdir; : >test/otherdir/.empty; rm -r lib; mkdir -m 700 lib; : >lib/not-hidden`,
			`rm test/a test/b; rm -r test/otherdir; : >lib/newfile`,
		},
		"Update": {
			`mkdir d1; mkdir -m 700 d2; echo something >d1/f1; echo else >d1/f2; echo entirely >d1/f3`,
			`echo different length >d1/f1; chmod 664 d1/f1; rm d1/f3; echo updated >d1/f3; chmod 766 d1/f2; chmod 777 d2`,
		},
		"DirectoryPermission": {
			`mkdir -m 700 d1; mkdir -m 751 d2; mkdir -m 777 d3`,
			`echo x >d1/f; mkdir -m 700 d1/d; echo x >d1/d/f; echo x >d2/f; echo x >d3/f`,
		},
		"ParentDirectoryPermission": {
			`mkdir -p d1/a/b/c; chmod 700 d1 d1/a d1/a/b d1/a/b/c; echo 1 >d1/a/b/f; mkdir -p d2/a/b/c; chmod 751 d2 d2/a/b d2/a/b/c; echo 1 >d2/a/b/f`,
			`echo 1 >d1/a/b/f; chmod 700 d1/a/b/c; echo 2 >d2/a/b/f; chmod 751 d2/a/b/c`,
		},
		"HardlinkUnmodified":       {diffBase, `printf 127.0.0.2 >etc/hosts`, `ln etc/hosts etc/hosts.deny`},
		"HardlinkBeforeUnmodified": {diffBase, `printf 127.0.0.2 >etc/hosts`, `ln etc/hosts etc/before-hosts`},
		"HardlinkBeforeModified":   {diffBase, `printf 127.0.0.2 >etc/hosts`, `rm etc/hosts; printf 127.0.0.1 >etc/hosts; ln etc/hosts etc/before-hosts`},
		"HardlinkBroken":           {diffBase, `cp -p etc/hosts x; mv x etc/hosts`, `rm etc/hosts.allow`},
		"SymlinksBreakout": {
			diffBase,
			`ln -s ../other home/derek/other; ln -s ../../etc home/derek/etc; ln -s up/../../other home/derek/updown
			 ln -s ../../../breakout home/derek/breakout; ln -s ../../breakout breakout; ln -s /etc localetc`,
			`rm -r home/derek; ln -s / home/derek`,
			`rm localetc; mkdir localetc; : >localetc/passwd; rm home/derek; mkdir home/derek; ln -s .. home/derek/up`,
		},
		"SymlinksRetargeted": {
			`mkdir bin sbin; printf '\0' >bin/superbinary; printf '\0' >sbin/superbinary; ln -s ../bin/superbinary bin/other1; ln -s superbinary bin/other2`,
			`rm bin/other1; ln -s /bin/superbinary bin/other1; ln -s superbinary bin/other3`,
			`rm bin/superbinary; ln -s /sbin/superbinary bin/superbinary`,
		},
		"SymlinkToDirectory": {
			`mkdir bin; : >bin/actualbinary; ln -s actualbinary bin/myapp`,
			`rm bin/myapp; mkdir bin/myapp`,
			`rmdir bin/myapp; ln bin/actualbinary bin/myapp`,
		},
		"TypesInTurn": {
			`: >x; mkdir y; : >y/a`, `rm x; mkdir x; : >x/a; rm -r y; ln -s x y`, `rm -r x; mkfifo x; rm y; mkdir -p y/b/c`, `rm x; ln -s y x; rm -r y/b; : >y/b`, `rm -r x y`, `: >x; : >y`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			var before map[string]*file
			var layers []*erofs.Image
			var data [][]byte
			for i, script := range steps {
				c := exec.Command("sh", "-ec", "umask 022\n"+script)
				c.Dir = dir
				if out, err := c.CombinedOutput(); err != nil {
					t.Fatalf("step %d: %v\n%s", i, err, out)
				}
				after := hostTree(t, dir)
				img, b, err := indexTar(diffTar(t, dir, before, after), fmt.Sprintf("%064x", i+1))
				if err != nil {
					t.Fatal(err)
				}
				layers, data, before = append(layers, img), append(data, b), after
				chain, err := mergeEveryWay(t, layers)
				if err != nil {
					t.Fatal(err)
				}
				compareTrees(t, chainTree(t, chain, data), after, func(string, *file, *file) {})
			}
		})
	}
}

// diffTar returns the layer that makes after of before, in the order containerd
// writes: by path, removals where the name was.
func diffTar(t *testing.T, dir string, before, after map[string]*file) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	write := func(h *tar.Header, content []byte) {
		h.Format, h.Size = tar.FormatPAX, int64(len(content))
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(content); err != nil {
			t.Fatal(err)
		}
	}
	names := maps.Clone(after)
	maps.Copy(names, before)
	for _, p := range slices.Sorted(maps.Keys(names)) {
		old, f := before[p], after[p]
		if f == nil {
			// Below a removed directory, or one that is something else now, there
			// is nothing to say.
			if parent := after[filepath.Dir(p)]; parent != nil && parent.mode&unix.S_IFMT == unix.S_IFDIR {
				write(&tar.Header{Typeflag: tar.TypeReg, Name: filepath.Join(filepath.Dir(p), ".wh."+filepath.Base(p))}, nil)
			}
			continue
		}
		if old != nil && *old == *f {
			continue
		}
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(dir, p), &st); err != nil {
			t.Fatal(err)
		}
		h := &tar.Header{Name: p, Mode: int64(f.mode & 0o7777), Uid: int(f.uid), Gid: int(f.gid), ModTime: time.Unix(st.Mtim.Unix())}
		var content []byte
		switch f.mode & unix.S_IFMT {
		case unix.S_IFDIR:
			h.Typeflag = tar.TypeDir
		case unix.S_IFLNK:
			h.Typeflag, h.Linkname = tar.TypeSymlink, f.target
		case unix.S_IFIFO:
			h.Typeflag = tar.TypeFifo
		default:
			h.Typeflag = tar.TypeReg
			var err error
			if content, err = os.ReadFile(filepath.Join(dir, p)); err != nil {
				t.Fatal(err)
			}
		}
		if f.group != "" && f.group != p {
			h.Typeflag, h.Linkname, content = tar.TypeLink, f.group, nil
		}
		write(h, content)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

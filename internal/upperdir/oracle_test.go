package upperdir

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/internal/erofs"
	"github.com/imgfs/imgfs/internal/imgtest"
	"github.com/imgfs/imgfs/internal/layertar"
	"github.com/imgfs/imgfs/internal/lower"
	"github.com/imgfs/imgfs/union"
)

// file is a device of a chain.
type file struct{ f *os.File }

func (d file) Fill(context.Context, int64, int64, int64) (*os.File, error) { return d.f, nil }

// chainOf makes the chain of layers given as tars, lowest first.
func chainOf(t *testing.T, tars ...[]byte) *lower.Tree {
	t.Helper()
	var layers []*erofs.Image
	var data []lower.Data
	for i, b := range tars {
		x := layertar.NewIndexer(layertar.Limits{})
		if _, err := x.Write(b); err != nil {
			t.Fatalf("layer %d: %v", i, err)
		}
		var index bytes.Buffer
		sum, err := x.Finish(&index, fmt.Sprintf("%064x", i))
		if err != nil {
			t.Fatalf("layer %d: %v", i, err)
		}
		stream := make([]byte, sum.DataSize)
		copy(stream, b)
		for _, a := range sum.Annex {
			copy(stream[a.To:a.To+a.Len], stream[a.From:])
		}
		path := filepath.Join(t.TempDir(), "data")
		if err := os.WriteFile(path, stream, 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		data = append(data, file{f})
		img, err := erofs.New(index.Bytes())
		if err != nil {
			t.Fatal(err)
		}
		layers = append(layers, img)
	}
	var merged bytes.Buffer
	if _, err := union.Merge(&merged, layers); err != nil {
		t.Fatal(err)
	}
	img, err := erofs.New(merged.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	low := lower.New(img, data, 0, lower.Root)
	return &low
}

// treeOf lists a chain.
func treeOf(t *testing.T, low *lower.Tree) string {
	t.Helper()
	var b bytes.Buffer
	if err := Export(t.Context(), &b, low, nil); err != nil {
		t.Fatal(err)
	}
	return unpacked(t, b.Bytes())
}

// unpacked lists what GNU tar makes of a tar.
func unpacked(t *testing.T, b []byte) string {
	t.Helper()
	dir := t.TempDir()
	untar(t, dir, b)
	return listDir(t, dir)
}

func untar(t *testing.T, dir string, b []byte) {
	t.Helper()
	cmd := exec.Command("tar", "-x", "-p", "--xattrs", "--xattrs-include=*", "--numeric-owner", "-C", dir)
	cmd.Stdin = bytes.NewReader(b)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("tar: %v\n%s", err, out)
	}
}

// listDir lists a directory as imgtest.ListDir does, without the link counts of
// directories.
func listDir(t *testing.T, dir string) string {
	t.Helper()
	list, err := imgtest.ListDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	for line := range strings.Lines(list) {
		if f := strings.Fields(line); len(f) > 4 && f[1] == "d" {
			line = strings.Replace(line, " "+f[4]+" ", " ", 1)
		}
		out.WriteString(line)
	}
	return out.String()
}

// overlayMount mounts kernel overlayfs with the upper over a copy of low, runs
// the script in it and returns the tree's list, with the mount gone.
func overlayMount(t *testing.T, d *Dir, low *lower.Tree, script string) string {
	t.Helper()
	imgtest.Need(t, os.Geteuid() == 0, "root")
	if err := d.Seed(low.Image()); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := Export(t.Context(), &b, low, nil); err != nil {
		t.Fatal(err)
	}
	lowerDir, mnt := t.TempDir(), t.TempDir()
	untar(t, lowerDir, b.Bytes())
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s/diff,workdir=%s/work,index=off,redirect_dir=on,metacopy=on", lowerDir, d.Path(), d.Path())
	if err := unix.Mount("none", mnt, "overlay", 0, options); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(mnt, 0)
	cmd := exec.Command("sh", "-euc", script)
	cmd.Dir = mnt
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return listDir(t, mnt)
}

const baseImage = `
dir . mode=0755 mtime=100
dir etc mode=0755 mtime=1000
file etc/passwd root mode=0644 mtime=1001
file etc/shadow secret mode=0600 gid=42 mtime=1002.5
link etc/shadow- etc/shadow mode=0600 gid=42 mtime=1002.5
dir etc/conf.d mode=0755 mtime=1003
file etc/conf.d/a a mode=0644 mtime=1004
file etc/conf.d/b b mode=0644 mtime=1004
dir etc/conf.d/deep mode=0755 mtime=1004
file etc/conf.d/deep/c c mode=0644 mtime=1004
dir usr mode=0755 mtime=1000
dir usr/lib mode=0755 mtime=1000
file usr/lib/libc.so size=3000000 mode=0755 mtime=1005
file usr/lib/libm.so math mode=0644 mtime=1005 xattr:user.x=y
symlink lib usr/lib mtime=1006
dir var mode=0755 mtime=1000
dir var/spool mode=1777 uid=7 gid=7 mtime=1000
file var/spool/x x mode=0644 uid=7 gid=7 mtime=1000
file var.lock l mode=0644 mtime=1000
dir dev mode=0755 mtime=1000
char dev/null 1:3 mode=0666 mtime=1000
fifo dev/fifo mode=0644 mtime=1000
`

func base(t *testing.T) *lower.Tree {
	t.Helper()
	b, err := imgtest.Tar(baseImage)
	if err != nil {
		t.Fatal(err)
	}
	return chainOf(t, b)
}

func layerOf(t *testing.T, d *Dir, low *lower.Tree) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := d.WriteLayer(t.Context(), &b, low); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func exportOf(t *testing.T, d *Dir, low *lower.Tree) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := Export(t.Context(), &b, low, d); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func changesOf(t *testing.T, d *Dir, low *lower.Tree) string {
	t.Helper()
	var b strings.Builder
	err := d.Changes(t.Context(), low, func(c Change) error {
		fmt.Fprintf(&b, "%v %s\n", c.Kind, c.Path)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// TestOracle has kernel overlayfs change an image, and compares the tree that
// was seen through its mount with those that the export and the layer give.
func TestOracle(t *testing.T) {
	for _, tt := range []struct{ name, script, changes string }{
		{"nothing", ":", ""},
		{"read", "cat etc/passwd; ls -lR .", ""},
		{"create", "mkdir -p new/sub; echo hi > new/sub/f; ln new/sub/f new/g; ln -s /x new/l; mknod new/null c 1 3; mkfifo new/p; echo x > etc/y", "C /etc\nA /etc/y\nA /new\nA /new/g\nA /new/l\nA /new/null\nA /new/p\nA /new/sub\nA /new/sub/f\n"},
		{"append", "echo more >> etc/passwd", ""},
		{"chmod", "chmod 4711 usr/lib/libc.so; chown 5:6 usr/lib/libm.so; touch -d @77.25 lib -h; setfattr -n user.new -v 1 etc/passwd", ""},
		{"chmod directory", "chmod 0700 var/spool; chmod 1755 .; chown 3 .", ""},
		{"remove", "rm etc/passwd; rm -r etc/conf.d; rm dev/null lib", "C /dev\nD /dev/null\nC /etc\nD /etc/conf.d\nD /etc/passwd\nD /lib\n"},
		{"replace directory", "rm -r etc/conf.d; mkdir etc/conf.d; echo n > etc/conf.d/b; mkdir etc/conf.d/deep", "C /etc\nC /etc/conf.d\nD /etc/conf.d/a\nC /etc/conf.d/b\nC /etc/conf.d/deep\nD /etc/conf.d/deep/c\n"},
		{"types", "rm etc/passwd; mkdir etc/passwd; echo 1 > etc/passwd/x; rm -r var/spool; echo f > var/spool; rm lib; mkdir lib; touch lib/x", ""},
		{"rename directory", "mv etc/conf.d etc/conf.e", "C /etc\nD /etc/conf.d\nA /etc/conf.e\nA /etc/conf.e/a\nA /etc/conf.e/b\nA /etc/conf.e/deep\nA /etc/conf.e/deep/c\n"},
		{"rename up", "mv usr/lib/ x; echo z >> x/libm.so; rm x/libc.so; mkdir x/n; ln -s a x/n/l", ""},
		{"rename over", "rm -r var/spool; mv etc/conf.d var/spool; rm var/spool/a", ""},
		{"rename and back", "mv etc/conf.d x; touch x/new; mv x etc/conf.d", ""},
		{"rename nested", "mv etc e; mv e/conf.d/deep e/d; mv e/conf.d var/; mkdir etc; mv e/d etc/", ""},
		{"exchange", "mv etc t; mv usr etc; mv t usr", ""},
		{"rename file", "mv usr/lib/libc.so libc; mv etc/passwd etc/pw; chmod 600 libc", ""},
		{"sparse", "truncate -s 10M big; echo end >> big; truncate -s 100 usr/lib/libc.so", ""},
		{"names", "touch $(printf 'a%.0s' $(seq 255)); touch \"$(printf 'x\\377y\\nz')\"; mkdir a; touch a/b a.b", ""},
		{"shared", "echo x > var.lockx; rm -r var; touch var", ""},
		{"times", "touch -d @-5.5 etc/passwd; touch -d @10000000000 etc/conf.d/a; chown 3000000:4000000000 etc/conf.d/b", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			low := base(t)
			d := newDir(t, Info{})
			want := overlayMount(t, d, low, tt.script)
			if got := unpacked(t, exportOf(t, d, low)); got != want {
				t.Errorf("export:\n%s", lineDiff(want, got))
			}
			b := layerOf(t, d, low)
			lowTar := new(bytes.Buffer)
			if err := Export(t.Context(), lowTar, low, nil); err != nil {
				t.Fatal(err)
			}
			if got := treeOf(t, chainOf(t, lowTar.Bytes(), b)); got != want {
				t.Errorf("layer:\n%s", lineDiff(want, got))
			}
			if again := layerOf(t, d, low); !bytes.Equal(again, b) {
				t.Error("two layers of one upper differ")
			}
			if got := changesOf(t, d, low); tt.changes != "" && got != tt.changes {
				t.Errorf("changes:\n%s\nwant:\n%s", got, tt.changes)
			}
			if tt.name == "nothing" || tt.name == "read" {
				if len(b) != 1024 {
					t.Errorf("layer of an unchanged upper has %d bytes", len(b))
				}
				if empty, err := d.Empty(); !empty || err != nil {
					t.Errorf("Empty() = %v, %v", empty, err)
				}
			}
		})
	}
}

// lineDiff shows the lines that differ.
func lineDiff(want, got string) string {
	has := map[string]int{}
	for l := range strings.Lines(want) {
		has[l]++
	}
	var out strings.Builder
	for l := range strings.Lines(got) {
		if has[l]--; has[l] < 0 {
			out.WriteString("+" + l)
		}
	}
	for l := range strings.Lines(want) {
		if has[l]--; has[l] >= 0 {
			out.WriteString("-" + l)
		}
	}
	return out.String()
}

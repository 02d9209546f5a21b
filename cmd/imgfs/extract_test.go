package main

import (
	"archive/tar"
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/imgfs/imgfs/internal/fault"
)

// A tar that no tree gives, of a daemon that was taken over, makes nothing
// outside the destination.
func TestExtractHostile(t *testing.T) {
	t.Parallel()
	type entry = tar.Header
	dir := entry{Typeflag: tar.TypeDir, Name: "d/", Mode: 0o755}
	for name, list := range map[string][]entry{
		"up":                {dir, {Typeflag: tar.TypeReg, Name: "d/../../out/x"}},
		"up, last":          {dir, {Typeflag: tar.TypeDir, Name: "d/.."}},
		"absolute":          {dir, {Typeflag: tar.TypeReg, Name: "/d/x"}},
		"elsewhere":         {dir, {Typeflag: tar.TypeReg, Name: "out/x"}},
		"of a like name":    {dir, {Typeflag: tar.TypeReg, Name: "dd/x"}},
		"twice slashed":     {dir, {Typeflag: tar.TypeReg, Name: "d//x"}},
		"through a link":    {dir, {Typeflag: tar.TypeSymlink, Name: "d/l", Linkname: "../../out"}, {Typeflag: tar.TypeReg, Name: "d/l/x"}},
		"into a link":       {dir, {Typeflag: tar.TypeSymlink, Name: "d/l", Linkname: "../../out"}, {Typeflag: tar.TypeDir, Name: "d/l"}, {Typeflag: tar.TypeReg, Name: "d/l/x"}},
		"hard link up":      {dir, {Typeflag: tar.TypeLink, Name: "d/x", Linkname: "d/../../out/victim"}},
		"hard link to link": {dir, {Typeflag: tar.TypeSymlink, Name: "d/l", Linkname: "../../out"}, {Typeflag: tar.TypeLink, Name: "d/x", Linkname: "d/l/victim"}},
		"no parent":         {dir, {Typeflag: tar.TypeReg, Name: "d/none/x"}},
		"unknown type":      {dir, {Typeflag: '9', Name: "d/x"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			top := t.TempDir()
			dest, out := filepath.Join(top, "dest"), filepath.Join(top, "out")
			for _, d := range []string{dest, out} {
				if err := os.Mkdir(d, 0o755); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.WriteFile(filepath.Join(out, "victim"), []byte("safe"), 0o600); err != nil {
				t.Fatal(err)
			}
			var b bytes.Buffer
			w := tar.NewWriter(&b)
			for _, h := range list {
				if err := w.WriteHeader(&h); err != nil {
					t.Fatal(err)
				}
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			x := &extraction{archive: true, root: os.Geteuid() == 0, skipped: func(string, string) {}}
			if err := x.run(tar.NewReader(&b), dest, false); err == nil {
				t.Error("no error")
			}
			found, err := os.ReadDir(out)
			if err != nil || len(found) != 1 {
				t.Errorf("outside there is %v, %v", found, err)
			}
			if n := links(t, filepath.Join(out, "victim")); n != 1 {
				t.Errorf("the file outside has %d names", n)
			}
		})
	}
}

func TestPlace(t *testing.T) {
	t.Parallel()
	top := t.TempDir()
	file, dir := filepath.Join(top, "file"), filepath.Join(top, "dir")
	if err := errors.Join(os.WriteFile(file, nil, 0o600), os.Mkdir(dir, 0o755)); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		dest          string
		dir, contents bool
		want          string // parent and name, or the kind of the error
	}{
		{dir, false, false, "dir/n"},
		{dir + "/", false, false, "dir/n"},
		{dir, true, false, "dir/n"},
		{dir, true, true, "dir"},
		{file, false, false, "file"},
		{file, true, false, "conflict"},
		{file + "/", false, false, "not a directory"},
		{top + "/new", false, false, "new"},
		{top + "/new", true, false, "new"},
		{top + "/new", true, true, "new"},
		{top + "/new/", true, false, "new"},
		{top + "/new/", false, false, "not found"},
		{top + "/no/new", true, false, "not found"},
	} {
		parent, as, err := place(tt.dest, "n", tt.dir, tt.contents)
		got := strings.TrimPrefix(filepath.Join(parent, as), top+"/")
		switch {
		case fault.KindOf(err) == fault.Conflict:
			got = "conflict"
		case fault.KindOf(err) == fault.NotFound:
			got = "not found"
		case err != nil:
			got = err.Error()[strings.LastIndex(err.Error(), ": ")+2:]
		}
		if got != tt.want {
			t.Errorf("%+v: %s", tt, got)
		}
	}
}

func TestSplitPath(t *testing.T) {
	t.Parallel()
	for arg, want := range map[string][2]string{
		"ubuntu:/etc":                        {"ubuntu", "/etc"},
		"ubuntu:14.04:/etc/x":                {"ubuntu:14.04", "/etc/x"},
		"localhost:5000/a/b:1:/x:/y":         {"localhost:5000/a/b:1", "/x:/y"},
		"a@sha256:0123:/x":                   {"a@sha256:0123", "/x"},
		"oci:/images/a:1:/x":                 {"oci:/images/a:1", "/x"},
		"oci-archive:/images/a.tar:/x":       {"oci-archive:/images/a.tar", "/x"},
		"docker://localhost:5000/a:1:/x":     {"docker://localhost:5000/a:1", "/x"},
		"/mnt/x:/":                           {"/mnt/x", "/"},
		"ubuntu:14.04":                       {"ubuntu:14.04", "-"},
		"oci:/images/a":                      {"oci:/images/a", "-"},
		"ubuntu:etc":                         {"ubuntu:etc", "-"},
		"docker-archive:images/saved.tar:/x": {"docker-archive:images/saved.tar", "/x"},
	} {
		tree, path, ok := splitPath(arg)
		if !ok {
			path = "-"
		}
		if tree != want[0] || path != want[1] {
			t.Errorf("%s: %s %s", arg, tree, path)
		}
	}
}

func links(t *testing.T, path string) uint64 {
	t.Helper()
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return uint64(st.Sys().(*syscall.Stat_t).Nlink)
}

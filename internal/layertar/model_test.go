package layertar

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"path"
	"sort"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/imgfs/imgfs/internal/imgtest"
)

// node is an inode as archive/tar tells it.
type node struct {
	hdr     *tar.Header
	content []byte
	names   int
}

// model applies a stream read by archive/tar to a map from path to inode, and
// lists that as imgtest.List does. It knows no symbolic links in parents, no
// whiteouts and no hard links across layers.
func model(stream []byte) (string, error) {
	impliedDir := &tar.Header{Typeflag: tar.TypeDir, Mode: 0o755, ModTime: time.Unix(0, 0)}
	files := map[string]*node{"": {hdr: impliedDir}}
	r := tar.NewReader(bytes.NewReader(stream))
	for {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return "", err
		}
		content, err := io.ReadAll(r)
		if err != nil {
			return "", err
		}
		if h.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		name := strings.TrimPrefix(path.Clean("/"+h.Name), "/")
		for dir := name; dir != ""; {
			dir = strings.TrimPrefix(path.Dir("/"+dir), "/")
			if files[dir] == nil {
				files[dir] = &node{hdr: impliedDir}
			}
		}
		n := &node{hdr: h, content: content}
		if h.Typeflag == tar.TypeLink {
			target := strings.TrimPrefix(path.Clean("/"+h.Linkname), "/")
			n = files[target]
			if n == nil || n.hdr.Typeflag == tar.TypeDir {
				return "", fmt.Errorf("%s: no target", h.Name)
			}
			// As docker and containerd: the link's attributes are the inode's.
			merged := *n.hdr
			merged.Mode, merged.Uid, merged.Gid, merged.ModTime = h.Mode, h.Uid, h.Gid, h.ModTime
			merged.PAXRecords = maps.Clone(merged.PAXRecords)
			if merged.PAXRecords == nil {
				merged.PAXRecords = map[string]string{}
			}
			maps.Copy(merged.PAXRecords, h.PAXRecords)
			n.hdr = &merged
		}
		if old := files[name]; old != nil && (old.hdr.Typeflag != tar.TypeDir || n.hdr.Typeflag != tar.TypeDir) {
			for p := range files {
				if strings.HasPrefix(p, name+"/") {
					delete(files, p)
				}
			}
		}
		files[name] = n
	}

	var paths []string
	for p, n := range files {
		n.names++
		paths = append(paths, p)
	}
	// Parents first, names in byte order, as walking a tree gives them.
	sort.Slice(paths, func(i, j int) bool {
		return strings.ReplaceAll(paths[i], "/", "\x00") < strings.ReplaceAll(paths[j], "/", "\x00")
	})
	var b strings.Builder
	first := map[*node]string{}
	for _, p := range paths {
		n := files[p]
		h := n.hdr
		if n.names > 1 && first[n] != "" {
			fmt.Fprintf(&b, "%s = %s\n", q("/"+p), q(first[n]))
			continue
		}
		first[n] = "/" + p
		letter, mode, names := "f", h.Mode&0o7777, n.names
		switch h.Typeflag {
		case tar.TypeDir:
			letter, names = "d", 2
			for p2, n2 := range files {
				if p2 != "" && n2.hdr.Typeflag == tar.TypeDir && strings.TrimPrefix(path.Dir("/"+p2), "/") == p {
					names++
				}
			}
		case tar.TypeSymlink:
			letter, mode = "l", 0o777
		case tar.TypeChar:
			letter = "c"
		case tar.TypeBlock:
			letter = "b"
		case tar.TypeFifo:
			letter = "p"
		}
		fmt.Fprintf(&b, "%s %s %04o %d:%d n%d @%d", q("/"+p), letter, mode, uint32(h.Uid), uint32(h.Gid), names, h.ModTime.Unix())
		if ns := h.ModTime.Nanosecond(); ns != 0 {
			fmt.Fprintf(&b, ".%09d", ns)
		}
		switch letter {
		case "f":
			if fmt.Fprintf(&b, " %d", len(n.content)); len(n.content) <= 64 {
				fmt.Fprintf(&b, " %q", n.content)
			} else {
				fmt.Fprintf(&b, " sha256:%x", sha256.Sum256(n.content))
			}
		case "l":
			fmt.Fprintf(&b, " -> %s", q(h.Linkname))
		case "c", "b":
			fmt.Fprintf(&b, " %d:%d", h.Devmajor, h.Devminor)
		}
		var xattrs []string
		for k, v := range h.PAXRecords {
			if k, ok := strings.CutPrefix(k, "SCHILY.xattr."); ok && (letter == "f" || letter == "d" || !strings.HasPrefix(k, "user.")) {
				xattrs = append(xattrs, fmt.Sprintf(" %s=%q", k, v))
			}
		}
		sort.Strings(xattrs)
		b.WriteString(strings.Join(xattrs, "") + "\n")
	}
	return b.String(), nil
}

func q(s string) string {
	for i := range len(s) {
		if c := s[i]; c <= ' ' || c > '~' || c == '"' || c == '\\' {
			return strconv.QuoteToASCII(s)
		}
	}
	return s
}

// randomTar writes a tar of n entries with archive/tar: every type, every
// format, names that need extended headers, some entries twice.
func randomTar(rnd *rand.Rand, n int) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	dirs := []string{""}
	var files, all []string
	name := func() string {
		if len(all) > 0 && rnd.IntN(8) == 0 {
			return all[rnd.IntN(len(all))]
		}
		s := fmt.Sprintf("n%d", rnd.IntN(4*n))
		switch rnd.IntN(8) {
		case 0:
			s += strings.Repeat("x", rnd.IntN(240))
		case 1:
			s += "é\xff" // not all of it UTF-8
		case 2:
			s = "." + s
		}
		return dirs[rnd.IntN(len(dirs))] + s
	}
	for range n {
		h := &tar.Header{
			Name: name(), Mode: rnd.Int64N(0o10000), Uid: rnd.IntN(1 << 20), Gid: rnd.IntN(1 << 20),
			ModTime: time.Unix(rnd.Int64N(1<<31), 0), Format: []tar.Format{tar.FormatGNU, tar.FormatPAX}[rnd.IntN(2)],
		}
		if rnd.IntN(10) == 0 {
			h.Uid, h.Gid = rnd.IntN(1<<32-1), rnd.IntN(1<<32-1)
		}
		if h.Format == tar.FormatPAX {
			if rnd.IntN(2) == 0 {
				h.ModTime = time.Unix(rnd.Int64N(1<<35)-1<<34, rnd.Int64N(1e9))
			}
			if rnd.IntN(3) == 0 {
				h.PAXRecords = map[string]string{
					"SCHILY.xattr.user.a":              strings.Repeat("v\x00", rnd.IntN(100)) + ".",
					"SCHILY.xattr.security.capability": "\x01\x00\x00\x02\x00\x20=\n",
				}
			}
		} else if rnd.IntN(4) == 0 {
			h.ModTime = time.Unix(-rnd.Int64N(1<<40), 0)
		}
		h.Typeflag = "0000001234567"[rnd.IntN(13)]
		switch h.Typeflag {
		case tar.TypeLink:
			if len(files) == 0 {
				continue
			}
			h.Linkname = files[rnd.IntN(len(files))]
		case tar.TypeSymlink:
			h.Linkname = strings.Repeat("../t", 1+rnd.IntN(60))
		case tar.TypeChar, tar.TypeBlock:
			h.Devmajor, h.Devminor = rnd.Int64N(1<<12), rnd.Int64N(1<<20)
		case tar.TypeReg, '7':
			h.Size = rnd.Int64N(3000)
		}
		isDir := h.Typeflag == tar.TypeDir
		if isDir {
			h.Name += "/"
		}
		var before bytes.Buffer
		before.Write(b.Bytes())
		if err := w.WriteHeader(h); err != nil { // such a combination cannot be written
			b.Truncate(before.Len())
			w = tar.NewWriter(&b)
			continue
		}
		w.Write(imgtest.Pattern(int(h.Size)))
		if err := w.Flush(); err != nil {
			panic(err)
		}
		// What the model cannot follow is left out: entries below what is no
		// directory (any more), links to what is gone.
		if _, err := model(b.Bytes()); err != nil || strings.Count(h.Name, "/") > 20 || belowFile(b.Bytes()) {
			b.Truncate(before.Len())
			w = tar.NewWriter(&b)
			continue
		}
		all = append(all, strings.TrimSuffix(h.Name, "/"))
		if isDir {
			dirs = append(dirs, h.Name)
		} else if h.Typeflag != tar.TypeLink {
			files = append(files, h.Name)
		}
	}
	b.Write(make([]byte, 1024))
	return b.Bytes()
}

// belowFile says whether some entry lies below another that is no directory.
func belowFile(stream []byte) bool {
	dirs := map[string]bool{"": true}
	r := tar.NewReader(bytes.NewReader(stream))
	for {
		h, err := r.Next()
		if err != nil {
			return false
		}
		name := strings.TrimPrefix(path.Clean("/"+h.Name), "/")
		for dir := name; dir != ""; {
			dir = strings.TrimPrefix(path.Dir("/"+dir), "/")
			if is, ok := dirs[dir]; ok && !is {
				return true
			}
			dirs[dir] = true
		}
		isDir := h.Typeflag == tar.TypeDir
		if was := dirs[name]; was && !isDir {
			for p := range dirs {
				if strings.HasPrefix(p, name+"/") {
					delete(dirs, p)
				}
			}
		}
		dirs[name] = isDir
		if h.Typeflag == tar.TypeLink && strings.HasPrefix(name+"/", strings.TrimSuffix(h.Linkname, "/")+"/") {
			return true // a link to what it replaces
		}
	}
}

// TestAgainstArchiveTar compares the index with archive/tar's reading of the
// same stream, content included.
func TestAgainstArchiveTar(t *testing.T) {
	for seed := range uint64(60) {
		stream := randomTar(rand.New(rand.NewPCG(seed, 1)), 60)
		want, err := model(stream)
		if err != nil {
			t.Fatal(err)
		}
		img, data, err := index(stream, Limits{})
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if got := withoutMarks(imgtest.List(img, data.read)); got != want {
			t.Fatalf("seed %d:\n%s", seed, firstDifference(got, want))
		}
	}
}

func firstDifference(got, want string) string {
	g, w := strings.Split(got, "\n"), strings.Split(want, "\n")
	for i := range min(len(g), len(w)) {
		if g[i] != w[i] {
			return fmt.Sprintf("line %d\ngot  %s\nwant %s", i+1, g[i], w[i])
		}
	}
	return fmt.Sprintf("%d lines, want %d", len(g), len(w))
}

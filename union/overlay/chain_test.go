package overlay_test

import (
	"bytes"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/imgfs/imgfs/internal/erofs"
	"github.com/imgfs/imgfs/internal/imgtest"
	"github.com/imgfs/imgfs/internal/layertar"
	"github.com/imgfs/imgfs/union"
	"golang.org/x/sys/unix"
)

// A chain is layers as texts of imgtest.Tar, lowest first. From the same text
// come two things that share no code: the index and data files that imgfs
// serves ([buildTars]), and a directory with the merged tree ([applyChain]).
type chain []string

// tars returns the layers.
func (c chain) tars() ([][]byte, error) {
	var all [][]byte
	for i, text := range c {
		b, err := imgtest.Tar(expand(text))
		if err != nil {
			return nil, fmt.Errorf("layer %d: %w", i, err)
		}
		all = append(all, b)
	}
	return all, nil
}

// buildTars writes the chain's index and the layers' data files into dir:
// index, data0, data1...
func buildTars(dir string, tars [][]byte) error {
	var layers []*erofs.Image
	for i, b := range tars {
		x := layertar.NewIndexer(layertar.Limits{})
		if _, err := x.Write(b); err != nil {
			return fmt.Errorf("layer %d: %w", i, err)
		}
		var index bytes.Buffer
		sum, err := x.Finish(&index, fmt.Sprintf("%064x", i))
		if err != nil {
			return fmt.Errorf("layer %d: %w", i, err)
		}
		data := make([]byte, sum.DataSize)
		copy(data, b)
		for _, a := range sum.Annex {
			copy(data[a.To:a.To+a.Len], data[a.From:])
		}
		if err := os.WriteFile(filepath.Join(dir, "data"+strconv.Itoa(i)), data, 0o644); err != nil {
			return err
		}
		img, err := erofs.New(index.Bytes())
		if err != nil {
			return fmt.Errorf("layer %d: %w", i, err)
		}
		layers = append(layers, img)
	}
	var merged bytes.Buffer
	if _, err := union.Merge(&merged, layers); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "index"), merged.Bytes(), 0o644)
}

// applyChain unpacks the chain into dir, which is empty, as plain extraction
// does. It knows what the generator and the tests' own layers use: all names
// stand behind their directories, links behind their targets.
func applyChain(dir string, c chain) error {
	times := map[string]string{} // of directories, to be set last
	for i, text := range c {
		for line := range strings.Lines(expand(text)) {
			words := strings.Fields(line)
			if len(words) == 0 || words[0] == "#" {
				continue
			}
			if err := applyEntry(dir, words, times); err != nil {
				return fmt.Errorf("layer %d: %q: %w", i, line, err)
			}
		}
	}
	names := make([]string, 0, len(times))
	for n := range times {
		names = append(names, n)
	}
	slices.Sort(names)
	slices.Reverse(names)
	for _, n := range names {
		if err := setTime(filepath.Join(dir, n), times[n]); err != nil {
			return err
		}
	}
	return nil
}

func applyEntry(dir string, words []string, times map[string]string) error {
	verb, name := words[0], path.Clean(words[1])
	full := filepath.Join(dir, name)
	parent, base := path.Split(name)
	gone := func(n string) error {
		for d := range times {
			if d == n || strings.HasPrefix(d, n+"/") {
				delete(times, d)
			}
		}
		return os.RemoveAll(filepath.Join(dir, n))
	}
	if base == ".wh..wh..opq" {
		entries, err := os.ReadDir(filepath.Join(dir, parent))
		for _, e := range entries {
			gone(path.Join(parent, e.Name()))
		}
		return err
	}
	if hidden, ok := strings.CutPrefix(base, ".wh."); ok {
		return gone(parent + hidden)
	}
	fi, err := os.Lstat(full)
	if err == nil && (verb != "dir" || !fi.IsDir()) {
		if err := gone(name); err != nil {
			return err
		}
	}
	e := parseEntry(words[2:])
	switch verb {
	case "dir":
		if err := os.Mkdir(full, 0o700); err != nil && !os.IsExist(err) {
			return err
		}
		if err := dropXattrs(full); err != nil {
			return err
		}
		times[name] = e.mtime
	case "file":
		if err := os.WriteFile(full, e.content(), 0o600); err != nil {
			return err
		}
	case "symlink":
		if err := os.Symlink(e.arg, full); err != nil {
			return err
		}
	case "link":
		if err := os.Link(filepath.Join(dir, e.arg), full); err != nil {
			return err
		}
	case "fifo":
		if err := unix.Mkfifo(full, 0o600); err != nil {
			return err
		}
	case "char":
		var major, minor uint32
		fmt.Sscanf(e.arg, "%d:%d", &major, &minor)
		if err := unix.Mknod(full, unix.S_IFCHR|0o600, int(unix.Mkdev(major, minor))); err != nil {
			return err
		}
	default:
		return fmt.Errorf("unknown verb")
	}
	if err := os.Lchown(full, e.uid, e.gid); err != nil {
		return err
	}
	mode := e.mode
	if verb != "symlink" {
		if mode < 0 {
			mode = map[bool]int{true: 0o755, false: 0o644}[verb == "dir"]
		}
		if err := unix.Chmod(full, uint32(mode)); err != nil {
			return err
		}
	}
	for _, x := range e.xattrs {
		if err := unix.Lsetxattr(full, x.Name, []byte(x.Value), 0); err != nil {
			return fmt.Errorf("%s: %w", x.Name, err)
		}
	}
	return setTime(full, e.mtime)
}

// layerEntry is what may stand behind the name of a layer's entry.
type layerEntry struct {
	arg      string
	mode     int // -1: the verb's own
	uid, gid int
	size     int
	holes    string
	mtime    string
	xattrs   []struct{ Name, Value string }
}

func parseEntry(words []string) layerEntry {
	e := layerEntry{mode: -1, mtime: "0"}
	for _, w := range words {
		key, value, ok := strings.Cut(w, "=")
		n, _ := strconv.Atoi(value)
		switch x, isXattr := strings.CutPrefix(key, "xattr:"); {
		case !ok:
			e.arg = w
		case isXattr:
			e.xattrs = append(e.xattrs, struct{ Name, Value string }{x, value})
		case key == "mode":
			m, _ := strconv.ParseInt(value, 8, 32)
			e.mode = int(m)
		case key == "uid":
			e.uid = n
		case key == "gid":
			e.gid = n
		case key == "size":
			e.size = n
		case key == "map":
			e.holes = value
		case key == "mtime":
			e.mtime = value
		}
	}
	return e
}

// content returns a file's bytes. A sparse file's data is the pattern, in the
// order of its segments.
func (e *layerEntry) content() []byte {
	if e.arg != "" {
		return []byte(e.arg)
	}
	if e.holes == "" {
		return imgtest.Pattern(e.size)
	}
	out := make([]byte, e.size)
	var total int
	type segment struct{ off, n int }
	var segments []segment
	for s := range strings.SplitSeq(e.holes, ",") {
		var g segment
		fmt.Sscanf(s, "%d+%d", &g.off, &g.n)
		segments = append(segments, g)
		total += g.n
	}
	data := imgtest.Pattern(total)
	for _, g := range segments {
		copy(out[g.off:g.off+g.n], data)
		data = data[g.n:]
	}
	return out
}

// dropXattrs takes what a directory of a layer below had.
func dropXattrs(dir string) error {
	buf := make([]byte, 64<<10)
	n, err := unix.Listxattr(dir, buf)
	for name := range strings.SplitSeq(string(buf[:max(n, 0)]), "\x00") {
		if err == nil && name != "" {
			err = unix.Removexattr(dir, name)
		}
	}
	return err
}

func setTime(name, mtime string) error {
	sec, frac, _ := strings.Cut(mtime, ".")
	s, err := strconv.ParseInt(sec, 10, 64)
	if err != nil {
		return err
	}
	ns, _ := strconv.ParseInt((frac + "000000000")[:9], 10, 64)
	ts := unix.Timespec{Sec: s, Nsec: ns}
	return unix.UtimesNanoAt(unix.AT_FDCWD, name, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
}

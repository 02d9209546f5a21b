package imgtest

import (
	"archive/tar"
	"bytes"
	"fmt"
	"math/rand/v2"
	"time"
)

// Tree makes layers that together hold files names, shaped like a Debian
// system's: most files are small, a directory has about 20 of them, some are
// symbolic or hard links; each layer above the lowest also replaces and hides
// some of what is below. The same arguments give the same bytes.
func Tree(seed uint64, files, layers int) [][]byte {
	rnd := rand.New(rand.NewPCG(seed, 0x7472_6565))
	var all [][]byte
	var below []string // files of lower layers
	for i := range layers {
		n := files / layers
		if i == 0 {
			n += files % layers
		}
		t := treeLayer{rnd: rnd, number: i, made: map[string]bool{}}
		t.w = tar.NewWriter(&t.out)
		t.add(&tar.Header{Typeflag: tar.TypeDir, Name: "./", Mode: 0o755}, 0)
		for len(t.names) < n {
			t.directory(n)
		}
		for range len(t.names) / 50 {
			if len(below) == 0 {
				break
			}
			k := rnd.IntN(len(below))
			dir, base := splitPath(below[k])
			if rnd.IntN(2) == 0 {
				t.add(&tar.Header{Typeflag: tar.TypeReg, Name: dir + ".wh." + base}, 0)
			} else {
				t.add(&tar.Header{Typeflag: tar.TypeReg, Name: below[k], Mode: 0o600}, 100)
			}
			below[k] = below[len(below)-1]
			below = below[:len(below)-1]
		}
		if err := t.w.Close(); err != nil {
			panic(err) // the headers are ours
		}
		below = append(below, t.names...)
		all = append(all, t.out.Bytes())
	}
	return all
}

type treeLayer struct {
	rnd    *rand.Rand
	number int
	out    bytes.Buffer
	w      *tar.Writer
	dirs   int
	made   map[string]bool // directories that have their entry
	names  []string
}

// directory adds a directory with its files, at most as many as make n.
func (t *treeLayer) directory(n int) {
	t.dirs++
	dir := fmt.Sprintf("usr/share/l%02d/group%02d/package-%05d/", t.number, t.dirs%50, t.dirs)
	for i, c := range dir {
		if c == '/' && !t.made[dir[:i+1]] {
			t.made[dir[:i+1]] = true
			t.add(&tar.Header{Typeflag: tar.TypeDir, Name: dir[:i+1], Mode: 0o755}, 0)
		}
	}
	for i := range min(1+t.rnd.IntN(40), n-len(t.names)) {
		h := &tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprintf("%sfile-%03d.txt", dir, i), Mode: 0o644}
		switch k := t.rnd.IntN(40); {
		case k == 0:
			h.Typeflag, h.Linkname, h.Mode = tar.TypeSymlink, "../../../README", 0o777
			t.add(h, 0)
		case k == 1 && len(t.names) > 0:
			h.Typeflag, h.Linkname = tar.TypeLink, t.names[t.rnd.IntN(len(t.names))]
			t.add(h, 0)
			continue // may be replaced: then not a target for others
		default:
			// Half of them below 1 KiB, a tenth above 8 KiB.
			t.add(h, t.rnd.IntN(1<<(6+t.rnd.IntN(9))))
			t.names = append(t.names, h.Name)
			continue
		}
	}
	// Links do not count, so that the loop ends by files alone.
	if len(t.names) == 0 {
		t.names = append(t.names, dir+"first")
		t.add(&tar.Header{Typeflag: tar.TypeReg, Name: dir + "first", Mode: 0o644}, 10)
	}
}

func (t *treeLayer) add(h *tar.Header, size int) {
	h.ModTime = time.Unix(1700000000+int64(t.rnd.IntN(1<<20)), 0)
	h.Size = int64(size)
	if err := t.w.WriteHeader(h); err != nil {
		panic(err) // the headers are ours
	}
	b := make([]byte, size)
	for i := range b {
		b[i] = "abcdefghijklmnopqrstuvwxyz \n"[t.rnd.Uint32N(28)]
	}
	if _, err := t.w.Write(b); err != nil {
		panic(err)
	}
}

func splitPath(p string) (dir, base string) {
	i := len(p)
	for i > 0 && p[i-1] != '/' {
		i--
	}
	return p[:i], p[i:]
}

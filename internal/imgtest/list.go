package imgtest

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"sort"
	"strconv"
	"strings"

	"github.com/imgfs/imgfs/internal/erofs"
)

// maxQuoted is the largest content, in bytes, that a listing shows itself.
const maxQuoted = 64

// List writes out the tree of an index, one line for each name, directories
// before what is in them, names in byte order:
//
//	PATH TYPE MODE UID:GID NLINK MTIME [MORE] [XATTR="VALUE"]...
//	/ d 0755 0:0 n3 @0
//	/etc d 0755 0:0 n2 @1700000000.000000001
//	/etc/passwd f 0644 0:0 n2 @0 6 "inside"
//	/etc/shadow = /etc/passwd
//	/etc/big f 0644 0:0 n1 @0 100 sha256:HEX
//	/lib l 0777 0:0 n1 @0 -> usr/lib
//	/null c 0666 0:0 n1 @0 1:3
//
// TYPE is d, f, l, c, b or p (fifo). The second and further names of an inode
// show the first. A path or target is quoted as in Go if it has bytes beyond
// printable ASCII, or is empty. The time has a fraction unless that is 0.
//
// read fills p with the bytes at off of device dev. An index that cannot be
// walked to the end gives a line that starts with "error:".
func List(img *erofs.Image, read func(dev int, p []byte, off int64) error) string {
	l := lister{img: img, read: read, first: make(map[erofs.NID]string)}
	if err := l.entry("/", img.Root(), 0); err != nil {
		fmt.Fprintf(&l.out, "error: %v\n", err)
	}
	return l.out.String()
}

type lister struct {
	img   *erofs.Image
	read  func(dev int, p []byte, off int64) error
	first map[erofs.NID]string // path of the first name of inodes that have several
	out   strings.Builder
}

func (l *lister) entry(path string, n erofs.NID, depth int) error {
	if depth > 1<<13 {
		return errors.New("directories nested without end")
	}
	var a erofs.Attr
	if err := l.img.Stat(n, &a); err != nil {
		return err
	}
	typ := a.Mode & 0o170000
	if typ != 0o040000 && a.Nlink > 1 {
		if first, ok := l.first[n]; ok {
			fmt.Fprintf(&l.out, "%s = %s\n", quote(path), quote(first))
			return nil
		}
		l.first[n] = path
	}
	letter := map[uint32]string{0o040000: "d", 0o100000: "f", 0o120000: "l", 0o020000: "c", 0o060000: "b", 0o010000: "p"}[typ]
	fmt.Fprintf(&l.out, "%s %s %04o %d:%d n%d @%d", quote(path), letter, a.Mode&0o7777, a.UID, a.GID, a.Nlink, a.Mtime)
	if a.MtimeNsec != 0 {
		fmt.Fprintf(&l.out, ".%09d", a.MtimeNsec)
	}
	var err error
	switch letter {
	case "f":
		err = l.content(n, a.Size)
	case "l":
		var target []byte
		target, err = l.img.ReadLink(n)
		fmt.Fprintf(&l.out, " -> %s", quote(string(target)))
	case "c", "b":
		fmt.Fprintf(&l.out, " %d:%d", a.Rdev>>8&0xfff, a.Rdev&0xff|a.Rdev>>12&0xfff00)
	}
	if err == nil {
		err = l.xattrs(n)
	}
	l.out.WriteByte('\n')
	if err != nil || letter != "d" {
		return err
	}
	type child struct {
		name string
		nid  erofs.NID
	}
	var children []child
	err = l.img.ReadDir(n, 0, func(d *erofs.Dirent) bool {
		if name := string(d.Name); name != "." && name != ".." {
			children = append(children, child{name, d.NID})
		}
		return true
	})
	for _, c := range children {
		if err == nil {
			err = l.entry(strings.TrimSuffix(path, "/")+"/"+c.name, c.nid, depth+1)
		}
	}
	return err
}

func (l *lister) content(n erofs.NID, size uint64) error {
	fmt.Fprintf(&l.out, " %d", size)
	h := sha256.New()
	var small []byte
	buf := make([]byte, 64<<10)
	for off := uint64(0); off < size; {
		e, err := l.img.Extent(n, off)
		if err != nil {
			return err
		}
		e.Len = min(e.Len, size-off)
		if e.Len == 0 {
			return errors.New("empty extent")
		}
		for done := uint64(0); done < e.Len; {
			p := buf[:min(uint64(len(buf)), e.Len-done)]
			if e.Hole {
				clear(p)
			} else if err := l.read(e.Device, p, int64(e.Off+done)); err != nil {
				return err
			}
			h.Write(p)
			if len(small) <= maxQuoted {
				small = append(small, p...)
			}
			done += uint64(len(p))
		}
		off += e.Len
	}
	if _, err := l.img.Extent(n, size); err != io.EOF {
		return fmt.Errorf("extent at the end of a file: %v, want io.EOF", err)
	}
	if size <= maxQuoted {
		fmt.Fprintf(&l.out, " %q", small)
	} else {
		fmt.Fprintf(&l.out, " sha256:%x", h.Sum(nil))
	}
	return nil
}

func (l *lister) xattrs(n erofs.NID) error {
	var all []string
	err := l.img.Xattrs(n, func(name string, value []byte) bool {
		all = append(all, fmt.Sprintf(" %s=%q", quote(name), value))
		return true
	})
	sort.Strings(all)
	l.out.WriteString(strings.Join(all, ""))
	return err
}

// quote returns s, as a Go string where it is not plain.
func quote(s string) string {
	for i := range len(s) {
		if c := s[i]; c <= ' ' || c > '~' || c == '"' || c == '\\' {
			return strconv.QuoteToASCII(s)
		}
	}
	if s == "" {
		return `""`
	}
	return s
}

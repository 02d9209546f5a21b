package daemon

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"io"
	"slices"
	"sort"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/internal/erofs"
	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
	"github.com/imgfs/imgfs/internal/toc"
)

// walk calls f for the regular files below dir, whose path, without a leading
// slash, is at. A hard link is a file of its own.
func walk(ctx context.Context, img *erofs.Image, dir erofs.NID, at string, f func(path string, n erofs.NID) error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if at != "" {
		at += "/"
	}
	var failed error
	err := img.ReadDir(dir, 0, func(d *erofs.Dirent) bool {
		name := string(d.Name)
		switch {
		case name == "." || name == "..":
		case d.Type == unix.DT_DIR:
			failed = walk(ctx, img, d.NID, at+name, f)
		case d.Type == unix.DT_REG:
			failed = f(at+name, d.NID)
		}
		return failed == nil
	})
	return cmp.Or(failed, err)
}

// site is where a file's bytes are in its layer's data.
type site struct {
	off, end int64
	path     string
}

// firstFiles returns, by layer of a stack, the paths of the files that are read
// first by what is known, in that order.
func (e *engine) firstFiles(ctx context.Context, keys []id.LayerKey) (map[int][]string, error) {
	known, err := loadTrace(e.db, id.Stack(keys))
	if err != nil {
		return nil, err
	}
	parts := map[int][]part{}
	for _, p := range known {
		if p.Index >= 0 && p.Index < len(keys) {
			parts[p.Index] = append(parts[p.Index], p)
		}
	}
	first := map[int][]string{}
	for i, list := range parts {
		sites, err := e.sitesOf(ctx, keys[i])
		if err != nil {
			return nil, err
		}
		seen := map[int]bool{}
		for _, p := range list {
			at := sort.Search(len(sites), func(j int) bool { return sites[j].end > p.Off })
			for ; at < len(sites) && sites[at].off < p.Off+p.Len; at++ {
				if !seen[at] {
					seen[at] = true
					first[i] = append(first[i], sites[at].path)
				}
			}
		}
	}
	return first, nil
}

// sitesOf returns where the files of a layer are, in that order. Of those that
// are hard links to each other one stands for all.
func (e *engine) sitesOf(ctx context.Context, k id.LayerKey) ([]site, error) {
	h, err := e.layers.Layer(k)
	if err != nil {
		return nil, err
	}
	defer h.Release()
	img := h.Image()
	var list []site
	err = walk(ctx, img, img.Root(), "", func(path string, n erofs.NID) error {
		var a erofs.Attr
		if err := img.Stat(n, &a); err != nil || a.Size == 0 {
			return err
		}
		x, err := img.Extent(n, 0)
		if err == nil && !x.Hole {
			list = append(list, site{int64(x.Off), int64(x.Off) + int64(a.Size), path})
		}
		return err
	})
	slices.SortFunc(list, func(a, b site) int { return cmp.Compare(a.off, b.off) })
	return slices.CompactFunc(list, func(a, b site) bool { return a.off == b.off }), err
}

// maxLinks is how many symbolic links one path may lead over, as in the kernel.
const maxLinks = 40

// resolveIn follows a path in an image's tree, which it never leaves; last says
// that a symbolic link at its end is followed too. real is the path without
// links, without a leading slash: "" is the root. Of a path that is not there
// (erofs.ErrNotExist) real is where it would be.
func resolveIn(img *erofs.Image, path string, last bool) (n erofs.NID, real string, err error) {
	dirs, names := []erofs.NID{img.Root()}, []string{}
	rest := strings.Split(path, "/")
	for links := 0; len(rest) > 0; {
		name := rest[0]
		rest = rest[1:]
		switch name {
		case "", ".":
			continue
		case "..":
			if len(names) > 0 {
				dirs, names = dirs[:len(dirs)-1], names[:len(names)-1]
			}
			continue
		}
		var a erofs.Attr
		if err := img.Stat(dirs[len(dirs)-1], &a); err != nil {
			return 0, "", err
		}
		next, typ, err := erofs.NID(0), uint8(0), erofs.ErrNotExist
		if a.Mode&unix.S_IFMT == unix.S_IFDIR {
			next, typ, err = img.Lookup(dirs[len(dirs)-1], []byte(name))
		}
		if errors.Is(err, erofs.ErrNotExist) {
			return 0, strings.Join(append(append(names, name), rest...), "/"), err
		}
		if err != nil {
			return 0, "", err
		}
		if typ == unix.DT_LNK && (last || len(rest) > 0) {
			if links++; links > maxLinks {
				return 0, "", fault.New(fault.Invalid, "%s: %w", path, unix.ELOOP)
			}
			to, err := img.ReadLink(next)
			if err != nil {
				return 0, "", err
			}
			if bytes.HasPrefix(to, []byte("/")) {
				dirs, names = dirs[:1], names[:0]
			}
			rest = append(strings.Split(string(to), "/"), rest...)
			continue
		}
		dirs, names = append(dirs, next), append(names, name)
	}
	return dirs[len(dirs)-1], strings.Join(names, "/"), nil
}

// rangesOf adds to list, by device, where the bytes of a file are, and returns
// their number.
func rangesOf(img *erofs.Image, n erofs.NID, list map[int][]toc.Range) (size int64, err error) {
	for off := uint64(0); ; {
		x, err := img.Extent(n, off)
		if err == io.EOF {
			return size, nil
		}
		if err != nil {
			return size, err
		}
		off += x.Len
		if x.Hole {
			continue
		}
		size += int64(x.Len)
		r := toc.Range{Off: int64(x.Off), Len: int64(x.Len)}
		if old := list[x.Device]; len(old) > 0 && old[len(old)-1].Off+old[len(old)-1].Len == r.Off {
			old[len(old)-1].Len += r.Len
			continue
		}
		list[x.Device] = append(list[x.Device], r)
	}
}

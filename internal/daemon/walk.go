package daemon

import (
	"cmp"
	"context"
	"slices"
	"sort"

	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/internal/erofs"
	"github.com/imgfs/imgfs/internal/id"
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

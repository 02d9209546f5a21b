package fs

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
	"github.com/imgfs/imgfs/internal/lower"
	"golang.org/x/sys/unix"
)

// attr fills out for a place that is not open.
func (l *Layout) placeAttr(p *place, out *fuse.Attr) {
	*out = fuse.Attr{
		Ino: p.node, Mode: unix.S_IFDIR | 0o555, Nlink: 2, Blksize: lower.BlockSize,
		Owner: fuse.Owner{Uid: uint32(os.Geteuid()), Gid: uint32(os.Getegid())},
	}
	out.SetTimes(&l.born, &l.born, &l.born)
	if p.kind == layersFile {
		out.Mode, out.Nlink, out.Size, out.Blocks = unix.S_IFREG|0o444, 1, uint64(len(p.text)), 1
	}
}

func (l *Layout) placeEntry(p *place, out *fuse.EntryOut) {
	l.placeAttr(p, &out.Attr)
	out.NodeId, out.Generation = p.node, 1
	out.EntryValid, out.AttrValid = changing, changing
}

// Lookup resolves a name; below images/ this may ask a registry.
func (l *Layout) Lookup(cancel <-chan struct{}, in *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	ctx := lower.NewRequest(cancel, l.base.Done())
	defer ctx.End()
	p, c, n, err := l.enter(ctx, in.NodeId)
	switch {
	case err != nil:
		return l.status("lookup", err)
	case c != nil:
		return l.status("lookup", c.Lookup(n, name, out))
	}
	child, err := l.child(ctx, p, name)
	switch st := l.status("lookup", err); {
	case st == fuse.ENOENT && p.kind == prefixDir: // a registry's definite no
		out.EntryValid = uint64(negative.Seconds())
		return fuse.OK
	case st != fuse.OK && st != fuse.ENOENT:
		return st
	case child == nil:
		out.EntryValid = changing
		return fuse.OK
	}
	l.placeEntry(child, out)
	return fuse.OK
}

// child returns the place called name in directory p; nil if there is none.
func (l *Layout) child(ctx context.Context, p *place, name string) (*place, error) {
	path := name
	if p.path != layoutRootDir {
		path = p.path + "/" + name
	}
	l.mu.Lock()
	known := l.placeLocked(l.paths[path])
	l.mu.Unlock()
	if known != nil && (known.kind == fixedDir || known.kind == prefixDir) {
		return known, nil
	}
	switch p.path {
	case layoutRootDir:
		return nil, nil
	case "layers", "diff", "mnt":
		c := chainOf(name)
		if c == "" {
			return nil, nil
		}
		below, err := l.src.Ancestors(ctx, c)
		if err != nil {
			return nil, err
		}
		switch p.path {
		case "layers":
			return l.placeAt(path, layersFile, lines(below)), nil
		case "diff":
			return l.placeAt(path, diffDir, nil), nil
		}
		return l.placeAt(path, mntDir, nil), nil
	}
	return l.imageChild(ctx, path)
}

// lines writes chains as a layers file has them.
func lines(chains []id.ChainKey) []byte {
	var b strings.Builder
	for _, c := range chains {
		b.WriteString(c.Hex() + "\n")
	}
	return []byte(b.String())
}

// imageChild returns the place of a path below images/. The first component is
// a host; of the others one with a tag or digest ends a name, and any that
// could be part of one is a directory, so that one can walk to it.
func (l *Layout) imageChild(ctx context.Context, path string) (*place, error) {
	name := strings.TrimPrefix(path, "images/")
	host, rest, deep := strings.Cut(name, "/")
	if !deep {
		if !strings.ContainsAny(host, ".:") && host != "localhost" || strings.ContainsAny(host, "@ \n") || strings.HasPrefix(host, ".") {
			return nil, nil
		}
		return l.placeAt(path, prefixDir, nil), nil
	}
	last := rest[strings.LastIndexByte(rest, '/')+1:]
	if !strings.ContainsAny(last, ":@") {
		if strings.Trim(last, "abcdefghijklmnopqrstuvwxyz0123456789._-") != "" || strings.HasPrefix(last, ".") {
			return nil, nil
		}
		return l.placeAt(path, prefixDir, nil), nil
	}
	if err := l.recall(path); err != nil {
		return nil, err
	}
	limited, cancel := context.WithTimeout(ctx, resolveLimit)
	defer cancel()
	err := l.src.Resolve(limited, name)
	switch {
	case err == nil:
		return l.placeAt(path, imageDir, nil), nil
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case errors.Is(err, context.DeadlineExceeded):
		err = fault.New(fault.Network, "%s: no answer in %v", name, resolveLimit)
	}
	l.remember(path, err)
	return nil, err
}

// GetAttr is stat(2).
func (l *Layout) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	p, c, n, err := l.find(in.NodeId)
	if c != nil {
		out.AttrValid = lower.Forever
		return l.status("getattr", c.Attr(n, &out.Attr))
	}
	if err == nil {
		out.AttrValid = changing
		l.placeAttr(p, &out.Attr)
	}
	return l.status("getattr", err)
}

// OpenDir is answered here, unlike in a Chain, as the kernel must not keep
// the upper directories.
func (l *Layout) OpenDir(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	p, c, _, err := l.find(in.NodeId)
	if c != nil && p == nil {
		out.OpenFlags = fuse.FOPEN_CACHE_DIR | fuse.FOPEN_KEEP_CACHE
	}
	return l.status("opendir", err)
}

// ReadDir lists names alone.
func (l *Layout) ReadDir(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return l.list(cancel, in, false, out)
}

// ReadDirPlus lists entries; those of the upper directories without
// attributes, as opening each would cost too much.
func (l *Layout) ReadDirPlus(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return l.list(cancel, in, true, out)
}

func (l *Layout) list(cancel <-chan struct{}, in *fuse.ReadIn, plus bool, out *fuse.DirEntryList) fuse.Status {
	ctx := lower.NewRequest(cancel, l.base.Done())
	defer ctx.End()
	p, c, n, err := l.enter(ctx, in.NodeId)
	switch {
	case err != nil:
		return l.status("readdir", err)
	case c != nil:
		return l.status("readdir", c.ReadDir(n, in.Offset, plus, out))
	}
	names, err := l.names(ctx, p)
	if err != nil {
		return l.status("readdir", err)
	}
	names = append([]string{".", ".."}, names...)
	mode := uint32(unix.S_IFDIR)
	for i := in.Offset; i < uint64(len(names)); i++ {
		e := fuse.DirEntry{Name: names[i], Mode: mode, Off: i + 1}
		if i < 2 {
			e.Ino = p.node
		} else if p.path == "layers" {
			e.Mode = unix.S_IFREG
		}
		if !plus && !out.AddDirEntry(e) || plus && out.AddDirLookupEntry(e) == nil {
			break
		}
	}
	return fuse.OK
}

// names lists an upper directory, sorted.
func (l *Layout) names(ctx context.Context, p *place) ([]string, error) {
	var names []string
	switch p.path {
	case layoutRootDir:
		return []string{"diff", "images", "layers", "mnt"}, nil
	case "layers", "diff", "mnt":
		chains, err := l.src.Chains(ctx)
		if err != nil {
			return nil, err
		}
		for _, c := range chains {
			names = append(names, c.Hex())
		}
	default:
		images, err := l.src.Images(ctx)
		if err != nil {
			return nil, err
		}
		prefix := strings.TrimPrefix(p.path+"/", "images/")
		for _, image := range images {
			if rest, ok := strings.CutPrefix(image, prefix); ok {
				name, _, _ := strings.Cut(rest, "/")
				names = append(names, name)
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// Read reads a file of a content, or a layers file.
func (l *Layout) Read(cancel <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	p, c, n, err := l.find(in.NodeId)
	switch {
	case err != nil:
		return nil, l.status("read", err)
	case c == nil:
		return fuse.ReadResultData(p.text[min(in.Offset, uint64(len(p.text))):min(in.Offset+uint64(len(buf)), uint64(len(p.text)))]), fuse.OK
	case n&opaqueBit != 0:
		return fuse.ReadResultData(nil), fuse.OK
	}
	ctx := lower.NewRequest(cancel, l.base.Done())
	defer ctx.End()
	size, err := c.tree.Read(ctx, n, in.Offset, buf)
	if err != nil {
		return nil, l.status("read", err)
	}
	return fuse.ReadResultData(buf[:size]), fuse.OK
}

// Readlink returns a symlink's target.
func (l *Layout) Readlink(_ <-chan struct{}, in *fuse.InHeader) ([]byte, fuse.Status) {
	_, c, n, err := l.find(in.NodeId)
	if err != nil {
		return nil, l.status("readlink", err)
	}
	if c == nil {
		return nil, fuse.EINVAL
	}
	target, err := c.tree.Image().ReadLink(n)
	return target, l.status("readlink", err)
}

// Lseek finds data and holes.
func (l *Layout) Lseek(_ <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	_, c, n, err := l.find(in.NodeId)
	if err == nil && (c == nil || n&opaqueBit != 0) {
		return fuse.EINVAL
	}
	if err == nil {
		out.Offset, err = c.tree.Seek(n, in.Offset, in.Whence)
	}
	return l.status("lseek", err)
}

// GetXAttr reads an attribute.
func (l *Layout) GetXAttr(_ <-chan struct{}, in *fuse.InHeader, name string, dest []byte) (uint32, fuse.Status) {
	_, c, n, err := l.find(in.NodeId)
	if err == nil && c == nil {
		return 0, fuse.ENODATA
	}
	var size uint32
	if err == nil {
		size, err = c.Xattr(n, name, dest)
	}
	return size, l.status("getxattr", err)
}

// ListXAttr lists the names of attributes.
func (l *Layout) ListXAttr(_ <-chan struct{}, in *fuse.InHeader, dest []byte) (uint32, fuse.Status) {
	_, c, n, err := l.find(in.NodeId)
	if err != nil || c == nil {
		return 0, l.status("listxattr", err)
	}
	size, err := c.Xattrs(n, in.Uid == 0, dest)
	return size, l.status("listxattr", err)
}

// StatFs says that nothing is free.
func (l *Layout) StatFs(_ <-chan struct{}, _ *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	*out = fuse.StatfsOut{Bsize: lower.BlockSize, Frsize: lower.BlockSize, NameLen: 255}
	return fuse.OK
}

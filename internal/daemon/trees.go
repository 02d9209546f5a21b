package daemon

import (
	"context"
	"errors"
	"io"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/upperdir"
)

// ListTree implements engineapi.Trees. It reads the index alone: no bytes of
// files are fetched for it.
func (e *engine) ListTree(ctx context.Context, req engineapi.TreeRequest, report func(engineapi.Progress), emit func(engineapi.TreeEntry) error) error {
	return e.atPath(ctx, req, report, func(f *upperdir.File) error {
		tell := func(x upperdir.Entry) error { return emit(treeEntry(x)) }
		if f.IsDir() && !req.Self {
			return f.List(req.Recursive, tell)
		}
		x, err := f.Entry()
		if err != nil {
			return err
		}
		return tell(x)
	})
}

func treeEntry(x upperdir.Entry) engineapi.TreeEntry {
	return engineapi.TreeEntry{
		Path: x.Path, Mode: x.Mode, UID: x.UID, GID: x.GID, Nlink: x.Links, Inode: x.Inode, Size: x.Size,
		Major: x.Major, Minor: x.Minor, Mtime: time.Unix(x.Sec, x.Nsec).UTC(), Target: x.Target,
	}
}

// ReadTree implements engineapi.Trees. What is read is fetched, and no more.
func (e *engine) ReadTree(ctx context.Context, req engineapi.TreeRequest, report func(engineapi.Progress), w io.Writer) error {
	return e.atPath(ctx, req, report, func(f *upperdir.File) error {
		switch {
		case !req.Raw:
			return f.WriteTar(w, tarName(req.Path, f.Path()))
		case f.IsDir():
			return fault.New(fault.Invalid, "%s: %w", req.Path, unix.EISDIR)
		case !f.IsRegular():
			return fault.New(fault.Invalid, "%s: not a regular file", req.Path)
		}
		_, err := f.WriteTo(w)
		return err
	})
}

// tarName returns what a tar calls what asked leads to: by its last element,
// unless that only says how to get there.
func tarName(asked, real string) string {
	name := path.Base(path.Clean("/" + real))
	asked = strings.TrimRight(asked, "/")
	if last := asked[strings.LastIndexByte(asked, '/')+1:]; last != "." && last != ".." && last != "" {
		name = last
	}
	if name == "/" {
		return ""
	}
	return name
}

// atPath has f do something with what a request names. The tree stays while f
// runs.
func (e *engine) atPath(ctx context.Context, req engineapi.TreeRequest, report func(engineapi.Progress), f func(*upperdir.File) error) (err error) {
	defer func() { err = advise(err) }()
	// Reading fetches: the daemon is not to leave in the middle of it.
	if err := e.beginWork(); err != nil {
		return err
	}
	defer e.endWork()
	s, err := e.treeOf(ctx, req, report)
	if err != nil {
		return err
	}
	defer s.close()
	file, err := upperdir.NewView(ctx, s.low, s.upper).Find(req.Path, !req.NoFollow)
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
		return fault.New(fault.NotFound, "%w", err)
	case errors.Is(err, unix.ELOOP):
		return fault.New(fault.Invalid, "%w", err)
	case err != nil:
		return adviseDamage(err, s.upper)
	}
	defer file.Close()
	return adviseDamage(f(file), s.upper)
}

// treeOf opens the tree that a request names, the image pulled if need be. The
// caller closes it.
func (e *engine) treeOf(ctx context.Context, req engineapi.TreeRequest, report func(engineapi.Progress)) (*source, error) {
	if req.Source.Image == "" {
		return e.source(ctx, req.Source)
	}
	s := &source{}
	var err error
	s.image, err = e.imageFor(ctx, engineapi.MountRequest{
		Image: req.Source.Image, Platform: req.Platform, Pull: req.Pull, Registry: req.Registry,
	}, report)
	if err == nil {
		err = e.openChain(ctx, s)
	}
	if err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

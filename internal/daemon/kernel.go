package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/imgfs/imgfs/fs"
	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/upperdir"
)

// What the kernel itself mounts, and how its end is seen:
//
//	driver   mode  at the target           the daemon serves  its end is
//	erofs    ro    EROFS                   nothing            seen in the mount table
//	erofs    rw    overlayfs over EROFS    nothing            seen in the mount table
//	overlay  rw    overlayfs over FUSE     the chain          the end of that FUSE mount, which
//	                                                          overlayfs alone holds
//
// The daemon has the upper's lock meanwhile. What the mount table shows is that
// a mount was detached, not that its last user has gone: of an upper in an
// erofs mount that was detached while busy that user has the rest.

// makeKernelMount is the rest of makeMount for what FUSE alone does not do.
func (e *engine) makeKernelMount(ctx context.Context, rec record, t *tree, exchange engineapi.Exchange) (*mount, error) {
	ready := engineapi.MountReady{ID: rec.ID, Source: t.source}
	var above *engineapi.Overlay
	if t.upper != nil {
		// Root's attributes, and real owners, the kernel reads all.
		if i := t.upper.Info(); i.Override || i.Xattrs != upperdir.Trusted {
			if err := t.upper.KernelReads(ctx); err != nil {
				return nil, err
			}
		}
		above = overlayOf(t.upper)
	}
	if rec.Driver == "erofs" {
		ready.Index, ready.Devices, ready.Overlay = t.chain.IndexPath(), t.chain.DataPaths(), above
		return e.adoptReply(rec, t, nil, exchange, ready)
	}
	ready.Lower = true
	_, fd, err := exchange(ready)
	if err != nil {
		return nil, err
	}
	srv, err := startServer(ctx, t, fd)
	if err != nil {
		return nil, err
	}
	m, err := e.adoptReply(rec, t, srv, exchange, engineapi.MountReady{ID: rec.ID, Source: t.source, Overlay: above})
	if err != nil {
		srv.Close()
		return nil, err
	}
	return m, nil
}

// adoptReply has ready mounted at the target and adopts that mount.
func (e *engine) adoptReply(rec record, t *tree, srv *fs.Server, exchange engineapi.Exchange, ready engineapi.MountReady) (*mount, error) {
	reply, fd, err := exchange(ready)
	if err != nil {
		return nil, err
	}
	if fd != nil {
		fd.Close()
	}
	rec.Device, rec.Created = reply.Dev, time.Now()
	return e.adopt(rec, t, srv)
}

func overlayOf(d *upperdir.Dir) *engineapi.Overlay {
	return &engineapi.Overlay{Upper: d.Path(), User: d.Info().Xattrs == upperdir.User}
}

// checkDriver refuses what a driver cannot do: the kernel mounts from the
// store's files for root alone, and the end of such a mount can be seen in the
// daemon's own mount namespace alone.
func (e *engine) checkDriver(req engineapi.MountRequest) error {
	switch {
	case req.Driver == "fuse":
		return nil
	case req.Layout:
		return fault.New(fault.Invalid, "the layout view needs driver fuse")
	case req.Driver == "overlay":
		return nil // whether the client may mount is for the kernel to say
	case !Privileged():
		return fault.WithHint(fault.New(fault.Invalid, "driver erofs needs root (CAP_SYS_ADMIN outside of any user namespace)"), "use --driver fuse")
	case req.MountNS != e.mountNS:
		return fault.WithHint(fault.New(fault.Invalid, "driver erofs works in the daemon's mount namespace only"), "use --driver fuse")
	}
	return nil
}

// remountOverlay makes a mount of driver overlay again, whose lower has lost its
// server: overlayfs cannot be given another.
func (e *engine) remountOverlay(ctx context.Context, r record, t *tree) error {
	below, fd, err := fs.MountDetached(t.source, fs.MountFlags{Suid: r.Suid, Dev: r.Dev})
	if err != nil {
		return err
	}
	defer below.Close()
	srv, err := startServer(ctx, t, os.NewFile(uintptr(fd), "fuse"))
	if err != nil {
		return err
	}
	above := overlayOf(t.upper)
	err = fs.MountOverlay(r.Target, t.source, fs.Overlay{Lower: below, Upper: above.Upper, User: above.User}, r.flags())
	if err != nil {
		srv.Close()
		return err
	}
	err = e.adoptAgain(&r, t, srv)
	if err != nil {
		srv.Close()
		return errors.Join(err, fs.Unmount(r.Target, true))
	}
	return nil
}

// adoptAgain adopts what the daemon has mounted at a record's target.
func (e *engine) adoptAgain(r *record, t *tree, srv *fs.Server) error {
	at, err := fs.MountAt(r.Target)
	if err != nil {
		return err
	}
	if at == nil {
		return fmt.Errorf("%s: unmounted meanwhile", r.Target)
	}
	r.Device = at.Dev
	_, err = e.adopt(*r, t, srv)
	return err
}

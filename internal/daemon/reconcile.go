package daemon

import (
	"context"
	"errors"
	"os"

	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/fs"
)

// reconcile makes the recorded mounts of a daemon that has died work again,
// without a registry: a dead one is detached and mounted anew with the same
// layers. What cannot be restored is forgotten and listed as a problem.
//
//	what is at the target                    what happens
//	our mount, dead                          detached, mounted again
//	our overlayfs, its lower dead (overlay)  detached, mounted again
//	our mount, in the kernel (erofs)         followed again
//	something else or nothing, or no target  record dropped
//	a mount recorded later                   record dropped
//	not known: another mount namespace       record dropped
//
// A writable mount takes its upper again. What becomes of that where the record
// is dropped stands in upper.go.
//
// Preconditions: no request is served yet.
func (e *engine) reconcile(ctx context.Context) {
	recs, damaged, err := loadRecords(e.db)
	if err != nil {
		e.problem("mounts of the last daemon are not known: %v", err)
		return
	}
	for _, id := range damaged {
		e.problem("record of mount %s is damaged", id)
		e.forget(id)
	}
	newest := map[place]string{}
	for _, r := range recs {
		newest[place{r.MountNS, r.Target}] = r.ID // they come oldest first
	}
	for _, r := range recs {
		err := errors.New("it was detached, and its place taken by another")
		if newest[place{r.MountNS, r.Target}] == r.ID {
			err = e.restore(ctx, r)
		}
		if err != nil {
			where := ""
			if r.Upper != "" && !r.Tmp {
				where = "; what was changed there, if anything, is kept as " + r.Upper
			}
			e.problem("mount of %s on %s is not restored: %v%s", r.Source, r.Target, err, where)
			e.forgetUpper(&r)
			e.forget(r.ID)
		}
	}
}

func (e *engine) forget(id string) {
	if err := dropRecord(e.db, id); err != nil {
		e.log.Error("reconciliation", "mount", id, "err", err)
	}
}

// forgetUpper drops the upper that was to go with a mount; others are looked at
// by sweepUppers.
func (e *engine) forgetUpper(r *record) {
	if r.Upper == "" || !r.Tmp || checkUpperName(r.Upper) != nil {
		return
	}
	if err := e.dropUpper(r.Upper); err != nil {
		e.problem("upper %s is not dropped: %v", r.Upper, err)
	}
}

// restore brings one mount back.
func (e *engine) restore(ctx context.Context, r record) error {
	if r.MountNS != e.mountNS || r.UserNS != e.userNS {
		return errors.New("it was in another mount or user namespace")
	}
	at := place{r.MountNS, r.Target}
	if err := e.reserve(at, r.ID); err != nil {
		return err
	}
	defer e.calls.Done()
	err := e.restoreAt(ctx, r)
	if err != nil {
		e.unreserve(at, r.ID)
	}
	return err
}

func (e *engine) restoreAt(ctx context.Context, r record) error {
	top, err := fs.MountAt(r.Target)
	if err != nil {
		return err
	}
	if top == nil {
		return errors.New("nothing is mounted there any more")
	}
	if r.Driver == "erofs" && top.Imgfs() && top.Dev == r.Device {
		return e.readopt(ctx, r)
	}
	if !top.Imgfs() || !e.ours(&r, top) {
		return errors.New("something else is mounted there")
	}
	// From here on the dead mount is taken away, whatever else fails.
	if err := fs.Unmount(r.Target, true); err != nil {
		return err
	}
	t, err := e.reopen(ctx, &r)
	if err != nil {
		return err
	}
	if err := e.remount(ctx, r, t); err != nil {
		e.closeTree(&r, t, true)
		return err
	}
	e.log.Info("mount restored", "mount", r.ID, "target", r.Target)
	return nil
}

// ours reports whether what is at a record's target is its mount, dead.
func (e *engine) ours(r *record, top *fs.MountPoint) bool {
	if r.Driver == "overlay" {
		return top.Dev == r.Device
	}
	return r.Driver == "fuse" && top.Source == r.Source && dead(r.Target)
}

// readopt follows a mount of the kernel's own again.
func (e *engine) readopt(ctx context.Context, r record) error {
	t, err := e.reopen(ctx, &r)
	if err != nil {
		return err
	}
	if _, err := e.adopt(r, t, nil); err != nil {
		e.closeTree(&r, t, true)
		return err
	}
	return nil
}

// reopen opens what a record shows, with its upper.
func (e *engine) reopen(ctx context.Context, r *record) (*tree, error) {
	r.met = true // a registry that is away will come back, as this daemon has
	if !r.writable() {
		return e.openTree(ctx, r, nil)
	}
	d, err := e.openUpper(ctx, r, false)
	if err != nil {
		return nil, err
	}
	t, err := e.openTree(ctx, r, d)
	if err != nil {
		e.leaveUpper(r, d, true)
		return nil, err
	}
	return t, nil
}

// remount mounts from within the daemon what a CLI had mounted.
func (e *engine) remount(ctx context.Context, r record, t *tree) error {
	if r.Driver == "overlay" {
		return e.remountOverlay(ctx, r, t)
	}
	fd, err := fs.Mount(r.Target, r.Source, r.flags())
	if err != nil {
		return err
	}
	if _, err := e.serve(ctx, r, t, os.NewFile(uintptr(fd), "fuse")); err != nil {
		return errors.Join(err, fs.Unmount(r.Target, true))
	}
	return nil
}

// flags are those of a mount that the daemon makes again.
func (r *record) flags() fs.MountFlags {
	return fs.MountFlags{Suid: r.Suid, Dev: r.Dev, Writable: r.writable(), NonEmpty: true, Checked: true}
}

// dead reports whether the FUSE mount at target has lost its server. The
// kernel answers for a dead one, so this does not wait.
func dead(target string) bool {
	var st unix.Statfs_t
	return errors.Is(unix.Statfs(target, &st), unix.ENOTCONN)
}

// sweepTarget takes away what a client left that died between mounting and
// handing the descriptor over. before is what was seen at the target before
// the client was asked to mount. Whether the mount answers cannot be tried:
// the descriptor may still be on its way.
func (e *engine) sweepTarget(r *record, before int) {
	top, err := fs.MountAt(r.Target)
	if err != nil || top == nil || top.ID == before || !top.Imgfs() || r.Driver == "fuse" && top.Source != r.Source {
		return
	}
	if err := fs.Unmount(r.Target, true); err != nil {
		e.log.Warn("dead mount", "target", r.Target, "err", err)
	}
}

// seenAt returns the ID of the mount at target, 0 if there is none.
func seenAt(target string) (int, error) {
	top, err := fs.MountAt(target)
	if err != nil || top == nil {
		return 0, err
	}
	return top.ID, nil
}

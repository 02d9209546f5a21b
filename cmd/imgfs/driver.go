package main

import (
	"context"
	"errors"
	"os"

	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/fs"
	"github.com/imgfs/imgfs/internal/daemon"
	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
)

// chosenDriver returns what auto means here: FUSE, which is never far behind
// the others and the most correct of them; without it what does without it.
func chosenDriver(driver string) string {
	if driver != "auto" {
		return driver
	}
	if _, err := os.Stat("/dev/fuse"); errors.Is(err, os.ErrNotExist) && daemon.Privileged() {
		return "erofs"
	}
	return "fuse"
}

// checkDriver refuses a driver that this machine cannot have.
func checkDriver(driver string) error {
	if driver == "erofs" {
		if !daemon.Privileged() {
			return fault.WithHint(fault.New(fault.Denied, "--driver erofs: only root may have the kernel read an image"), "leave --driver out")
		}
		return nil
	}
	if driver == "overlay" && os.Geteuid() != 0 {
		return fault.WithHint(fault.New(fault.Denied, "--driver overlay: only root mounts overlayfs, here or in a user namespace"),
			"leave --driver out, or run within unshare -Urm")
	}
	if _, err := os.Stat("/dev/fuse"); errors.Is(err, os.ErrNotExist) {
		return fault.WithHint(fault.New(fault.Unavailable, "/dev/fuse: no such device"), "modprobe fuse; in a container: --device /dev/fuse")
	}
	// fusermount3 opens it as who calls it.
	if err := unix.Access("/dev/fuse", unix.R_OK|unix.W_OK); errors.Is(err, unix.EACCES) {
		return fault.WithHint(fault.New(fault.Denied, "/dev/fuse: permission denied"), "as root: chmod 666 /dev/fuse")
	}
	return nil
}

// mount asks the daemon for the tree and mounts it. When it fails, nothing is
// left mounted.
func mount(ctx context.Context, client *engineapi.Client, req engineapi.MountRequest, show display) (engineapi.Mount, error) {
	mt := &mounter{req: req}
	defer mt.close()
	show = &ifNeeded{display: show}
	m, err := client.Mount(ctx, req, show.step, func(r engineapi.MountReady) (int, engineapi.MountReply, error) {
		if err := ctx.Err(); err != nil {
			return -1, engineapi.MountReply{}, err
		}
		return mt.mount(r)
	})
	show.end()
	if err != nil && mt.mounted {
		// The tree is of no use to anybody: its server has given it up.
		err = errors.Join(err, fs.Unmount(req.Target, true))
	}
	return m, err
}

// mounter mounts what the daemon has made ready for req.
type mounter struct {
	req     engineapi.MountRequest
	below   *os.File // mounted, but nowhere: for overlayfs to stand on
	mounted bool     // something is at the target
}

// mount does one step; it is an engineapi.MountFunc.
func (mt *mounter) mount(r engineapi.MountReady) (fd int, reply engineapi.MountReply, err error) {
	req := &mt.req
	// CheckTarget has looked.
	flags := fs.MountFlags{Suid: req.Suid, Dev: req.Dev, Writable: req.Mode == "rw", NonEmpty: true, Checked: true}
	below := fs.MountFlags{Suid: req.Suid, Dev: req.Dev}
	switch {
	case r.Lower:
		mt.close()
		mt.below, fd, err = fs.MountDetached(r.Source, below)
		return fd, reply, err
	case r.Index != "" && r.Overlay != nil:
		mt.close()
		if mt.below, err = fs.MountErofsDetached(r.Index, r.Devices, below); err != nil {
			return -1, reply, err
		}
		reply, err = mt.overlay(r, flags)
		return -1, reply, err
	case r.Overlay != nil:
		reply, err = mt.overlay(r, flags)
		return -1, reply, err
	case r.Index != "":
		if err := fs.MountErofs(req.Target, r.Index, r.Devices, below); err != nil {
			return -1, reply, err
		}
		reply, err = mt.seen()
		return -1, reply, err
	}
	fd, err = fs.Mount(req.Target, r.Source, flags)
	mt.mounted = err == nil
	return fd, reply, err
}

// overlay mounts overlayfs on what was mounted before.
func (mt *mounter) overlay(r engineapi.MountReady, flags fs.MountFlags) (engineapi.MountReply, error) {
	if mt.below == nil {
		return engineapi.MountReply{}, errors.New("daemon: asked for overlayfs on nothing")
	}
	o := fs.Overlay{Lower: mt.below, Upper: r.Overlay.Upper, User: r.Overlay.User}
	if err := fs.MountOverlay(mt.req.Target, r.Source, o, flags); err != nil {
		return engineapi.MountReply{}, err
	}
	return mt.seen()
}

// seen returns the device of what has just been mounted at the target.
func (mt *mounter) seen() (engineapi.MountReply, error) {
	mt.mounted = true
	m, err := fs.MountAt(mt.req.Target)
	if err != nil {
		return engineapi.MountReply{}, err
	}
	if m == nil {
		return engineapi.MountReply{}, fault.New(fault.Conflict, "%s: unmounted meanwhile", mt.req.Target)
	}
	return engineapi.MountReply{Dev: m.Dev}, nil
}

func (mt *mounter) close() {
	if mt.below != nil {
		mt.below.Close()
		mt.below = nil
	}
}

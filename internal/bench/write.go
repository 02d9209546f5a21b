package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// onUpper is a candidate whose changes go to a directory of its own, which is
// new at every mount and removed after the unmount.
func (b *bench) onUpper(name string, mount func(ctx context.Context, upper, mnt string) (unmount func() error, err error)) candidate {
	base := strings.ReplaceAll(name, " ", "-")
	mnt, upper := b.path("mnt", base), b.path("upper", base)
	var unmount func() error // nil: not mounted
	return candidate{
		name: name,
		mount: func(ctx context.Context) (string, error) {
			if unmount != nil {
				return mnt, nil
			}
			for _, dir := range []string{mnt, upper} {
				if err := os.MkdirAll(dir, 0o755); err != nil {
					return "", err
				}
			}
			var err error
			unmount, err = mount(ctx, upper, mnt)
			return mnt, err
		},
		unmount: func() error {
			if unmount == nil {
				return nil
			}
			f := unmount
			unmount = nil
			if err := f(); err != nil {
				return err
			}
			return os.RemoveAll(upper)
		},
	}
}

// nativeCopy is a copy of a tree on the file system of the uppers; an empty
// tree is an empty directory.
func (b *bench) nativeCopy(tree string) candidate {
	c := b.onUpper("native", func(ctx context.Context, upper, mnt string) (func() error, error) {
		if tree != "" {
			if _, err := output(ctx, "cp", "-a", tree+"/.", upper); err != nil {
				return nil, err
			}
		}
		// A bind mount, so that its path is as long as the others'.
		return detach(mnt), syscall.Mount(upper, mnt, "", syscall.MS_BIND, "")
	})
	return c
}

// detach returns the unmount of mnt.
func detach(mnt string) func() error {
	return func() error { return syscall.Unmount(mnt, 0) }
}

// overlayDirs makes the directories of an overlayfs-like upper and returns its
// mount options.
func overlayDirs(lowers []string, upper string) (string, error) {
	for _, dir := range []string{"diff", "work"} {
		if err := os.MkdirAll(filepath.Join(upper, dir), 0o755); err != nil {
			return "", err
		}
	}
	return fmt.Sprintf("lowerdir=%s,upperdir=%s/diff,workdir=%s/work", strings.Join(lowers, ":"), upper, upper), nil
}

func (b *bench) overlayUpper(lowers []string) candidate {
	return b.onUpper("overlayfs", func(_ context.Context, upper, mnt string) (func() error, error) {
		opt, err := overlayDirs(lowers, upper)
		if err != nil {
			return nil, err
		}
		return detach(mnt), syscall.Mount("overlay", mnt, "overlay", 0, opt)
	})
}

func (b *bench) fuseOverlayUpper(lowers []string) candidate {
	return b.onUpper("fuse-overlayfs", func(ctx context.Context, upper, mnt string) (func() error, error) {
		opt, err := overlayDirs(lowers, upper)
		if err != nil {
			return nil, err
		}
		_, err = output(ctx, "fuse-overlayfs", "-o", opt, mnt)
		return detach(mnt), err
	})
}

// imgfsUpper is the default mount of an image, writable, by one of the drivers.
func (b *bench) imgfsUpper(name, ref, driver string) candidate {
	return b.onUpper(name, func(ctx context.Context, upper, mnt string) (func() error, error) {
		_, err := b.run(ctx, "mount", "-q", "--driver", driver, "--upper-dir", upper, ref, mnt)
		return func() error {
			_, err := b.run(context.Background(), "umount", mnt)
			return err
		}, err
	})
}

// writable returns everything that can show an image's tree, or write beside
// it, on one file system. go-fuse's loopback has no tree to show.
func (b *bench) writable(ref, native string, lowers []string) []candidate {
	return []candidate{
		b.nativeCopy(native), b.overlayUpper(lowers), b.fuseOverlayUpper(lowers),
		b.imgfsUpper("imgfs fuse", ref, "fuse"), b.imgfsUpper("imgfs overlay", ref, "overlay"), b.imgfsUpper("imgfs erofs", ref, "erofs"),
	}
}

// flushed writes out what the steps before left dirty, so that nobody pays
// for another's writes.
func flushed(string) error {
	syscall.Sync()
	return nil
}

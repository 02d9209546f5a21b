package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

// writeTrees measures what people do in a writable mount: unpack sources, ask
// git what changed, install packages, remove a tree.
func (b *bench) writeTrees(ctx context.Context) error {
	ref, err := b.serve(ctx, b.images.debian)
	if err != nil {
		return err
	}
	native, lowers, err := b.unpacked(ctx, ref)
	if err != nil {
		return err
	}
	sources, err := b.checkout(ctx)
	if err != nil {
		return fmt.Errorf("sources: %w", err)
	}
	debs, err := b.packages(ctx, lowers)
	if err != nil {
		return fmt.Errorf("packages: %w", err)
	}
	cands := b.writable(ref, native, lowers)
	work := func(root string) string { return filepath.Join(root, "srv", "checkout") }
	status := func(ctx context.Context, root string) error {
		out, err := output(ctx, "git", "-C", work(root), "status", "--porcelain")
		if err == nil && out != "" {
			err = fmt.Errorf("git status: not clean: %s", lastLine(out))
		}
		return err
	}
	var steps []step
	for _, s := range []struct {
		name    string
		prepare func(root string) error
		run     func(ctx context.Context, root string) error
	}{
		{"untar sources", func(r string) error {
			if err := os.MkdirAll(work(r), 0o755); err != nil {
				return err
			}
			return flushed(r)
		}, func(ctx context.Context, r string) error {
			_, err := output(ctx, "tar", "-xf", sources, "-C", work(r))
			return err
		}},
		{"git status, index stale", flushed, status},
		{"git status", flushed, status},
		{"apt-get install", func(r string) error {
			if err := stage(r, debs); err != nil {
				return err
			}
			return flushed(r)
		}, install},
		{"rm -r sources", flushed, func(ctx context.Context, r string) error {
			_, err := output(ctx, "rm", "-r", work(r))
			return err
		}},
		{"rm -r /usr/share", flushed, func(ctx context.Context, r string) error {
			_, err := output(ctx, "rm", "-r", filepath.Join(r, "usr/share"))
			return err
		}},
	} {
		run := func(ctx context.Context, root string) (float64, error) {
			d, err := timed(func() error { return s.run(ctx, root) })
			return d.Seconds(), err
		}
		steps = append(steps, step{s.name, false, s.prepare, run})
	}
	got, err := b.compare(ctx, cands, steps)
	if err != nil {
		return err
	}
	show(fmt.Sprintf("Work in a writable mount (native: seconds; others: ratio to native / to overlayfs; medians of %d)", b.rounds),
		"time, lower is better", "%.2f s", cands, steps, got, true)
	return nil
}

// checkout returns a tar of a git checkout of Go's own sources, which every
// machine that runs this has: some 10,000 files.
func (b *bench) checkout(ctx context.Context) (string, error) {
	file := b.path("sources.tar")
	if _, err := os.Stat(file); err == nil {
		return file, nil
	}
	root, err := output(ctx, "go", "env", "GOROOT")
	if err != nil {
		return "", err
	}
	dir := b.path("sources")
	if err := os.RemoveAll(dir); err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	for _, args := range [][]string{
		{"cp", "-a", filepath.Join(strings.TrimSpace(root), "src"), dir},
		{"git", "-C", dir, "init", "-q"},
		{"git", "-C", dir, "config", "gc.auto", "0"},
		{"git", "-C", dir, "add", "-A", "-f"},
		{"git", "-C", dir, "-c", "user.name=bench", "-c", "user.email=bench@localhost", "commit", "-q", "-m", "sources"},
		{"git", "-C", dir, "gc", "-q"},
		{"tar", "-cf", file + ".part", "-C", dir, "."},
	} {
		if _, err := output(ctx, args[0], args[1:]...); err != nil {
			return "", err
		}
	}
	return file, os.Rename(file+".part", file)
}

// packages returns a directory of the Debian packages that install needs and
// the image does not have; they are downloaded once.
func (b *bench) packages(ctx context.Context, lowers []string) (string, error) {
	debs := b.path("packages")
	if _, err := os.Stat(debs); err == nil {
		return debs, nil
	}
	c := b.overlayUpper(lowers)
	root, err := c.mount(ctx)
	if err != nil {
		return "", err
	}
	defer c.unmount()
	for _, args := range [][]string{{"update"}, {"install", "-y", "--no-install-recommends", "--download-only", "g++", "cmake", "man-db"}} {
		args = append([]string{root, "apt-get", "-qq", "-o", "APT::Sandbox::User=root"}, args...)
		if _, err := output(ctx, "chroot", args...); err != nil {
			return "", err
		}
	}
	if err := os.RemoveAll(debs + ".part"); err != nil {
		return "", err
	}
	if _, err := output(ctx, "cp", "-r", filepath.Join(root, "var/cache/apt/archives"), debs+".part"); err != nil {
		return "", err
	}
	return debs, os.Rename(debs+".part", debs)
}

// stage puts the packages into a tree.
func stage(root, debs string) error {
	return exec.Command("cp", "-r", debs, filepath.Join(root, "srv", "packages")).Run()
}

// install installs the staged packages, in a mount namespace of its own, where
// the tree has the devices and processes that their scripts expect.
func install(ctx context.Context, root string) error {
	cmd := exec.CommandContext(ctx, "sh", "-ec", `
		mount --bind /dev "$1/dev"; mount -t proc proc "$1/proc"
		exec chroot "$1" sh -c 'exec apt-get -qq -o APT::Sandbox::User=root -o Dpkg::Use-Pty=0 install -y --no-install-recommends /srv/packages/*.deb'`, "sh", root)
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C")
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("apt-get: %w: %s", err, lastLine(string(out)))
	}
	return nil
}

// writeDefault measures reads through a mount that could be written to and was
// not, which is the default mount, against the read-only one.
func (b *bench) writeDefault(ctx context.Context) error {
	ref, err := b.serve(ctx, b.images.debian)
	if err != nil {
		return err
	}
	native, lowers, err := b.unpacked(ctx, ref)
	if err != nil {
		return err
	}
	paths, files, err := list(native)
	if err != nil {
		return err
	}
	cands := []candidate{
		plain(native), b.overlayUpper(lowers), b.fuseOverlayUpper(lowers),
		b.imgfsMount("imgfs --ro", ref, "fuse"), b.imgfsUpper("imgfs fuse", ref, "fuse"),
		b.imgfsUpper("imgfs overlay", ref, "overlay"), b.imgfsUpper("imgfs erofs", ref, "erofs"),
	}
	steps := walks(paths, files)
	got, err := b.compare(ctx, cands, steps)
	if err != nil {
		return err
	}
	show(fmt.Sprintf("Walk and read through writable mounts that nobody has written to, %d entries, %d files (native: seconds; others: ratio to native / to overlayfs; medians of %d)",
		len(paths), len(files), b.rounds), "time, lower is better", "%.3f s", cands, steps, got, true)
	return nil
}

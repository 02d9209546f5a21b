package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

// candidate is one way to present the tree.
type candidate struct {
	name string
	// mount makes the tree appear afresh and returns its root; nil unmount
	// means that dropping the caches is all that can be done.
	mount   func(context.Context) (string, error)
	unmount func() error
}

// trees measures metadata walks and reads of a whole image.
func (b *bench) trees(ctx context.Context) error {
	native, lowers, err := b.unpacked(ctx, b.images.debian)
	if err != nil {
		return err
	}
	ref, err := b.serve(ctx, b.images.debian)
	if err != nil {
		return err
	}
	cands := []candidate{
		{name: "native", mount: func(context.Context) (string, error) { return native, nil }},
		b.overlay(lowers), b.fuseOverlay(lowers),
		b.imgfsMount("imgfs fuse", ref, "fuse"), b.imgfsMount("imgfs erofs", ref, "erofs"),
	}
	paths, files, err := list(native)
	if err != nil {
		return err
	}
	steps := []struct {
		name string
		cold bool
		run  func(root string) error
	}{
		{"cold find -printf", true, find},
		{"hot find -printf", false, find},
		{"cold stat each path", true, func(r string) error { return statAll(r, paths) }},
		{"hot stat each path", false, func(r string) error { return statAll(r, paths) }},
		{"cold read all", true, func(r string) error { return readAll(r, files) }},
		{"hot read all", false, func(r string) error { return readAll(r, files) }},
	}
	got := make([][]sample, len(cands))
	for i := range got {
		got[i] = make([]sample, len(steps))
	}
	for range b.rounds {
		for i, c := range cands {
			for j, s := range steps {
				if err := b.measure(ctx, c, s.cold, s.run, &got[i][j]); err != nil {
					return fmt.Errorf("%s: %s: %w", c.name, s.name, err)
				}
			}
			if c.unmount != nil {
				if err := c.unmount(); err != nil {
					return fmt.Errorf("%s: %w", c.name, err)
				}
			}
		}
	}
	head := []string{"ratio of time, lower is better"}
	for _, s := range steps {
		head = append(head, s.name)
	}
	var rows [][]string
	for i, c := range cands {
		row := []string{c.name}
		for j := range steps {
			v, base := got[i][j].median(), got[0][j].median()
			cell := fmt.Sprintf("%.3f s", v)
			if i > 0 {
				cell = fmt.Sprintf("%.2f", v/base)
			}
			if i > 1 { // behind the stroke: against kernel overlayfs
				cell += fmt.Sprintf(" / %.2f", v/got[1][j].median())
			}
			row = append(row, cell)
		}
		rows = append(rows, row)
	}
	table(fmt.Sprintf("Walk and read of %d entries, %d files, %d layers (native: seconds; others: ratio to native / to overlayfs; medians of %d)",
		len(paths), len(files), len(lowers), b.rounds), head, rows)
	return nil
}

// measure times run on c, remounted and with dropped caches when cold; a hot
// step runs on what the cold step before it left.
func (b *bench) measure(ctx context.Context, c candidate, cold bool, run func(string) error, s *sample) error {
	if cold && c.unmount != nil {
		if err := c.unmount(); err != nil {
			return err
		}
	}
	root, err := c.mount(ctx)
	if err != nil {
		return err
	}
	if cold {
		if err := dropCaches(); err != nil {
			return err
		}
	} else if err := run(root); err != nil { // warm whatever the step before did not touch
		return err
	}
	d, err := timed(func() error { return run(root) })
	s.add(d.Seconds())
	return err
}

func (b *bench) overlay(lowers []string) candidate {
	dir := b.path("mnt", "overlay")
	opt := "lowerdir=" + strings.Join(lowers, ":")
	return mounted("overlayfs", dir, func(context.Context) error {
		return syscall.Mount("overlay", dir, "overlay", syscall.MS_RDONLY, opt)
	})
}

func (b *bench) fuseOverlay(lowers []string) candidate {
	dir := b.path("mnt", "fuse-overlayfs")
	return mounted("fuse-overlayfs", dir, func(ctx context.Context) error {
		_, err := output(ctx, "fuse-overlayfs", "-o", "ro,lowerdir="+strings.Join(lowers, ":"), dir)
		return err
	})
}

func (b *bench) imgfsMount(name, ref, driver string) candidate {
	dir := b.path("mnt", "imgfs-"+driver)
	return mounted(name, dir, func(ctx context.Context) error {
		_, err := b.run(ctx, "mount", "--ro", "-q", "--driver", driver, ref, dir)
		return err
	})
}

// mounted is a candidate that mounts on dir when it is not mounted.
func mounted(name, dir string, mount func(context.Context) error) candidate {
	live := false
	return candidate{
		name: name,
		mount: func(ctx context.Context) (string, error) {
			if live {
				return dir, nil
			}
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return "", err
			}
			if err := mount(ctx); err != nil {
				return "", err
			}
			live = true
			return dir, nil
		},
		unmount: func() error {
			if !live {
				return nil
			}
			live = false
			return syscall.Unmount(dir, 0)
		},
	}
}

// list returns all paths below root, relative, and those of regular files.
func list(root string) (paths, files []string, err error) {
	err = filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel := strings.TrimPrefix(p, root)
		paths = append(paths, rel)
		if d.Type().IsRegular() {
			files = append(files, rel)
		}
		return nil
	})
	return paths, files, err
}

func find(root string) error {
	return exec.Command("find", root, "-printf", `%p %s %m %T@ %i %n\n`).Run()
}

func statAll(root string, paths []string) error {
	var st syscall.Stat_t
	for _, p := range paths {
		if err := syscall.Lstat(root+p, &st); err != nil {
			return &os.PathError{Op: "lstat", Path: root + p, Err: err}
		}
	}
	return nil
}

func readAll(root string, files []string) error {
	buf := make([]byte, 256<<10)
	for _, p := range files {
		fd, err := syscall.Open(root+p, syscall.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_CLOEXEC, 0)
		if err != nil {
			return &os.PathError{Op: "open", Path: root + p, Err: err}
		}
		for {
			n, err := syscall.Read(fd, buf)
			if err != nil && !errors.Is(err, syscall.EINTR) {
				return errors.Join(&os.PathError{Op: "read", Path: root + p, Err: err}, syscall.Close(fd))
			}
			if n == 0 {
				break
			}
		}
		if err := syscall.Close(fd); err != nil {
			return err
		}
	}
	return nil
}

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
	name    string
	mount   func(context.Context) (root string, err error) // does nothing if mounted
	unmount func() error                                   // likewise
}

// step is one figure of a comparison.
type step struct {
	name string
	cold bool // dropped caches, then a fresh mount; else on what the steps before left, warmed
	warm func(root string) error
	run  func(ctx context.Context, root string) (float64, error)
}

// compare takes every step on every candidate in every round, every other round
// in reverse order, and returns the medians by candidate and step.
func (b *bench) compare(ctx context.Context, cands []candidate, steps []step) ([][]float64, error) {
	got := make([][]sample, len(cands))
	for i := range got {
		got[i] = make([]sample, len(steps))
	}
	for round := range b.rounds {
		for k := range cands {
			i := k
			if round%2 == 1 {
				i = len(cands) - 1 - k
			}
			c := cands[i]
			for j, s := range steps {
				v, err := s.take(ctx, c)
				if err != nil {
					return nil, errors.Join(fmt.Errorf("%s: %s: %w", c.name, s.name, err), c.unmount())
				}
				got[i][j].add(v)
			}
			if err := c.unmount(); err != nil {
				return nil, fmt.Errorf("%s: %w", c.name, err)
			}
		}
	}
	medians := make([][]float64, len(cands))
	for i, samples := range got {
		for _, s := range samples {
			medians[i] = append(medians[i], s.median())
		}
	}
	return medians, nil
}

func (s *step) take(ctx context.Context, c candidate) (float64, error) {
	if s.cold {
		if err := c.unmount(); err != nil {
			return 0, err
		}
		if err := dropCaches(); err != nil {
			return 0, err
		}
	}
	root, err := c.mount(ctx)
	if err != nil {
		return 0, err
	}
	if !s.cold {
		if err := s.warm(root); err != nil {
			return 0, err
		}
	}
	return s.run(ctx, root)
}

// show prints what compare measured: the first candidate as format says, the
// others as ratios to it and, from the third on, to the second if also is set.
func show(title, unit, format string, cands []candidate, steps []step, got [][]float64, also bool) {
	head := []string{unit}
	for _, s := range steps {
		head = append(head, s.name)
	}
	var rows [][]string
	for i, c := range cands {
		row := []string{c.name}
		for j := range steps {
			cell := fmt.Sprintf(format, got[i][j])
			if i > 0 {
				cell = fmt.Sprintf("%.2f", got[i][j]/got[0][j])
			}
			if i > 1 && also {
				cell += fmt.Sprintf(" / %.2f", got[i][j]/got[1][j])
			}
			row = append(row, cell)
		}
		rows = append(rows, row)
	}
	table(title, head, rows)
}

// trees measures metadata walks and reads of a whole image.
func (b *bench) trees(ctx context.Context) error {
	ref, err := b.serve(ctx, b.images.debian)
	if err != nil {
		return err
	}
	native, lowers, err := b.unpacked(ctx, ref)
	if err != nil {
		return err
	}
	cands := []candidate{
		plain(native), b.overlay(lowers), b.fuseOverlay(lowers),
		b.imgfsMount("imgfs fuse", ref, "fuse"), b.imgfsMount("imgfs erofs", ref, "erofs"),
	}
	paths, files, err := list(native)
	if err != nil {
		return err
	}
	steps := walks(paths, files)
	got, err := b.compare(ctx, cands, steps)
	if err != nil {
		return err
	}
	show(fmt.Sprintf("Walk and read of %d entries, %d files, %d layers (native: seconds; others: ratio to native / to overlayfs; medians of %d)",
		len(paths), len(files), len(lowers), b.rounds), "time, lower is better", "%.3f s", cands, steps, got, true)
	return nil
}

// walks are the figures of a whole tree, cold and hot.
func walks(paths, files []string) (steps []step) {
	for _, s := range []struct {
		name string
		run  func(root string) error
	}{
		{"find -printf", find},
		{"stat each path", func(r string) error { return statAll(r, paths) }},
		{"read all", func(r string) error { return readAll(r, files) }},
	} {
		run := func(_ context.Context, root string) (float64, error) {
			d, err := timed(func() error { return s.run(root) })
			return d.Seconds(), err
		}
		steps = append(steps, step{"cold " + s.name, true, nil, run}, step{"hot " + s.name, false, s.run, run})
	}
	return steps
}

// plain is a directory that needs no mount.
func plain(dir string) candidate {
	return candidate{
		name:    "native",
		mount:   func(context.Context) (string, error) { return dir, nil },
		unmount: func() error { return nil },
	}
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

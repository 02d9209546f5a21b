package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
)

// writeData measures fio on a new file of 1 GiB. "To disk" ends with fsync;
// the others end in the page cache, and what is dirty is written out between
// the figures.
func (b *bench) writeData(ctx context.Context) error {
	ref, err := b.serve(ctx, b.images.debian)
	if err != nil {
		return err
	}
	_, lowers, err := b.unpacked(ctx, ref)
	if err != nil {
		return err
	}
	cands := append(b.writable(ref, "", lowers), b.loopback())
	file := func(root string) string { return filepath.Join(root, "data.bin") }
	anew := func(root string) error {
		if err := os.RemoveAll(file(root)); err != nil {
			return err
		}
		return flushed(root)
	}
	var steps []step
	for _, s := range []struct {
		name    string
		prepare func(root string) error
		args    []string
	}{
		{"write 1 GiB", anew, []string{"--rw=write", "--bs=1m"}},
		{"rewrite", flushed, []string{"--rw=write", "--bs=1m"}},
		{"random 4 KiB overwrite", flushed, []string{"--rw=randwrite", "--bs=4k", "--io_size=256m"}},
		{"rewrite to disk", flushed, []string{"--rw=write", "--bs=1m", "--end_fsync=1"}},
		{"write to disk", anew, []string{"--rw=write", "--bs=1m", "--end_fsync=1"}},
		{"random to disk", flushed, []string{"--rw=randwrite", "--bs=4k", "--io_size=64m", "--end_fsync=1"}},
	} {
		run := func(ctx context.Context, root string) (float64, error) {
			v, err := bandwidth(ctx, append([]string{"--filename=" + file(root), "--size=1g", "--fallocate=none"}, s.args...)...)
			return v / 1e6, err
		}
		steps = append(steps, step{s.name, false, s.prepare, run})
	}
	got, err := b.compare(ctx, cands, steps)
	if err != nil {
		return err
	}
	show(fmt.Sprintf("Writing one file of 1 GiB in a writable mount (native: MB/s; others: ratio to native / to overlayfs; medians of %d)", b.rounds),
		"throughput, higher is better", "%.0f MB/s", cands, steps, got, true)
	return nil
}

// copyUp measures the first change of a file of 1 GiB that an image holds, its
// bytes in the page cache, until it is on disk, against cp of the same file.
func (b *bench) copyUp(ctx context.Context) error {
	ref, err := b.serve(ctx, b.images.large)
	if err != nil {
		return err
	}
	native, lowers, err := b.unpacked(ctx, ref)
	if err != nil {
		return err
	}
	source := filepath.Join(native, largeFile)
	cands := b.writable(ref, "", lowers)
	cands[0].name = "cp and fsync, native"
	prepare := func(root string) error {
		if _, err := os.Stat(filepath.Join(root, largeFile)); os.IsNotExist(err) {
			root = native // the directory that cp copies to
		}
		if err := warm(root); err != nil {
			return err
		}
		return flushed(root)
	}
	change := func(ctx context.Context, root string) (float64, error) {
		file := filepath.Join(root, largeFile)
		d, err := timed(func() error {
			if _, err := os.Stat(file); os.IsNotExist(err) {
				if _, err := output(ctx, "cp", source, file); err != nil {
					return err
				}
			}
			f, err := os.OpenFile(file, os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			defer f.Close()
			if _, err := f.WriteAt([]byte{1}, 0); err != nil {
				return err
			}
			return f.Sync()
		})
		return d.Seconds(), err
	}
	steps := []step{{"change 1 byte of 1 GiB, fsync", false, prepare, change}}
	got, err := b.compare(ctx, cands, steps)
	if err != nil {
		return err
	}
	show(fmt.Sprintf("Copy-up of a file of 1 GiB (native: seconds; others: ratio to native / to overlayfs; medians of %d)", b.rounds),
		"time, lower is better", "%.2f s", cands, steps, got, true)
	return nil
}

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// names is how many files writeNames makes, renames and removes.
const names = 10_000

// writeNames measures the changes of names, and stat of what was written.
func (b *bench) writeNames(ctx context.Context) error {
	ref, err := b.serve(ctx, b.images.debian)
	if err != nil {
		return err
	}
	_, lowers, err := b.unpacked(ctx, ref)
	if err != nil {
		return err
	}
	cands := append(b.writable(ref, "", lowers), b.loopback())
	page := make([]byte, 4<<10)
	var steps []step
	for _, s := range []struct {
		name string
		run  func(root string) error
	}{
		{"create", each(func(r string, i int) error { return create(r, i, nil) })},
		{"create + 4 KiB", each(func(r string, i int) error { return create(r, names+i, page) })},
		{"stat", each(stat)},
		{"open, read, close", each(func(r string, i int) error { return read(r, names+i) })},
		{"overwrite 4 KiB + stat", overwrite},
		{"rename", each(func(r string, i int) error { return os.Rename(nameOf(r, i), nameOf(r, i)+".renamed") })},
		{"unlink", each(func(r string, i int) error { return syscall.Unlink(nameOf(r, names+i)) })},
	} {
		prepare := func(root string) error {
			if err := os.MkdirAll(filepath.Join(root, "names"), 0o755); err != nil {
				return err
			}
			return flushed(root)
		}
		run := func(_ context.Context, root string) (float64, error) {
			d, err := timed(func() error { return s.run(root) })
			return float64(d.Microseconds()) / names, err
		}
		steps = append(steps, step{s.name, false, prepare, run})
	}
	got, err := b.compare(ctx, cands, steps)
	if err != nil {
		return err
	}
	show(fmt.Sprintf("%d files, new ones in a writable mount (native: time per file; others: ratio to native / to overlayfs; medians of %d)", names, b.rounds),
		"time, lower is better", "%.1f µs", cands, steps, got, true)
	return nil
}

// each runs f for every file.
func each(f func(root string, i int) error) func(string) error {
	return func(root string) error {
		for i := range names {
			if err := f(root, i); err != nil {
				return err
			}
		}
		return nil
	}
}

func nameOf(root string, i int) string { return fmt.Sprintf("%s/names/file-%05d", root, i) }

func create(root string, i int, data []byte) error {
	fd, err := syscall.Open(nameOf(root, i), syscall.O_CREAT|syscall.O_EXCL|syscall.O_WRONLY|syscall.O_CLOEXEC, 0o644)
	if err != nil {
		return &os.PathError{Op: "create", Path: nameOf(root, i), Err: err}
	}
	if data != nil {
		if _, err := syscall.Pwrite(fd, data, 0); err != nil {
			return &os.PathError{Op: "write", Path: nameOf(root, i), Err: err}
		}
	}
	return syscall.Close(fd)
}

func stat(root string, i int) error {
	var st syscall.Stat_t
	if err := syscall.Lstat(nameOf(root, i), &st); err != nil {
		return &os.PathError{Op: "lstat", Path: nameOf(root, i), Err: err}
	}
	return nil
}

func read(root string, i int) error {
	fd, err := syscall.Open(nameOf(root, i), syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: nameOf(root, i), Err: err}
	}
	buf := make([]byte, 8<<10)
	if n, err := syscall.Read(fd, buf); err != nil || n != 4<<10 {
		return fmt.Errorf("read %s: %d, %w", nameOf(root, i), n, err)
	}
	return syscall.Close(fd)
}

// overwrite writes 4 KiB at a time into one file and asks for its size each time.
func overwrite(root string) error {
	name := nameOf(root, names)
	fd, err := syscall.Open(name, syscall.O_WRONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: name, Err: err}
	}
	page := make([]byte, 4<<10)
	for i := range names {
		if _, err := syscall.Pwrite(fd, page, int64(i%256)<<12); err != nil {
			return errors.Join(&os.PathError{Op: "write", Path: name, Err: err}, syscall.Close(fd))
		}
		if err := stat(root, names); err != nil {
			return errors.Join(err, syscall.Close(fd))
		}
	}
	return syscall.Close(fd)
}

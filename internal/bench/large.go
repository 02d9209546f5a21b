package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
)

// large measures fio on one file of 1 GiB, read through imgfs and natively.
func (b *bench) large(ctx context.Context) error {
	ref, err := b.serve(ctx, b.images.large)
	if err != nil {
		return err
	}
	native, _, err := b.unpacked(ctx, ref)
	if err != nil {
		return err
	}
	cands := []candidate{plain(native), b.imgfsMount("imgfs fuse", ref, "fuse"), b.imgfsMount("imgfs erofs", ref, "erofs")}
	var steps []step
	for _, s := range []struct {
		name, rw, bs, size string
		cold               bool
	}{
		{"cold sequential", "read", "1m", "1g", true}, {"hot sequential", "read", "1m", "8g", false},
		{"cold random 4 KiB", "randread", "4k", "128m", true}, {"hot random 4 KiB", "randread", "4k", "2g", false},
	} {
		run := func(ctx context.Context, root string) (float64, error) {
			v, err := fio(ctx, filepath.Join(root, largeFile), s.rw, s.bs, s.size)
			return v / 1e6, err
		}
		steps = append(steps, step{s.name, s.cold, warm, run})
	}
	got, err := b.compare(ctx, cands, steps)
	if err != nil {
		return err
	}
	show(fmt.Sprintf("One file of 1 GiB (native: MB/s; others: ratio; medians of %d)", b.rounds),
		"throughput, higher is better", "%.0f MB/s", cands, steps, got, false)
	return nil
}

// warm reads the file into the page cache.
func warm(root string) error {
	f, err := os.Open(filepath.Join(root, largeFile))
	if err != nil {
		return err
	}
	defer f.Close()
	buf := make([]byte, 1<<20)
	for {
		if n, _ := f.Read(buf); n == 0 {
			return nil
		}
	}
}

// fio returns the bandwidth, in bytes per second, of reading size bytes; hot
// reads are so fast that they must go round several times for a stable figure.
func fio(ctx context.Context, file, rw, bs, size string) (float64, error) {
	return bandwidth(ctx, "--filename="+file, "--readonly", "--rw="+rw, "--bs="+bs, "--io_size="+size, "--runtime=5")
}

// bandwidth runs one fio job and returns what it read or wrote, in bytes per
// second.
func bandwidth(ctx context.Context, args ...string) (float64, error) {
	out, err := output(ctx, "fio", append([]string{"--name=x", "--ioengine=psync", "--invalidate=0",
		"--norandommap", "--randrepeat=0", "--output-format=json"}, args...)...)
	if err != nil {
		return 0, err
	}
	type dir struct {
		BwBytes float64 `json:"bw_bytes"`
	}
	var r struct{ Jobs []struct{ Read, Write dir } }
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		return 0, fmt.Errorf("fio: %w", err)
	}
	if len(r.Jobs) != 1 {
		return 0, fmt.Errorf("fio: %d jobs", len(r.Jobs))
	}
	return r.Jobs[0].Read.BwBytes + r.Jobs[0].Write.BwBytes, nil
}

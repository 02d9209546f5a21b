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
	native, _, err := b.unpacked(ctx, b.images.large)
	if err != nil {
		return err
	}
	ref, err := b.serve(ctx, b.images.large)
	if err != nil {
		return err
	}
	cands := []candidate{
		{name: "native", mount: func(context.Context) (string, error) { return native, nil }},
		b.imgfsMount("imgfs fuse", ref, "fuse"), b.imgfsMount("imgfs erofs", ref, "erofs"),
	}
	steps := []struct {
		name, rw, bs string
		cold         bool
	}{
		{"sequential, hot", "read", "1m", false},
		{"random 4 KiB, hot", "randread", "4k", false},
		{"sequential, cold", "read", "1m", true},
		{"random 4 KiB, cold", "randread", "4k", true},
	}
	got := make([][]sample, len(cands))
	for i := range got {
		got[i] = make([]sample, len(steps))
	}
	for range b.rounds {
		for i, c := range cands {
			for j, s := range steps {
				if s.cold && c.unmount != nil {
					if err := c.unmount(); err != nil {
						return err
					}
				}
				root, err := c.mount(ctx)
				if err != nil {
					return err
				}
				file := filepath.Join(root, largeFile)
				if s.cold {
					err = dropCaches()
				} else {
					err = warm(file)
				}
				if err != nil {
					return err
				}
				v, err := fio(ctx, file, s.rw, s.bs)
				if err != nil {
					return fmt.Errorf("%s: %s: %w", c.name, s.name, err)
				}
				got[i][j].add(v)
			}
			if c.unmount != nil {
				if err := c.unmount(); err != nil {
					return err
				}
			}
		}
	}
	head := []string{"throughput, higher is better"}
	for _, s := range steps {
		head = append(head, s.name)
	}
	var rows [][]string
	for i, c := range cands {
		row := []string{c.name}
		for j := range steps {
			v := got[i][j].median()
			cell := fmt.Sprintf("%.0f MB/s", v/1e6)
			if i > 0 {
				cell = fmt.Sprintf("%.2f", v/got[0][j].median())
			}
			row = append(row, cell)
		}
		rows = append(rows, row)
	}
	table(fmt.Sprintf("One file of 1 GiB (native: MB/s; others: ratio; medians of %d)", b.rounds), head, rows)
	return nil
}

func warm(file string) error {
	f, err := os.Open(file)
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

// fio returns the read bandwidth in bytes per second.
func fio(ctx context.Context, file, rw, bs string) (float64, error) {
	size := "1g"
	if rw == "randread" {
		size = "128m" // io_size: enough for a stable figure, quick when cold
	}
	out, err := output(ctx, "fio", "--name=x", "--filename="+file, "--readonly", "--rw="+rw, "--bs="+bs,
		"--ioengine=psync", "--invalidate=0", "--norandommap", "--randrepeat=0", "--io_size="+size,
		"--runtime=5", "--output-format=json")
	if err != nil {
		return 0, err
	}
	var r struct {
		Jobs []struct {
			Read struct {
				BwBytes float64 `json:"bw_bytes"`
			} `json:"read"`
		} `json:"jobs"`
	}
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		return 0, fmt.Errorf("fio: %w", err)
	}
	if len(r.Jobs) != 1 {
		return 0, fmt.Errorf("fio: %d jobs", len(r.Jobs))
	}
	return r.Jobs[0].Read.BwBytes, nil
}

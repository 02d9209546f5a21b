package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// mount measures the mount of a known image as seen by the CLI, and the
// daemon's anonymous memory with ten mounts, walked, and one more.
func (b *bench) mount(ctx context.Context) error {
	debian, err := b.serve(ctx, b.images.debian)
	if err != nil {
		return err
	}
	small, err := b.serve(ctx, b.images.small)
	if err != nil {
		return err
	}
	var rows [][]string
	for _, im := range []struct{ name, ref string }{{"Debian + python", debian}, {"90,000 small files", small}} {
		ms, err := b.mountTimes(ctx, im.ref)
		if err != nil {
			return err
		}
		rows = append(rows, []string{im.name, fmt.Sprintf("%.1f ms", ms.median())})
	}
	table("Mount of a known image, daemon running, whole command (medians of 20)", []string{"", "imgfs mount"}, rows)

	pid, err := b.daemonPID(ctx, b.path("store"))
	if err != nil {
		return err
	}
	for i := range 10 {
		dir, err := b.mountOn(ctx, debian, fmt.Sprintf("m%d", i))
		if err != nil {
			return err
		}
		if err := find(dir); err != nil {
			return err
		}
	}
	ten, err := rssAnon(pid)
	if err != nil {
		return err
	}
	dir, err := b.mountOn(ctx, small, "more")
	if err != nil {
		return err
	}
	eleven, err := rssAnon(pid)
	if err != nil {
		return err
	}
	if err := find(dir); err != nil {
		return err
	}
	walked, err := rssAnon(pid)
	if err != nil {
		return err
	}
	mib := func(n int64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }
	table("The daemon's anonymous memory (RssAnon)", []string{"ten mounts, each walked", "one more, 90,000 files", "and walked"},
		[][]string{{mib(ten), mib(eleven), mib(walked)}})
	_, err = b.run(ctx, "umount", "-a")
	return err
}

func (b *bench) mountTimes(ctx context.Context, ref string) (sample, error) {
	dir, err := b.mountOn(ctx, ref, "known") // pulls, if need be
	if err != nil {
		return nil, err
	}
	var ms sample
	for range 20 {
		if _, err := b.run(ctx, "umount", dir); err != nil {
			return nil, err
		}
		d, err := timed(func() error {
			_, err := b.run(ctx, "mount", "--ro", "-q", ref, dir)
			return err
		})
		if err != nil {
			return nil, err
		}
		ms.add(float64(d.Microseconds()) / 1000)
	}
	_, err = b.run(ctx, "umount", dir)
	return ms, err
}

func (b *bench) mountOn(ctx context.Context, ref, name string) (string, error) {
	dir := b.path("mnt", name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	_, err := b.run(ctx, "mount", "--ro", "-q", ref, dir)
	return dir, err
}

// rssAnon returns a process's anonymous memory in bytes.
func rssAnon(pid int) (int64, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if v, ok := strings.CutPrefix(s.Text(), "RssAnon:"); ok {
			kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(v), " kB"), 10, 64)
			return kib << 10, err
		}
	}
	return 0, fmt.Errorf("/proc/%d/status: no RssAnon", pid)
}

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// cost is what one pull took.
type cost struct{ wall, cpu, disk sample }

// pull measures from an empty store to a usable tree: `imgfs mount`, `ctr
// image pull` and `podman pull`, of the same images from the same registry.
func (b *bench) pull(ctx context.Context) error {
	for _, im := range []struct{ name, layout string }{{"Debian + python", b.images.debian}, {"90,000 small files", b.images.small}} {
		ref, err := b.serve(ctx, im.layout)
		if err != nil {
			return err
		}
		peers := []struct {
			name string
			run  func(context.Context, string, *cost) error
		}{{"containerd", b.pullContainerd}, {"podman", b.pullPodman}, {"imgfs", b.pullImgfs}}
		got := make([]cost, len(peers))
		for range b.rounds {
			for i, p := range peers {
				if err := dropCaches(); err != nil {
					return err
				}
				if err := p.run(ctx, ref, &got[i]); err != nil {
					return fmt.Errorf("%s: %w", p.name, err)
				}
			}
		}
		stream, err := streamBytes(ctx, im.layout)
		if err != nil {
			return err
		}
		var rows [][]string
		for i, p := range peers {
			c, base := got[i], got[0]
			rows = append(rows, []string{p.name,
				fmt.Sprintf("%.2f s (%.2f)", c.wall.median(), c.wall.median()/base.wall.median()),
				fmt.Sprintf("%.2f s (%.2f)", c.cpu.median(), c.cpu.median()/base.cpu.median()),
				fmt.Sprintf("%.0f MB (%.2f)", c.disk.median()/1e6, c.disk.median()/float64(stream))})
		}
		table(fmt.Sprintf("From an empty store to a usable tree: %s (in brackets: wall and CPU to containerd's, disk to the %.0f MB of uncompressed layers; medians of %d)",
			im.name, float64(stream)/1e6, b.rounds), []string{"", "wall", "CPU", "disk"}, rows)
	}
	return nil
}

func (b *bench) pullImgfs(ctx context.Context, ref string, c *cost) error {
	store, mnt := b.path("pull-store"), b.path("mnt", "pull")
	defer os.RemoveAll(store)
	if err := os.MkdirAll(mnt, 0o755); err != nil {
		return err
	}
	imgfs := func(args ...string) error {
		_, err := output(ctx, b.imgfs, append([]string{"--root", store}, args...)...)
		return err
	}
	before, err := childCPU()
	if err != nil {
		return err
	}
	wall, err := timed(func() error { return imgfs("mount", "--ro", "-q", ref, mnt) })
	if err != nil {
		return err
	}
	daemon, err := b.daemonPID(ctx, store)
	if err != nil {
		return err
	}
	cpu, err := procCPU(daemon)
	if err != nil {
		return err
	}
	after, err := childCPU()
	if err != nil {
		return err
	}
	disk, err := allocated(store)
	if err != nil {
		return err
	}
	c.wall.add(wall.Seconds())
	c.cpu.add((cpu + after - before).Seconds())
	c.disk.add(float64(disk))
	if err := imgfs("umount", mnt); err != nil {
		return err
	}
	return imgfs("daemon", "stop")
}

func (b *bench) pullPodman(ctx context.Context, ref string, c *cost) error {
	root := b.path("pull-podman")
	defer os.RemoveAll(root)
	before, err := childCPU()
	if err != nil {
		return err
	}
	wall, err := timed(func() error {
		_, err := output(ctx, "podman", "--root", root, "--runroot", root+"-run", "--storage-driver", "overlay",
			"pull", "-q", "--tls-verify=false", ref)
		return err
	})
	defer os.RemoveAll(root + "-run")
	if err != nil {
		return err
	}
	after, err := childCPU()
	if err != nil {
		return err
	}
	disk, err := allocated(root)
	c.wall.add(wall.Seconds())
	c.cpu.add((after - before).Seconds())
	c.disk.add(float64(disk))
	return err
}

func (b *bench) pullContainerd(ctx context.Context, ref string, c *cost) (err error) {
	u, err := b.startContainerd(ctx, ref, overlayfs)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, u.close()) }()
	daemon0, err := procCPU(u.daemons[0].Process.Pid)
	if err != nil {
		return err
	}
	before, err := childCPU()
	if err != nil {
		return err
	}
	wall, err := timed(func() error { return u.pull(ctx) })
	if err != nil {
		return err
	}
	after, err := childCPU()
	if err != nil {
		return err
	}
	daemon1, err := procCPU(u.daemons[0].Process.Pid)
	if err != nil {
		return err
	}
	disk, err := allocated(filepath.Join(u.root, "root"))
	c.wall.add(wall.Seconds())
	c.cpu.add((daemon1 - daemon0 + after - before).Seconds())
	c.disk.add(float64(disk))
	return err
}

// daemonPID asks the daemon of a store for its pid.
func (b *bench) daemonPID(ctx context.Context, store string) (int, error) {
	out, err := output(ctx, b.imgfs, "--root", store, "status", "--format", "{{.PID}}")
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(out))
}

// childCPU returns the CPU time of all children waited for.
func childCPU() (time.Duration, error) {
	var ru syscall.Rusage
	err := syscall.Getrusage(syscall.RUSAGE_CHILDREN, &ru)
	return time.Duration(ru.Utime.Nano() + ru.Stime.Nano()), err
}

// procCPU returns the CPU time of a live process and of its children that it
// waited for (containerd inflates in a child): fields 14 to 17 of proc_pid_stat(5).
func procCPU(pid int) (time.Duration, error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	fields := strings.Fields(string(raw[strings.LastIndexByte(string(raw), ')')+1:]))
	if len(fields) < 15 {
		return 0, fmt.Errorf("/proc/%d/stat: short", pid)
	}
	var ticks int64
	for _, f := range fields[11:15] {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0, err
		}
		ticks += n
	}
	const perSecond = 100 // USER_HZ, fixed by the kernel's ABI
	return time.Duration(ticks) * (time.Second / perSecond), nil
}

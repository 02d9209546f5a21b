package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// keeper is somebody who saves and loads images.
type keeper struct {
	name  string
	run   func(ctx context.Context, args ...string) error
	cpu   func(ctx context.Context) (float64, error) // seconds so far, of whoever works
	reset func(ctx context.Context) error            // to an empty store
}

// archive measures `load` into an empty store, `save`, and `load` of what is
// there already, of podman and imgfs, on the same archives: docker's with plain
// layers, and OCI's with those of the registry. The archive is not in the page
// cache when it is loaded, nor are the layers when they are saved.
func (b *bench) archive(ctx context.Context) error {
	keepers := []keeper{b.podmanKeeper(), b.imgfsKeeper()}
	defer func() {
		keepers[1].run(context.Background(), "daemon", "stop", "--force")
		os.RemoveAll(b.path("archive-store"))
		// The overlay store is a bind mount of itself, which podman leaves.
		unix.Unmount(filepath.Join(b.path("archive-podman"), "overlay"), 0)
		os.RemoveAll(b.path("archive-podman"))
		os.RemoveAll(b.path("archive-podman-run"))
	}()
	for _, im := range []struct{ name, layout string }{{"Debian + python", b.images.debian}, {"1 GiB in a file", b.images.large}} {
		stream, err := streamBytes(ctx, im.layout)
		if err != nil {
			return err
		}
		docker, oci, out := b.path("docker.tar"), b.path("oci.tar"), b.path("out.tar")
		for kind, file := range map[string]string{"docker-archive:": docker, "oci-archive:": oci} {
			os.Remove(file) // skopeo adds to one that is there
			defer os.Remove(file)
			if _, err := output(ctx, "skopeo", "copy", "-q", "--insecure-policy", "oci:"+im.layout, kind+file+":bench/x:1"); err != nil {
				return err
			}
		}
		steps := []struct {
			name  string
			empty bool // the store, before it
			args  []string
		}{
			{"load, OCI archive, compressed", true, []string{"load", "-q", "-i", oci}},
			{"load, docker archive, plain", true, []string{"load", "-q", "-i", docker}},
			{"load of what is there", false, []string{"load", "-q", "-i", docker}},
			{"save", false, []string{"save", "-o", out, "bench/x:1"}},
		}
		got := make([][]cost, len(steps))
		for i := range got {
			got[i] = make([]cost, len(keepers))
		}
		for range b.rounds {
			for n, k := range keepers {
				for i, s := range steps {
					if err := b.archiveStep(ctx, k, s.empty, s.args, &got[i][n]); err != nil {
						return fmt.Errorf("%s: %s: %w", k.name, s.name, err)
					}
					os.Remove(out)
				}
			}
		}
		var rows [][]string
		for i, s := range steps {
			row := []string{s.name}
			for n := range keepers {
				c, base := got[i][n], got[i][0]
				row = append(row,
					fmt.Sprintf("%.2f s, %.0f MB/s (%.2f)", c.wall.median(), float64(stream)/1e6/c.wall.median(), c.wall.median()/base.wall.median()),
					fmt.Sprintf("%.2f s (%.2f)", c.cpu.median(), c.cpu.median()/base.cpu.median()))
			}
			rows = append(rows, row)
		}
		table(fmt.Sprintf("Archives: %s, %.0f MB of uncompressed layers (in brackets: to podman; medians of %d)", im.name, float64(stream)/1e6, b.rounds),
			[]string{"", "podman, wall", "CPU", "imgfs, wall", "CPU"}, rows)
	}
	return nil
}

func (b *bench) archiveStep(ctx context.Context, k keeper, empty bool, args []string, c *cost) error {
	if empty {
		if err := k.reset(ctx); err != nil {
			return err
		}
	}
	if err := dropCaches(); err != nil {
		return err
	}
	before, err := k.cpu(ctx)
	if err != nil {
		return err
	}
	wall, err := timed(func() error { return k.run(ctx, args...) })
	if err != nil {
		return err
	}
	after, err := k.cpu(ctx)
	c.wall.add(wall.Seconds())
	c.cpu.add(after - before)
	return err
}

func (b *bench) podmanKeeper() keeper {
	root := b.path("archive-podman")
	run := func(ctx context.Context, args ...string) error {
		_, err := output(ctx, "podman", append([]string{"--root", root, "--runroot", root + "-run", "--storage-driver", "overlay"}, args...)...)
		return err
	}
	return keeper{
		name: "podman", run: run,
		cpu: func(context.Context) (float64, error) {
			d, err := childCPU()
			return d.Seconds(), err
		},
		reset: func(ctx context.Context) error {
			if _, err := os.Stat(root); err == nil {
				if err := run(ctx, "rmi", "-a", "-f"); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

// imgfsKeeper is imgfs, whose daemon runs before the clock starts, as podman
// has none that it would have to start.
func (b *bench) imgfsKeeper() keeper {
	store := b.path("archive-store")
	run := func(ctx context.Context, args ...string) error {
		_, err := output(ctx, b.imgfs, append([]string{"--root", store}, args...)...)
		return err
	}
	return keeper{
		name: "imgfs", run: run,
		cpu: func(ctx context.Context) (float64, error) {
			pid, err := b.daemonPID(ctx, store)
			if err != nil {
				return 0, err
			}
			daemon, err := procCPU(pid)
			if err != nil {
				return 0, err
			}
			own, err := childCPU()
			return (daemon + own).Seconds(), err
		},
		reset: func(ctx context.Context) error {
			if _, err := os.Stat(store); err == nil {
				if err := run(ctx, "daemon", "stop", "--force"); err != nil {
					return err
				}
			}
			if err := os.RemoveAll(store); err != nil {
				return err
			}
			return run(ctx, "images", "-q")
		},
	}
}

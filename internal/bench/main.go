// Command bench prints the figures of the README: imgfs against the native
// file system, kernel overlayfs, fuse-overlayfs, go-fuse's loopback, containerd and
// podman, on the same images and the same disk, in one run.
//
// Terms: a *round* measures every candidate once, in turn, so that a drift of
// the machine's speed touches all of them alike; a figure is the *median* over
// the rounds; a *ratio* is taken between medians of one run and is what counts.
// *Cold* means dropped caches, then a fresh mount; a writable mount has a fresh
// upper in every round. Nothing here passes or fails.
//
// It needs root, /dev/fuse and the Debian packages that .ci/deps installs. All
// it makes lies below -dir and is removed, but for the images and packages, which
// are kept for the next run.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// bench is one run.
type bench struct {
	imgfs  string // path of the binary under test
	dir    string // everything is made below it
	rounds int
	only   []string // images of the lazy parts, by name; nil: all
	images images
	reg    *registry // nil until the first serve
	undo   []func()  // run in reverse order at the end
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run() (err error) {
	var b bench
	var only, images string
	flag.StringVar(&b.imgfs, "imgfs", "bin/imgfs", "binary under test")
	flag.StringVar(&b.dir, "dir", ".bench", "working directory, on the file system to be measured")
	flag.IntVar(&b.rounds, "rounds", 5, "rounds per figure")
	flag.StringVar(&only, "only", "trees,large,pull,mount,archive,lazy,write", "parts to run, comma separated; also images; write stands for write-names, -data, -trees, -copyup and -default, lazy for lazy-first and -local")
	flag.StringVar(&images, "images", "", "images of the lazy parts, comma separated, all if empty: debian-only, debian-python, debian-node, debian-toolchain")
	loop := flag.String("loopback", "", "serve go-fuse's loopback of this directory on the one that the argument names (the bench starts that itself)")
	flag.Parse()
	if *loop != "" {
		return serveLoopback(*loop, flag.Arg(0))
	}

	if images != "" {
		b.only = strings.Split(images, ",")
	}
	if os.Geteuid() != 0 {
		return errors.New("needs root: mounts, dropped caches")
	}
	if b.imgfs, err = filepath.Abs(b.imgfs); err != nil {
		return err
	}
	if b.dir, err = filepath.Abs(b.dir); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	defer func() {
		for _, f := range slices.Backward(b.undo) {
			f()
		}
	}()
	if only == "images" { // needs none of the images
		return b.manyImagesStore(ctx)
	}
	if err := b.prepare(ctx); err != nil {
		return err
	}
	parts := []struct {
		name string
		run  func(context.Context) error
	}{{"trees", b.trees}, {"large", b.large}, {"pull", b.pull}, {"mount", b.mount}, {"archive", b.archive},
		{"lazy-first", b.lazyFirst}, {"lazy-local", b.lazyLocal},
		{"write-names", b.writeNames}, {"write-data", b.writeData}, {"write-trees", b.writeTrees},
		{"write-copyup", b.copyUp}, {"write-default", b.writeDefault},
		{"images", b.manyImagesStore}}
	for _, p := range parts {
		group, _, _ := strings.Cut(p.name, "-")
		if asked := strings.Split(only, ","); !slices.Contains(asked, p.name) && !slices.Contains(asked, group) {
			continue
		}
		if err := p.run(ctx); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	return nil
}

// later registers f to run when the bench ends.
func (b *bench) later(f func()) { b.undo = append(b.undo, f) }

// path returns a path below the working directory.
func (b *bench) path(elem ...string) string {
	return filepath.Join(append([]string{b.dir}, elem...)...)
}

// output runs a command and returns what it printed; its error holds stderr.
func output(ctx context.Context, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", filepath.Base(name), strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return string(out), nil
}

func lastLine(s string) string {
	s = strings.TrimSpace(s)
	return s[strings.LastIndexByte(s, '\n')+1:]
}

// dropCaches empties the page, dentry and inode caches.
func dropCaches() error {
	if err := exec.Command("sync").Run(); err != nil {
		return err
	}
	return os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0)
}

// timed returns how long f took.
func timed(f func() error) (time.Duration, error) {
	start := time.Now()
	err := f()
	return time.Since(start), err
}

// sample collects the measurements of one figure.
type sample []float64

func (s *sample) add(v float64) { *s = append(*s, v) }

// median returns 0 for an empty sample.
func (s sample) median() float64 {
	if len(s) == 0 {
		return 0
	}
	v := slices.Sorted(slices.Values(s))
	if n := len(v); n%2 == 0 {
		return (v[n/2-1] + v[n/2]) / 2
	}
	return v[len(v)/2]
}

// table prints rows as GitHub Markdown.
func table(title string, head []string, rows [][]string) {
	fmt.Printf("\n%s\n\n", title)
	line := func(cells []string) { fmt.Println("| " + strings.Join(cells, " | ") + " |") }
	line(head)
	line(slices.Repeat([]string{"---"}, len(head)))
	for _, r := range rows {
		line(r)
	}
}

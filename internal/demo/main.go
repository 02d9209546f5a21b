// Command demo shows imgfs on a real image: it makes one (a Debian userland
// where debootstrap is at hand, else busybox), serves it from a registry of its
// own on loopback, mounts it, looks into it, runs a program in it, writes to it
// and makes an image of what was written. Everything lies in a
// temporary directory and is gone afterwards.
//
// With -image (make demo IMAGE=...) it shows that image instead: a reference,
// or oci:DIR, oci-archive:FILE, docker-archive:FILE.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/imgtest"
)

func main() {
	imgfs := flag.String("imgfs", "bin/imgfs", "the imgfs binary")
	image := flag.String("image", "", "image to show; empty makes one")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	// In a pipe whose reader leaves, too, nothing may stay mounted.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	if err := run(ctx, *imgfs, *image); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		stop()
		os.Exit(1)
	}
}

// session is one demonstration: a store and a mountpoint in a directory.
type session struct {
	imgfs, dir, mnt string
}

func run(ctx context.Context, imgfs, image string) (err error) {
	imgfs, err = filepath.Abs(imgfs)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "imgfs-demo-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	s := session{imgfs: imgfs, dir: dir, mnt: filepath.Join(dir, "mnt")}
	if err := os.Mkdir(s.mnt, 0o755); err != nil {
		return err
	}
	if image == "" {
		var closer func() error
		if image, closer, err = serve(ctx, dir); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, closer()) }()
	}
	defer func() {
		err = errors.Join(err, s.quiet("umount", "-a"), s.quiet("daemon", "stop", "--force"))
	}()
	return s.show(ctx, image)
}

func (s *session) show(ctx context.Context, image string) error {
	say("first contact: every layer passes once, is verified and indexed; nothing is unpacked")
	root := os.Geteuid() == 0
	mount := []string{"mount", image, s.mnt}
	if root {
		mount = append(mount, "--suid", "--dev") // for the chroot
	}
	first, err := s.step(ctx, mount...)
	if err != nil {
		return err
	}
	for _, c := range [][]string{
		{"ls", "-l", s.mnt},
		{"sh", "-c", "cat " + s.mnt + "/etc/os-release 2>/dev/null || true"},
		{"sh", "-c", "find " + s.mnt + " | wc -l"},
	} {
		if err := show(ctx, c...); err != nil {
			return err
		}
	}
	if _, err := os.Lstat(filepath.Join(s.mnt, "bin/sh")); root && err == nil {
		if err := show(ctx, "chroot", s.mnt, "/bin/sh", "-c", "id; ls /"); err != nil {
			return err
		}
	}
	if _, err := s.step(ctx, "umount", s.mnt); err != nil {
		return err
	}
	say("again: the image is known, so this is one memory map")
	again, err := s.step(ctx, "mount", image, s.mnt)
	if err != nil {
		return err
	}
	for _, c := range [][]string{{"images"}, {"mounts"}, {"status"}} {
		if _, err := s.step(ctx, c...); err != nil {
			return err
		}
	}
	if err := s.change(ctx, root); err != nil {
		return err
	}
	fmt.Printf("\nfirst mount %v, second mount %v\n", first.Round(time.Millisecond), again.Round(100*time.Microsecond))
	return nil
}

// change writes to the mount, makes an image of the changes and runs a command
// in it.
func (s *session) change(ctx context.Context, root bool) error {
	say("what is written goes into an upper; a directory of the image moves without a copy")
	motd, share := filepath.Join(s.mnt, "etc/motd"), filepath.Join(s.mnt, "usr/share")
	if err := show(ctx, "sh", "-c", "echo hello > "+fault.Word(motd)); err != nil {
		return err
	}
	if _, err := os.Lstat(share); err == nil {
		if err := show(ctx, "mv", share, filepath.Join(s.mnt, "usr/shared")); err != nil {
			return err
		}
		if err := show(ctx, "mv", filepath.Join(s.mnt, "usr/shared"), share); err != nil {
			return err
		}
	}
	steps := [][]string{{"diff", s.mnt}, {"commit", "-m", "say hello", s.mnt, "demo/hello:1"}, {"umount", s.mnt}, {"upper", "ls"}}
	if root {
		steps = append(steps, []string{"run", "demo/hello:1", "cat", "/etc/motd"})
	}
	for _, c := range steps {
		if _, err := s.step(ctx, c...); err != nil {
			return err
		}
	}
	return nil
}

// step runs imgfs as the user would type it, shows it and returns its time.
func (s *session) step(ctx context.Context, args ...string) (time.Duration, error) {
	fmt.Printf("\n$ imgfs %s\n", line(args))
	cmd := exec.CommandContext(ctx, s.imgfs, append([]string{"--root", filepath.Join(s.dir, "store")}, args...)...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	start := time.Now()
	err := cmd.Run()
	if err != nil {
		err = fmt.Errorf("imgfs %s: %w", args[0], err)
	}
	return time.Since(start), err
}

func (s *session) quiet(args ...string) error {
	out, err := exec.Command(s.imgfs, append([]string{"--root", filepath.Join(s.dir, "store")}, args...)...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("imgfs %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return nil
}

func show(ctx context.Context, args ...string) error {
	fmt.Printf("\n$ %s\n", line(args))
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w", args[0], err)
	}
	return nil
}

// line is a command as a shell takes it.
func line(args []string) string {
	words := make([]string, len(args))
	for i, a := range args {
		words[i] = fault.Word(a)
	}
	return strings.Join(words, " ")
}

func say(text string) { fmt.Printf("\n# %s\n", text) }

// serve makes an image and serves it on loopback until closer is called.
func serve(ctx context.Context, dir string) (ref string, closer func() error, err error) {
	say("making an image from this machine's packages")
	path, repo, err := makeImage(ctx, dir)
	if err != nil {
		return "", nil, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	stored := filepath.Join(dir, "registry")
	if err := os.Mkdir(stored, 0o755); err != nil {
		return "", nil, errors.Join(err, l.Close())
	}
	blobs := registry.NewDiskBlobHandler(stored)
	srv := &http.Server{Handler: registry.New(registry.WithBlobHandler(blobs), registry.Logger(log.New(&strings.Builder{}, "", 0)))}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(l) }()
	closer = func() error {
		err := srv.Close()
		if e := <-done; !errors.Is(e, http.ErrServerClosed) {
			err = errors.Join(err, e)
		}
		return err
	}
	ref = fmt.Sprintf("localhost:%d/%s", l.Addr().(*net.TCPAddr).Port, repo)
	if err := push(ctx, path, ref); err != nil {
		return "", nil, errors.Join(err, closer())
	}
	return ref, closer, nil
}

func makeImage(ctx context.Context, dir string) (path, repo string, err error) {
	if _, lookErr := exec.LookPath("debootstrap"); lookErr == nil && os.Geteuid() == 0 {
		path, err = imgtest.Debian(ctx, "/var/tmp/imgfs-test", imgtest.DebianSmall())
		return path, "library/debian:12", err
	}
	path, err = imgtest.Busybox(ctx, dir)
	return path, "library/busybox:latest", err
}

func push(ctx context.Context, path, ref string) error {
	index, err := layout.ImageIndexFromPath(path)
	if err != nil {
		return err
	}
	m, err := index.IndexManifest()
	if err != nil {
		return err
	}
	img, err := index.Image(m.Manifests[0].Digest)
	if err != nil {
		return err
	}
	tag, err := name.ParseReference(ref, name.Insecure)
	if err != nil {
		return err
	}
	return remote.Write(tag, img, remote.WithContext(ctx))
}

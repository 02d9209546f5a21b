package main

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
)

// sourceArg returns the tree that an argument of diff, export or commit names:
// a directory with a mount, or that is an upper; an upper's name; an image.
func sourceArg(ctx context.Context, client *engineapi.Client, arg string) (engineapi.Source, error) {
	target, err := resolve(arg)
	if err != nil {
		return engineapi.Source{}, err
	}
	list, err := client.Mounts(ctx)
	if err != nil {
		return engineapi.Source{}, err
	}
	for _, m := range slices.Backward(list) { // an older one there has been detached
		if m.Target == target {
			return engineapi.Source{Mount: m.ID}, nil
		}
	}
	if _, err := os.Lstat(filepath.Join(target, "upper.json")); err == nil {
		return engineapi.Source{UpperDir: target}, nil
	}
	first, _, _ := strings.Cut(arg, "/")
	if first == "" || first == "." || first == ".." {
		return engineapi.Source{}, fault.WithHint(fault.New(fault.NotFound, "%s: neither mounted by imgfs nor an upper", arg), "see imgfs mounts and imgfs upper ls")
	}
	if !strings.ContainsAny(arg, "/:@") {
		switch _, err := client.Upper(ctx, arg); {
		case err == nil:
			return engineapi.Source{Upper: arg}, nil
		case fault.KindOf(err) != fault.NotFound && fault.KindOf(err) != fault.Denied: // uppers are not for all who may read images
			return engineapi.Source{}, err
		}
	}
	image, err := absoluteSource(arg)
	return engineapi.Source{Image: image}, err
}

// flush has the kernel hand over what was written through a live mount of the
// source and is still in its cache: with the writeback cache, which mounts
// without root have, it sends what a file's last close, or fsync, did not see.
// The one way to ask for that from outside is to open and close the file.
// What this user may not open is left; its writers have to close it.
func flush(ctx context.Context, client *engineapi.Client, s engineapi.Source) error {
	list, err := client.Mounts(ctx)
	if err != nil {
		return err
	}
	for _, m := range list {
		if m.Mode != "rw" || m.Driver != "fuse" || m.ID != s.Mount && (m.Upper == "" || m.Upper != s.Upper) && (m.UpperDir == "" || m.UpperDir != s.UpperDir) {
			continue
		}
		root, err := unix.Open(m.Target, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil // mounted in another namespace, or gone
		}
		defer unix.Close(root)
		changes, err := client.Changes(ctx, s, "")
		if err != nil {
			return err
		}
		for _, c := range changes {
			if c.Kind != "D" {
				flushFile(root, strings.TrimPrefix(c.Path, "/"))
			}
		}
	}
	return nil
}

// flushFile opens and closes a regular file. It waits for nothing else: what
// path names is looked at before it is opened.
func flushFile(root int, path string) {
	fd, err := unix.Openat2(root, path, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV,
	})
	if err != nil {
		return
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		return
	}
	if file, err := unix.Open("/proc/self/fd/"+strconv.Itoa(fd), unix.O_RDONLY|unix.O_CLOEXEC, 0); err == nil {
		unix.Close(file)
	}
}

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"

	fusefs "github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// serveLoopback serves what go-fuse's example/loopback serves, with its
// options, until it is unmounted.
func serveLoopback(dir, mnt string) error {
	root, err := fusefs.NewLoopbackRoot(dir)
	if err != nil {
		return err
	}
	second := time.Second
	server, err := fusefs.Mount(mnt, root, &fusefs.Options{
		AttrTimeout:     &second,
		EntryTimeout:    &second,
		NullPermissions: true,
		MountOptions: fuse.MountOptions{AllowOther: true, DirectMount: true, FsName: dir, Name: "loopback",
			Options: []string{"default_permissions"}},
	})
	if err != nil {
		return err
	}
	fmt.Println("mounted")
	server.Wait()
	return nil
}

// loopback is go-fuse's loopback of a directory, in a process of its own: what
// a FUSE server in Go costs that adds nothing.
func (b *bench) loopback() candidate {
	return b.onUpper("go-fuse loopback", func(_ context.Context, upper, mnt string) (func() error, error) {
		self, err := os.Executable()
		if err != nil {
			return nil, err
		}
		cmd := exec.Command(self, "-loopback", upper, mnt)
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			return nil, err
		}
		if err := cmd.Start(); err != nil {
			return nil, err
		}
		if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
			return nil, errors.Join(fmt.Errorf("loopback: %w", err), cmd.Wait())
		}
		return func() error {
			if err := syscall.Unmount(mnt, 0); err != nil {
				return err
			}
			return cmd.Wait()
		}, nil
	})
}

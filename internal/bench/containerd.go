package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// The snapshotters containerd is measured with. The lazy ones are daemons of
// their own; both they and containerd run before the clock starts. SOCI's
// needs containerd 2: it is not told namespaces by older ones.
const (
	overlayfs = "overlayfs"
	stargz    = "stargz"
	soci      = "soci"
)

// containerdSession is containerd on a store of its own.
type containerdSession struct {
	ref, kind  string
	root, sock string
	daemons    []*exec.Cmd
}

func (b *bench) startContainerd(ctx context.Context, ref, kind string) (*containerdSession, error) {
	root := b.path("lazy-containerd")
	s := &containerdSession{ref: ref, kind: kind, root: root, sock: filepath.Join(root, "c.sock")}
	if err := s.begin(ctx); err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

func (s *containerdSession) begin(ctx context.Context) error {
	if err := os.MkdirAll(s.root, 0o711); err != nil {
		return err
	}
	plugin := ""
	if s.kind != overlayfs {
		sock := filepath.Join(s.root, s.kind+".sock")
		plugin = fmt.Sprintf("[proxy_plugins.%s]\ntype = \"snapshot\"\naddress = %q\n", s.kind, sock)
		conf := filepath.Join(s.root, s.kind+".toml")
		text := ""
		if s.kind == soci {
			text = fmt.Sprintf("[pull_modes.soci_v1]\nenable = true\n[snapshotter]\nmin_layer_size = 0\n[content_store]\ncontainerd_address = %q\n", s.sock)
		}
		if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
			return err
		}
		server := map[string]string{stargz: "containerd-stargz-grpc", soci: "soci-snapshotter-grpc"}[s.kind]
		if err := s.daemon(server, "--address", sock, "--config", conf, "--root", filepath.Join(s.root, s.kind), "--log-level", "error"); err != nil {
			return err
		}
		if err := appears(ctx, sock); err != nil {
			return err
		}
	}
	conf := filepath.Join(s.root, "config.toml")
	text := fmt.Sprintf("version = 2\nroot = %q\nstate = %q\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = %q\n%s",
		filepath.Join(s.root, "root"), filepath.Join(s.root, "state"), s.sock, plugin)
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		return err
	}
	if err := s.daemon("containerd", "--config", conf, "--log-level", "error"); err != nil {
		return err
	}
	if err := appears(ctx, s.sock); err != nil {
		return err
	}
	return s.ctr(ctx, "--connect-timeout", "20s", "version")
}

func (s *containerdSession) daemon(name string, args ...string) error {
	cmd := exec.Command(name, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return err
	}
	s.daemons = append(s.daemons, cmd)
	return nil
}

// appears waits for a file that a daemon makes.
func appears(ctx context.Context, path string) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for range 250 {
		if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return fmt.Errorf("%s did not appear", path)
}

func (s *containerdSession) ctr(ctx context.Context, args ...string) error {
	_, err := output(ctx, "ctr", append([]string{"-a", s.sock}, args...)...)
	return err
}

// pull brings the image in as its snapshotter wants it.
func (s *containerdSession) pull(ctx context.Context) error {
	switch s.kind {
	case stargz:
		_, err := output(ctx, "ctr-remote", "-a", s.sock, "image", "rpull", "--plain-http", s.ref)
		return err
	case soci: // nerdctl tells the snapshotter what it has to know
		_, err := output(ctx, "nerdctl", "-a", s.sock, "-n", "default", "--data-root", filepath.Join(s.root, "nerdctl"),
			"--snapshotter", soci, "--insecure-registry", "pull", "-q", s.ref)
		return err
	}
	return s.ctr(ctx, "image", "pull", "--plain-http", "--snapshotter", overlayfs, s.ref)
}

func (s *containerdSession) first(ctx context.Context, command []string) error {
	if err := s.pull(ctx); err != nil {
		return err
	}
	return s.ctr(ctx, append([]string{"run", "--rm", "--snapshotter", s.kind, s.ref, "bench"}, command...)...)
}

// readAll reads in a container: image mounts want unpacked layers.
func (s *containerdSession) readAll(ctx context.Context) error {
	return s.ctr(ctx, "run", "--rm", "--snapshotter", s.kind, s.ref, "bench-all",
		"sh", "-c", "tar --one-file-system -C / -cf - . | cat >/dev/null")
}

// memory is that of containerd and, on top, its snapshotter.
func (s *containerdSession) memory() (sum int64, err error) {
	for _, d := range s.daemons {
		n, err := rssAnon(d.Process.Pid)
		if err != nil {
			return 0, err
		}
		sum += n
	}
	return sum, nil
}

func (s *containerdSession) close() error {
	for i := len(s.daemons) - 1; i >= 0; i-- {
		_ = s.daemons[i].Process.Kill()
		_ = s.daemons[i].Wait()
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return err
	}
	lines := strings.Split(string(mounts), "\n")
	for i := len(lines) - 1; i >= 0; i-- { // the last mounted first
		if f := strings.Fields(lines[i]); len(f) > 1 && strings.HasPrefix(f[1], s.root+"/") {
			_ = unix.Unmount(f[1], unix.MNT_DETACH)
		}
	}
	return os.RemoveAll(s.root)
}

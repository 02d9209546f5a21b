package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/imgfs/imgfs/internal/imgtest"
)

// images are OCI layout directories.
type images struct {
	debian string // Debian and python, >= 20,000 files, >= 10 layers
	small  string // one layer of 90,000 small files over Debian
	large  string // one file of 1 GiB, largeFile
}

const largeFile = "large.bin"

// prepare makes the images, starts a registry and copies them into it.
func (b *bench) prepare(ctx context.Context) error {
	if err := os.MkdirAll(b.path("mnt"), 0o755); err != nil {
		return err
	}
	var err error
	if b.images, err = makeImages(ctx, b.dir); err != nil {
		return fmt.Errorf("images: %w", err)
	}
	b.later(func() { os.RemoveAll(b.path("mnt")) })
	b.later(func() { os.RemoveAll(b.path("store")) })
	b.later(func() { os.RemoveAll(b.path("upper")) })
	b.later(func() {
		b.run(context.Background(), "umount", "-a")
		b.run(context.Background(), "daemon", "stop", "--force")
	})
	return nil
}

func makeImages(ctx context.Context, dir string) (im images, err error) {
	if im.debian, err = imgtest.Debian(ctx, "/var/tmp/imgfs-test", imgtest.DebianBig()); err != nil {
		return im, err
	}
	if im.small, err = imgtest.SmallFiles(ctx, dir, 90_000); err != nil {
		return im, err
	}
	im.large, err = imgtest.LargeFile(ctx, dir, largeFile, 1<<30)
	return im, err
}

// run runs imgfs on the bench's own store.
func (b *bench) run(ctx context.Context, args ...string) (string, error) {
	return output(ctx, b.imgfs, append([]string{"--root", b.path("store")}, args...)...)
}

// registry is a docker-registry of our own on loopback.
type registry struct{ host string }

var errNoRegistry = errors.New("docker-registry did not answer")

// startRegistry serves dir until the bench ends.
func (b *bench) startRegistry(ctx context.Context, dir string) (*registry, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	host := l.Addr().String()
	if err := l.Close(); err != nil {
		return nil, err
	}
	conf := b.path("registry.yml")
	text := fmt.Sprintf("version: 0.1\nlog: {accesslog: {disabled: true}, level: error}\nstorage: {filesystem: {rootdirectory: %q}}\nhttp: {addr: %q}\n", dir, host)
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		return nil, err
	}
	cmd := exec.Command("docker-registry", "serve", conf)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	b.later(func() { cmd.Process.Kill(); cmd.Wait() })
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for range 250 {
		if resp, err := http.Get("http://" + host + "/v2/"); err == nil {
			resp.Body.Close()
			return &registry{host}, nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return nil, errNoRegistry
}

// serve puts an OCI layout into a registry and returns its reference there.
func (b *bench) serve(ctx context.Context, layout string) (string, error) {
	if b.reg == nil {
		reg, err := b.startRegistry(ctx, b.path("registry"))
		if err != nil {
			return "", err
		}
		b.reg = reg
		b.later(func() { os.RemoveAll(b.path("registry")) })
	}
	ref := b.reg.host + "/" + strings.ToLower(filepath.Base(layout)) + ":1"
	_, err := output(ctx, "skopeo", "copy", "-q", "--dest-tls-verify=false", "oci:"+layout, "docker://"+ref)
	return ref, err
}

// unpacked returns an image that serve has put into the registry as a plain
// directory and as overlayfs lowers, top first, as podman unpacks them.
func (b *bench) unpacked(ctx context.Context, ref string) (native string, lowers []string, err error) {
	store := []string{"--root", b.path("podman"), "--runroot", b.path("podman-run"), "--storage-driver", "overlay"}
	podman := func(args ...string) (string, error) {
		out, err := output(ctx, "podman", append(store[:len(store):len(store)], args...)...)
		return strings.TrimSpace(out), err
	}
	imageID, err := podman("pull", "-q", "--tls-verify=false", ref)
	if err != nil {
		return "", nil, err
	}
	b.later(func() { os.RemoveAll(b.path("podman")); os.RemoveAll(b.path("podman-run")) })
	out, err := podman("image", "inspect", "--format", "{{json .GraphDriver.Data}}", imageID)
	if err != nil {
		return "", nil, err
	}
	var data struct{ LowerDir, UpperDir string }
	if err := json.Unmarshal([]byte(out), &data); err != nil {
		return "", nil, err
	}
	lowers = []string{data.UpperDir}
	if data.LowerDir != "" {
		lowers = append(lowers, strings.Split(data.LowerDir, ":")...)
	}
	native = b.path("native", strings.TrimSuffix(path.Base(ref), ":1"))
	if _, err := os.Stat(native); err == nil {
		return native, lowers, nil
	}
	b.later(func() { os.RemoveAll(b.path("native")) })
	root, err := podman("image", "mount", imageID)
	if err != nil {
		return "", nil, err
	}
	if err := os.MkdirAll(native, 0o755); err != nil {
		return "", nil, err
	}
	if _, err := output(ctx, "cp", "-a", root+"/.", native); err != nil {
		return "", nil, err
	}
	_, err = podman("image", "umount", imageID)
	return native, lowers, err
}

// allocated returns the bytes that dir's files take on disk.
func allocated(dir string) (n int64, err error) {
	out, err := exec.Command("du", "-s", "-B1", dir).Output()
	if err != nil {
		return 0, err
	}
	_, err = fmt.Fscan(strings.NewReader(string(out)), &n)
	return n, err
}

// streamBytes returns the size of an image's uncompressed layers.
func streamBytes(ctx context.Context, layout string) (n int64, err error) {
	blobs, err := imgtest.LayoutLayers(layout)
	if err != nil {
		return 0, err
	}
	for _, blob := range blobs {
		cmd := exec.CommandContext(ctx, "sh", "-c", `zstd -dcf "$1" 2>/dev/null || gzip -dc "$1"`, "sh", blob)
		out, err := cmd.StdoutPipe()
		if err != nil {
			return 0, err
		}
		if err := cmd.Start(); err != nil {
			return 0, err
		}
		c, err := io.Copy(io.Discard, out)
		if err := errors.Join(err, cmd.Wait()); err != nil {
			return 0, err
		}
		n += c
	}
	return n, nil
}

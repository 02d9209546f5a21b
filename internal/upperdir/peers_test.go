package upperdir

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/internal/imgtest"
)

// everything changes a bit of everything in baseImage.
const everything = `
	echo more >> etc/conf.d/deep/c; chmod 600 etc/passwd; chown 3:4 etc
	rm etc/conf.d/a; mkdir etc/conf.d/new; echo n > etc/conf.d/new/n; ln etc/conf.d/new/n n2
	mv usr/lib usr/moved; echo x > usr/moved/x; rm usr/moved/libm.so
	rm -r var/spool; mkdir var/spool; touch var/spool/y
	rm lib; mkdir lib; rm var.lock; ln -s nowhere var.lock
	mv dev/null dev/zero; mkfifo p; setfattr -n user.k -v v etc/conf.d/b
	truncate -s 1M sparse; echo end >> sparse
	touch "$(printf 'odd \\n name')"; touch $(printf 'l%.0s' $(seq 255)); chmod 1777 .`

// TestLayerAppliedByPeers has other tools apply a layer to its image.
func TestLayerAppliedByPeers(t *testing.T) {
	low := base(t)
	d := newDir(t, Info{})
	want := overlayMount(t, d, low, everything)
	bottom, err := imgtest.Tar(baseImage)
	if err != nil {
		t.Fatal(err)
	}
	img, err := imgtest.NewImage(imgtest.ImageSpec{Layers: [][]byte{bottom, layerOf(t, d, low)}})
	if err != nil {
		t.Fatal(err)
	}
	layout := filepath.Join(t.TempDir(), "image")
	if err := img.WriteLayout(layout, "latest"); err != nil {
		t.Fatal(err)
	}
	t.Run("umoci", func(t *testing.T) {
		imgtest.Program(t, "umoci")
		root := filepath.Join(t.TempDir(), "root")
		run(t, "umoci", "raw", "unpack", "--image", layout+":latest", root)
		if got := listDir(t, root); got != want {
			t.Error(lineDiff(want, got))
		}
	})
	for _, snapshotter := range []string{"native", "overlayfs"} {
		t.Run("containerd "+snapshotter, func(t *testing.T) {
			ctr := startContainerd(t)
			archive := filepath.Join(t.TempDir(), "image.tar")
			writeArchive(t, archive, layout)
			ctr("images", "import", "--no-unpack", "--snapshotter", snapshotter, "--base-name", "test/image", archive)
			at := t.TempDir()
			ctr("images", "mount", "--snapshotter", snapshotter, "test/image:latest", at)
			t.Cleanup(func() { unix.Unmount(at, unix.MNT_DETACH) })
			// Its applier leaves the root as it is.
			if got, want := listDir(t, at), want; behindRoot(got) != behindRoot(want) {
				t.Error(lineDiff(want, got))
			}
		})
	}
}

func behindRoot(list string) string {
	_, rest, _ := strings.Cut(list, "\n")
	return rest
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
}

// startContainerd starts a containerd of its own, and returns its ctr.
func startContainerd(t *testing.T) func(args ...string) {
	t.Helper()
	containerd, ctr := imgtest.Program(t, "containerd"), imgtest.Program(t, "ctr")
	dir, err := os.MkdirTemp("/var/tmp", "ctd") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(dir, "config.toml")
	text := fmt.Sprintf("version = 2\nroot = %q\nstate = %q\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = %q\n",
		dir+"/root", dir+"/state", dir+"/sock")
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, containerd, "--log-level", "error", "--config", config)
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		cmd.Wait()
		if t.Failed() {
			t.Logf("%s", &log)
		}
		os.RemoveAll(dir)
	})
	return func(args ...string) {
		t.Helper()
		// Its connection waits until the daemon answers.
		run(t, ctr, append([]string{"--address", dir + "/sock", "--connect-timeout", (time.Minute).String()}, args...)...)
	}
}

// writeArchive writes a layout as a tar.
func writeArchive(t *testing.T, name, dir string) {
	t.Helper()
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w := tar.NewWriter(f)
	if err := w.AddFS(os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
}

// GNU tar alone, which knows no whiteouts, unpacks what was added.
func TestLayerUnpackedByTar(t *testing.T) {
	d := newDir(t, Info{})
	want := overlayMount(t, d, chainOf(t), everythingNew)
	if got := unpacked(t, layerOf(t, d, chainOf(t))); got != want {
		t.Error(lineDiff(want, got))
	}
}

const everythingNew = `
	mkdir -p a/b; echo x > a/b/c; ln a/b/c a/d; ln -s ../x a/l; mkfifo a/p; mknod a/n c 1 3
	setfattr -n user.k -v v a/b/c; chown 5:6 a/b/c; chmod 4755 a/d; chmod 1777 a/b; touch -d @3.5 a/l -h; touch -d @4 .`

package imgtest

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// SmallFiles writes the OCI layout dir/small-N of an image of n small files in
// three layers, as a node application has them: median 436 bytes, mean about 8 KB,
// ten to a directory, text that gzip makes a third of. It does nothing where
// the layout exists.
func SmallFiles(ctx context.Context, dir string, n int) (string, error) {
	return bulk(ctx, filepath.Join(dir, fmt.Sprintf("small-%d", n)), 3, func(layer int, root string) error {
		rnd := rand.New(rand.NewPCG(uint64(n), uint64(layer)))
		var text []byte
		for i := range n / 3 {
			pkg := filepath.Join(root, "app/node_modules", fmt.Sprintf("package-%d-%d", layer, i/100), fmt.Sprintf("lib%d", i/10%10))
			if i%10 == 0 {
				if err := os.MkdirAll(pkg, 0o755); err != nil {
					return err
				}
			}
			size := int(436 * math.Exp(2.4*rnd.NormFloat64()))
			text = prose(rnd, text[:0], min(size, 1<<20))
			if err := os.WriteFile(filepath.Join(pkg, fmt.Sprintf("module%d.js", i%10)), text, 0o644); err != nil {
				return err
			}
		}
		return nil
	})
}

// LargeFile writes the OCI layout dir/large-SIZE of an image of one file of
// size bytes, incompressible. It does nothing where the layout exists.
func LargeFile(ctx context.Context, dir, name string, size int64) (string, error) {
	return bulk(ctx, filepath.Join(dir, fmt.Sprintf("large-%d", size)), 1, func(_ int, root string) (err error) {
		f, err := os.Create(filepath.Join(root, name))
		if err != nil {
			return err
		}
		defer func() {
			if e := f.Close(); err == nil {
				err = e
			}
		}()
		src := rand.NewChaCha8([32]byte{1})
		block := make([]byte, 1<<20)
		for ; size > 0; size -= int64(len(block)) {
			block = block[:min(size, int64(len(block)))]
			src.Read(block) // never fails
			if _, err := f.Write(block); err != nil {
				return err
			}
		}
		return nil
	})
}

// bulk makes a layout of layers that fill writes, by way of a directory that
// is renamed when complete.
func bulk(ctx context.Context, path string, layers int, fill func(layer int, root string) error) (_ string, err error) {
	if _, err := os.Stat(filepath.Join(path, "index.json")); err == nil {
		return path, nil
	}
	work, err := os.MkdirTemp(filepath.Dir(path), "bulk-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(work)
	w, err := newLayoutWriter(filepath.Join(work, "layout"))
	if err != nil {
		return "", err
	}
	for i := range layers {
		if err := ctx.Err(); err != nil {
			return "", err
		}
		root := filepath.Join(work, fmt.Sprint(i))
		if err := os.Mkdir(root, 0o755); err != nil {
			return "", err
		}
		if err := fill(i, root); err != nil {
			return "", err
		}
		if err := w.layer(root, nil); err != nil {
			return "", err
		}
	}
	if err := w.close(); err != nil {
		return "", err
	}
	return path, os.Rename(w.dir, path)
}

// prose appends n bytes of program-like text to b.
func prose(rnd *rand.Rand, b []byte, n int) []byte {
	words := strings.Fields("const return function require module exports if ( ) { } ; => = this options callback err null undefined length value name path type")
	for len(b) < n {
		b = append(b, words[rnd.IntN(len(words))]...)
		if rnd.IntN(4) == 0 {
			b = fmt.Appendf(b, "_%x", rnd.Uint32()>>12)
		}
		b = append(b, " \n"[rnd.IntN(8)/7])
	}
	return b[:n]
}

// LayoutLayers returns the paths of the layer blobs of an OCI layout's first
// image, lowest first.
func LayoutLayers(layout string) ([]string, error) {
	var index, manifest struct {
		Manifests, Layers []struct{ Digest string }
	}
	read := func(path string, v any) error {
		b, err := os.ReadFile(filepath.Join(layout, path))
		if err != nil {
			return err
		}
		return json.Unmarshal(b, v)
	}
	blob := func(digest string) string {
		return filepath.Join("blobs/sha256", strings.TrimPrefix(digest, "sha256:"))
	}
	if err := read("index.json", &index); err != nil {
		return nil, err
	}
	if len(index.Manifests) == 0 {
		return nil, fmt.Errorf("%s: no image", layout)
	}
	if err := read(blob(index.Manifests[0].Digest), &manifest); err != nil {
		return nil, err
	}
	var paths []string
	for _, l := range manifest.Layers {
		paths = append(paths, filepath.Join(layout, blob(l.Digest)))
	}
	return paths, nil
}

// Busybox writes the OCI layout dir/busybox of the machine's static busybox
// and its names.
func Busybox(ctx context.Context, dir string) (string, error) {
	return bulk(ctx, filepath.Join(dir, "busybox"), 1, func(_ int, root string) error {
		bin, err := exec.LookPath("busybox")
		if err != nil {
			return err
		}
		exe, err := os.ReadFile(bin)
		if err != nil {
			return err
		}
		for _, d := range []string{"bin", "etc", "dev", "proc", "sys", "tmp", "root"} {
			if err := os.Mkdir(filepath.Join(root, d), 0o755); err != nil {
				return err
			}
		}
		if err := os.WriteFile(filepath.Join(root, "bin/busybox"), exe, 0o755); err != nil {
			return err
		}
		for _, name := range strings.Fields("sh ls cat id ps mount grep find tar sed awk vi env uname") {
			if err := os.Symlink("busybox", filepath.Join(root, "bin", name)); err != nil {
				return err
			}
		}
		files := map[string]string{
			"etc/os-release": "NAME=BusyBox\nID=busybox\nPRETTY_NAME=\"BusyBox of this machine\"\n",
			"etc/passwd":     "root:x:0:0:root:/root:/bin/sh\n", "etc/group": "root:x:0:\n",
		}
		for name, text := range files {
			if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o644); err != nil {
				return err
			}
		}
		return nil
	})
}

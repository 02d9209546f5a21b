package toc

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imgfs/imgfs/internal/id"
	"github.com/imgfs/imgfs/internal/imgtest"
	"golang.org/x/sys/unix"
)

// pushed is what the tests read and write of a manifest.
type pushed struct {
	SchemaVersion int          `json:"schemaVersion"`
	MediaType     string       `json:"mediaType"`
	Config        layerDesc    `json:"config"`
	Layers        []*layerDesc `json:"layers"`
}

type layerDesc struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int64             `json:"size"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

func get(t *testing.T, url string) []byte {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept", "application/vnd.oci.image.manifest.v1+json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s %v", url, resp.Status, err)
	}
	return b
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	c := exec.CommandContext(t.Context(), imgtest.Program(t, name), args...)
	var out, errs bytes.Buffer
	c.Stdout, c.Stderr = &out, &errs
	if err := c.Run(); err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, errs.Bytes())
	}
	return strings.TrimSpace(out.String())
}

// TestZstdChunkedOfSkopeo reads what skopeo puts into a registry.
func TestZstdChunkedOfSkopeo(t *testing.T) {
	t.Parallel()
	img, err := imgtest.NewImage(imgtest.ImageSpec{Compression: "none", Layers: [][]byte{
		tarOf(t, strings.ReplaceAll(zoo, "link other/name lower/file\n", "")),
		tarOf(t, "dir d\nfile d/zeros \""+strings.Repeat(`\x00`, 1<<20)+"end\"\nfile d/b size=3000000\nlink other/name lower/file"),
	}})
	if err != nil {
		t.Fatal(err)
	}
	layout := filepath.Join(t.TempDir(), "image")
	if err := img.WriteLayout(layout, "latest"); err != nil {
		t.Fatal(err)
	}
	host := imgtest.Distribution(t, "", "")
	run(t, "skopeo", "copy", "-q", "--insecure-policy", "--dest-tls-verify=false", "--dest-compress-format=zstd:chunked",
		"oci:"+layout+":latest", "docker://"+host+"/x:1")
	var m pushed
	if err := json.Unmarshal(get(t, "http://"+host+"/v2/x/manifests/1"), &m); err != nil {
		t.Fatal(err)
	}
	for i, l := range m.Layers {
		blob := get(t, "http://"+host+"/v2/x/blobs/"+l.Digest)
		d := describe(blob, l.MediaType, l.Annotations)
		if Detect(d) != ZstdChunked {
			t.Fatalf("layer %d is not detected: %+v", i, l)
		}
		x, err := Open(t.Context(), &memBlob{b: blob}, d)
		if err != nil {
			t.Fatal(err)
		}
		if _, sum := Announced(d); sum == "" || sum != x.Digest {
			t.Errorf("digest %s, announced %s", x.Digest, sum)
		}
		want, err := listTar(unzstd(t, blob))
		if err != nil {
			t.Fatal(err)
		}
		compare(t, list(t, x, blob), want)
	}
}

// TestToolsReadOurs has podman take what is written here from a registry, and
// compares what it unpacks with what is read here. podman checks digests and
// diffIDs, and skopeo copies it as it is.
func TestToolsReadOurs(t *testing.T) {
	t.Parallel()
	imgtest.Need(t, os.Geteuid() == 0, "root, for podman's store")
	// vfs, podman's store that works everywhere, loses most attributes.
	stream := tarOf(t, `
dir ./ mode=0755 mtime=1700000000
dir bin mode=0755 mtime=1700000009
file bin/sh "#!/bin/x\n" mode=04755 mtime=1700000001
file empty mtime=5
file big size=4500001 mtime=1700000002
file bin/middle size=70000 xattr:user.a=b mode=0600 uid=7 gid=8 mtime=1700000001
symlink lib usr/lib mtime=1700000003
link bin/ash bin/sh mode=04755 mtime=1700000001
`)
	host := imgtest.Distribution(t, "", "")
	dir, err := os.MkdirTemp("/tmp", "podman-") // short: podman allows 50 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	podman := func(args ...string) string {
		return run(t, "podman", append([]string{"--root", dir + "/root", "--runroot", dir + "/run", "--storage-driver", "vfs"}, args...)...)
	}
	for name, write := range map[string]func(io.Writer) (*Written, error){
		"estargz": func(w io.Writer) (*Written, error) {
			return WriteEstargz(t.Context(), w, io.NewSectionReader(bytes.NewReader(stream), 0, int64(len(stream))), []string{"bin/middle", "absent"})
		},
		"zstd-chunked": func(w io.Writer) (*Written, error) {
			return WriteZstdChunked(t.Context(), w, bytes.NewReader(stream))
		},
	} {
		var out bytes.Buffer
		w, err := write(&out)
		if err != nil {
			t.Fatal(err)
		}
		img, err := imgtest.NewImage(imgtest.ImageSpec{Layers: [][]byte{stream}, DiffIDs: []string{string(w.DiffID)}})
		if err != nil {
			t.Fatal(err)
		}
		var m pushed
		if err := json.Unmarshal(img.Manifest.Data, &m); err != nil {
			t.Fatal(err)
		}
		m.Layers[0] = &layerDesc{w.MediaType, string(w.Blob), w.Size, w.Annotations}
		img.Layers[0] = imgtest.Blob{MediaType: w.MediaType, Digest: string(w.Blob), Data: out.Bytes()}
		if img.Manifest.Data, err = json.Marshal(m); err != nil {
			t.Fatal(err)
		}
		img.Manifest.Digest = string(id.BlobOf(img.Manifest.Data))
		if err := img.Push(t.Context(), host, name, "1"); err != nil {
			t.Fatal(err)
		}
		run(t, "skopeo", "copy", "-q", "--insecure-policy", "--src-tls-verify=false", "--dest-tls-verify=false", "docker://"+host+"/"+name+":1", "docker://"+host+"/copy:"+name)
		if copied := get(t, "http://"+host+"/v2/copy/manifests/"+name); !bytes.Equal(copied, img.Manifest.Data) {
			t.Errorf("%s: skopeo's copy is another one:\n%s", name, copied)
		}
		image := podman("pull", "-q", "--tls-verify=false", host+"/"+name+":1")
		at := podman("image", "mount", image)
		unpacked, err := imgtest.ListDir(at)
		podman("image", "umount", "-f", image)
		unix.Unmount(dir+"/root/vfs", 0) // a bind mount of itself, which podman leaves
		if err != nil {
			t.Fatal(err)
		}
		x, err := Open(t.Context(), &memBlob{b: out.Bytes()}, w.descriptor())
		if err != nil {
			t.Fatal(err)
		}
		if name == "estargz" && (len(x.Prefetch) != 1 || x.Prefetch[0] != (Range{0, 70144})) {
			t.Errorf("prefetch %v", x.Prefetch)
		}
		compare(t, asPodman(list(t, x, out.Bytes())), asPodman(asStargz(unpacked)))
	}
}

// asPodman leaves out of a listing what podman's vfs store makes by itself: link
// counts and times of directories.
func asPodman(s string) string {
	var out strings.Builder
	for line := range strings.Lines(s) {
		f := strings.SplitN(line, " ", 7)
		if len(f) > 5 && f[1] == "d" {
			f[4], f[5] = "", "\n"
		}
		out.WriteString(strings.Join(f, " "))
	}
	return out.String()
}

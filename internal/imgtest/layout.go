package imgtest

import (
	"archive/tar"
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/klauspost/compress/gzip"
	"golang.org/x/sys/unix"
)

// layoutWriter writes an OCI image layout whose layers are directories as
// overlayfs leaves its uppers.
type layoutWriter struct {
	dir     string
	layers  []descriptor
	diffIDs []string
}

type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int64             `json:"size"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

func newLayoutWriter(dir string) (*layoutWriter, error) {
	return &layoutWriter{dir: dir}, os.MkdirAll(filepath.Join(dir, "blobs/sha256"), 0o755)
}

// counted writes to a file and knows the digest and size of what it wrote.
type counted struct {
	f    *os.File
	hash hash.Hash
	size int64
}

func (c *counted) Write(p []byte) (int, error) {
	c.hash.Write(p)
	c.size += int64(len(p))
	return c.f.Write(p)
}

func sum(h hash.Hash) string { return "sha256:" + hex.EncodeToString(h.Sum(nil)) }

// layer adds the layer of what is in upper, and of links to lower files.
func (w *layoutWriter) layer(upper string, links []lowerLink) error {
	f, err := os.CreateTemp(w.dir, "blob-")
	if err != nil {
		return err
	}
	defer f.Close()
	blob := &counted{f: f, hash: sha256.New()}
	zip, err := gzip.NewWriterLevel(blob, gzip.BestSpeed)
	if err != nil {
		return err
	}
	diff := sha256.New()
	buf := bufio.NewWriterSize(io.MultiWriter(zip, diff), 1<<20)
	if err := writeLayer(buf, upper, links); err != nil {
		return err
	}
	if err := buf.Flush(); err != nil {
		return err
	}
	if err := zip.Close(); err != nil {
		return err
	}
	d := descriptor{MediaType: "application/vnd.oci.image.layer.v1.tar+gzip", Digest: sum(blob.hash), Size: blob.size}
	w.layers = append(w.layers, d)
	w.diffIDs = append(w.diffIDs, sum(diff))
	return os.Rename(f.Name(), w.path(d.Digest))
}

func (w *layoutWriter) path(digest string) string {
	return filepath.Join(w.dir, "blobs/sha256", strings.TrimPrefix(digest, "sha256:"))
}

func (w *layoutWriter) json(mediaType string, v any) (descriptor, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return descriptor{}, err
	}
	s := sha256.Sum256(b)
	d := descriptor{MediaType: mediaType, Digest: "sha256:" + hex.EncodeToString(s[:]), Size: int64(len(b))}
	return d, os.WriteFile(w.path(d.Digest), b, 0o644)
}

// close writes config, manifest and index.
func (w *layoutWriter) close() error {
	config, err := w.json("application/vnd.oci.image.config.v1+json", map[string]any{
		"architecture": runtime.GOARCH, "os": "linux", "created": "2024-01-01T00:00:00Z",
		"config": map[string]any{"Cmd": []string{"/bin/sh"}, "Env": []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": w.diffIDs},
	})
	if err != nil {
		return err
	}
	manifest, err := w.json("application/vnd.oci.image.manifest.v1+json", map[string]any{
		"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": config, "layers": w.layers,
	})
	if err != nil {
		return err
	}
	manifest.Annotations = map[string]string{"org.opencontainers.image.ref.name": "latest"}
	index, err := json.Marshal(map[string]any{"schemaVersion": 2, "manifests": []descriptor{manifest}})
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(w.dir, "oci-layout"), []byte(`{"imageLayoutVersion":"1.0.0"}`), 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(w.dir, "index.json"), index, 0o644)
}

// writeLayer writes the tar of an overlayfs upper, in PAX form: times to the
// nanosecond, all attributes.
func writeLayer(w io.Writer, upper string, links []lowerLink) error {
	tw := tar.NewWriter(w)
	// First, because unpackers would not find a target that the layer removes.
	for _, l := range links {
		h := header(&l.stat)
		h.Typeflag, h.Name, h.Linkname = tar.TypeLink, l.name, l.target
		if err := tw.WriteHeader(h); err != nil {
			return err
		}
	}
	seen := map[uint64]string{} // inodes of more than one name
	err := filepath.WalkDir(upper, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(upper, path)
		if err != nil {
			return err
		}
		return writeEntry(tw, path, name, seen)
	})
	if err != nil {
		return err
	}
	return tw.Close()
}

// lowerLink is a hard link to a file of a layer below; stat is the target's.
type lowerLink struct {
	name, target string
	stat         unix.Stat_t
}

func header(st *unix.Stat_t) *tar.Header {
	return &tar.Header{
		Format: tar.FormatPAX, Mode: int64(st.Mode & 0o7777), Uid: int(st.Uid), Gid: int(st.Gid),
		ModTime: time.Unix(st.Mtim.Unix()),
	}
}

func writeEntry(tw *tar.Writer, path, name string, seen map[uint64]string) error {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return err
	}
	h := header(&st)
	h.Name, h.PAXRecords = name, map[string]string{}
	opaque := false
	xattrs, err := listXattrs(path)
	if err != nil {
		return err
	}
	for k, v := range xattrs {
		if k == "trusted.overlay.opaque" {
			opaque = v == "y"
		} else if !strings.HasPrefix(k, "trusted.overlay.") {
			h.PAXRecords["SCHILY.xattr."+k] = v
		}
	}
	major, minor := unix.Major(st.Rdev), unix.Minor(st.Rdev)
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		h.Typeflag, h.Name = tar.TypeDir, name+"/"
	case unix.S_IFREG:
		h.Typeflag, h.Size = tar.TypeReg, st.Size
	case unix.S_IFLNK:
		h.Typeflag = tar.TypeSymlink
		if h.Linkname, err = os.Readlink(path); err != nil {
			return err
		}
	case unix.S_IFIFO:
		h.Typeflag = tar.TypeFifo
	case unix.S_IFCHR:
		h.Typeflag, h.Devmajor, h.Devminor = tar.TypeChar, int64(major), int64(minor)
		if st.Rdev == 0 { // overlayfs' whiteout
			h = &tar.Header{Typeflag: tar.TypeReg, Name: filepath.Join(filepath.Dir(name), ".wh."+filepath.Base(name))}
			return tw.WriteHeader(h)
		}
	case unix.S_IFBLK:
		h.Typeflag, h.Devmajor, h.Devminor = tar.TypeBlock, int64(major), int64(minor)
	default: // sockets have no place in a tar
		return nil
	}
	if st.Nlink > 1 && h.Typeflag != tar.TypeDir {
		if first, ok := seen[st.Ino]; ok {
			h.Typeflag, h.Linkname, h.Size, h.PAXRecords = tar.TypeLink, first, 0, nil
		} else {
			seen[st.Ino] = name
		}
	}
	if err := tw.WriteHeader(h); err != nil {
		return fmt.Errorf("%q: %w", name, err)
	}
	if opaque {
		return tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name + "/.wh..wh..opq"})
	}
	if h.Typeflag != tar.TypeReg || st.Size == 0 {
		return nil
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(tw, f)
	return err
}

// listXattrs returns the attributes of the file at path, a symlink itself;
// none where the file system knows no attributes.
func listXattrs(path string) (map[string]string, error) {
	buf := make([]byte, 1<<16)
	n, err := unix.Llistxattr(path, buf)
	if errors.Is(err, unix.ENOTSUP) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("%q: list attributes: %w", path, err)
	}
	xattrs := map[string]string{}
	for name := range strings.SplitSeq(string(buf[:n]), "\x00") {
		if name == "" {
			continue
		}
		value := make([]byte, 1<<16)
		n, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			return nil, fmt.Errorf("%q: attribute %s: %w", path, name, err)
		}
		xattrs[name] = string(value[:n])
	}
	return xattrs, nil
}

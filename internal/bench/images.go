package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/imgfs/imgfs/imagedb"
	"github.com/imgfs/imgfs/internal/erofs"
	"github.com/imgfs/imgfs/internal/id"
	"github.com/imgfs/imgfs/internal/metadb"
	"github.com/imgfs/imgfs/layerdb"
	"github.com/imgfs/imgfs/union"
)

// The store of the part "images": as many images, each with a layer of its own
// on four of the common ones, a tag, a digest and six labels.
const (
	manyImages   = 10_000
	commonLayers = 400
	imageLayers  = 5
)

// manyImagesStore measures a store of 10,000 images: how long a listing takes,
// the whole process, and a start of the daemon until it answers, and what memory
// the daemon has of its own.
func (b *bench) manyImagesStore(ctx context.Context) error {
	root := b.path("images")
	if _, err := os.Stat(filepath.Join(root, "made")); err != nil {
		took, err := timed(func() error { return makeManyImages(ctx, root, manyImages) })
		if err != nil {
			return err
		}
		fmt.Fprintf(os.Stderr, "made %d images in %s: %s\n", manyImages, root, took.Round(time.Second))
	}
	imgfs := func(args ...string) error {
		_, err := output(ctx, b.imgfs, append([]string{"--root", root}, args...)...)
		return err
	}
	b.later(func() { _, _ = output(context.Background(), b.imgfs, "--root", root, "daemon", "stop", "--force") })
	var start, rss, rssListed sample
	for range b.rounds {
		took, pid, err := startDaemon(ctx, b.imgfs, root)
		if err != nil {
			return err
		}
		start.add(took.Seconds() * 1000)
		n, err := rssAnon(pid)
		if err != nil {
			return err
		}
		rss.add(float64(n))
		if err := imgfs("images"); err != nil {
			return err
		}
		if n, err = rssAnon(pid); err != nil {
			return err
		}
		rssListed.add(float64(n))
		if err := imgfs("daemon", "stop"); err != nil {
			return err
		}
	}
	rows := [][]string{{"`imgfs daemon`, until it answers", ms(start.median())}}
	if _, _, err := startDaemon(ctx, b.imgfs, root); err != nil {
		return err
	}
	for _, c := range [][]string{
		{"images"}, {"images", "-q"}, {"images", "--digests", "--no-trunc"}, {"images", "--format", "json"},
		{"images", "-f", "label=org.example.team=team-37"}, {"images", "team-37/service-77"}, {"inspect", "team-37/service-77:v77"},
	} {
		var took sample
		for range 4 * b.rounds {
			d, err := timed(func() error { return imgfs(c...) })
			if err != nil {
				return err
			}
			took.add(d.Seconds() * 1000)
		}
		rows = append(rows, []string{"`imgfs " + strings.Join(c, " ") + "`", ms(took.median())})
	}
	rows = append(rows,
		[]string{"RssAnon of the daemon, just started", mib(rss.median())},
		[]string{"RssAnon of the daemon, after a listing", mib(rssListed.median())})
	table(fmt.Sprintf("A store of %d images, %d layers", manyImages, manyImages+commonLayers), []string{"", "median"}, rows)
	return nil
}

func ms(v float64) string  { return fmt.Sprintf("%.0f ms", v) }
func mib(v float64) string { return fmt.Sprintf("%.1f MiB", v/(1<<20)) }

// startDaemon starts a daemon as a user would, in the foreground, and returns
// how long it took to answer, counted from before its process was made.
func startDaemon(ctx context.Context, imgfs, root string) (took time.Duration, pid int, err error) {
	cmd := exec.Command(imgfs, "--root", root, "daemon")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StderrPipe()
	if err != nil {
		return 0, 0, err
	}
	took, err = timed(func() error {
		if err := cmd.Start(); err != nil {
			return err
		}
		// It says so when it serves.
		line := make([]byte, 1<<10)
		n, err := out.Read(line)
		if err != nil {
			return fmt.Errorf("daemon: %w: %s", err, line[:n])
		}
		return nil
	})
	go func() { _, _ = io.Copy(io.Discard, out); _ = cmd.Wait() }()
	return took, cmd.Process.Pid, err
}

// makeManyImages makes a store of n images by the packages that a pull uses.
func makeManyImages(ctx context.Context, root string, n int) (err error) {
	if err := os.RemoveAll(root); err != nil {
		return err
	}
	db, err := metadb.Open(filepath.Join(root, "db"))
	if err != nil {
		return err
	}
	defer func() { err = join(err, metadb.Close(db)) }()
	layers, err := layerdb.Open(root, db, layerdb.Options{Merge: func(w io.Writer, parent *erofs.Image, top []*erofs.Image) error {
		_, err := union.Merge(w, top)
		return err
	}})
	if err != nil {
		return err
	}
	defer layers.Close()
	images, err := imagedb.Open(root, db, imagedb.Options{})
	if err != nil {
		return err
	}
	defer images.Close()
	common := make([]imagedb.Layer, commonLayers)
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(16)
	for i := range common {
		g.Go(func() (err error) {
			common[i], err = putLayer(gctx, layers, fmt.Sprintf("common-%d", i), 20)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	g, gctx = errgroup.WithContext(ctx)
	g.SetLimit(16)
	for i := range n {
		g.Go(func() error {
			own, err := putManyImage(gctx, layers, images, common, i)
			if err != nil {
				return err
			}
			// Where the layer came from, as a pull leaves it: see internal/daemon/origin.go.
			origin := fmt.Sprintf(`[{"name":"docker.io/team-%d/service-%d","size":%d,"mediaType":%q}]`, i%40, i%200, own.Size, layerType)
			return metadb.Update(db, map[string][]byte{"daemon/origin/" + own.Blob.Hex(): []byte(origin)})
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(root, "made"), nil, 0o600)
}

func join(a, b error) error {
	if a != nil {
		return a
	}
	return b
}

// putLayer stores a layer of some files.
func putLayer(ctx context.Context, s *layerdb.Store, name string, files int) (imagedb.Layer, error) {
	var stream, blob bytes.Buffer
	t := tar.NewWriter(&stream)
	for i := range files {
		text := fmt.Sprintf("file %d of %s\n", i, name)
		if err := t.WriteHeader(&tar.Header{Name: fmt.Sprintf("srv/%s/%d", name, i), Mode: 0o644, Size: int64(len(text)), ModTime: time.Unix(1e9, 0)}); err != nil {
			return imagedb.Layer{}, err
		}
		_, _ = io.WriteString(t, text)
	}
	if err := t.Close(); err != nil {
		return imagedb.Layer{}, err
	}
	z := gzip.NewWriter(&blob)
	_, _ = z.Write(stream.Bytes())
	if err := z.Close(); err != nil {
		return imagedb.Layer{}, err
	}
	l := imagedb.Layer{DiffID: id.DiffIDFrom(sha256.Sum256(stream.Bytes())), Blob: id.BlobOf(blob.Bytes()), Size: int64(blob.Len())}
	_, _, err := s.Ensure(ctx, layerdb.Spec{DiffID: l.DiffID, Blob: l.Blob, Size: l.Size, Open: func(context.Context) (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(blob.Bytes())), nil
	}}, func(layerdb.Step) {})
	return l, err
}

// layerType is the media type of the layers.
const layerType = "application/vnd.oci.image.layer.v1.tar+gzip"

// putManyImage stores the image of one number, and returns its own layer.
func putManyImage(ctx context.Context, layers *layerdb.Store, images *imagedb.Store, common []imagedb.Layer, i int) (own imagedb.Layer, err error) {
	if own, err = putLayer(ctx, layers, fmt.Sprintf("image-%d", i), 4); err != nil {
		return own, err
	}
	var stack []imagedb.Layer
	for k := range imageLayers - 1 {
		stack = append(stack, common[(i/25*(imageLayers-1)+k)%len(common)])
	}
	img := imagedb.Image{Platform: "linux/amd64", Layers: append(stack, own)}
	name := fmt.Sprintf("team-%d/service-%d", i%40, i%200)
	config := map[string]any{
		"created": time.Unix(1.7e9+int64(i)*977, 0).UTC(), "os": "linux", "architecture": "amd64",
		"config": map[string]any{
			"Env": []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}, "Cmd": []string{"/srv/run"},
			"Labels": map[string]string{
				"org.opencontainers.image.title": name, "org.opencontainers.image.version": fmt.Sprintf("v%d", i),
				"org.opencontainers.image.revision": fmt.Sprintf("%040x", i*7919), "org.opencontainers.image.source": "https://git.example/" + name,
				"org.opencontainers.image.licenses": "Apache-2.0", "org.example.team": fmt.Sprintf("team-%d", i%40),
			},
		},
		"rootfs": map[string]any{"type": "layers", "diff_ids": img.DiffIDs()},
	}
	if img.Config, err = json.Marshal(config); err != nil {
		return own, err
	}
	type descriptor struct {
		MediaType string `json:"mediaType"`
		Digest    string `json:"digest"`
		Size      int64  `json:"size"`
	}
	manifest := struct {
		SchemaVersion int          `json:"schemaVersion"`
		MediaType     string       `json:"mediaType"`
		Config        descriptor   `json:"config"`
		Layers        []descriptor `json:"layers"`
	}{2, "application/vnd.oci.image.manifest.v1+json", descriptor{"application/vnd.oci.image.config.v1+json", string(id.ImageIDOf(img.Config)), int64(len(img.Config))}, nil}
	for _, l := range img.Layers {
		manifest.Layers = append(manifest.Layers, descriptor{layerType, string(l.Blob), l.Size})
	}
	if img.Manifest, err = json.Marshal(manifest); err != nil {
		return own, err
	}
	img.ManifestDigest = id.BlobOf(img.Manifest)
	img.Digest = img.ManifestDigest
	imageID, err := images.Create(img)
	if err != nil {
		return own, err
	}
	if err := layers.Retain("image:"+string(imageID), id.Keys(img.DiffIDs())); err != nil {
		return own, err
	}
	_, _, err = images.TagAll(map[string]id.ImageID{
		fmt.Sprintf("%s:v%d", name, i):         imageID,
		fmt.Sprintf("%s@%s", name, img.Digest): imageID,
	}, true)
	return own, err
}

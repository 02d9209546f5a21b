package daemon

import (
	"context"
	"io"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/imgfs/imgfs/fetch"
	"github.com/imgfs/imgfs/imagedb"
	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
	"github.com/imgfs/imgfs/layerdb"
)

// Owners of layers, see the package documentation.
const (
	imageOwner = "image:"
	pullOwner  = "pull:"
)

// image is a stored image, as a mount needs it.
type image struct {
	id     id.ImageID
	name   string        // familiar form of what was asked for
	layers []id.LayerKey // lowest first
}

// keysOf returns the stored layers of an image, lowest first: those that it
// retains, which are its diffIDs unless a layer came in unproven.
func (e *engine) keysOf(img *imagedb.Image) []id.LayerKey {
	if held := e.layers.Held(imageOwner + string(img.ID)); len(held) == len(img.Layers) {
		return held
	}
	return id.Keys(img.DiffIDs())
}

// Pull implements engineapi.Puller.
func (e *engine) Pull(ctx context.Context, req engineapi.PullRequest, report func(engineapi.Progress)) (engineapi.PullResult, error) {
	ref, err := fetch.ParseReference(req.Reference)
	if err != nil {
		return engineapi.PullResult{}, err
	}
	res, err := e.pull(ctx, ref, req, report)
	return res, advise(err)
}

// advise gives a hint to an error of an image or its registry that has none.
func advise(err error) error {
	if fault.HintOf(err) != "" {
		return err
	}
	switch fault.KindOf(err) {
	case fault.Integrity:
		return fault.WithHint(err, "try again, or by another mirror; if it stays so, the image itself is damaged or hostile")
	case fault.Network:
		return fault.WithHint(err, "try again later: the registry, or the way to it, is out of order")
	}
	return err
}

// pull brings an image in. Nothing of it is visible before all of it is there.
func (e *engine) pull(ctx context.Context, ref fetch.Reference, req engineapi.PullRequest, report func(engineapi.Progress)) (engineapi.PullResult, error) {
	if err := e.beginPull(); err != nil {
		return engineapi.PullResult{}, err
	}
	defer e.endPull()
	res := engineapi.PullResult{Reference: ref.Familiar()}
	want, err := fetch.ParsePlatform(req.Platform)
	if err != nil {
		return res, err
	}
	client := fetch.New(e.fetchOptions(req.Registry))
	defer client.Close()

	if known, ok := e.upToDate(ctx, client, ref, want); ok {
		res.ImageID, res.Digest, res.UpToDate = known.ID, known.Digest, true
		return res, nil
	}
	img, err := client.Resolve(ctx, ref, want)
	if err != nil {
		return res, err
	}
	res.ImageID, res.Digest = img.ID, img.Digest
	if !ref.Local() {
		tag := ref.Tag()
		if tag == "" {
			tag = string(ref.Digest())
		}
		report(engineapi.Progress{ID: tag, Status: "Pulling from " + ref.Path()})
	}

	keys := make([]id.LayerKey, len(img.Layers))
	for i, l := range img.Layers {
		keys[i] = l.DiffID.Key()
	}
	owner := pullOwner + newID()
	if err := e.layers.Retain(owner, keys); err != nil {
		return res, err
	}
	defer func() {
		if _, err := e.layers.Release(owner); err != nil {
			e.log.Error("pull", "owner", owner, "err", err)
		}
	}()
	if err := e.ensure(ctx, img, report); err != nil {
		return res, err
	}
	existed, err := e.putImage(ref, img, keys)
	res.UpToDate = existed
	return res, err
}

func (e *engine) beginPull() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.leaving {
		return fault.New(fault.Unavailable, "the daemon is leaving")
	}
	e.pulls++
	return nil
}

func (e *engine) endPull() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.pulls--
	e.tidyLater()
}

func (e *engine) fetchOptions(r engineapi.RegistryOptions) fetch.Options {
	o := fetch.Options{
		Insecure: r.Insecure,
		Auth: fetch.AuthOptions{
			AuthFile: r.AuthFile, DockerConfig: r.DockerConfig,
			Username: r.Username, Password: r.Password, Token: r.Token, IdentityToken: r.IdentityToken,
		},
		UserAgent: "imgfs/" + engineapi.ThisBuild().Version,
		Logger:    e.log,
	}
	if r.CertsDir != "" {
		o.CertsDirs = []string{r.CertsDir}
	}
	return o
}

// ensure brings in all layers, in parallel. report is called by one goroutine
// at a time; a client that does not read holds up its own pull alone, since
// layerdb's passes do not wait for who watches them.
func (e *engine) ensure(ctx context.Context, img *fetch.Image, report func(engineapi.Progress)) error {
	var mu sync.Mutex
	g, ctx := errgroup.WithContext(ctx)
	first := map[id.DiffID]bool{}
	for i, l := range img.Layers {
		if first[l.DiffID] {
			continue // the same layer twice is brought in once
		}
		first[l.DiffID] = true
		show := func(status string, current, total int64) {
			mu.Lock()
			defer mu.Unlock()
			name := l.Blob.Short()
			if l.Blob == "" {
				name = l.DiffID.Short()
			}
			report(engineapi.Progress{ID: name, Status: status, Current: current, Total: total})
		}
		g.Go(func() error {
			if !e.layers.Has(l.DiffID.Key()) {
				show("Pulling fs layer", 0, 0)
			}
			spec := layerdb.Spec{
				Blob: l.Blob, Size: l.Size, DiffID: l.DiffID,
				// The bytes may serve others, who came later and stay longer.
				Open: func(ctx context.Context) (io.ReadCloser, error) { return img.Open(ctx, i) },
			}
			_, err := e.layers.Ensure(ctx, spec, func(s layerdb.Step) { show(s.Status, s.Current, s.Total) })
			return err
		})
	}
	return g.Wait()
}

// putImage records an image whose layers are all there; existed says that
// nothing was new.
func (e *engine) putImage(ref fetch.Reference, img *fetch.Image, keys []id.LayerKey) (existed bool, err error) {
	e.names.Lock()
	defer e.names.Unlock()
	tag, digest := names(ref, img.Digest)
	if old, err := e.images.Get(img.ID); err == nil {
		existed = old.Digest == img.Digest
		for _, n := range []string{tag, digest} {
			if n != "" {
				have, err := e.images.Lookup(n)
				existed = existed && err == nil && have == img.ID
			}
		}
	}
	if err := e.layers.Retain(imageOwner+string(img.ID), keys); err != nil {
		return false, err
	}
	rec := imagedb.Image{
		ID: img.ID, Config: img.Config, Manifest: img.Manifest,
		ManifestDigest: img.ManifestDigest, Digest: img.Digest, Platform: img.Platform.String(),
	}
	for _, l := range img.Layers {
		rec.Layers = append(rec.Layers, imagedb.Layer{DiffID: l.DiffID, Blob: l.Blob, Size: l.Size})
	}
	if _, err := e.images.Put(rec); err != nil {
		return false, err
	}
	for _, n := range []string{tag, digest} {
		if n == "" {
			continue
		}
		if err := e.images.Tag(n, img.ID); err != nil {
			return false, err
		}
	}
	e.log.Info("pulled", "reference", ref.String(), "image", img.ID, "digest", img.Digest, "new", !existed)
	return existed, nil
}

// names returns the names an image gets by being pulled as ref: NAME:TAG, if
// a tag was asked for, and NAME@DIGEST. An image from a local source has none.
func names(ref fetch.Reference, digest id.Blob) (tag, byDigest string) {
	if ref.Local() {
		return "", ""
	}
	if ref.Tag() != "" {
		tag = ref.String()
	}
	return tag, ref.Name() + "@" + string(digest)
}

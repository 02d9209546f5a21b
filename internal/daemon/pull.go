package daemon

import (
	"cmp"
	"context"
	"fmt"
	"runtime"

	"github.com/imgfs/imgfs/fetch"
	"github.com/imgfs/imgfs/imagedb"
	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
	"github.com/imgfs/imgfs/internal/pool"
	"github.com/imgfs/imgfs/layerdb"
)

// manyLayers is how many layers of an image are still nothing to warn of.
const manyLayers = 500

// image is a stored image, as a mount needs it.
type image struct {
	id     id.ImageID
	name   string        // familiar form of what was asked for
	layers []id.LayerKey // lowest first
	met    bool          // its registry was asked just now
}

// Pull implements engineapi.Puller.
func (e *engine) Pull(ctx context.Context, req engineapi.PullRequest, report func(engineapi.Progress)) (engineapi.PullResult, error) {
	if req.AllTags {
		res, err := e.pullAll(ctx, req, report)
		return res, advise(err)
	}
	ref, err := fetch.ParseReference(req.Reference)
	if err != nil {
		return engineapi.PullResult{}, err
	}
	res, err := e.pull(ctx, ref, req, true, report)
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

// pull brings an image in, with all bytes of its layers if whole is set. Who
// asks for the same while it goes on gets the same: see package pool.
func (e *engine) pull(ctx context.Context, ref fetch.Reference, req engineapi.PullRequest, whole bool, report func(engineapi.Progress)) (engineapi.PullResult, error) {
	req.Reference = ref.String()
	call := pool.Call{Kind: pool.Pull, Name: ref.Familiar(), Variant: pullVariant{req, whole}}
	joined := func() {
		report(engineapi.Progress{Status: fmt.Sprintf("Repository %s already being pulled by another client. Waiting.", ref.Familiar())})
	}
	return pool.Do(ctx, e.transfers, call, func(ctx context.Context, report func(engineapi.Progress)) (engineapi.PullResult, error) {
		res, err := e.pullNow(ctx, ref, req, whole, report)
		if err == nil {
			e.event(imageEvents, "pull", ref.Familiar(), "name", ref.FamiliarName())
		}
		return res, err
	}, report, joined)
}

// pullVariant is how an image is pulled: with whose credentials, for example.
type pullVariant struct {
	req   engineapi.PullRequest
	whole bool
}

// pullNow is pull, for all who ask. Nothing of the image is visible before all
// that was asked for is there.
func (e *engine) pullNow(ctx context.Context, ref fetch.Reference, req engineapi.PullRequest, whole bool, report func(engineapi.Progress)) (res engineapi.PullResult, err error) {
	if err := e.beginWork(); err != nil {
		return engineapi.PullResult{}, err
	}
	defer e.endWork()
	if req.Registry.NoHostFiles {
		ctx = layerdb.Aside(ctx)
	}
	res.Reference = ref.Familiar()
	want, err := fetch.ParsePlatform(req.Platform)
	if err != nil {
		return res, err
	}
	client := e.origins.client(req.Registry)
	defer func() {
		if err != nil {
			e.origins.drop(client)
		}
	}()
	begun := func() { // docker says so when it has the manifest, or needs none
		report(engineapi.Progress{ID: cmp.Or(ref.Tag(), string(ref.Digest())), Status: "Pulling from " + ref.Path()})
	}
	if known, ok := e.upToDate(ctx, client, ref, want); ok {
		begun()
		res.ImageID, res.Digest, res.UpToDate = known.ID, known.Digest, true
		if !whole {
			return res, nil
		}
		fetched, err := e.finishAll(ctx, e.keysOf(&known), report)
		if fault.KindOf(err) != fault.Integrity {
			res.UpToDate = !fetched
			return res, err
		}
		e.log.Warn("image is fetched anew", "image", known.ID, "err", err)
	}
	a := &arrival{e: e, client: client, whole: whole, report: report}
	ctx, cancel := context.WithCancel(ctx) // what was asked for and is not needed
	defer cancel()
	if a.m, err = client.ResolveManifest(ctx, ref, want); err != nil {
		return res, err
	}
	if err := a.resolve(ctx); err != nil {
		return res, err
	}
	if !ref.Local() {
		begun()
	}
	if err := e.origins.note(ref, a.img.Layers, req.Registry); err != nil {
		return res, err
	}
	owner := pullOwner + newID()
	defer e.release("pull", owner)
	keys, err := a.layers(ctx, owner)
	if err != nil {
		return res, err
	}
	if err := a.describe(keys); err != nil {
		return res, err
	}
	res.ImageID, res.Digest = a.img.ID, a.img.Digest
	res.UpToDate, err = e.putImage(ref, a.img, keys)
	if err != nil {
		return res, err
	}
	if err := a.keepTrace(keys); err != nil {
		e.log.Warn("trace beside the image is not used", "image", ref, "err", err)
	}
	return res, nil
}

func (e *engine) fetchOptions(r engineapi.RegistryOptions) fetch.Options {
	o := fetch.Options{
		Insecure: r.Insecure,
		Auth: fetch.AuthOptions{
			AuthFile: r.AuthFile, DockerConfig: r.DockerConfig,
			Username: r.Username, Password: r.Password, Token: r.Token, IdentityToken: r.IdentityToken,
		},
		UserAgent:   userAgent(),
		Logger:      e.log,
		NoHostFiles: r.NoHostFiles,
		Opened:      e.figures.opened,
	}
	if r.CertsDir != "" {
		o.CertsDirs = []string{r.CertsDir}
	}
	return o
}

// userAgent is what servers are told of this program, in docker's form.
func userAgent() string {
	return fmt.Sprintf("imgfs/%s go/%s os/%s arch/%s", engineapi.ThisBuild().Version, runtime.Version(), runtime.GOOS, runtime.GOARCH)
}

// putImage records an image whose layers are all there; existed says that
// nothing was new.
func (e *engine) putImage(ref fetch.Reference, img *fetch.Image, keys []id.LayerKey) (existed bool, err error) {
	e.names.Lock()
	defer e.names.Unlock()
	if old, err := e.images.Get(img.ID); err == nil {
		existed = old.Digest == img.Digest && e.goesBy(ref, &old)
	}
	if err := e.storeImage(img, keys); err != nil {
		return false, err
	}
	if err := e.nameImage(ref, img); err != nil {
		return false, err
	}
	e.log.Info("pulled", "reference", ref.String(), "image", img.ID, "digest", img.Digest, "new", !existed)
	return existed, nil
}

// storeImage records an image that was fetched.
//
// Preconditions: e.names is held.
func (e *engine) storeImage(img *fetch.Image, keys []id.LayerKey) error {
	if n := len(keys); n > manyLayers {
		e.log.Warn("the image has very many layers: docker takes 127", "image", img.ID, "layers", n)
	}
	rec := imagedb.Image{
		ID: img.ID, Config: img.Config, Manifest: img.Manifest,
		ManifestDigest: img.ManifestDigest, Digest: img.Digest, Platform: img.Platform.String(),
	}
	for _, l := range img.Layers {
		rec.Layers = append(rec.Layers, imagedb.Layer{DiffID: l.DiffID, Blob: l.Blob, Size: l.Size})
	}
	_, err := e.create(rec, keys)
	return err
}

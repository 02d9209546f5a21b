package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"

	"github.com/imgfs/imgfs/fetch"
	"github.com/imgfs/imgfs/imagedb"
	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
	"github.com/imgfs/imgfs/layerdb"
)

// What a check looks at, and what mends it:
//
//	records  who holds which layers         from the images
//	         where blobs are to be had      dropped; a pull tells it anew
//	images   config, manifest, record       fetched by digest
//	names    their records                  from the images; a tag, by a pull
//	layers   record, index, tables, data    the record from the database; from its own
//	         and those that images lack     data; span by span; whole; with its image
//	chains   index, record                  merged anew
//
// Everything else is served meanwhile. Nothing is removed that somebody needs:
// what cannot be mended stays as it is, and its hint tells who can.

// Kinds of problems.
const (
	recordProblem = "record"
	imageProblem  = "image"
	nameProblem   = "name"
	layerProblem  = "layer"
	chainProblem  = "chain"
)

// checkup is one check under way.
type checkup struct {
	e      *engine
	req    engineapi.FsckRequest
	report func(engineapi.Progress)
	res    engineapi.FsckReport
	mends  []func() error // of each problem; nil: nothing can be done
	names  []imagedb.Damage
}

// Fsck implements engineapi.Fsck.
func (e *engine) Fsck(ctx context.Context, req engineapi.FsckRequest, report func(engineapi.Progress)) (engineapi.FsckReport, error) {
	if err := e.beginWork(); err != nil {
		return engineapi.FsckReport{}, err
	}
	defer e.endWork()
	c := &checkup{e: e, req: req, report: report, res: engineapi.FsckReport{Problems: []engineapi.FsckProblem{}}}
	for _, part := range []struct {
		name  string
		check func(context.Context) error
	}{
		{"records", c.checkRecords}, {"images", c.checkImages}, {"names", c.checkNames}, {"layers", c.checkLayers}, {"chains", c.checkChains},
	} {
		report(engineapi.Progress{ID: part.name, Status: "Checking"})
		before := len(c.res.Problems)
		if err := part.check(ctx); err != nil {
			return c.res, err
		}
		if err := ctx.Err(); err != nil {
			return c.res, context.Cause(ctx)
		}
		report(engineapi.Progress{ID: part.name, Status: "Checked, " + count(len(c.res.Problems)-before, "problem")})
	}
	if req.Repair {
		c.repair(ctx)
	}
	return c.res, context.Cause(ctx)
}

// found notes a problem. mend, nil where nothing can be done, is called if the
// store is to be repaired; hint tells what else would help.
func (c *checkup) found(kind, what, which string, mend func() error, hint string) {
	c.res.Problems = append(c.res.Problems, engineapi.FsckProblem{Kind: kind, ID: which, What: what, Hint: hint})
	c.mends = append(c.mends, mend)
}

// repair mends what was found, once all is known: what mends an image may mend
// its layers by the way.
func (c *checkup) repair(ctx context.Context) {
	for i, mend := range c.mends {
		p := &c.res.Problems[i]
		if mend == nil || ctx.Err() != nil {
			continue
		}
		err := mend()
		c.e.log.Info("repair", "kind", p.Kind, "id", p.ID, "problem", p.What, "err", err)
		if err != nil {
			p.What += "; not repaired: " + err.Error()
			continue
		}
		p.Repaired, p.Hint = true, ""
	}
}

// checkRecords checks who holds layers, and what is known of blobs.
func (c *checkup) checkRecords(context.Context) error {
	e := c.e
	for _, img := range e.unheld() {
		c.found(recordProblem, "nothing keeps the layers of image "+img.ID.Short(), imageOwner+string(img.ID), func() error { return e.holdImage(&img) }, "")
	}
	for _, owner := range e.layers.DamagedOwners() {
		name, isPin := strings.CutPrefix(owner, pinOwner)
		c.found(recordProblem, "which layers it holds cannot be read", owner, func() error {
			if !isPin {
				return e.layers.DropDamaged(owner)
			}
			img, _, err := e.find(name)
			if err != nil {
				return e.layers.DropDamaged(owner)
			}
			return e.layers.Pin(name, e.keysOf(&img))
		}, "")
	}
	damaged, err := e.origins.damaged()
	if err != nil {
		return err
	}
	for _, b := range damaged {
		c.found(recordProblem, "where the blob is to be had cannot be read", originKey+b.Hex(), func() error { return c.findOrigin(b) }, "")
	}
	return nil
}

// findOrigin makes the record of a blob's origins anew, from the names of the
// images that have it.
func (c *checkup) findOrigin(b id.Blob) error {
	if err := c.e.origins.forget(b); err != nil {
		return err
	}
	for _, img := range c.e.images.List() {
		for _, l := range img.Layers {
			if l.Blob != b {
				continue
			}
			for _, n := range c.e.images.References(img.ID) {
				ref, err := fetch.ParseReference(n)
				if err == nil {
					err = c.e.origins.note(ref, []fetch.Layer{{Blob: l.Blob, Size: l.Size}}, c.req.Registry)
				}
				if err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// checkImages checks configs, manifests and records.
func (c *checkup) checkImages(ctx context.Context) error {
	list := c.e.images.List()
	c.res.Images = len(list)
	broken := map[id.ImageID]bool{}
	for _, d := range c.e.images.Check() {
		if d.Image == "" {
			c.names = append(c.names, d)
			continue
		}
		broken[d.Image] = true
		c.image(ctx, d.Image, d.What)
	}
	for _, img := range list {
		if broken[img.ID] || img.ManifestDigest == "" {
			continue
		}
		if now, err := c.e.images.Get(img.ID); err == nil && now.Manifest == nil {
			c.image(ctx, img.ID, "its manifest is missing or damaged")
		}
	}
	return nil
}

// image notes that one is broken.
func (c *checkup) image(ctx context.Context, i id.ImageID, what string) {
	img, err := c.e.images.Peek(i)
	if err != nil {
		return // removed meanwhile
	}
	called := c.e.shownAs(&img)[0]
	c.found(imageProblem, what, string(i), func() error { return c.refetch(ctx, &img) },
		fmt.Sprintf("imgfs rmi %s, then pull, load or commit it again", fault.Word(called)))
}

// checkNames checks where names point to.
func (c *checkup) checkNames(ctx context.Context) error {
	c.res.Names = len(c.e.images.Names()) + len(c.names)
	for _, d := range c.names {
		c.found(nameProblem, d.What, d.Name, func() error { return c.rename(ctx, d.Name) },
			fmt.Sprintf("imgfs tag IMAGE %s, or imgfs untag %[1]s", fault.Word(d.Name)))
	}
	return nil
}

// rename finds out what a name points to of which nothing can be read: by
// digest, of the images here, by tag, of its registry.
func (c *checkup) rename(ctx context.Context, name string) error {
	ref, err := fetch.ParseReference(name)
	if err != nil {
		return err
	}
	for _, img := range c.e.images.List() {
		if d := ref.Digest(); d != "" && (d == img.Digest || d == img.ManifestDigest) && img.Broken == "" {
			c.e.names.Lock()
			defer c.e.names.Unlock()
			return c.e.images.Tag(name, img.ID)
		}
	}
	_, err = c.e.pull(ctx, ref, engineapi.PullRequest{Registry: c.req.Registry}, false, c.report)
	return err
}

// checkLayers checks those that are stored, and looks for those that are not.
func (c *checkup) checkLayers(ctx context.Context) error {
	known := c.e.layers.Known()
	c.res.Layers = len(known)
	seen := map[id.LayerKey]bool{}
	for i := range known {
		k := known[i].Key
		seen[k] = true
		c.report(engineapi.Progress{ID: k.Short(), Status: layerdb.StatusVerifying})
		list, err := c.e.layers.CheckLayer(ctx, k, false)
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case fault.KindOf(err) == fault.NotFound:
			continue // removed meanwhile
		case err != nil:
			list = append(list, layerdb.Damage{What: err.Error()})
		}
		mend := sync.OnceValue(func() error { return c.mendLayer(ctx, k) })
		for _, d := range list {
			c.found(layerProblem, d.What, string(k), mend, c.layerHint(k))
		}
	}
	for _, img := range c.e.images.List() {
		for _, k := range c.e.keysOf(&img) {
			if !seen[k] && !c.e.layers.Has(k) {
				seen[k] = true
				c.found(layerProblem, "is not in the store, and image "+c.e.shownAs(&img)[0]+" needs it", string(k),
					func() error { return c.restore(ctx, k) }, c.layerHint(k))
			}
		}
	}
	return nil
}

// layerHint tells what helps about a layer.
func (c *checkup) layerHint(k id.LayerKey) string {
	users := c.usersOf(k)
	switch {
	case len(users) == 0 && !c.held(k):
		return "imgfs gc removes it: nothing needs it"
	case len(users) == 0:
		return "imgfs pull an image that has it"
	case !c.req.Repair:
		return "imgfs fsck --repair"
	}
	return fmt.Sprintf("imgfs rmi %s, then pull, load or commit it again", fault.Word(c.e.shownAs(&users[0])[0]))
}

// mendLayer mends what is here of a layer, or brings it in anew.
func (c *checkup) mendLayer(ctx context.Context, k id.LayerKey) error {
	list, err := c.e.layers.CheckLayer(ctx, k, true)
	if err == nil && !slices.ContainsFunc(list, func(d layerdb.Damage) bool { return !d.Repaired }) {
		return nil
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return c.restore(ctx, k)
}

// usersOf returns the images that have a layer.
func (c *checkup) usersOf(k id.LayerKey) []imagedb.Image {
	return slices.DeleteFunc(c.e.images.List(), func(img imagedb.Image) bool { return !slices.Contains(c.e.keysOf(&img), k) })
}

// restore brings a layer in anew: by itself, or with an image that has it. One
// that nothing needs is removed.
func (c *checkup) restore(ctx context.Context, k id.LayerKey) error {
	if c.e.layers.Has(k) {
		return nil // mended by what was done before
	}
	users := c.usersOf(k)
	if len(users) == 0 && !c.held(k) {
		_, err := c.e.layers.Discard(k)
		return err
	}
	err := c.ensure(ctx, k, users)
	if err == nil || ctx.Err() != nil {
		return err
	}
	for i := range users {
		if rerr := c.refetch(ctx, &users[i]); rerr != nil {
			err = errors.Join(err, rerr)
		}
	}
	if len(users) == 0 || slices.ContainsFunc(users, func(img imagedb.Image) bool { return !c.e.hasAll(c.e.keysOf(&img)) }) {
		return err
	}
	if !c.e.layers.Has(k) && !c.held(k) {
		_, err := c.e.layers.Discard(k) // they came with another
		return err
	}
	return nil
}

// held reports whether somebody holds a layer: an upper or a pin may without an
// image.
func (c *checkup) held(k id.LayerKey) bool {
	l, err := c.e.layers.Stat(k)
	return err == nil && l.Owners > 0
}

// ensure brings in a layer that is known by its diffID: out of its own data, the
// blob that was kept of it, or one that a registry has.
func (c *checkup) ensure(ctx context.Context, k id.LayerKey, users []imagedb.Image) error {
	spec := layerdb.Spec{DiffID: id.DiffID(k)}
	if l, err := c.e.layers.Stat(k); err == nil && l.DiffID.Key() == k {
		spec.Blob, spec.Size = l.Blob, l.BlobSize
	}
	for _, img := range users {
		for _, l := range img.Layers {
			if l.DiffID.Key() == k && spec.Blob == "" {
				spec.Blob, spec.Size = l.Blob, l.Size
			}
		}
	}
	spec.Open = func(ctx context.Context) (io.ReadCloser, error) {
		if spec.Blob == "" {
			return nil, fault.New(fault.NotFound, "it came without a blob of its own: nobody else can have it")
		}
		if f, err := c.e.images.OpenKept(spec.Blob); err == nil {
			return f, nil
		}
		src, err := c.e.origins.supply(ctx, layerdb.LayerInfo{Blob: spec.Blob, BlobSize: spec.Size})
		if err != nil {
			return nil, err
		}
		return src.Range(ctx, 0, spec.Size)
	}
	_, _, err := c.e.layers.Ensure(ctx, spec, func(s layerdb.Step) {
		c.report(engineapi.Progress{ID: k.Short(), Status: s.Status, Current: s.Current, Total: s.Total})
	})
	return err
}

// whence is a place where an image may be had.
type whence struct {
	ref      fetch.Reference
	registry engineapi.RegistryOptions
}

// whences returns where an image may be had, by a digest: by that of its own
// manifest where that is known.
func (c *checkup) whences(img *imagedb.Image) []whence {
	var list []whence
	add := func(name string, d id.Blob, r engineapi.RegistryOptions) {
		ref, err := fetch.ParseReference(name)
		if err != nil || d == "" {
			return
		}
		if w := (whence{ref.At(d), r}); !slices.Contains(list, w) {
			list = append(list, w)
		}
	}
	names := c.e.images.References(img.ID)
	for _, d := range []id.Blob{img.ManifestDigest, img.Digest} {
		for _, n := range names {
			add(imagedb.Repository(n), d, c.req.Registry)
		}
		for _, l := range img.Layers {
			origins, err := c.e.origins.of(l.Blob)
			if err != nil {
				continue
			}
			for i := range origins {
				add(origins[i].Name, d, c.e.origins.login(&origins[i]))
			}
		}
	}
	for _, n := range names { // of an image whose record is lost
		if ref, err := fetch.ParseReference(n); err == nil && ref.Digest() != "" {
			add(ref.Name(), ref.Digest(), c.req.Registry)
		}
	}
	return list
}

// refetch brings an image in anew, all of it that is not here, from where it
// came. Its names stay as they are.
func (c *checkup) refetch(ctx context.Context, img *imagedb.Image) error {
	places := c.whences(img)
	if len(places) == 0 {
		return fault.New(fault.NotFound, "nobody knows where image %s came from", img.ID.Short())
	}
	var errs []error
	for _, w := range places {
		err := c.refetchFrom(ctx, img, w)
		if err == nil || ctx.Err() != nil {
			return err
		}
		errs = append(errs, fmt.Errorf("%s: %w", w.ref.Familiar(), err))
	}
	return errors.Join(errs...)
}

func (c *checkup) refetchFrom(ctx context.Context, img *imagedb.Image, w whence) error {
	e := c.e
	want, err := fetch.ParsePlatform(img.Platform)
	if err != nil {
		want = fetch.Platform{}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	a := &arrival{e: e, client: e.origins.client(w.registry), report: c.report}
	if a.m, err = a.client.ResolveManifest(ctx, w.ref, want); err != nil {
		return err
	}
	if err := a.resolve(ctx); err != nil {
		return err
	}
	if a.img.ID != img.ID && !a.img.Schema1 {
		return fault.New(fault.NotFound, "it is image %s there", a.img.ID.Short())
	}
	if err := e.origins.note(w.ref, a.img.Layers, w.registry); err != nil {
		return err
	}
	owner := pullOwner + newID()
	defer e.release("fsck", owner)
	keys, err := a.layers(ctx, owner)
	if err != nil {
		return err
	}
	if err := a.describe(keys); err != nil {
		return err
	}
	if a.img.ID != img.ID {
		return fault.New(fault.NotFound, "it is image %s there", a.img.ID.Short())
	}
	if img.Digest != "" && img.ManifestDigest == a.img.ManifestDigest {
		a.img.Digest = img.Digest // the index's, by which it came
	}
	e.names.Lock()
	defer e.names.Unlock()
	if !e.images.Has(img.ID) {
		return nil // removed meanwhile
	}
	return e.storeImage(a.img, keys)
}

// checkChains checks the merged trees.
func (c *checkup) checkChains(ctx context.Context) error {
	list, n, err := c.e.layers.CheckChains(ctx)
	c.res.Chains = n
	for _, d := range list {
		var mend func() error
		which, hint := d.Name, "remove it, if you know what it is"
		if !d.None {
			which, hint = string(d.Chain), "imgfs fsck --repair"
			mend = func() error { return c.e.layers.RenewChain(d.Chain) }
		}
		c.found(chainProblem, d.What, which, mend, hint)
	}
	return err
}

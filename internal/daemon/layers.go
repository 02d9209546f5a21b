package daemon

import (
	"context"
	"encoding/json"
	"io"
	"slices"
	"strings"

	"github.com/imgfs/imgfs/fetch"
	"github.com/imgfs/imgfs/imagedb"
	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
	"github.com/imgfs/imgfs/layerdb"
)

// noSuchLayer has the form of docker's text about images.
func noSuchLayer(name string) error { return fault.New(fault.NotFound, "No such layer: %s", name) }

// findLayer returns the layer called name: by its key, its diffID, the digest
// of its blob, the ID of a chain that it ends, or the start of one of these. Of
// several that claim a diffID the one is meant that is proven to have it.
func (e *engine) findLayer(name string) (id.LayerKey, error) {
	hex := strings.TrimPrefix(name, "sha256:")
	if hex == "" || strings.Trim(hex, "0123456789abcdef") != "" || len(hex) > 64 {
		return "", noSuchLayer(name)
	}
	layers := e.layers.Known()
	found := map[id.LayerKey]*layerdb.LayerInfo{}
	byKey := make(map[id.LayerKey]*layerdb.LayerInfo, len(layers))
	for i := range layers {
		l := &layers[i]
		byKey[l.Key] = l
		if strings.HasPrefix(l.Key.Hex(), hex) || strings.HasPrefix(l.DiffID.Hex(), hex) || strings.HasPrefix(l.Blob.Hex(), hex) {
			found[l.Key] = l
		}
	}
	for b, k := range e.layers.Blobs() {
		if l := byKey[k]; l != nil && strings.HasPrefix(b.Hex(), hex) {
			found[k] = l
		}
	}
	if len(found) == 0 || len(hex) < 64 {
		for c, k := range e.layers.Stacks() {
			if l := byKey[k]; l != nil && strings.HasPrefix(c.Hex(), hex) {
				found[k] = l
			}
		}
	}
	best := map[id.DiffID]*layerdb.LayerInfo{} // of those found, one for each content
	var keys []string
	for k, l := range found {
		if k.Hex() == hex {
			return k, nil
		}
		if have := best[l.DiffID]; have == nil || better(l, have) {
			best[l.DiffID] = l
		}
	}
	for _, l := range best {
		keys = append(keys, string(l.Key))
	}
	slices.Sort(keys)
	switch len(keys) {
	case 0:
		return "", noSuchLayer(name)
	case 1:
		return id.LayerKey(keys[0]), nil
	}
	return "", fault.WithHint(fault.New(fault.Conflict, "ambiguous id prefix %q: matches %s", name, candidates(keys)), "give more digits")
}

// better reports whether of two layers that claim one diffID a is meant.
func better(a, b *layerdb.LayerInfo) bool {
	rank := func(l *layerdb.LayerInfo) int {
		switch {
		case l.Damage != "":
			return 0
		case !l.Sealed:
			return 1
		case l.Key != l.DiffID.Key():
			return 2
		}
		return 3
	}
	if rank(a) != rank(b) {
		return rank(a) > rank(b)
	}
	return a.Key < b.Key
}

// candidates lists what an ambiguous name could be.
func candidates(keys []string) string {
	const shown = 5
	var list []string
	for _, k := range keys[:min(len(keys), shown)] {
		list = append(list, id.LayerKey(k).Short()+"…")
	}
	if len(keys) > shown {
		list = append(list, "…")
	}
	return strings.Join(list, ", ") + " (" + count(len(keys), "layer") + ")"
}

// InspectLayer implements engineapi.LayerStore.
func (e *engine) InspectLayer(_ context.Context, name string) (engineapi.LayerInspect, error) {
	key, err := e.findLayer(name)
	if err != nil {
		return engineapi.LayerInspect{}, err
	}
	return e.inspectLayer(key)
}

func (e *engine) inspectLayer(key id.LayerKey) (engineapi.LayerInspect, error) {
	l, err := e.layers.Stat(key)
	if err != nil {
		return engineapi.LayerInspect{}, err
	}
	res := engineapi.LayerInspect{
		LayerUsage: usageOf(&l), DiffID: l.DiffID, Content: l.Content, Compression: l.Compression,
		Blobs: e.layers.BlobsOf(l.DiffID), Sources: []string{}, Chains: []id.ChainKey{},
	}
	if !l.Sealed || res.Blobs == nil {
		res.Blobs = []id.Blob{}
	}
	if l.Blob != "" && !slices.Contains(res.Blobs, l.Blob) {
		res.Blobs = append(res.Blobs, l.Blob)
	}
	for _, b := range res.Blobs {
		list, err := e.origins.of(b)
		if err != nil {
			return res, err
		}
		for _, o := range list {
			if !slices.Contains(res.Sources, o.Name) {
				res.Sources = append(res.Sources, o.Name)
			}
		}
	}
	for c, k := range e.layers.Stacks() {
		if k == key {
			res.Chains = append(res.Chains, c)
		}
	}
	slices.Sort(res.Chains)
	for _, img := range e.images.List() {
		if slices.Contains(e.keysOf(&img), key) {
			res.Images = append(res.Images, e.shownAs(&img)...)
		}
	}
	slices.Sort(res.Images)
	res.Images = slices.Compact(res.Images)
	return res, nil
}

// shownAs returns the names of an image, or the start of its ID.
func (e *engine) shownAs(img *imagedb.Image) []string {
	names, _ := e.familiar(img.ID)
	if len(names) == 0 {
		return []string{img.ID.Short()}
	}
	return names
}

// usageOf returns what is told of every layer, but for whose it is.
func usageOf(l *layerdb.LayerInfo) engineapi.LayerUsage {
	return engineapi.LayerUsage{
		Layer: l.Key, Blob: l.Blob, Kind: l.Kind, Size: l.DataSize, Present: l.Present, Disk: l.Disk,
		Sealed: l.Sealed, Pinned: l.Pinned, InUse: l.InUse, LastUse: l.LastUse, Problem: problemOf(l),
	}
}

// ExportLayer implements engineapi.LayerStore.
func (e *engine) ExportLayer(ctx context.Context, name string, w io.Writer) error {
	key, err := e.findLayer(name)
	if err != nil {
		return err
	}
	if err := e.beginWork(); err != nil {
		return err
	}
	defer e.endWork()
	return advise(e.layers.WriteStream(ctx, key, w))
}

// ImportLayer implements engineapi.LayerStore.
func (e *engine) ImportLayer(ctx context.Context, req engineapi.LayerImport, body io.Reader, report func(engineapi.Progress)) (engineapi.LayerInspect, error) {
	var res engineapi.LayerInspect
	if err := e.beginWork(); err != nil {
		return res, err
	}
	defer e.endWork()
	name, err := newName(req.Reference)
	if err != nil {
		return res, err
	}
	if name != "" && req.Config == nil {
		return res, fault.WithHint(fault.New(fault.Invalid, "mandatory key 'json' is not set"), "a name needs an image, and an image a config: --config FILE")
	}
	parent, below, err := e.findStack(req.Parent)
	if err != nil {
		return res, err
	}
	var diffs []id.DiffID
	if req.Config != nil { // before the work
		if diffs, err = e.diffsOf(below); err != nil {
			return res, err
		}
		if err := checkConfig(req.Config, diffs); err != nil {
			return res, err
		}
	}
	ref, err := e.layers.Register(ctx, body, parent, func(s layerdb.Step) {
		report(engineapi.Progress{ID: "layer", Status: s.Status, Current: s.Current, Total: s.Total})
	})
	if err != nil {
		return res, err
	}
	defer func() {
		_, err := ref.Release()
		e.logError("layer import", err)
	}()
	if req.Config == nil {
		err = e.layers.Retain(layerOwner+string(ref.Chain()), ref.Layers())
	} else {
		// The image has no manifest: nobody has said how its layers are to be packed.
		img := imagedb.Image{Config: req.Config, Platform: platformOf(req.Config)}
		for _, d := range append(diffs, id.DiffID(ref.Top())) {
			img.Layers = append(img.Layers, imagedb.Layer{DiffID: d})
		}
		res.Image, err = e.putMade(img, ref.Layers(), nil, name)
	}
	if err != nil {
		return engineapi.LayerInspect{}, err
	}
	e.event(layerEvents, "import", string(ref.Top()), "name", string(ref.Chain()))
	image := res.Image
	res, err = e.inspectLayer(ref.Top())
	res.Image, res.Chain = image, ref.Chain()
	return res, err
}

// findStack returns the chain that name means, and its layers: the ID of a
// chain that somebody holds, or an image. "" is the empty one.
func (e *engine) findStack(name string) (id.ChainKey, []id.LayerKey, error) {
	if name == "" {
		return "", nil, nil
	}
	c, cerr := id.ParseChainKey("sha256:" + strings.TrimPrefix(name, "sha256:"))
	if cerr == nil {
		if layers := e.layers.Stack(c); layers != nil {
			return c, layers, nil
		}
	}
	img, _, err := e.find(name)
	switch {
	case err != nil && cerr == nil && fault.KindOf(err) == fault.NotFound:
		return "", nil, fault.New(fault.NotFound, "layer does not exist: %s", c)
	case err != nil:
		return "", nil, err
	}
	layers := e.keysOf(&img)
	return id.Stack(layers), layers, nil
}

// diffsOf returns the diffIDs of stored layers.
func (e *engine) diffsOf(keys []id.LayerKey) ([]id.DiffID, error) {
	diffs := make([]id.DiffID, len(keys))
	for i, k := range keys {
		l, err := e.layers.Info(k)
		if err != nil {
			return nil, err
		}
		diffs[i] = l.DiffID
	}
	return diffs, nil
}

// checkConfig returns an error unless config can be that of an image of the
// layers below, and of one more.
func checkConfig(config []byte, below []id.DiffID) error {
	var c struct {
		RootFS *struct {
			DiffIDs []id.DiffID `json:"diff_ids"`
		} `json:"rootfs"`
	}
	if err := json.Unmarshal(config, &c); err != nil {
		return fault.New(fault.Invalid, "config: %w", err)
	}
	switch {
	case c.RootFS == nil:
		return fault.New(fault.Invalid, "invalid rootfs in image configuration")
	case len(c.RootFS.DiffIDs) != len(below)+1:
		return fault.New(fault.Invalid, "layers from manifest don't match image configuration: %d, and the config lists %d", len(below)+1, len(c.RootFS.DiffIDs))
	case !slices.Equal(c.RootFS.DiffIDs[:len(below)], below):
		return fault.New(fault.Invalid, "layers from manifest don't match image configuration: those below are others")
	}
	return nil
}

// platformOf returns what an image is for by its config; the host's where that
// does not say.
func platformOf(config []byte) string {
	var p struct {
		OS      string `json:"os"`
		Arch    string `json:"architecture"`
		Variant string `json:"variant"`
	}
	host := fetch.HostPlatform()
	if json.Unmarshal(config, &p) != nil || p.OS == "" || p.Arch == "" {
		return host.String()
	}
	return fetch.Platform{OS: p.OS, Architecture: p.Arch, Variant: p.Variant}.String()
}

// RemoveLayer implements engineapi.LayerStore. Layers beneath go with it, as
// far as nobody else needs them.
func (e *engine) RemoveLayer(_ context.Context, name string) error {
	owner, err := e.importedBy(name)
	if err != nil {
		return err
	}
	held := e.layers.Held(owner)
	if _, err := e.layers.Release(owner); err != nil {
		return err
	}
	if len(held) > 0 {
		e.event(layerEvents, "remove", string(held[len(held)-1]), "name", strings.TrimPrefix(owner, layerOwner))
	}
	return nil
}

// importedBy returns the owner of the stack that name means, one that
// ImportLayer stored without an image.
func (e *engine) importedBy(name string) (string, error) {
	hex := strings.TrimPrefix(name, "sha256:")
	var owners []string
	for _, o := range e.layers.Owners(layerOwner) {
		if c := strings.TrimPrefix(o, layerOwner+"sha256:"); hex != "" && strings.HasPrefix(c, hex) {
			owners = append(owners, o)
		}
	}
	if len(owners) == 0 {
		key, err := e.findLayer(name)
		if err != nil {
			return "", err
		}
		for _, o := range e.layers.Owners(layerOwner) {
			if held := e.layers.Held(o); len(held) > 0 && held[len(held)-1] == key {
				owners = append(owners, o)
			}
		}
		if len(owners) == 0 {
			return "", fault.WithHint(fault.New(fault.Conflict, "layer %s was not imported alone: it goes with what needs it", key.Short()),
				"imgfs layer inspect %s tells which images have it; imgfs gc removes what nothing has", key.Short())
		}
	}
	if len(owners) > 1 {
		for i := range owners {
			owners[i] = strings.TrimPrefix(owners[i], layerOwner)
		}
		return "", fault.WithHint(fault.New(fault.Conflict, "ambiguous id prefix %q: matches %s", name, candidates(owners)), "give the ID of one chain")
	}
	return owners[0], nil
}

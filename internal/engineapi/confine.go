package engineapi

import (
	"context"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/imgfs/imgfs/internal/id"
)

// admit is the one check of the router: nothing of a request that is refused
// has been read but its header.
func admit(r *http.Request, path string, to *route) error {
	if Trusted(r.Context()) {
		return nil
	}
	if OfPage(r) {
		return denied("requests of web pages")
	}
	if strings.HasPrefix(path, "/imgfs/") && r.Method != http.MethodGet && !to.reads {
		return denied(r.Method + " " + path)
	}
	return nil
}

// of returns the server as r's client may have it.
func (s *server) of(r *http.Request) *server {
	if Trusted(r.Context()) {
		return s
	}
	c := *s
	c.engine = confined{s.engine}
	return &c
}

// confined is an engine as untrusted clients have it. It has a method for each
// of the engine's, and embeds none: what is new is refused until somebody has
// decided about it here.
//
// They may do with images what docker's API does: list, pull, push, save,
// load, name, remove. They may not have files of the host read or written for
// them, be it images in files, credentials, or what a writable mount has
// changed; nor mount, unmount, or stop anything; nor look after the store.
type confined struct{ engine Engine }

var _ Engine = confined{}

// noHostFiles returns options that have no file of the host read, neither
// credentials nor images, and refuses those that name one.
func noHostFiles(o RegistryOptions) (RegistryOptions, error) {
	switch {
	case o.AuthFile != "" || o.DockerConfig != "":
		return o, denied("credentials in a file of the daemon's host")
	case o.CertsDir != "":
		return o, denied("certificates in a directory of the daemon's host")
	case o.Insecure:
		return o, denied("a registry without TLS that the daemon's configuration does not allow")
	}
	o.NoHostFiles = true
	return o, nil
}

// imageOnly refuses a source that is not an image: what was written through a
// mount is its user's.
func imageOnly(s Source) error {
	if s.Mount != "" || s.Upper != "" || s.UpperDir != "" {
		return denied("what a mount has changed")
	}
	return nil
}

func (c confined) Images(ctx context.Context, o ListOptions) ([]ImageSummary, error) {
	return c.engine.Images(ctx, o)
}

func (c confined) Inspect(ctx context.Context, name string, o InspectOptions) (ImageInspect, error) {
	return c.engine.Inspect(ctx, name, o)
}

func (c confined) History(ctx context.Context, name, platform string) ([]HistoryItem, error) {
	return c.engine.History(ctx, name, platform)
}

func (c confined) Tag(ctx context.Context, source, target string, noClobber bool) error {
	return c.engine.Tag(ctx, source, target, noClobber)
}

func (c confined) Untag(ctx context.Context, name string) ([]DeleteItem, error) {
	return c.engine.Untag(ctx, name)
}

func (c confined) Remove(ctx context.Context, name string, o RemoveOptions) ([]DeleteItem, error) {
	return c.engine.Remove(ctx, name, o)
}

func (c confined) Prune(ctx context.Context, o PruneOptions) (PruneReport, error) {
	return c.engine.Prune(ctx, o)
}

func (c confined) Graph(ctx context.Context) (Graph, error) { return c.engine.Graph(ctx) }

func (c confined) Pull(ctx context.Context, req PullRequest, report func(Progress)) (PullResult, error) {
	var err error
	if req.Registry, err = noHostFiles(req.Registry); err != nil {
		return PullResult{}, err
	}
	return c.engine.Pull(ctx, req, report)
}

func (c confined) Mounts(ctx context.Context) ([]Mount, error) { return c.engine.Mounts(ctx) }

func (c confined) Mount(context.Context, MountRequest, func(Progress), Exchange) (Mount, error) {
	return Mount{}, denied("mounting")
}

func (c confined) WaitGone(context.Context, string) error { return denied("waiting for a mount's end") }

func (c confined) Uppers(context.Context) ([]Upper, error) { return nil, denied("uppers") }

func (c confined) Upper(context.Context, string) (Upper, error) { return Upper{}, denied("uppers") }

func (c confined) CheckUpper(context.Context, string) ([]UpperProblem, error) {
	return nil, denied("uppers")
}

func (c confined) RemoveUpper(context.Context, string) error { return denied("uppers") }

func (c confined) ConvertUpper(context.Context, string, ConvertRequest) error {
	return denied("uppers")
}

func (c confined) Changes(ctx context.Context, s Source, than string) ([]Change, error) {
	if err := imageOnly(s); err != nil {
		return nil, err
	}
	return c.engine.Changes(ctx, s, than)
}

func (c confined) Export(ctx context.Context, s Source, layer bool, w io.Writer) error {
	if err := imageOnly(s); err != nil {
		return err
	}
	return c.engine.Export(ctx, s, layer, w)
}

func (c confined) Commit(context.Context, CommitRequest) (CommitResult, error) {
	return CommitResult{}, denied("committing")
}

func (c confined) PushIndex(context.Context, IndexRequest, func(Progress)) (IndexResult, error) {
	return IndexResult{}, denied("pushing an index")
}

func (c confined) ListIndexes(ctx context.Context, req IndexRequest) ([]IndexInfo, error) {
	var err error
	if req.Registry, err = noHostFiles(req.Registry); err != nil {
		return nil, err
	}
	return c.engine.ListIndexes(ctx, req)
}

func (c confined) RemoveIndexes(context.Context, IndexRequest) ([]IndexInfo, error) {
	return nil, denied("removing indexes")
}

func (c confined) Convert(context.Context, ConvertImageRequest, func(Progress)) (ConvertImageResult, error) {
	return ConvertImageResult{}, denied("converting")
}

func (c confined) Warm(context.Context, WarmRequest, func(Progress)) (WarmResult, error) {
	return WarmResult{}, denied("warming")
}

func (c confined) Verify(context.Context, VerifyRequest, func(Progress)) ([]Verdict, error) {
	return nil, denied("verifying")
}

func (c confined) DiskUsage(ctx context.Context) (DiskUsage, error) { return c.engine.DiskUsage(ctx) }

func (c confined) Pins(ctx context.Context) ([]Pin, error) { return c.engine.Pins(ctx) }

func (c confined) Pin(context.Context, string) (Pin, error) { return Pin{}, denied("pinning") }

func (c confined) Unpin(context.Context, string) error { return denied("pinning") }

func (c confined) Why(ctx context.Context, s Source, path string) (Why, error) {
	if err := imageOnly(s); err != nil {
		return Why{}, err
	}
	return c.engine.Why(ctx, s, path)
}

func (c confined) InspectLayer(ctx context.Context, name string) (LayerInspect, error) {
	return c.engine.InspectLayer(ctx, name)
}

func (c confined) ExportLayer(ctx context.Context, name string, w io.Writer) error {
	return c.engine.ExportLayer(ctx, name, w)
}

func (c confined) ImportLayer(context.Context, LayerImport, io.Reader, func(Progress)) (LayerInspect, error) {
	return LayerInspect{}, denied("importing a layer")
}

func (c confined) RemoveLayer(context.Context, string) error { return denied("removing a layer") }

func (c confined) Push(ctx context.Context, req PushRequest, report func(Progress)) ([]PushedTag, error) {
	var err error
	if req.Registry, err = noHostFiles(req.Registry); err != nil {
		return nil, err
	}
	return c.engine.Push(ctx, req, report)
}

func (c confined) Search(ctx context.Context, req SearchRequest) ([]SearchResult, error) {
	var err error
	if req.Registry, err = noHostFiles(req.Registry); err != nil {
		return nil, err
	}
	return c.engine.Search(ctx, req)
}

func (c confined) Tags(ctx context.Context, repository string, r RegistryOptions) ([]string, error) {
	r, err := noHostFiles(r)
	if err != nil {
		return nil, err
	}
	return c.engine.Tags(ctx, repository, r)
}

func (c confined) Login(ctx context.Context, req LoginRequest) (LoginResult, error) {
	var err error
	if req.Registry, err = noHostFiles(req.Registry); err != nil {
		return LoginResult{}, err
	}
	return c.engine.Login(ctx, req)
}

func (c confined) Manifest(ctx context.Context, name string, r RegistryOptions) (RegistryManifest, error) {
	r, err := noHostFiles(r)
	if err != nil {
		return RegistryManifest{}, err
	}
	return c.engine.Manifest(ctx, name, r)
}

func (c confined) Save(ctx context.Context, req SaveRequest, w io.Writer) error {
	return c.engine.Save(ctx, req, w)
}

func (c confined) Load(ctx context.Context, req LoadRequest, body io.Reader, report func(Progress)) ([]LoadedImage, error) {
	return c.engine.Load(ctx, req, body, report)
}

func (c confined) Import(ctx context.Context, req ImportRequest, body io.Reader, report func(Progress)) (id.ImageID, error) {
	return c.engine.Import(ctx, req, body, report)
}

func (c confined) ListTree(ctx context.Context, req TreeRequest, report func(Progress), emit func(TreeEntry) error) error {
	if err := confineTree(&req); err != nil {
		return err
	}
	return c.engine.ListTree(ctx, req, report, emit)
}

func (c confined) ReadTree(ctx context.Context, req TreeRequest, report func(Progress), w io.Writer) error {
	if err := confineTree(&req); err != nil {
		return err
	}
	return c.engine.ReadTree(ctx, req, report, w)
}

func confineTree(req *TreeRequest) (err error) {
	if err := imageOnly(req.Source); err != nil {
		return err
	}
	req.Registry, err = noHostFiles(req.Registry)
	return err
}

func (c confined) ExportRefs(ctx context.Context) (Repositories, error) {
	return c.engine.ExportRefs(ctx)
}

func (c confined) ImportRefs(context.Context, Repositories, bool) (RefsReport, error) {
	return RefsReport{}, denied("importing names")
}

func (c confined) Fsck(context.Context, FsckRequest, func(Progress)) (FsckReport, error) {
	return FsckReport{}, denied("checking the store")
}

func (c confined) Events(ctx context.Context, since, until time.Time, emit func(Event) error) error {
	return c.engine.Events(ctx, since, until, emit)
}

func (c confined) Configured(ctx context.Context) []InfoIndex { return c.engine.Configured(ctx) }

func (c confined) Status(ctx context.Context) (Status, error) { return c.engine.Status(ctx) }

func (c confined) GC(context.Context) (GCReport, error) { return GCReport{}, denied("gc") }

func (c confined) Shutdown(context.Context, bool) (<-chan struct{}, error) {
	return nil, denied("stopping the daemon")
}

func (c confined) Document(ctx context.Context, name, kind, platform string) ([]byte, error) {
	return c.engine.Document(ctx, name, kind, platform)
}

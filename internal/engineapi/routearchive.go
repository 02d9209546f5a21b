package engineapi

import (
	"context"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
)

// archiveRoutes are docker's routes of archives: save, load. Its import is
// POST /images/create.
var archiveRoutes = []route{
	{request: "GET /images/get", serve: (*server).saveImages},
	{request: "GET /images/{}/get", serve: (*server).saveImages},
	{request: "POST /images/load", serve: (*server).loadImages, body: anyBody},
}

const (
	// archivePlatforms is the version of the API, less the leading 1., from
	// which on save and load take a platform, and importPlatform import.
	archivePlatforms = 48
	importPlatform   = 32

	// wantsResult is the parameter by which our client asks for the result as
	// data, behind docker's lines.
	wantsResult = "result"
)

func (s *server) saveImages(w http.ResponseWriter, r *http.Request) error {
	req := SaveRequest{Names: r.URL.Query()["names"]}
	if n := name(r); n != "" {
		req.Names = []string{n}
	}
	if len(req.Names) == 0 {
		return fault.New(fault.Invalid, "names is missing")
	}
	var err error
	if req.Platform, err = platformParam(r, "platform", archivePlatforms); err != nil {
		return err
	}
	write := func(w io.Writer) error { return s.engine.Save(r.Context(), req, w) }
	if r.Header.Get("Te") == "trailers" {
		return s.sendTar(w, write)
	}
	b := &begun{w: w}
	if err = write(b); err != nil && b.yes {
		s.log.Warn("tar ends early", "err", err)
		panic(http.ErrAbortHandler) // whoever knows nothing of our trailer must not take it for whole
	}
	return err
}

func (s *server) loadImages(w http.ResponseWriter, r *http.Request) error {
	var req LoadRequest
	var err error
	if req.Platform, err = platformParam(r, "platform", archivePlatforms); err != nil {
		return err
	}
	quiet := boolParam(r, "quiet")
	return s.serveStream(w, r, func(st *stream) error {
		list, err := s.engine.Load(r.Context(), req, r.Body, func(p Progress) {
			if !quiet {
				st.step(p)
			}
		})
		if err != nil {
			return err
		}
		for _, img := range list {
			if img.Reference != "" {
				st.line(streamLine{Stream: "Loaded image: " + img.Reference + "\n"})
			} else {
				st.line(streamLine{Stream: "Loaded image ID: " + string(img.ID) + "\n"})
			}
		}
		if !boolParam(r, wantsResult) {
			return nil
		}
		return st.aux(list)
	})
}

// importImage serves POST /images/create with fromSrc: a URL, or "-" for the
// body.
func (s *server) importImage(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	req := ImportRequest{Source: q.Get("fromSrc"), Message: q.Get("message"), Changes: q["changes"]}
	if repo := q.Get("repo"); repo != "" {
		var err error
		if req.Reference, err = withTag(repo, q.Get("tag")); err != nil {
			return err
		}
	}
	if !olderThan(r, importPlatform) {
		req.Platform = q.Get("platform")
	}
	if req.Source != "-" {
		req.URL = req.Source
	}
	return s.serveStream(w, r, func(st *stream) error {
		report := st.step
		if req.URL == "" && !boolParam(r, wantsResult) {
			report = func(Progress) {} // docker prints the ID alone, which scripts take
		}
		imageID, err := s.engine.Import(r.Context(), req, r.Body, report)
		if err != nil {
			return err
		}
		st.line(streamLine{Status: string(imageID)})
		if !boolParam(r, wantsResult) {
			return nil
		}
		return st.aux(imageID)
	})
}

// Save writes images as an archive to w; see [Archives].
func (c *Client) Save(ctx context.Context, req SaveRequest, w io.Writer) error {
	q := url.Values{"names": req.Names}
	if req.Platform != "" {
		q.Set("platform", platformJSON(req.Platform))
	}
	return c.receiveTar(ctx, "/images/get", q, w)
}

// Load stores the images of an archive; see [Archives]. Report, if not nil, is
// called with every step, from the calling goroutine.
func (c *Client) Load(ctx context.Context, req LoadRequest, body io.Reader, report func(Progress)) ([]LoadedImage, error) {
	q := url.Values{wantsResult: {"1"}}
	if req.Platform != "" {
		q.Set("platform", platformJSON(req.Platform))
	}
	if report == nil {
		q.Set("quiet", "1")
	}
	var list []LoadedImage
	return list, c.upload(ctx, "/images/load", q, body, report, &list)
}

// Import makes an image out of a tar, or of what is at a URL, when body is nil;
// see [Archives]. Report is as for Load.
func (c *Client) Import(ctx context.Context, req ImportRequest, body io.Reader, report func(Progress)) (id.ImageID, error) {
	q := url.Values{wantsResult: {"1"}, "fromSrc": {"-"}, "changes": req.Changes}
	for k, v := range map[string]string{"fromSrc": req.URL, "repo": req.Reference, "message": req.Message, "platform": req.Platform} {
		if v != "" {
			q.Set(k, v)
		}
	}
	if body == nil {
		body = strings.NewReader("")
	}
	var imageID id.ImageID
	err := c.upload(ctx, "/images/create", q, body, func(p Progress) {
		if p.Total > 0 || p.Current > 0 {
			p.ID = "layer" // there is one
		}
		if _, err := id.ParseImageID(p.Status); err != nil && report != nil { // docker's way to say the result
			report(p)
		}
	}, &imageID)
	return imageID, err
}

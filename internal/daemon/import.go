package daemon

import (
	"cmp"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"syscall"
	"time"

	"github.com/imgfs/imgfs/fetch"
	"github.com/imgfs/imgfs/imagedb"
	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
	"github.com/imgfs/imgfs/layerdb"
)

// Import implements engineapi.Archives.
func (e *engine) Import(ctx context.Context, req engineapi.ImportRequest, body io.Reader, report func(engineapi.Progress)) (id.ImageID, error) {
	name, err := newName(req.Reference)
	if err != nil {
		return "", err
	}
	made := importing{req: req, created: time.Now().UTC(), run: runConfig{}}
	if made.platform, err = fetch.ParsePlatform(req.Platform); err != nil {
		return "", err
	}
	if made.platform == (fetch.Platform{}) {
		made.platform = fetch.HostPlatform()
	}
	if err := made.run.apply(req.Changes); err != nil { // before the work
		return "", err
	}
	if err := e.beginWork(); err != nil {
		return "", err
	}
	defer e.endWork()
	if req.URL != "" {
		res, err := download(ctx, req.URL, report)
		if err != nil {
			return "", err
		}
		defer res.Body.Close()
		body = res.Body
	}
	layer, err := e.layers.Register(ctx, body, "", func(s layerdb.Step) {
		if s.Current > 0 && s.Status != layerdb.StatusDone { // as in loading.step
			report(engineapi.Progress{Status: "Importing", Current: s.Current, Total: s.Total})
		}
	})
	if err != nil {
		return "", err
	}
	defer func() {
		_, err := layer.Release()
		e.logError("import", err)
	}()
	info, err := e.layers.Info(layer.Top())
	if err != nil {
		return "", err
	}
	img, err := made.image(info.DiffID)
	if err != nil {
		return "", err
	}
	imageID, err := e.putMade(img, layer.Layers(), nil, name)
	if err != nil {
		return "", err
	}
	e.event(imageEvents, "import", string(imageID), "name", cmp.Or(req.Reference, string(imageID)))
	return imageID, nil
}

// importing is an image being made of a tar.
type importing struct {
	req      engineapi.ImportRequest
	created  time.Time
	platform fetch.Platform
	run      runConfig
}

// image returns the image of one layer, as docker has it.
func (m *importing) image(diff id.DiffID) (imagedb.Image, error) {
	source := cmp.Or(m.req.Source, m.req.URL, "-")
	comment := cmp.Or(m.req.Message, "Imported from "+source)
	img := imagedb.Image{Platform: m.platform.String(), Layers: []imagedb.Layer{{DiffID: diff}}}
	var err error
	img.Config, err = json.Marshal(struct {
		Architecture string          `json:"architecture"`
		Comment      string          `json:"comment"`
		Config       runConfig       `json:"config"`
		Created      time.Time       `json:"created"`
		History      []importHistory `json:"history"`
		OS           string          `json:"os"`
		RootFS       rootFS          `json:"rootfs"`
		Variant      string          `json:"variant,omitempty"`
	}{
		m.platform.Architecture, comment, m.run, m.created, []importHistory{{m.created, comment}},
		m.platform.OS, rootFS{"layers", []id.DiffID{diff}}, m.platform.Variant,
	})
	img.ID = id.ImageIDOf(img.Config)
	return img, err
}

// importHistory is the one entry of an imported image's history.
type importHistory struct {
	Created time.Time `json:"created"`
	Comment string    `json:"comment"`
}

// How long a server may be silent before it answers, and how many times it may
// send elsewhere.
const (
	answerTimeout = time.Minute
	maxRedirects  = 10
)

// notHere refuses addresses of this machine alone: what listens there does not
// expect to be asked for somebody else.
func notHere(_, address string, _ syscall.RawConn) error {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return err
	}
	ip, err := netip.ParseAddr(host)
	if err != nil {
		return err
	}
	if ip = ip.Unmap(); ip.IsLoopback() || ip.IsLinkLocalUnicast() || ip.IsUnspecified() {
		return fault.New(fault.Denied, "%s is for the daemon's own user alone", ip)
	}
	return nil
}

// download gets what is to be imported. A host alone means http, as in docker.
func download(ctx context.Context, from string, report func(engineapi.Progress)) (*http.Response, error) {
	if !strings.Contains(from, "://") {
		from = "http://" + from
	}
	u, err := url.Parse(from)
	switch {
	case err != nil:
		return nil, fault.New(fault.Invalid, "import: %w", err)
	case u.Scheme != "http" && u.Scheme != "https" || u.Host == "":
		return nil, fault.New(fault.Invalid, "import: %q is no http or https URL", u.Redacted())
	}
	report(engineapi.Progress{Status: "Downloading from " + u.Redacted()})
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.ResponseHeaderTimeout = answerTimeout
	t.DisableKeepAlives = true // closes with the body
	if !engineapi.Trusted(ctx) {
		t.DialContext = (&net.Dialer{Timeout: answerTimeout, Control: notHere}).DialContext
	}
	client := &http.Client{Transport: t, CheckRedirect: func(r *http.Request, via []*http.Request) error {
		if len(via) >= maxRedirects {
			return fault.New(fault.Network, "more than %d redirects", maxRedirects)
		}
		if via[len(via)-1].URL.Scheme == "https" && r.URL.Scheme != "https" {
			return fault.New(fault.Network, "redirect from https to %s", r.URL.Scheme)
		}
		return nil
	}}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, fault.New(fault.Invalid, "import: %w", err)
	}
	r.Header.Set("User-Agent", userAgent())
	res, err := client.Do(r)
	if err != nil {
		return nil, fault.New(fault.Network, "import: %w", err)
	}
	if res.StatusCode != http.StatusOK {
		res.Body.Close()
		return nil, fault.New(fault.Network, "import: %s answered %s", u.Host, res.Status)
	}
	return res, nil
}

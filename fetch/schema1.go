package fetch

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
)

// Docker's schema 1: the manifest lists blobs and, for each, what an image
// config was before there were configs. It states neither sizes nor diffIDs.
// The digest of a signed one is that of what was signed, which is a manifest
// as well; signatures are not looked at, as they say nothing of whom to trust.

// schema1 is what such a manifest says, lowest layer first.
type schema1 struct {
	layers  []id.Blob
	history []history1
	top     json.RawMessage // config of the uppermost layer
}

// history1 is an entry of a config's history.
type history1 struct {
	Created    time.Time `json:"created"`
	Author     string    `json:"author,omitempty"`
	CreatedBy  string    `json:"created_by,omitempty"`
	Comment    string    `json:"comment,omitempty"`
	EmptyLayer bool      `json:"empty_layer,omitempty"`
}

// The layer that changes nothing, which such images are full of.
const (
	emptyBlob = "sha256:a3ed95caeb02ffe68cdd9fd84406680ae93d633cb16422d00e8a7c22955b46d4"
	emptySize = 32
	emptyDiff = "sha256:5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef"
)

// signedPart returns what was signed of a signed manifest in schema 1, and
// every other body as it is.
func signedPart(body []byte) ([]byte, error) {
	if !bytes.Contains(body, []byte(`"signatures"`)) {
		return body, nil
	}
	var m struct {
		SchemaVersion int
		FSLayers      json.RawMessage `json:"fsLayers"`
		Signatures    []struct {
			Protected string `json:"protected"`
		} `json:"signatures"`
	}
	if json.Unmarshal(body, &m) != nil || m.SchemaVersion != 1 || m.FSLayers == nil || len(m.Signatures) == 0 {
		return body, nil
	}
	var part []byte
	for i, s := range m.Signatures {
		var p struct {
			Length int    `json:"formatLength"`
			Tail   string `json:"formatTail"`
		}
		raw, err := decodeJose(s.Protected)
		if err == nil {
			err = json.Unmarshal(raw, &p)
		}
		tail, terr := decodeJose(p.Tail)
		if err != nil || terr != nil || p.Length < 0 || p.Length > len(body) {
			return nil, fault.New(fault.Integrity, "manifest: signature %d is malformed", i+1)
		}
		signed := append(slices.Clone(body[:p.Length]), tail...)
		if i > 0 && !bytes.Equal(signed, part) {
			return nil, fault.New(fault.Integrity, "manifest: its signatures are of different manifests")
		}
		part = signed
	}
	return part, nil
}

func decodeJose(s string) ([]byte, error) {
	return base64.RawURLEncoding.DecodeString(strings.TrimRight(s, "="))
}

var hexID = regexp.MustCompile(`^[0-9a-f]{64}$`)

// parseSchema1 reads a manifest in schema 1.
func parseSchema1(body []byte) (*schema1, error) {
	var m struct {
		FSLayers []struct {
			BlobSum string `json:"blobSum"`
		} `json:"fsLayers"`
		History []struct {
			V1Compatibility string `json:"v1Compatibility"`
		} `json:"history"`
	}
	if err := json.Unmarshal(body, &m); err != nil {
		return nil, fault.New(fault.Integrity, "manifest: %w", err)
	}
	switch n := len(m.FSLayers); {
	case n == 0:
		return nil, fault.New(fault.Integrity, "manifest: no FSLayers in manifest")
	case n != len(m.History):
		return nil, fault.New(fault.Integrity, "manifest: length of history not equal to number of layers")
	case n > maxLayers:
		return nil, fault.New(fault.Integrity, "manifest: %d layers, more than %d", n, maxLayers)
	}
	s := &schema1{top: json.RawMessage(m.History[0].V1Compatibility)}
	seen := map[string]bool{}
	below := "" // the ID of the layer beneath
	for i := len(m.FSLayers) - 1; i >= 0; i-- {
		var c struct {
			ID              string
			Parent          string
			Created         time.Time
			Author          string
			Comment         string
			Throwaway       bool
			ContainerConfig struct{ Cmd []string } `json:"container_config"`
		}
		if err := json.Unmarshal([]byte(m.History[i].V1Compatibility), &c); err != nil {
			return nil, fault.New(fault.Integrity, "manifest: history %d: %w", i+1, err)
		}
		switch {
		case !hexID.MatchString(c.ID):
			return nil, fault.New(fault.Integrity, "manifest: image ID %q is invalid", c.ID)
		case c.ID == below:
			// The same layer once more: some registries repeat it.
			continue
		case seen[c.ID]:
			return nil, fault.New(fault.Integrity, "manifest: ID %s appears multiple times in manifest", c.ID)
		case below == "" && c.Parent != "":
			return nil, fault.New(fault.Integrity, "manifest: invalid parent ID in the base layer of the image")
		case c.Parent != below:
			return nil, fault.New(fault.Integrity, "manifest: invalid parent ID. Expected %s, got %q", below, c.Parent)
		}
		seen[c.ID], below = true, c.ID
		s.history = append(s.history, history1{c.Created, c.Author, strings.Join(c.ContainerConfig.Cmd, " "), c.Comment, c.Throwaway})
		if c.Throwaway {
			continue
		}
		b, err := id.ParseBlob(m.FSLayers[i].BlobSum)
		if err != nil {
			return nil, fault.New(fault.Integrity, "layer %d: %w", i+1, err)
		}
		s.layers = append(s.layers, b)
	}
	return s, nil
}

// config makes the config of an image whose layers have the diffIDs: that of
// the uppermost layer, without what it says of that layer alone.
func (s *schema1) config(diffs []id.DiffID) ([]byte, error) {
	var c map[string]any
	dec := json.NewDecoder(bytes.NewReader(s.top))
	dec.UseNumber()
	if err := dec.Decode(&c); err != nil {
		return nil, fault.New(fault.Integrity, "image config: %w", err)
	}
	for _, k := range []string{"id", "parent", "Size", "parent_id", "layer_id", "throwaway"} {
		delete(c, k)
	}
	c["rootfs"] = map[string]any{"type": "layers", "diff_ids": append([]id.DiffID{}, diffs...)}
	c["history"] = s.history
	return json.Marshal(c)
}

// ConfigOf returns the config of an image in schema 1, whose layers have the
// given diffIDs, lowest first. Its digest is the image's ID.
func (img *Image) ConfigOf(diffs []id.DiffID) ([]byte, error) {
	if img.schema1 == nil || len(diffs) != len(img.Layers) {
		return nil, fault.New(fault.Invalid, "layers from manifest don't match image configuration (%d, %d)", len(img.Layers), len(diffs))
	}
	return img.schema1.config(diffs)
}

// resolveSchema1 completes img: there is no config to get, but there are sizes
// to ask for.
func (c *Client) resolveSchema1(ctx context.Context, img *Image, s *schema1) error {
	var p config
	if err := json.Unmarshal(s.top, &p); err != nil {
		return fault.New(fault.Integrity, "image config: %w", err)
	}
	img.Platform = Platform{OS: firstOf(p.OS, "linux"), Architecture: p.Architecture, Variant: p.Variant}
	img.Schema1, img.schema1 = true, s
	img.Layers = make([]Layer, len(s.layers))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(8)
	for i, b := range s.layers {
		img.Layers[i] = Layer{Blob: b, MediaType: "application/vnd.docker.image.rootfs.diff.tar.gzip"}
		l := &img.Layers[i]
		if b == emptyBlob {
			l.Size, l.DiffID = emptySize, emptyDiff
			continue
		}
		if slices.Index(s.layers, b) < i {
			continue // copied below
		}
		g.Go(func() (err error) {
			l.Size, err = c.sizeOf(ctx, img.Reference, b)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for i, b := range s.layers {
		img.Layers[i].Size = img.Layers[slices.Index(s.layers, b)].Size
	}
	return nil
}

// sizeOf asks for the size of a blob: by its first byte, as some servers do
// not answer HEAD.
func (c *Client) sizeOf(ctx context.Context, ref Reference, b id.Blob) (int64, error) {
	var size int64
	err := c.try(ref, canPull, func(e *endpoint) error {
		resp, err := e.do(ctx, request{method: http.MethodGet, repository: ref.path, what: "blobs/" + string(b), header: http.Header{"Range": {"bytes=0-0"}}})
		if err != nil {
			return err
		}
		resp.Body.Close()
		size = resp.ContentLength
		if m := contentRange.FindStringSubmatch(resp.Header.Get("Content-Range")); resp.StatusCode == http.StatusPartialContent {
			if size = -1; m != nil && m[3] != "*" {
				size, _ = strconv.ParseInt(m[3], 10, 64)
			}
		}
		if size < 0 || size > maxBlob {
			return fault.New(fault.Integrity, "registry %s: does not state the size of layer %s", e.host, b)
		}
		return nil
	})
	return size, err
}

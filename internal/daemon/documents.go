package daemon

import (
	"context"

	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
)

// Document implements engineapi.Documents.
func (e *engine) Document(_ context.Context, name, kind, platform string) ([]byte, error) {
	img, _, err := e.findFor(name, platform)
	if err != nil {
		return nil, err
	}
	if img, err = e.images.Get(img.ID); err != nil {
		return nil, err
	}
	switch {
	case kind == engineapi.DocumentConfig:
		return img.Config, nil
	case kind != engineapi.DocumentManifest:
		return nil, fault.New(fault.Invalid, "an image has no %q", kind)
	case img.Manifest == nil:
		return nil, fault.New(fault.NotFound, "image %s has no manifest: it was not pulled from a registry", img.ID.Short())
	}
	return img.Manifest, nil
}

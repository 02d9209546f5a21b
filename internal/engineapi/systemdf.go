package engineapi

import (
	"net/http"
	"strconv"

	"github.com/imgfs/imgfs/internal/fault"
)

// systemUsage is the reply of GET /system/df: sections of what was asked for.
type systemUsage struct {
	// Below 1.52, and there too for who does not say that he knows better.
	LayersSize  *int64         `json:",omitempty"`
	Images      []ImageSummary `json:",omitzero"`
	Containers  []struct{}     `json:",omitzero"`
	Volumes     []struct{}     `json:",omitzero"`
	BuildCache  []struct{}     `json:",omitzero"`
	BuilderSize *int64         `json:",omitempty"` // below 1.42

	// From 1.52 on.
	ImageUsage      *usage `json:",omitempty"`
	ContainerUsage  *usage `json:",omitempty"`
	VolumeUsage     *usage `json:",omitempty"`
	BuildCacheUsage *usage `json:",omitempty"`
}

// usage counts things of a kind and their bytes.
type usage struct {
	ActiveCount int            `json:",omitempty"`
	TotalCount  int            `json:",omitempty"`
	TotalSize   int64          `json:",omitempty"`
	Reclaimable int64          `json:",omitempty"`
	Items       []ImageSummary `json:",omitempty"`
}

func (s *server) systemDF(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	types := q["type"]
	if len(types) == 0 || olderThan(r, 42) {
		types = []string{"image", "container", "volume", "build-cache"}
	}
	// Who knows the sections of 1.52 says whether he wants the items too.
	now := !olderThan(r, 52)
	known, verbose := now && q.Get("verbose") != "", false
	if known {
		var err error
		if verbose, err = strconv.ParseBool(q.Get("verbose")); err != nil {
			return fault.New(fault.Invalid, "invalid value for verbose: %s", q.Get("verbose"))
		}
	}
	var u systemUsage
	for _, t := range types {
		switch t {
		case "image":
			images, sum, err := s.imageUsage(r)
			if err != nil {
				return err
			}
			u.ImageUsage = sum
			if verbose {
				u.ImageUsage.Items = images
			}
			if !known {
				u.LayersSize, u.Images = &sum.TotalSize, images
			}
		case "container":
			u.ContainerUsage, u.Containers = &usage{}, []struct{}{}
		case "volume":
			u.VolumeUsage, u.Volumes = &usage{}, []struct{}{}
		case "build-cache":
			u.BuildCacheUsage, u.BuildCache = &usage{}, []struct{}{}
			if olderThan(r, 42) {
				u.BuilderSize = new(int64)
			}
		default:
			return fault.New(fault.Invalid, "unknown object type: %s", t)
		}
	}
	if known {
		u.Containers, u.Volumes, u.BuildCache = nil, nil, nil
	}
	if !now {
		u.ImageUsage, u.ContainerUsage, u.VolumeUsage, u.BuildCacheUsage = nil, nil, nil, nil
	}
	return reply(w, u)
}

// imageUsage returns the images, and what they take: bytes that are here, of
// lazy layers not more than was fetched.
func (s *server) imageUsage(r *http.Request) ([]ImageSummary, *usage, error) {
	images, err := s.engine.Images(r.Context(), ListOptions{SharedSize: true})
	if err != nil {
		return nil, nil, err
	}
	disk, err := s.engine.DiskUsage(r.Context())
	if err != nil {
		return nil, nil, err
	}
	sum := &usage{TotalCount: len(images)}
	for _, l := range disk.Layers {
		sum.TotalSize += l.Present
	}
	images = append([]ImageSummary{}, images...) // never null
	var used int64
	for i := range images {
		img := &images[i]
		if olderThan(r, 44) {
			img.VirtualSize = &img.Size
		}
		if img.Containers > 0 {
			sum.ActiveCount++
			used += img.Size - max(img.SharedSize, 0)
		}
	}
	// Docker's client takes this difference itself, and it must not be negative,
	// although of what is used not all may be here.
	sum.TotalSize = max(sum.TotalSize, used)
	sum.Reclaimable = sum.TotalSize - used
	return images, sum, nil
}

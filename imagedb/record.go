package imagedb

import (
	"encoding/json"
	"maps"
	"slices"

	"github.com/imgfs/imgfs/internal/id"
	"github.com/imgfs/imgfs/internal/metadb"
)

// recordVersion is that of the form of records. One that begins with { is JSON,
// of versions that had neither stamp nor summary: see Store.amend.
const recordVersion = 1

// maxLabels is how many bytes of labels a record holds; Badger's transactions,
// and so its records, are bounded. Longer ones are read from the config.
const maxLabels = 64 << 10

// record returns an image's record.
func record(e *entry) []byte {
	summed := e.summed
	if n := 0; summed {
		for k, v := range e.Labels {
			n += len(k) + len(v)
		}
		summed = n <= maxLabels
	}
	written := *e
	written.summed = summed
	return metadb.Encode((&reader{}).fields(&written))
}

// reader reads records. What many images have alike, they share.
type reader struct {
	share  metadb.Shared
	labels map[string]map[string]string // by their bytes
}

// entry reads the record of the image with this ID, in hexadecimal.
func (r *reader) entry(hexID string, record []byte) (*entry, error) {
	i, err := id.ParseImageID(algorithm + hexID)
	if err != nil {
		return nil, metadb.ErrDamaged
	}
	e := &entry{Image: Image{ID: i}}
	if len(record) > 0 && record[0] == '{' {
		if json.Unmarshal(record, &e.Image) != nil || e.ID != i {
			return nil, metadb.ErrDamaged
		}
		return e, nil
	}
	if err := metadb.Decode(record, &r.share, r.fields(e)); err != nil {
		return nil, err
	}
	e.seen = e.stamp
	return e, nil
}

// fields is the form of a record.
func (r *reader) fields(e *entry) func(c *metadb.Coder) {
	return func(c *metadb.Coder) {
		c.Version(recordVersion)
		metadb.OwnDigest(c, &e.ManifestDigest)
		if same := e.Digest == e.ManifestDigest; r.flag(c, &same) {
			e.Digest = e.ManifestDigest
		} else {
			metadb.Digest(c, &e.Digest)
		}
		metadb.Digest(c, &e.Parent)
		metadb.Text(c, &e.Platform)
		c.Time(&e.Image.Put)
		c.Time(&e.Tagged)
		metadb.Int(c, &e.stamp.size)
		metadb.Int(c, &e.stamp.time)
		if n := c.Len(len(e.Layers), 3); c.Reading() && n > 0 {
			e.Layers = make([]Layer, n)
		}
		for n := range e.Layers {
			l := &e.Layers[n]
			metadb.Digest(c, &l.DiffID)
			metadb.Digest(c, &l.Blob)
			metadb.Int(c, &l.Size)
			if l.DiffID == "" {
				c.Fail()
			}
		}
		if r.flag(c, &e.summed) {
			c.Time(&e.Created)
			r.labelMap(c, &e.Labels)
		}
	}
}

func (r *reader) flag(c *metadb.Coder, p *bool) bool {
	c.Bool(p)
	return *p
}

// labelMap codes labels, the last of a record.
func (r *reader) labelMap(c *metadb.Coder, p *map[string]string) {
	if !c.Reading() {
		c.Len(len(*p), 2)
		for _, k := range slices.Sorted(maps.Keys(*p)) {
			v := (*p)[k]
			metadb.Text(c, &k)
			metadb.OwnText(c, &v)
		}
		return
	}
	if m, ok := r.labels[string(c.Rest())]; ok {
		*p = m
		c.Skip()
		return
	}
	whole := c.Rest()
	n := c.Len(0, 2)
	if n == 0 {
		return
	}
	m := make(map[string]string, n)
	for range n {
		var k, v string
		metadb.Text(c, &k)
		metadb.OwnText(c, &v)
		m[k] = v
	}
	if len(c.Rest()) == 0 {
		if r.labels == nil {
			r.labels = map[string]map[string]string{}
		}
		r.labels[string(whole)] = m
	}
	*p = m
}

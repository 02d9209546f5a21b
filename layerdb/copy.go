package layerdb

import (
	"encoding/json"

	"github.com/imgfs/imgfs/internal/id"
	"github.com/imgfs/imgfs/internal/metadb"
	"github.com/imgfs/imgfs/internal/toc"
)

// copyVersion is that of the form that records have in Badger. One that begins
// with { or [ is JSON, of earlier versions.
const copyVersion = 1

// fields is the form of a layer's record in Badger: a copy of its file, which
// is JSON, for a start that reads all of them.
func (i *LayerInfo) fields(c *metadb.Coder) {
	c.Version(copyVersion)
	metadb.Digest(c, &i.Key) // shared with owners
	same := string(i.DiffID) == string(i.Key)
	if c.Bool(&same); same {
		i.DiffID = id.DiffID(i.Key)
	} else {
		metadb.OwnDigest(c, &i.DiffID)
	}
	metadb.Text(c, &i.Form)
	metadb.Text(c, &i.Kind)
	c.Bool(&i.Sealed)
	metadb.Text(c, &i.Bad)
	metadb.OwnDigest(c, &i.Blob)
	metadb.Int(c, &i.BlobSize)
	metadb.Text(c, &i.Compression)
	metadb.Int(c, &i.StreamSize)
	metadb.Int(c, &i.DataSize)
	metadb.Int(c, &i.DataTime)
	for _, w := range []*written{&i.Index, &i.Spans, &i.Table} {
		metadb.Int(c, &w.Size)
		metadb.Int(c, &w.Time)
		metadb.OwnDigest(c, &w.Sum)
	}
	if n := c.Len(len(i.Prefetch), 2); c.Reading() && n > 0 {
		i.Prefetch = make([]toc.Range, n)
	}
	for n := range i.Prefetch {
		metadb.Int(c, &i.Prefetch[n].Off)
		metadb.Int(c, &i.Prefetch[n].Len)
	}
	metadb.Int(c, &i.Content)
	metadb.Int(c, &i.Entries)
	metadb.Int(c, &i.Files)
	c.Time(&i.Created)
}

// copyOf returns a layer's record for Badger.
func copyOf(i *LayerInfo) []byte { return metadb.Encode(i.fields) }

// ownedCopy returns an owner's record.
func ownedCopy(layers []id.LayerKey) []byte {
	return metadb.Encode(func(c *metadb.Coder) { ownedFields(c, &layers) })
}

func ownedFields(c *metadb.Coder, layers *[]id.LayerKey) {
	c.Version(copyVersion)
	if n := c.Len(len(*layers), 1); c.Reading() {
		*layers = make([]id.LayerKey, n)
	}
	for n := range *layers {
		metadb.Digest(c, &(*layers)[n])
	}
}

// readOwned reads an owner's record.
func readOwned(v []byte, share *metadb.Shared) (layers []id.LayerKey, err error) {
	if len(v) > 0 && v[0] == '[' {
		err = json.Unmarshal(v, &layers)
	} else {
		err = metadb.Decode(v, share, func(c *metadb.Coder) { ownedFields(c, &layers) })
	}
	return layers, err
}

package imagedb

import (
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/imgfs/imgfs/internal/id"
)

// An image's record in Badger, of which a start reads all there are:
//
//	1                                  version
//	manifest's digest, digest, parent  0, or 1 and 32 bytes
//	platform                           length, bytes
//	put, tagged                        0, or 1, seconds since 1970 and nanoseconds
//	the config file's stamp            size, nanoseconds since 1970
//	layers                             number; of each 32 bytes, digest, size
//	summary                            0, or 1, created, number of labels, and these
//
// Numbers are varints. Without a summary, Open reads the config: labels that
// are long stay there. A record that begins with { is JSON, of versions that
// had nothing from the stamp on.
const recordVersion = 1

// maxLabels is how many bytes of labels a record holds; Badger's transactions,
// and so its records, are bounded.
const maxLabels = 64 << 10

var errRecord = errors.New("damaged record")

// record returns an image's record.
func record(e *entry) []byte {
	b := []byte{recordVersion}
	b = appendDigest(b, e.ManifestDigest)
	b = appendDigest(b, e.Digest)
	b = appendDigest(b, e.Parent)
	b = appendString(b, e.Platform)
	b = appendTime(b, e.Put)
	b = appendTime(b, e.Tagged)
	b = binary.AppendUvarint(b, uint64(e.stamp.size))
	b = binary.AppendVarint(b, e.stamp.time)
	b = binary.AppendUvarint(b, uint64(len(e.Layers)))
	for _, l := range e.Layers {
		b = appendDigest(b, l.DiffID)
		b = appendDigest(b, l.Blob)
		b = binary.AppendVarint(b, l.Size)
	}
	if !e.summed {
		return append(b, 0)
	}
	start := len(b)
	b = append(b, 1)
	b = appendTime(b, e.Created)
	b = binary.AppendUvarint(b, uint64(len(e.Labels)))
	for _, k := range slices.Sorted(maps.Keys(e.Labels)) {
		b = appendString(b, k)
		b = appendString(b, e.Labels[k])
	}
	if len(b)-start > maxLabels {
		return append(b[:start], 0)
	}
	return b
}

func appendDigest[T ~string](b []byte, d T) []byte {
	if d == "" {
		return append(b, 0)
	}
	b, err := hex.AppendDecode(append(b, 1), []byte(d[len(algorithm):]))
	if err != nil {
		panic("imagedb: digest: " + err.Error()) // its type says that it is well formed
	}
	return b
}

func appendString(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

func appendTime(b []byte, t time.Time) []byte {
	if t.IsZero() {
		return append(b, 0)
	}
	b = binary.AppendVarint(append(b, 1), t.Unix())
	return binary.AppendUvarint(b, uint64(t.Nanosecond()))
}

const algorithm = "sha256:"

// reader reads records. What many images have alike, they share.
type reader struct {
	b       []byte // what is left of the record
	bad     bool
	digests map[[32]byte]string
	texts   map[string]string
	labels  map[string]map[string]string // by their bytes
}

func newReader() *reader {
	return &reader{digests: map[[32]byte]string{}, texts: map[string]string{}, labels: map[string]map[string]string{}}
}

// entry reads the record of the image with this ID, in hexadecimal.
func (r *reader) entry(hexID string, record []byte) (*entry, error) {
	i, err := id.ParseImageID(algorithm + hexID)
	if err != nil {
		return nil, errRecord
	}
	e := &entry{Image: Image{ID: i}}
	if len(record) > 0 && record[0] == '{' {
		if json.Unmarshal(record, &e.Image) != nil || e.ID != i {
			return nil, errRecord
		}
		return e, nil
	}
	r.b, r.bad = record, false
	if r.byte() != recordVersion {
		return nil, errRecord
	}
	e.ManifestDigest = id.Blob(r.digest())
	e.Digest = id.Blob(r.digest())
	e.Parent = id.ImageID(r.digest())
	e.Platform = r.text()
	e.Put, e.Tagged = r.time(), r.time()
	e.stamp = stamp{int64(r.uvarint()), r.varint()}
	e.seen = e.stamp
	if n := r.count(3); n > 0 {
		e.Layers = make([]Layer, n)
	}
	for n := range e.Layers {
		e.Layers[n] = Layer{id.DiffID(r.digest()), id.Blob(r.digest()), r.varint()}
		r.bad = r.bad || e.Layers[n].DiffID == ""
	}
	if e.summed = r.byte() == 1; e.summed {
		e.Created = r.time()
		e.Labels = r.labelMap()
	}
	if r.bad || len(r.b) > 0 {
		return nil, errRecord
	}
	return e, nil
}

func (r *reader) take(n uint64) []byte {
	if r.bad || n > uint64(len(r.b)) {
		r.bad = true
		return nil
	}
	b := r.b[:n]
	r.b = r.b[n:]
	return b
}

func (r *reader) byte() byte {
	if b := r.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (r *reader) uvarint() uint64 {
	v, n := binary.Uvarint(r.b)
	r.take(uint64(max(n, 0)))
	r.bad = r.bad || n <= 0
	return v
}

func (r *reader) varint() int64 {
	v, n := binary.Varint(r.b)
	r.take(uint64(max(n, 0)))
	r.bad = r.bad || n <= 0
	return v
}

// count reads a number of things that take at least size bytes each.
func (r *reader) count(size int) int {
	n := r.uvarint()
	if n > uint64(len(r.b)/size) {
		r.bad = true
	}
	if r.bad {
		return 0
	}
	return int(n)
}

func (r *reader) digest() string {
	if r.byte() == 0 {
		return ""
	}
	b := r.take(32)
	if b == nil {
		return ""
	}
	s, ok := r.digests[[32]byte(b)]
	if !ok {
		s = algorithm + hex.EncodeToString(b)
		r.digests[[32]byte(b)] = s
	}
	return s
}

func (r *reader) text() string {
	b := r.take(r.uvarint())
	s, ok := r.texts[string(b)]
	if !ok {
		s = string(b)
		r.texts[s] = s
	}
	return s
}

func (r *reader) time() time.Time {
	if r.byte() == 0 {
		return time.Time{}
	}
	sec := r.varint()
	return time.Unix(sec, int64(r.uvarint())).UTC()
}

func (r *reader) labelMap() map[string]string {
	whole := r.b
	n := r.count(2)
	if n == 0 {
		return nil
	}
	if m, ok := r.labels[string(whole)]; ok { // they are the last of a record
		r.b = nil
		return m
	}
	m := make(map[string]string, n)
	for range n {
		k := r.text()
		m[k] = r.text()
	}
	if !r.bad && len(r.b) == 0 {
		r.labels[string(whole)] = m
	}
	return m
}

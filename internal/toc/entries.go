package toc

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"path"

	"github.com/imgfs/imgfs/internal/id"
	"github.com/imgfs/imgfs/internal/layertar"
	"github.com/imgfs/imgfs/internal/span"
)

const (
	blockSize  = 512     // of a tar, and of the places of payloads in a packed data file
	maxEntries = 2 << 20 // of a TOC, chunks included: a quarter of a kilobyte each
	maxData    = 2 << 40 // bytes of a data file; what an index can address is a bit less
)

// table is a TOC while it is read.
type table struct {
	landmarks bool // files of stargz's own, which are hidden, may be among the entries

	entries  []layertar.Entry
	chunks   []chunk
	size     int64 // of the data file so far
	prefetch int64 // bytes of the data file that lie before the landmark

	// The regular file whose chunks come next.
	file record
	at   int64 // where its data begins in the data file; -1 if it is hidden
	have int64 // bytes of it that the chunks so far cover
}

// chunk is a run of a file's payload.
type chunk struct {
	off, n   int64 // in the data file; off -1: of a file that is hidden
	from, to int64 // of the member or frame that holds it; to 0: up to the next one
	skip     int64 // decoded bytes of it that come before
	sum      [sha256.Size]byte
	zeros    bool // nothing but zeros, so not read
}

// parse reads JSON to its end, entry by entry.
func (t *table) parse(r io.Reader) error {
	j := newJSONReader(r)
	seen := false
	err := j.object(func(key []byte) error {
		if !bytes.EqualFold(key, []byte("entries")) {
			return j.skip(jsonDepth)
		}
		if seen {
			return errors.New("two lists of entries")
		}
		seen = true
		n := 0
		return j.array(func() error {
			if n++; n > maxEntries {
				return fmt.Errorf("more than %d entries", maxEntries)
			}
			var e record
			err := e.read(j)
			if err == nil {
				err = t.add(&e)
			}
			if err != nil {
				return fmt.Errorf("entry %d, %.200q: %w", n, e.name, err)
			}
			return nil
		})
	})
	if err == nil {
		err = j.end()
	}
	if err == nil && !seen {
		err = errors.New("no list of entries")
	}
	if err == nil {
		err = t.endFile()
	}
	return err
}

func (t *table) add(e *record) error {
	if e.typ == typeChunk {
		if t.have == t.file.size { // none is open, or all of it is there
			return errors.New("a chunk of no file")
		}
		return t.chunk(e)
	}
	if err := t.endFile(); err != nil {
		return err
	}
	if e.typ == 0 {
		return errors.New("an entry without a type")
	}
	regular := e.typ == '0'
	hidden := t.landmarks && regular && t.landmark(e.name)
	if !hidden {
		t.enter(e)
	}
	if !regular || e.size == 0 {
		return nil
	}
	if e.size < 0 || e.size > maxData-t.size {
		return fmt.Errorf("size %d", e.size)
	}
	t.file, t.at, t.have = *e, t.size, 0
	if hidden {
		t.at = -1
	} else {
		t.size += align(e.size)
	}
	return t.chunk(e)
}

// landmark says whether the file is one of stargz's own, and takes note of
// where it stands.
func (t *table) landmark(name string) bool {
	switch path.Clean("/" + name) {
	case "/.prefetch.landmark":
		t.prefetch = t.size
		return true
	case "/.no.prefetch.landmark", "/stargz.index.json":
		return true
	}
	return false
}

// enter makes the layer index's entry of e.
func (t *table) enter(e *record) {
	x := layertar.Entry{
		Name: e.name, Link: e.link, Type: e.typ, Mode: e.mode, UID: e.uid, GID: e.gid, Size: e.size,
		Major: e.major, Minor: e.minor, Xattrs: e.xattrs, Off: t.size,
	}
	if !e.mtime.IsZero() {
		x.Mtime, x.Nsec = e.mtime.Unix(), uint32(e.mtime.Nanosecond())
	}
	t.entries = append(t.entries, x)
}

// chunk takes the chunk that e describes, of the file that is open. A file's
// first one is in its own entry.
func (t *table) chunk(e *record) error {
	c := chunk{off: -1, n: e.chunkSize, from: e.offset, skip: e.inner, zeros: e.chunkZeros}
	left := t.file.size - t.have
	if c.n == 0 {
		c.n = left
	}
	switch {
	case e.chunkOff != t.have || c.n < 0 || c.n > left:
		return fmt.Errorf("chunk of %d bytes at %d, where %d bytes are left at %d", c.n, e.chunkOff, left, t.have)
	case c.n > span.MaxSpan:
		return fmt.Errorf("chunk of %d bytes (limit %d)", c.n, span.MaxSpan)
	case c.from < 0 || c.skip < 0 || c.from == 0 && c.skip == 0: // a tar header comes before any payload
		return fmt.Errorf("chunk at %d, %d bytes behind", c.from, c.skip)
	}
	sum := e.chunkDigest
	if !sum.ok && c.n == t.file.size {
		sum = t.file.digest
	}
	if !sum.ok && !c.zeros {
		return errors.New("no digest to compare data with")
	}
	c.sum = sum.sum
	if t.at >= 0 {
		c.off = t.at + t.have
	}
	t.have += c.n
	if t.have == t.file.size && t.file.end > c.from {
		c.to = t.file.end
	}
	t.chunks = append(t.chunks, c)
	return nil
}

// endFile checks that the open file is complete.
func (t *table) endFile() error {
	if t.have != t.file.size {
		return fmt.Errorf("only %d of the %d bytes of %.200q are there", t.have, t.file.size, t.file.name)
	}
	t.file, t.have = record{}, 0
	return nil
}

// index makes the Index. The members or frames of payload end at limit.
func (t *table) index(x Index, codec span.Codec, blobSize, limit int64) (*Index, error) {
	spans := span.NewBuilder(codec, blobSize)
	ends, next := make([]int64, len(t.chunks)), limit
	for i := len(t.chunks) - 1; i >= 0; i-- {
		c := &t.chunks[i]
		if i+1 < len(t.chunks) && c.from != t.chunks[i+1].from {
			next = t.chunks[i+1].from
		}
		ends[i] = next
		if c.to > 0 {
			ends[i] = min(next, c.to)
		}
	}
	for i := range t.chunks {
		c := &t.chunks[i]
		if c.off < 0 || c.zeros {
			continue
		}
		err := spans.Add(span.Entry{Off: c.off, Len: c.n, From: c.from, To: ends[i], Skip: c.skip, Header: codec == span.Gzip, Data: &c.sum})
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
		}
	}
	s, err := spans.Table()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	x.Form, x.Spans, x.DataSize = Packed, s, t.size
	if t.prefetch > 0 {
		x.Prefetch = []Range{{0, t.prefetch}}
	}
	x.Fill = func(to *layertar.Indexer) error {
		for i := range t.entries {
			if err := to.Add(&t.entries[i]); err != nil {
				return err
			}
		}
		to.SetSize(x.DataSize)
		return nil
	}
	return &x, nil
}

// read parses the JSON at r and returns its digest.
func (t *table) read(r io.Reader) (id.Blob, error) {
	h := sha256.New()
	limited := &io.LimitedReader{R: io.TeeReader(r, h), N: maxTOC + 1}
	err := t.parse(limited)
	if limited.N == 0 {
		err = fmt.Errorf("larger than %d bytes", maxTOC)
	}
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return id.BlobFrom([sha256.Size]byte(h.Sum(nil))), nil
}

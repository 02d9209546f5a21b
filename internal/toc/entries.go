package toc

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
	"time"

	"github.com/imgfs/imgfs/internal/erofs"
	"github.com/imgfs/imgfs/internal/id"
	"github.com/imgfs/imgfs/internal/layertar"
	"github.com/imgfs/imgfs/internal/span"
)

const (
	blockSize  = 512     // of a tar, and of the places of payloads in a packed data file
	maxEntries = 8 << 20 // of a TOC, chunks included
	maxData    = 2 << 40 // bytes of a data file; what an index can address is a bit less
)

// record is an entry of the TOC as JSON has it, of all dialects. Keys are
// matched whatever their case, as by all readers of them.
type record struct {
	Type        string            `json:"type"`
	Name        string            `json:"name"`
	LinkName    string            `json:"linkName"`
	Mode        int64             `json:"mode"`
	Size        int64             `json:"size"`
	UID         int64             `json:"uid"`
	GID         int64             `json:"gid"`
	ModTime     string            `json:"modtime"`
	DevMajor    int64             `json:"devMajor"`
	DevMinor    int64             `json:"devMinor"`
	Xattrs      map[string][]byte `json:"xattrs"`
	Digest      string            `json:"digest"`
	Offset      int64             `json:"offset"`
	EndOffset   int64             `json:"endOffset"`
	InnerOffset int64             `json:"innerOffset"`
	ChunkSize   int64             `json:"chunkSize"`
	ChunkOffset int64             `json:"chunkOffset"`
	ChunkDigest string            `json:"chunkDigest"`
	ChunkType   string            `json:"chunkType"`
}

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
	sum      [32]byte
	zeros    bool // nothing but zeros, so not read
}

// The types of entries, as type flags of tar.
func typeFlag(s string) (byte, bool) {
	switch s {
	case "reg":
		return '0', true
	case "hardlink":
		return '1', true
	case "symlink":
		return '2', true
	case "char":
		return '3', true
	case "block":
		return '4', true
	case "dir":
		return '5', true
	case "fifo":
		return '6', true
	}
	return 0, false
}

// parse reads JSON to its end, entry by entry.
func (t *table) parse(r io.Reader) error {
	dec := json.NewDecoder(r)
	if err := token(dec, json.Delim('{')); err != nil {
		return err
	}
	seen := false
	for dec.More() {
		key, err := dec.Token()
		if err != nil {
			return err
		}
		if name, _ := key.(string); !strings.EqualFold(name, "entries") {
			var other json.RawMessage
			if err := dec.Decode(&other); err != nil {
				return err
			}
			continue
		}
		if seen {
			return errors.New("two lists of entries")
		}
		seen = true
		if err := t.list(dec); err != nil {
			return err
		}
	}
	if err := token(dec, json.Delim('}')); err != nil {
		return err
	}
	if _, err := dec.Token(); err != io.EOF {
		return errors.New("data behind the end")
	}
	if !seen {
		return errors.New("no list of entries")
	}
	return t.endFile()
}

func (t *table) list(dec *json.Decoder) error {
	if err := token(dec, json.Delim('[')); err != nil {
		return err
	}
	for n := 0; dec.More(); n++ {
		if n == maxEntries {
			return fmt.Errorf("more than %d entries", maxEntries)
		}
		var e record
		if err := dec.Decode(&e); err != nil {
			return fmt.Errorf("entry %d: %w", n, err)
		}
		if err := t.add(&e); err != nil {
			return fmt.Errorf("entry %d, %.200q: %w", n, e.Name, err)
		}
	}
	return token(dec, json.Delim(']'))
}

func token(dec *json.Decoder, want json.Delim) error {
	got, err := dec.Token()
	if err == nil && got != want {
		err = fmt.Errorf("%v where %v should be", got, want)
	}
	return err
}

func (t *table) add(e *record) error {
	if e.Type == "chunk" {
		if t.have == t.file.Size { // none is open, or all of it is there
			return errors.New("a chunk of no file")
		}
		return t.chunk(e)
	}
	if err := t.endFile(); err != nil {
		return err
	}
	// JSON is UTF-8; what writes it puts this for bytes that are not.
	if strings.ContainsRune(e.Name, '�') || strings.ContainsRune(e.LinkName, '�') {
		return errors.New("the name is not the one in the tar, which is not UTF-8")
	}
	typ, ok := typeFlag(e.Type)
	if !ok {
		return fmt.Errorf("unknown type %.32q", e.Type)
	}
	hidden := t.landmarks && typ == '0' && t.landmark(e.Name)
	if !hidden {
		if err := t.enter(e, typ); err != nil {
			return err
		}
	}
	if typ != '0' || e.Size == 0 {
		return nil
	}
	if e.Size < 0 || e.Size > maxData-t.size {
		return fmt.Errorf("size %d", e.Size)
	}
	t.file, t.at, t.have = *e, t.size, 0
	if hidden {
		t.at = -1
	} else {
		t.size += (e.Size + blockSize - 1) &^ (blockSize - 1)
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
func (t *table) enter(e *record, typ byte) error {
	x := layertar.Entry{
		Name: e.Name, Link: e.LinkName, Type: typ, Mode: e.Mode, UID: e.UID, GID: e.GID, Size: e.Size,
		Major: e.DevMajor, Minor: e.DevMinor, Off: t.size,
	}
	if e.ModTime != "" {
		m, err := time.Parse(time.RFC3339, e.ModTime)
		if err != nil {
			return err
		}
		if !m.IsZero() {
			x.Mtime, x.Nsec = m.Unix(), uint32(m.Nanosecond())
		}
	}
	if len(e.Xattrs) > 0 {
		x.Xattrs = make([]erofs.Xattr, 0, len(e.Xattrs))
		for name, value := range e.Xattrs {
			x.Xattrs = append(x.Xattrs, erofs.Xattr{Name: name, Value: value})
		}
	}
	t.entries = append(t.entries, x)
	return nil
}

// chunk takes the chunk that e describes, of the file that is open. A file's
// first one is in its own entry.
func (t *table) chunk(e *record) error {
	c := chunk{off: -1, n: e.ChunkSize, from: e.Offset, skip: e.InnerOffset, zeros: e.ChunkType == "zeros"}
	left := t.file.Size - t.have
	if c.n == 0 {
		c.n = left
	}
	switch {
	case e.ChunkOffset != t.have || c.n < 0 || c.n > left:
		return fmt.Errorf("chunk of %d bytes at %d, where %d bytes are left at %d", c.n, e.ChunkOffset, left, t.have)
	case c.n > span.MaxSpan:
		return fmt.Errorf("chunk of %d bytes (limit %d)", c.n, span.MaxSpan)
	case c.from < 0 || c.skip < 0 || c.from == 0 && c.skip == 0: // a tar header comes before any payload
		return fmt.Errorf("chunk at %d, %d bytes behind", c.from, c.skip)
	case e.ChunkType != "" && !c.zeros:
		return fmt.Errorf("chunk of unknown type %.32q", e.ChunkType)
	}
	sum := e.ChunkDigest
	if sum == "" && c.n == t.file.Size {
		sum = t.file.Digest
	}
	if !c.zeros {
		var err error
		if c.sum, err = sumOf(sum); err != nil {
			return err
		}
	}
	if t.at >= 0 {
		c.off = t.at + t.have
	}
	t.have += c.n
	if t.have == t.file.Size && t.file.EndOffset > c.from {
		c.to = t.file.EndOffset
	}
	t.chunks = append(t.chunks, c)
	return nil
}

// endFile checks that the open file is complete.
func (t *table) endFile() error {
	if t.have != t.file.Size {
		return fmt.Errorf("only %d of the %d bytes of %.200q are there", t.have, t.file.Size, t.file.Name)
	}
	t.file, t.have = record{}, 0
	return nil
}

// sumOf returns the sum of a digest.
func sumOf(digest string) (sum [32]byte, err error) {
	text, ok := strings.CutPrefix(digest, "sha256:")
	if !ok || len(text) != 2*len(sum) {
		return sum, fmt.Errorf("%.80q is not a digest to compare data with", digest)
	}
	_, err = hex.Decode(sum[:], []byte(text))
	return sum, err
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
	entries := t.entries
	x.Fill = func(to *layertar.Indexer) error {
		for i := range entries {
			if err := to.Add(&entries[i]); err != nil {
				return err
			}
		}
		entries = nil
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

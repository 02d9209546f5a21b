package toc

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"hash/crc64"
	"io"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/imgfs/imgfs/internal/id"
	"github.com/klauspost/compress/zstd"
	"github.com/vbatts/tar-split/archive/tar"
	"github.com/vbatts/tar-split/tar/storage"
)

// chunkSize is the payload of a frame, bytes. Smaller ones compress worse.
const chunkSize = 1 << 20

// WriteZstdChunked writes the uncompressed tar as a zstd:chunked layer of
// containers/storage's dialect to w. The tar inside is the same. What the
// dialect's readers would refuse is [ErrUnfit].
func WriteZstdChunked(ctx context.Context, w io.Writer, stream io.Reader) (*Written, error) {
	out := newOutput(w)
	c := &chunkedWriter{out: out, diff: sha256.New(), chunk: make([]byte, chunkSize)}
	err := c.write(ctx, stream)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", ZstdChunked, err)
	}
	return out.written(id.DiffIDFrom([sha256.Size]byte(c.diff.Sum(nil))), typeZstd, c.notes), nil
}

// chunkedWriter writes one layer: frames of headers and of chunks of payload in
// turn, then table of contents, tar-split and footer.
type chunkedWriter struct {
	out   *output
	diff  hash.Hash // of the tar
	frame *zstd.Encoder
	chunk []byte

	list  []fileMetadata
	split storage.Packer // what is in the tar beside payload, so that it can be made again
	notes map[string]string
}

// fileMetadata is an entry as containers/storage writes it. Its reader compares
// all of it with the headers in the tar-split.
type fileMetadata struct {
	Type        string            `json:"type"`
	Name        string            `json:"name"`
	Linkname    string            `json:"linkName,omitempty"`
	Mode        int64             `json:"mode,omitempty"`
	Size        int64             `json:"size,omitempty"`
	UID         int               `json:"uid,omitempty"`
	GID         int               `json:"gid,omitempty"`
	ModTime     *time.Time        `json:"modtime,omitempty"`
	AccessTime  *time.Time        `json:"accesstime,omitempty"`
	ChangeTime  *time.Time        `json:"changetime,omitempty"`
	Devmajor    int64             `json:"devMajor,omitempty"`
	Devminor    int64             `json:"devMinor,omitempty"`
	Xattrs      map[string][]byte `json:"xattrs,omitempty"`
	Digest      string            `json:"digest,omitempty"`
	Offset      int64             `json:"offset,omitempty"`
	EndOffset   int64             `json:"endOffset,omitempty"`
	ChunkSize   int64             `json:"chunkSize,omitempty"`
	ChunkOffset int64             `json:"chunkOffset,omitempty"`
	ChunkDigest string            `json:"chunkDigest,omitempty"`
	ChunkType   string            `json:"chunkType,omitempty"`
}

func (c *chunkedWriter) write(ctx context.Context, stream io.Reader) error {
	var err error
	if c.frame, err = zstd.NewWriter(c.out, zstd.WithEncoderConcurrency(1)); err != nil {
		return err
	}
	split := newPacked()
	c.split = storage.NewJSONPacker(split)
	stream = io.TeeReader(stream, c.diff)
	r := tar.NewReader(stream)
	r.RawAccounting = true
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		h, err := r.Next()
		if err := c.raw(r.RawBytes()); err != nil {
			return err
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		if err := c.file(h, r); err != nil {
			return fmt.Errorf("%.200q: %w", h.Name, err)
		}
	}
	// What stands behind the end of the archive counts for the diffID.
	for {
		n, err := io.ReadFull(stream, c.chunk)
		if e := c.raw(c.chunk[:n]); e != nil {
			return e
		}
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			break
		}
		if err != nil {
			return err
		}
	}
	if err := c.frame.Close(); err != nil {
		return err
	}
	return c.end(split)
}

// raw writes bytes of the tar that are not payload.
func (c *chunkedWriter) raw(p []byte) error {
	if len(p) == 0 {
		return nil
	}
	if _, err := c.split.AddEntry(storage.Entry{Type: storage.SegmentType, Payload: p}); err != nil {
		return err
	}
	_, err := c.frame.Write(p)
	return err
}

// file writes the payload of an entry and enters it into the lists.
func (c *chunkedWriter) file(h *tar.Header, r io.Reader) error {
	e, err := newMetadata(h)
	if err != nil {
		return err
	}
	crc := crc64.New(storage.CRCTable)
	at := len(c.list)
	c.list = append(c.list, e)
	if e.Type == "reg" && e.Size > 0 {
		if err := c.payload(at, io.TeeReader(r, crc)); err != nil {
			return err
		}
	}
	s := storage.Entry{Type: storage.FileType, Size: h.Size}
	if h.Size > 0 {
		s.Payload = crc.Sum(nil)
	}
	s.SetName(h.Name)
	if _, err := c.split.AddEntry(s); errors.Is(err, storage.ErrDuplicatePath) {
		return errTwice
	} else if err != nil {
		return err
	}
	return nil
}

// payload writes a file's chunks, a frame each, and enters them behind the file.
func (c *chunkedWriter) payload(at int, r io.Reader) error {
	size, name := c.list[at].Size, c.list[at].Name
	all := sha256.New()
	var off int64
	for i := at; off < size; i++ {
		if err := c.frame.Close(); err != nil { // writes no frame where nothing is to be in it
			return err
		}
		p := c.chunk[:min(chunkSize, size-off)]
		if _, err := io.ReadFull(r, p); err != nil {
			return err
		}
		if i > at {
			c.list = append(c.list, fileMetadata{Type: "chunk", Name: name, ChunkOffset: off})
		}
		e := &c.list[i]
		e.Offset = c.out.n
		if size > chunkSize {
			e.ChunkSize, e.ChunkDigest = int64(len(p)), digestOf(sha256.Sum256(p))
			if isZeros(p) {
				e.ChunkType = "zeros"
			}
		}
		off += int64(len(p))
		all.Write(p)
		c.frame.Reset(c.out)
		if _, err := c.frame.Write(p); err != nil {
			return err
		}
	}
	if err := c.frame.Close(); err != nil {
		return err
	}
	c.frame.Reset(c.out)
	c.list[at].Digest = digestOf([sha256.Size]byte(all.Sum(nil)))
	c.list[at].EndOffset = c.out.n
	return nil
}

// newMetadata returns the entry of a header, without what is known of its payload.
func newMetadata(h *tar.Header) (fileMetadata, error) {
	types := map[byte]string{
		tar.TypeReg: "reg", tar.TypeLink: "hardlink", tar.TypeSymlink: "symlink", tar.TypeChar: "char",
		tar.TypeBlock: "block", tar.TypeDir: "dir", tar.TypeFifo: "fifo",
	}
	e := fileMetadata{
		Type: types[h.Typeflag], Name: h.Name, Linkname: h.Linkname, Mode: h.Mode, Size: h.Size, UID: h.Uid, GID: h.Gid,
		ModTime: timeOf(h.ModTime), AccessTime: timeOf(h.AccessTime), ChangeTime: timeOf(h.ChangeTime),
		Devmajor: h.Devmajor, Devminor: h.Devminor,
	}
	if e.Type == "" {
		return e, fmt.Errorf("%w: an entry of type %q", ErrUnfit, h.Typeflag)
	}
	if !utf8.ValidString(h.Name) || !utf8.ValidString(h.Linkname) {
		return e, fmt.Errorf("%w: a name that is not UTF-8", ErrUnfit)
	}
	for _, t := range []*time.Time{e.ModTime, e.AccessTime, e.ChangeTime} {
		if t != nil && (t.UTC().Year() < 0 || t.UTC().Year() > 9999) {
			return e, fmt.Errorf("%w: the time %v", ErrUnfit, t)
		}
	}
	for key, value := range h.PAXRecords {
		space, _, _ := strings.Cut(key, ".")
		name, isXattr := strings.CutPrefix(key, "SCHILY.xattr.")
		switch {
		case isXattr:
			if e.Xattrs == nil {
				e.Xattrs = map[string][]byte{}
			}
			e.Xattrs[name] = []byte(value)
		case space == "GNU" || space == "SCHILY" || space == "LIBARCHIVE": // sparse files, sockets, large device numbers
			return e, fmt.Errorf("%w: a header with %.64q", ErrUnfit, key)
		}
	}
	return e, nil
}

func timeOf(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

// end writes what follows the tar.
func (c *chunkedWriter) end(split *packed) error {
	splitData, splitRaw, err := split.close()
	if err != nil {
		return err
	}
	list, err := json.Marshal(struct {
		Version        int            `json:"version"`
		Entries        []fileMetadata `json:"entries"`
		TarSplitDigest id.Blob        `json:"tarSplitDigest"`
	}{1, c.list, id.BlobOf(splitData)})
	if err != nil {
		return err
	}
	toc := newPacked()
	if _, err := toc.Write(list); err != nil {
		return err
	}
	tocData, tocRaw, err := toc.close()
	if err != nil {
		return err
	}
	at, err := c.skippable(tocData)
	if err != nil {
		return err
	}
	splitAt, err := c.skippable(splitData)
	if err != nil {
		return err
	}
	var footer []byte
	for _, n := range [...]int64{at, int64(len(tocData)), tocRaw, typeTOC, splitAt, int64(len(splitData)), splitRaw} {
		footer = binary.LittleEndian.AppendUint64(footer, uint64(n))
	}
	if _, err := c.skippable(append(footer, magicContainers...)); err != nil {
		return err
	}
	c.notes = map[string]string{
		noteContainers + notePosition: fmt.Sprintf("%d:%d:%d:%d", at, len(tocData), tocRaw, typeTOC),
		noteContainers + noteChecksum: string(id.BlobOf(tocData)),
		noteContainers + noteTarSplit: fmt.Sprintf("%d:%d:%d", splitAt, len(splitData), splitRaw),
	}
	return nil
}

// skippable writes a frame that decoders pass over, and returns where its data is.
func (c *chunkedWriter) skippable(p []byte) (int64, error) {
	head := binary.LittleEndian.AppendUint32([]byte(skippableMagic), uint32(len(p)))
	if _, err := c.out.Write(head); err != nil {
		return 0, err
	}
	at := c.out.n
	_, err := c.out.Write(p)
	return at, err
}

// packed compresses what is written to it into memory.
type packed struct {
	buf bytes.Buffer
	z   *zstd.Encoder
	n   int64 // bytes written
}

func newPacked() *packed {
	p := &packed{}
	p.z, _ = zstd.NewWriter(&p.buf, zstd.WithEncoderConcurrency(1)) // fails for bad options only
	return p
}

func (p *packed) Write(b []byte) (int, error) {
	p.n += int64(len(b))
	return p.z.Write(b)
}

func (p *packed) close() (data []byte, raw int64, err error) {
	err = p.z.Close()
	return p.buf.Bytes(), p.n, err
}

func digestOf(sum [sha256.Size]byte) string { return "sha256:" + hex.EncodeToString(sum[:]) }

func isZeros(p []byte) bool { return len(bytes.TrimLeft(p, "\x00")) == 0 }

package toc

import (
	"cmp"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/imgfs/imgfs/internal/erofs"
	"github.com/imgfs/imgfs/internal/id"
	"github.com/imgfs/imgfs/internal/layertar"
	"github.com/imgfs/imgfs/internal/span"
)

// SOCI's index of a layer, the zTOC: a flatbuffer with what archive/tar says of
// each entry, and checkpoints, of which one for gzip ("zinfo") is
//
//	i64 in, first byte of the blob of which nothing was consumed
//	i64 out, byte of the stream
//	u8 bits of byte in-1 that are not consumed, its highest
//	32768 bytes of window: the stream before out, zeros where there is none
//
// behind a header of i32 count and i64 span size. The digest of a span covers
// the bytes from its checkpoint, the shared byte included, to the next one's in.

// The fields of SOCI's tables, in the order of its schema.
const (
	ztocVersion = iota
	ztocTool
	ztocBlobSize
	ztocSize
	ztocTOC
	ztocInfo
	ztocFields
)

const (
	infoCodec = iota // i8: sociGzip (the default) or sociPlain
	infoMaxSpan
	infoDigests
	infoPoints
	infoFields
)

const (
	fileName = iota
	fileType
	fileOff
	fileSize
	fileLink
	fileMode
	fileUID
	fileGID
	fileUname
	fileGname
	fileTime
	fileMajor
	fileMinor
	filePAX
	fileFields
)

const (
	tocFiles = iota // the only field of the table of contents
	tocFields
)

const (
	paxKey = iota
	paxValue
	paxFields
)

const (
	tarVersion = iota // checkpoints of plain tar are a flatbuffer of their own
	tarSpan
	tarSize
	tarInfoFields
)

const (
	sociGzip  = 1
	sociPlain = 2

	zinfoWindow = 32 << 10
	zinfoHeader = 4 + 8
	zinfoPoint  = 8 + 8 + 1 + zinfoWindow

	maxZtoc = 512 << 20 // bytes: 32 KiB for every 4 MiB of a layer, and its entries
)

// Ztoc is a parsed zTOC.
type Ztoc struct {
	r        fbReader
	blobSize int64
	size     int64 // bytes of the stream up to its end marker; of all of it where it is plain
	codec    int8
	info     fbTable
	files    []ztocFile // by data
}

// ztocFile is where an entry is.
type ztocFile struct {
	data  int64 // where its payload begins in the stream, or would
	table fbTable
}

// parseZtoc reads a zTOC. It keeps b.
func parseZtoc(b []byte) (*Ztoc, error) {
	if len(b) > maxZtoc {
		return nil, fmt.Errorf("%w: a zTOC of %d bytes (limit %d)", ErrCorrupt, len(b), maxZtoc)
	}
	z := &Ztoc{r: fbReader{b: b}}
	r := &z.r
	root := r.root()
	z.blobSize, z.size = r.i64(root, ztocBlobSize), r.i64(root, ztocSize)
	z.info = r.table(root, ztocInfo)
	z.codec = r.i8(z.info, infoCodec, sociGzip)
	if z.codec == sociPlain {
		z.size = z.blobSize
	}
	files := r.vector(r.table(root, ztocTOC), tocFiles)
	if r.bad || z.blobSize < 0 || z.blobSize > maxData || z.size < 0 || z.size > maxData || files.n > maxEntries {
		return nil, errZtoc
	}
	z.files = make([]ztocFile, files.n)
	for i := range z.files {
		t := r.tableOf(files, i)
		z.files[i] = ztocFile{r.i64(t, fileOff), t}
	}
	if r.bad {
		return nil, errZtoc
	}
	slices.SortStableFunc(z.files, func(a, b ztocFile) int { return cmp.Compare(a.data, b.data) })
	return z, nil
}

var errZtoc = fmt.Errorf("%w: malformed zTOC", ErrCorrupt)

// Index returns the zTOC as the index of layer d.
func (z *Ztoc) Index(d Descriptor) (*Index, error) {
	spans, err := z.spans()
	if err != nil {
		return nil, err
	}
	if err := covers(spans, z.size, d); err != nil {
		return nil, err
	}
	return &Index{
		Kind:     Soci,
		Digest:   id.BlobOf(z.r.b),
		Form:     Stream,
		Spans:    spans,
		DataSize: z.size,
		Fill:     z.fill,
		Proof:    z.Proof(),
		Raw:      z.r.b,
	}, nil
}

// spans makes the span table.
func (z *Ztoc) spans() (*span.Table, error) {
	r := &z.r
	digests := r.vector(z.info, infoDigests)
	points, codec, err := z.points()
	if err != nil {
		return nil, err
	}
	if r.bad || digests.n != len(points) || int64(r.i32(z.info, infoMaxSpan)) != int64(len(points))-1 {
		return nil, errZtoc
	}
	b := span.NewBuilder(codec, z.blobSize)
	for i, p := range points {
		e := span.Entry{Off: p.out, Len: z.size - p.out, From: p.in, To: z.blobSize, Window: p.window}
		if p.bits > 0 {
			e.From, e.Bits = p.in-1, 8-p.bits
		}
		if i+1 < len(points) {
			e.Len, e.To = min(points[i+1].out, z.size)-p.out, points[i+1].in
		}
		if e.Len == 0 || p.out > z.size { // of empty blocks or an empty member, or of padding
			continue
		}
		sum, err := sha256Digest(r.bytesOf(digests, i))
		if err != nil {
			return nil, err
		}
		e.Blob = sum
		if err := b.Add(e); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
		}
	}
	t, err := b.Table()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return t, nil
}

// zpoint is a checkpoint of a zTOC.
type zpoint struct {
	in, out int64
	bits    uint8
	window  []byte // nil: none needed
}

// points reads the checkpoints.
func (z *Ztoc) points() ([]zpoint, span.Codec, error) {
	b := z.r.bytes(z.info, infoPoints)
	switch z.codec {
	case sociGzip:
		points, err := gzipPoints(b)
		return points, span.Gzip, err
	case sociPlain:
		points, err := z.plainPoints(b)
		return points, span.Plain, err
	}
	return nil, 0, fmt.Errorf("%w: zTOC of compression %d", ErrCorrupt, z.codec)
}

func gzipPoints(b []byte) ([]zpoint, error) {
	if len(b) < zinfoHeader {
		return nil, errZtoc
	}
	count := int64(int32(binary.LittleEndian.Uint32(b)))
	b = b[zinfoHeader:]
	var points []zpoint
	switch {
	case count > 0 && int64(len(b)) == count*zinfoPoint:
	case count > 0 && int64(len(b)) == (count-1)*zinfoPoint:
		// The first version left out the first point, behind a header of the usual size.
		points = append(points, zpoint{in: 10})
	default:
		return nil, errZtoc
	}
	for ; len(b) > 0; b = b[zinfoPoint:] {
		p := zpoint{
			in:   int64(binary.LittleEndian.Uint64(b)),
			out:  int64(binary.LittleEndian.Uint64(b[8:])),
			bits: b[16],
		}
		if p.in < 1 || p.out < 0 || p.bits > 7 {
			return nil, errZtoc
		}
		p.window = b[zinfoPoint-min(p.out, zinfoWindow) : zinfoPoint]
		points = append(points, p)
	}
	return points, nil
}

func (z *Ztoc) plainPoints(b []byte) ([]zpoint, error) {
	r := fbReader{b: b}
	root := r.root()
	step := r.i64(root, tarSpan)
	if r.bad || step <= 0 || r.i64(root, tarSize) != z.size || z.size/step > int64(z.r.vector(z.info, infoDigests).n) {
		return nil, errZtoc // each has a digest
	}
	var points []zpoint
	for off := int64(0); off < z.size; off += step {
		points = append(points, zpoint{in: off, out: off})
	}
	return points, nil
}

// sha256Digest reads a digest's text.
func sha256Digest(b []byte) (*[32]byte, error) {
	var sum [32]byte
	text, ok := strings.CutPrefix(string(b), "sha256:")
	if n, err := hex.Decode(sum[:], []byte(text[:min(len(text), 64)])); !ok || err != nil || n != len(sum) || len(text) != 64 {
		return nil, fmt.Errorf("%w: span digest %.80q", ErrCorrupt, b)
	}
	return &sum, nil
}

// sociTypes returns SOCI's names of type flags, beginning with '0'.
func sociTypes() []string {
	return []string{"reg", "hardlink", "symlink", "char", "block", "dir", "fifo"}
}

// told is what a zTOC tells of an entry: all that archive/tar does.
type told struct {
	name, link, uname, gname string
	typ                      byte
	mode                     int64
	uid, gid                 uint32
	size                     int64
	time                     time.Time
	major, minor             int64
	pax                      []paxRecord // by key
}

type paxRecord struct{ key, value string }

// each calls f with every entry, and where its headers and its payload begin.
func (z *Ztoc) each(f func(start, data int64, e *told) error) error {
	r := &z.r
	// Whatever is told once is in the zTOC once: what is told more often because
	// references lead to the same place would not end.
	budget := len(r.b)
	text := func(b []byte) string {
		budget -= len(b)
		return string(b)
	}
	types := sociTypes()
	start := int64(0)
	var e told
	for _, file := range z.files {
		t := file.table
		typ := slices.Index(types, string(r.bytes(t, fileType)))
		e = told{
			name: text(r.bytes(t, fileName)), link: text(r.bytes(t, fileLink)),
			uname: text(r.bytes(t, fileUname)), gname: text(r.bytes(t, fileGname)),
			typ: '0' + byte(typ), mode: r.i64(t, fileMode),
			uid: uint32(r.i32(t, fileUID)), gid: uint32(r.i32(t, fileGID)),
			size:  r.i64(t, fileSize),
			major: r.i64(t, fileMajor), minor: r.i64(t, fileMinor),
			pax: e.pax[:0],
		}
		when := r.bytes(t, fileTime)
		records := r.vector(t, filePAX)
		if budget -= len(when) + 8*records.n; r.bad || budget < 0 || typ < 0 {
			return errZtoc
		}
		if err := e.time.UnmarshalText(when); err != nil {
			return fmt.Errorf("%w: %.100q: time %.40q", ErrCorrupt, e.name, when)
		}
		for i := range records.n {
			record := r.tableOf(records, i)
			e.pax = append(e.pax, paxRecord{text(r.bytes(record, paxKey)), text(r.bytes(record, paxValue))})
			if r.bad || budget < 0 {
				return errZtoc
			}
		}
		slices.SortStableFunc(e.pax, func(a, b paxRecord) int { return strings.Compare(a.key, b.key) })
		payload := e.size
		if e.typ != '0' {
			payload = 0
		}
		if file.data < start+blockSize || file.data-start > maxHeaders || file.data%blockSize != 0 || payload < 0 || file.data > z.size || payload > z.size-file.data {
			return fmt.Errorf("%w: %.100q: %d bytes at %d", ErrCorrupt, e.name, payload, file.data)
		}
		if err := f(start, file.data, &e); err != nil {
			return err
		}
		start = align(file.data + payload)
	}
	return nil
}

// fill implements Index.Fill.
func (z *Ztoc) fill(x *layertar.Indexer) error {
	err := z.each(func(_, data int64, e *told) error {
		out := layertar.Entry{
			Name: e.name, Link: e.link, Type: e.typ, Mode: e.mode, UID: int64(e.uid), GID: int64(e.gid),
			Size: e.size, Mtime: e.time.Unix(), Nsec: uint32(e.time.Nanosecond()), Major: e.major, Minor: e.minor, Off: data,
		}
		for _, p := range e.pax {
			if name, ok := strings.CutPrefix(p.key, "SCHILY.xattr."); ok {
				out.Xattrs = append(out.Xattrs, erofs.Xattr{Name: name, Value: []byte(p.value)})
				continue
			}
			// What these mean for an entry is not in its other fields.
			for _, prefix := range []string{"GNU.sparse.", "LIBARCHIVE.xattr.", "SCHILY.dev", "SCHILY.filetype"} {
				if strings.HasPrefix(p.key, prefix) {
					return fmt.Errorf("%w: %.100q: a zTOC does not tell what %.40q means", ErrCorrupt, e.name, p.key)
				}
			}
		}
		return x.Add(&out)
	})
	if err != nil {
		return err
	}
	x.SetSize(z.size)
	return nil
}

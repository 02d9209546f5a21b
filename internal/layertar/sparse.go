package layertar

import (
	"bytes"
	"errors"
	"fmt"
	"math"
)

// segment is a run of data of a sparse file: n bytes at off, in the stream at phys.
type segment struct{ off, n, phys int64 }

// sparseReader holds a sparse entry while its map is read.
type sparseReader struct {
	h       header // names copied into the buffers below
	payload int64  // bytes of the entry not yet read
	segs    []segment
	text    []byte // of a 1.0 map
	lines   int64
	count   int64 // segments of a 1.0 map, in its first line; -1: not read yet
	name    []byte
	link    []byte
	records int // of a continued old map
}

var (
	errSparseMap  = errors.New("malformed sparse map")
	errSparseSize = errors.New("the sparse map does not fit the data")
)

// startSparse begins a sparse entry, if h is one. The header is applied here or
// when the map's last record is in.
func (x *Indexer) startSparse(h *header, b *[blockSize]byte, payload int64) (bool, error) {
	s := &x.sparse
	if h.typ == typeSparse {
		if h.format != formatGNU { // star's has another layout; refused by archive/tar too
			return true, errSparseMap
		}
		var num numbers
		h.size = num.number(b[483:495])
		if num.bad {
			return true, errSparseMap
		}
		s.begin(h, payload)
		s.records = 1
		return true, x.oldSegments(b[386:482], b[482] != 0)
	}
	if h.pax == nil {
		return false, nil
	}
	p := h.pax
	blocks, list := p.sparseBlocks, p.sparseMap
	if p.sparseCount > 0 {
		list = p.sparseList
	}
	major, minor := string(p.sparseMajor), string(p.sparseMinor)
	inPayload := false
	switch {
	case major == "0" && (minor == "0" || minor == "1"):
	case major == "1" && minor == "0":
		inPayload = true
	case major != "" || minor != "":
		return false, nil // a version unknown to all: an ordinary file
	case len(list) == 0:
		return false, nil
	}
	if headerOnly(h.typ) {
		return true, errSparseMap
	}
	if len(p.sparseName) > 0 {
		h.name = p.sparseName
		x.entry = append(x.entry[:0], h.name...)
	}
	size := p.sparseSize
	if len(size) == 0 {
		size = p.sparseReal
	}
	if len(size) > 0 {
		n, ok := parseDecimal(size)
		if !ok {
			return true, errSparseMap
		}
		h.size = n
	}
	s.begin(h, payload)
	if inPayload {
		x.state = inSparseHead
		if payload < blockSize {
			return true, errSparseMap
		}
		return true, nil
	}
	if err := s.parseList(blocks, list, x.limits.Special/16); err != nil {
		return true, err
	}
	return true, x.endSparse()
}

// begin keeps h beyond its record. Its xattrs and PAX records stay valid: no
// special entry can come before the map is complete.
func (s *sparseReader) begin(h *header, payload int64) {
	s.name = append(s.name[:0], h.name...)
	s.link = append(s.link[:0], h.link...)
	s.h = *h
	s.h.name, s.h.link = s.name, s.link
	s.payload = payload
	s.segs, s.text, s.lines, s.count = s.segs[:0], s.text[:0], 0, -1
}

// oldSegments reads the entries of a header's or continuation's map.
func (x *Indexer) oldSegments(b []byte, more bool) error {
	s := &x.sparse
	for ; len(b) >= 24 && b[0] != 0; b = b[24:] {
		var num numbers
		seg := segment{off: num.number(b[:12]), n: num.number(b[12:24])}
		if num.bad {
			return errSparseMap
		}
		s.segs = append(s.segs, seg)
	}
	if !more {
		return x.endSparse()
	}
	x.state = inSparseExt
	return nil
}

func (x *Indexer) sparseExt(b *[blockSize]byte) error {
	s := &x.sparse
	if s.records++; s.records*blockSize > x.limits.Special {
		return fmt.Errorf("sparse map larger than %d bytes", x.limits.Special)
	}
	return x.oldSegments(b[:504], b[504] != 0)
}

// parseList reads a map of formats 0.0 and 0.1: "offset,length,offset,length".
func (s *sparseReader) parseList(blocks, list []byte, limit int) error {
	n, ok := parseDecimal(blocks)
	if !ok || n < 0 || n > int64(limit) {
		return errSparseMap
	}
	for len(list) > 0 {
		var seg segment
		if seg.off, list, ok = number(list, ','); !ok || list == nil {
			return errSparseMap
		}
		if seg.n, list, ok = number(list, ','); !ok {
			return errSparseMap
		}
		s.segs = append(s.segs, seg)
	}
	if int64(len(s.segs)) != n {
		return errSparseMap
	}
	return nil
}

// number reads a decimal up to sep; rest is nil if there was no sep.
func number(b []byte, sep byte) (n int64, rest []byte, ok bool) {
	if i := bytes.IndexByte(b, sep); i >= 0 {
		b, rest = b[:i], b[i+1:]
	}
	n, ok = parseDecimal(b)
	return n, rest, ok
}

// sparseHead takes a record of a 1.0 map: lines of a count and of offset and
// length of each segment, then zeros up to the record's end.
func (x *Indexer) sparseHead(b *[blockSize]byte) error {
	s := &x.sparse
	s.payload -= blockSize
	s.text = append(s.text, b[:]...)
	s.lines += int64(bytes.Count(b[:], []byte("\n")))
	if len(s.text) > x.limits.Special {
		return fmt.Errorf("sparse map larger than %d bytes", x.limits.Special)
	}
	if s.lines > 0 && s.count < 0 {
		n, _, ok := number(s.text, '\n')
		if !ok || n < 0 || n > int64(x.limits.Special) {
			return errSparseMap
		}
		s.count = n
	}
	if s.count >= 0 && s.lines > 2*s.count {
		_, rest, _ := bytes.Cut(s.text, []byte("\n"))
		for range s.count {
			var seg segment
			var ok1, ok2 bool
			seg.off, rest, ok1 = number(rest, '\n')
			seg.n, rest, ok2 = number(rest, '\n')
			if !ok1 || !ok2 {
				return errSparseMap
			}
			s.segs = append(s.segs, seg)
		}
		return x.endSparse()
	}
	if s.payload < blockSize {
		return errSparseMap
	}
	return nil
}

// endSparse checks the map against the data and applies the entry.
func (x *Indexer) endSparse() error {
	s := &x.sparse
	if s.h.size < 0 || s.h.size > x.limits.Device {
		return fmt.Errorf("size %d is beyond what an index can address (%d bytes)", s.h.size, x.limits.Device)
	}
	var end, total int64
	segs := s.segs[:0]
	for _, seg := range s.segs {
		if seg.off < end || seg.n < 0 || seg.off > math.MaxInt64-seg.n || seg.off+seg.n > s.h.size {
			return errSparseMap
		}
		end = seg.off + seg.n
		seg.phys = x.off + total
		total += seg.n
		if k := len(segs) - 1; k >= 0 && segs[k].off+segs[k].n == seg.off {
			segs[k].n += seg.n // adjacent in the file, so adjacent in the stream
		} else if seg.n > 0 {
			segs = append(segs, seg)
		}
	}
	s.segs = segs
	if total != s.payload {
		return errSparseSize
	}
	d := data{off: x.off, size: s.h.size, sparse: true, segs: segs}
	s.h.typ = typeReg
	if err := x.apply(&s.h, d); err != nil {
		return err
	}
	x.skip(s.payload)
	return nil
}

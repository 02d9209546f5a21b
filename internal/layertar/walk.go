package layertar

import (
	"errors"
	"fmt"
	"hash/maphash"

	"github.com/imgfs/imgfs/internal/erofs"
	"github.com/imgfs/imgfs/internal/fault"
)

// state is what the next bytes of the stream are.
type state uint8

const (
	inHeader     state = iota // a record that starts an entry, or ends the archive
	inSpecial                 // the body of a PAX header or a GNU long name
	inPayload                 // data of a file, left where it is
	inPadding                 // up to the next record
	inSparseExt               // old GNU sparse: records that continue the map
	inSparseHead              // sparse 1.0: records of the payload that hold the map
	inTrailer                 // behind the end marker: ignored, as all peers do
)

// Indexer builds one layer's index from its tar stream. Make one with
// [NewIndexer], write the whole stream, then call Finish once.
type Indexer struct {
	limits Limits
	err    error // what was refused; final

	// The reader of the stream.
	state    state
	size     int64 // bytes of the stream written
	off      int64 // bytes of the stream consumed; a header in pieces is not yet
	need     int64 // bytes left in inSpecial, inPayload or inPadding
	pad      int64 // padding behind the current special body or payload
	zero     bool  // the last record was zeros
	record   [blockSize]byte
	have     int // bytes in record
	special  byte
	within   bool   // an extended header came: the next header is of the same entry
	body     []byte // of the special entry being read
	paxBody  []byte // of the PAX header that goes with the next entry
	longName []byte
	longLink []byte
	havePAX  bool
	pax      pax
	nameBuf  []byte
	entry    []byte // cleaned name of the entry being read, for error texts
	sparse   sparseReader
	note     func(off int64, p []byte, first bool) // see Record; nil: nobody asked

	added bool  // by Add, not Write; size is then the data file's
	ends  int64 // where the last payload of what was added ends

	tree
	sum Summary
}

// NewIndexer returns an Indexer for one stream.
func NewIndexer(limits Limits) *Indexer {
	x := &Indexer{limits: limits.withDefaults()}
	x.tree.init(maphash.MakeSeed())
	return x
}

// Write takes the next bytes of the stream. It never keeps p, takes all of it
// or fails, and fails for ever once it did.
func (x *Indexer) Write(p []byte) (int, error) {
	if x.err != nil {
		return 0, x.err
	}
	n := len(p)
	// What fits is looked at first, so that no cut of the stream matters.
	p = p[:min(int64(n), x.limits.Device-x.size)]
	x.size += int64(n)
	for len(p) > 0 {
		var err error
		if p, err = x.step(p); err != nil {
			return 0, x.refuse(err)
		}
	}
	if x.size > x.limits.Device {
		return 0, x.refuse(x.tooLarge())
	}
	return n, nil
}

func (x *Indexer) tooLarge() error {
	x.entry = x.entry[:0]
	return fmt.Errorf("the stream is larger than %d bytes, which an index can address", x.limits.Device)
}

// refuse makes err final, says where it was met, and gives it its kind.
func (x *Indexer) refuse(err error) error {
	noEntry := errors.Is(err, erofs.ErrLimit) || len(x.entry) == 0
	if x.added && noEntry {
		x.err = fault.New(fault.Integrity, "table of contents: %w", err)
	} else if x.added {
		x.err = fault.New(fault.Integrity, "table of contents, entry %.200q: %w", x.entry, err)
	} else if noEntry {
		x.err = fault.New(fault.Integrity, "tar at byte %d: %w", x.off, err)
	} else {
		x.err = fault.New(fault.Integrity, "tar entry %.200q at byte %d: %w", x.entry, x.off, err)
	}
	return x.err
}

// step consumes some of p, at least one byte, and returns the rest.
func (x *Indexer) step(p []byte) ([]byte, error) {
	switch x.state {
	case inTrailer:
		x.off += int64(len(p))
		return nil, nil

	case inPayload, inPadding:
		k := min(x.need, int64(len(p)))
		x.off += k
		if x.need -= k; x.need == 0 {
			x.endPayload()
		}
		return p[k:], nil

	case inSpecial:
		k := min(x.need, int64(len(p)))
		x.body = append(x.body, p[:k]...)
		x.off += k
		if x.need -= k; x.need > 0 {
			return nil, nil
		}
		x.recorded(x.off-int64(len(x.body)), x.body)
		return p[k:], x.endSpecial()
	}

	b := &x.record
	switch {
	case x.have == 0 && len(p) >= blockSize: // the usual case: no copy
		b = (*[blockSize]byte)(p)
		p = p[blockSize:]
	default:
		k := copy(x.record[x.have:], p)
		p = p[k:]
		if x.have += k; x.have < blockSize {
			return nil, nil
		}
		x.have = 0
	}
	x.recorded(x.off, b[:])
	var err error
	switch x.state {
	case inHeader:
		err = x.header(b)
	case inSparseExt:
		x.off += blockSize
		err = x.sparseExt(b)
	case inSparseHead:
		x.off += blockSize
		err = x.sparseHead(b)
	}
	return p, err
}

// endPayload goes on behind payload or padding, of which no byte is left.
func (x *Indexer) endPayload() {
	if x.state == inPayload && x.pad > 0 {
		x.state, x.need, x.pad = inPadding, x.pad, 0
	} else {
		x.state = inHeader
	}
}

// header takes a record that starts an entry or ends the archive.
func (x *Indexer) header(b *[blockSize]byte) error {
	if isZero(b) {
		x.off += blockSize
		if x.zero {
			x.state = inTrailer
		}
		x.zero = true
		return nil
	}
	if x.zero {
		return errors.New("data behind a record of zeros that is not an end of archive")
	}
	var h header
	if err := h.decode(b, &x.nameBuf); err != nil {
		x.entry = x.entry[:0]
		return err
	}
	x.off += blockSize
	switch h.typ {
	case typePAX, typeGlobal, typeLongName, typeLongLink:
		x.within = true
		return x.startSpecial(&h)
	}
	x.within = false
	x.extend(&h)
	x.entry = append(x.entry[:0], h.name...)
	if h.typ == typeVolume {
		return errors.New("continued from another archive volume")
	}

	payload := h.size
	if headerOnly(h.typ) {
		payload = 0
	}
	if payload < 0 || payload > x.limits.Device-x.off {
		return fmt.Errorf("size %d is beyond what an index can address (%d bytes)", h.size, x.limits.Device)
	}
	if sparse, err := x.startSparse(&h, b, payload); sparse || err != nil {
		return err
	}
	if err := x.apply(&h, data{off: x.off, size: payload}); err != nil {
		return err
	}
	x.skip(payload)
	return nil
}

// extend lays what the special entries before h said over it.
func (x *Indexer) extend(h *header) {
	if x.havePAX {
		x.pax.merge(h)
	}
	if len(x.longName) > 0 {
		h.name = x.longName
	}
	if len(x.longLink) > 0 {
		h.link = x.longLink
	}
	h.old()
	x.forget()
}

// forget drops what special entries said; their buffers live on, unless reused.
func (x *Indexer) forget() {
	x.havePAX = false
	x.longName = x.longName[:0]
	x.longLink = x.longLink[:0]
}

func (x *Indexer) startSpecial(h *header) error {
	if h.size < 0 || h.size > int64(x.limits.Special) {
		return fmt.Errorf("extended header of %d bytes (limit %d)", h.size, x.limits.Special)
	}
	x.special = h.typ
	x.body = x.body[:0]
	x.need, x.pad = h.size, -h.size&(blockSize-1)
	x.state = inSpecial
	if h.size == 0 {
		return x.endSpecial()
	}
	return nil
}

func (x *Indexer) endSpecial() error {
	switch x.special {
	case typePAX:
		x.paxBody, x.body = x.body, x.paxBody
		if err := x.pax.decode(x.paxBody); err != nil {
			return err
		}
		x.havePAX = true
	case typeGlobal:
		// Checked but not applied, as by docker, containerd and podman: their
		// reader returns it as an entry of its own, and so also forgets what
		// stood before it.
		var global pax
		if err := global.decode(x.body); err != nil {
			return err
		}
		x.forget()
	case typeLongName:
		x.longName = append(x.longName[:0], cstring(x.body)...)
	case typeLongLink:
		x.longLink = append(x.longLink[:0], cstring(x.body)...)
	}
	x.body = x.body[:0]
	x.state = inHeader
	if x.pad > 0 {
		x.state, x.need, x.pad = inPadding, x.pad, 0
	}
	return nil
}

// skip passes over n bytes of payload and their padding.
func (x *Indexer) skip(n int64) {
	if n == 0 {
		x.state = inHeader
		return
	}
	x.state, x.need, x.pad = inPayload, n, -n&(blockSize-1)
}

// end says whether the stream may end here: at an entry's border, or in the
// padding of the last one, as archive/tar has it.
func (x *Indexer) end() error {
	if x.have > 0 && x.state == inHeader {
		x.entry = x.entry[:0] // the last one was complete
		return errors.New("truncated in a header")
	}
	switch x.state {
	case inSpecial:
		return errors.New("truncated in an extended header")
	case inPayload:
		return fmt.Errorf("truncated, %d bytes of data are missing", x.need)
	case inSparseExt, inSparseHead:
		return errors.New("truncated in a sparse map")
	}
	return nil
}

package layertar

import (
	"errors"
	"fmt"
	"strings"

	"github.com/imgfs/imgfs/internal/erofs"
)

// Entry is an entry of a layer as a table of contents has it: what the tar's
// header and the extended headers before it say together.
type Entry struct {
	Name  string // as in the tar: cleaned by the Indexer
	Link  string // target of a symbolic or hard link
	Type  byte   // type flag of tar
	Mode  int64  // permissions, set-ID and sticky bits; others are ignored
	UID   int64
	GID   int64
	Size  int64 // bytes of a regular file; ignored for the types that have no payload
	Mtime int64 // seconds
	Nsec  uint32

	Major, Minor int64 // of devices

	Xattrs []erofs.Xattr // not kept
	Off    int64         // of the payload in the data file, a multiple of 512; ignored where Size is 0
}

// Add enters one entry by the rules of the stream: the same names are
// whiteouts, the same attributes dropped, the same things refused. Entries come
// in the order of the stream. An Indexer is either written or added to.
func (x *Indexer) Add(e *Entry) error {
	if x.err != nil {
		return x.err
	}
	x.added = true
	x.entry = append(x.entry[:0], e.Name...)
	if err := x.addEntry(e); err != nil {
		return x.refuse(err)
	}
	return nil
}

func (x *Indexer) addEntry(e *Entry) error {
	h := header{
		typ:   e.Type,
		name:  x.entry,
		link:  append(x.longLink[:0], e.Link...),
		mode:  e.Mode,
		uid:   e.UID,
		gid:   e.GID,
		size:  e.Size,
		mtime: e.Mtime,
		nsec:  e.Nsec,
		major: e.Major,
		minor: e.Minor,
	}
	x.longLink = h.link
	switch h.typ {
	case typePAX, typeGlobal, typeLongName, typeLongLink, typeSparse, typeVolume:
		return fmt.Errorf("type %q does not stand for a file", h.typ)
	}
	h.old()
	if headerOnly(h.typ) {
		h.size = 0
	}
	if strings.IndexByte(e.Name, 0) >= 0 || strings.IndexByte(e.Link, 0) >= 0 {
		return errors.New("a name with a NUL")
	}
	if e.Nsec >= 1e9 {
		return fmt.Errorf("time of %d nanoseconds", e.Nsec)
	}
	if h.size < 0 || h.size > x.limits.Device {
		return fmt.Errorf("size %d is beyond what an index can address (%d bytes)", h.size, x.limits.Device)
	}
	if h.size > 0 {
		if e.Off < 0 || e.Off > x.limits.Device-h.size || e.Off%blockSize != 0 {
			return fmt.Errorf("data of %d bytes at %d", h.size, e.Off)
		}
		x.ends = max(x.ends, e.Off+h.size)
	}
	if len(e.Xattrs) > 0 {
		x.pax = pax{xattrs: x.pax.xattrs[:0]}
		for i := range e.Xattrs {
			a := &e.Xattrs[i]
			if a.Name == "" || strings.IndexByte(a.Name, 0) >= 0 {
				return fmt.Errorf("extended attribute %.64q", a.Name)
			}
			x.pax.xattrs = append(x.pax.xattrs, rawXattr{[]byte(a.Name), a.Value})
		}
		h.pax = &x.pax
	}
	return x.apply(&h, data{off: e.Off, size: h.size})
}

// SetSize says how long the data file of the entries added is. No entry may
// have data behind it.
func (x *Indexer) SetSize(n int64) {
	x.added = true
	x.size = n
}

// checkSize is what Finish asks of entries that were added.
func (x *Indexer) checkSize() error {
	if x.size < x.ends || x.size > x.limits.Device {
		return fmt.Errorf("data up to byte %d in a data file of %d bytes (limit %d)", x.ends, x.size, x.limits.Device)
	}
	return nil
}

// Record has f called with every byte of the stream that means something, in
// order: headers and end markers, a record of 512 bytes each; bodies of
// extended headers, each as a whole; sparse maps. It is not called with
// payload, padding, nor with what stands behind the end of the archive. first
// says that p does not belong to the entry of what was recorded before. f must
// not keep p. What the Indexer refuses is recorded too, or not.
//
// Writing to an Indexer what was recorded, and skipping the rest, gives the
// same index.
func (x *Indexer) Record(f func(off int64, p []byte, first bool)) { x.note = f }

func (x *Indexer) recorded(off int64, p []byte) {
	if x.note != nil {
		x.note(off, p, x.state == inHeader && !x.within)
	}
}

// Payload returns how many bytes of the stream come next that mean nothing to
// the index: payload and padding. They may be skipped instead of written.
// Behind the end of the archive it is all that an index can address.
func (x *Indexer) Payload() int64 {
	switch {
	case x.err != nil:
		return 0
	case x.state == inPayload || x.state == inPadding:
		return x.need + x.pad
	case x.state == inTrailer:
		return x.limits.Device - x.size
	}
	return 0
}

// Skip passes over the next n bytes, at most as many as Payload says, as if
// they had been written.
func (x *Indexer) Skip(n int64) error {
	if x.err != nil {
		return x.err
	}
	if n == 0 {
		return nil
	}
	if n < 0 || n > x.Payload() {
		return x.refuse(fmt.Errorf("%d bytes skipped where %d could be", n, x.Payload()))
	}
	if n > x.limits.Device-x.size {
		return x.refuse(x.tooLarge())
	}
	x.size += n
	if x.state != inTrailer {
		if k := min(n, x.need); k < n { // into the padding
			x.off += k
			n -= k
			x.state, x.need, x.pad = inPadding, x.pad, 0
		}
		if x.need -= n; x.need == 0 {
			x.endPayload()
		}
	}
	x.off += n
	return nil
}

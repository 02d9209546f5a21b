package layertar

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
)

const blockSize = 512 // bytes of a tar record

// Type flags.
const (
	typeReg      = '0'
	typeRegOld   = 0
	typeLink     = '1'
	typeSymlink  = '2'
	typeChar     = '3'
	typeBlock    = '4'
	typeDir      = '5'
	typeFifo     = '6'
	typeDumpDir  = 'D' // GNU: a directory with a list of names as payload
	typeLongLink = 'K'
	typeLongName = 'L'
	typeVolume   = 'M' // GNU: continued from another volume
	typeSparse   = 'S'
	typeLabel    = 'V' // GNU: a label, not a file
	typeGlobal   = 'g'
	typePAX      = 'x'
)

// Header formats, told by magic.
const (
	formatV7 = iota
	formatUSTAR
	formatSTAR
	formatGNU
)

// header is one decoded tar header. Its byte slices alias the record and the
// Indexer's buffers: they hold until the next header.
type header struct {
	typ          byte
	format       uint8
	name, link   []byte
	mode         int64
	uid, gid     int64
	size         int64 // bytes; of payload, or of the whole file where sparse
	mtime        int64 // seconds
	nsec         uint32
	major, minor int64
	pax          *pax // nil unless a PAX header precedes
}

var (
	errHeader   = errors.New("not a tar header")
	errChecksum = errors.New("header checksum does not match")
)

// decode reads a record. buf is scratch for names in two fields.
func (h *header) decode(b *[blockSize]byte, buf *[]byte) error {
	num := numbers{}
	want := num.octal(b[148:156])
	if num.bad || !sumMatches(b, want) {
		return errChecksum
	}
	*h = header{
		typ:   b[156],
		name:  cstring(b[0:100]),
		link:  cstring(b[157:257]),
		mode:  num.number(b[100:108]),
		uid:   num.number(b[108:116]),
		gid:   num.number(b[116:124]),
		size:  num.number(b[124:136]),
		mtime: num.number(b[136:148]),
	}
	var prefix []byte
	switch magic := string(b[257:265]); {
	case magic[:6] == "ustar\x00" && string(b[508:512]) == "tar\x00":
		h.format = formatSTAR
		prefix = cstring(b[345 : 345+131])
		num.number(b[476:488])
		num.number(b[488:500])
	case magic[:6] == "ustar\x00":
		h.format = formatUSTAR
		prefix = cstring(b[345 : 345+155])
	case magic == "ustar  \x00":
		h.format = formatGNU
		prefix = oldGoPrefix(b)
	}
	if h.format != formatV7 {
		h.major = num.number(b[329:337])
		h.minor = num.number(b[337:345])
	}
	if num.bad {
		return errHeader
	}
	if len(prefix) > 0 {
		*buf = append(append(append((*buf)[:0], prefix...), '/'), h.name...)
		h.name = *buf
	}
	return nil
}

// oldGoPrefix returns the prefix that Go before 1.8 wrote into the time fields
// of GNU headers, recognised by not being times. archive/tar reads it too.
func oldGoPrefix(b *[blockSize]byte) []byte {
	var num numbers
	for _, f := range [][]byte{b[345:357], b[357:369]} {
		if f[0] != 0 {
			num.number(f)
		}
	}
	if !num.bad {
		return nil
	}
	p := cstring(b[345 : 345+155])
	for _, c := range p {
		if c >= 0x80 {
			return nil
		}
	}
	return p
}

// old reads a type flag from before POSIX, when a directory was a name with a slash.
func (h *header) old() {
	if h.typ == typeRegOld {
		h.typ = typeReg
		if n := len(h.name); n > 0 && h.name[n-1] == '/' {
			h.typ = typeDir
		}
	}
}

// headerOnly says that a type has no payload, whatever its size field says.
func headerOnly(typ byte) bool { return typ >= typeLink && typ <= typeFifo }

// sumMatches compares the checksum: the sum of all bytes with the field itself
// as spaces. POSIX adds unsigned bytes, SunOS added signed ones.
func sumMatches(b *[blockSize]byte, want int64) bool {
	const lanes = 0x00ff00ff00ff00ff
	var acc uint64 // four 16-bit lanes: 64 words * 2 * 255 < 1<<16
	for i := 0; i < blockSize; i += 8 {
		w := binary.LittleEndian.Uint64(b[i:])
		acc += w&lanes + w>>8&lanes
	}
	sum := int64(acc&0xffff + acc>>16&0xffff + acc>>32&0xffff + acc>>48)
	for _, c := range b[148:156] {
		sum += ' ' - int64(c)
	}
	if sum == want {
		return true
	}
	var high int64 // bytes that count 256 less when signed
	for i, c := range b {
		if c >= 0x80 && (i < 148 || i >= 156) {
			high++
		}
	}
	return sum-256*high == want
}

// numbers decodes numeric fields; bad is set for good once one is malformed.
type numbers struct{ bad bool }

// number decodes octal or, with the top bit set, GNU base-256.
func (n *numbers) number(b []byte) int64 {
	if b[0]&0x80 == 0 {
		return n.octal(b)
	}
	var inv byte // negative numbers are read as their complement
	if b[0]&0x40 != 0 {
		inv = 0xff
	}
	var x uint64
	for i, c := range b {
		c ^= inv
		if i == 0 {
			c &= 0x7f
		}
		if x>>56 > 0 {
			n.bad = true
			return 0
		}
		x = x<<8 | uint64(c)
	}
	if x > math.MaxInt64 {
		n.bad = true
		return 0
	}
	if inv != 0 {
		return ^int64(x)
	}
	return int64(x)
}

// octal decodes digits between spaces and NULs; an empty field is 0.
func (n *numbers) octal(b []byte) int64 {
	for len(b) > 0 && (b[0] == ' ' || b[0] == 0) {
		b = b[1:]
	}
	for len(b) > 0 && (b[len(b)-1] == ' ' || b[len(b)-1] == 0) {
		b = b[:len(b)-1]
	}
	var x int64 // at most 12 digits of 3 bits: no overflow
	for _, c := range b {
		if c == 0 {
			break
		}
		if c < '0' || c > '7' {
			n.bad = true
			return 0
		}
		x = x<<3 | int64(c-'0')
	}
	return x
}

// cstring returns b up to its first NUL.
func cstring(b []byte) []byte {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		return b[:i]
	}
	return b
}

// isZero says that a record is an end marker.
func isZero(b *[blockSize]byte) bool { return *b == [blockSize]byte{} }

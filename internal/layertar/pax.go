package layertar

import (
	"bytes"
	"encoding/base64"
	"errors"
	"math"
)

// pax holds the records of one extended header that matter here. Its slices
// alias the body. A record without a value restores the header's own field.
type pax struct {
	path, linkpath []byte
	uid, gid, size decimal
	major, minor   decimal
	mtime          decimal
	nsec           uint32
	socket         bool
	xattrs         []rawXattr
	undecodable    int // LIBARCHIVE.xattr records that were not decodable

	sparseMajor, sparseMinor []byte
	sparseName               []byte
	sparseSize, sparseReal   []byte
	sparseBlocks, sparseMap  []byte
	sparseList               []byte // format 0.0: repeated records joined as 0.1 has them
	sparseCount              int    // numbers in sparseList
}

type decimal struct {
	set bool
	v   int64
}

type rawXattr struct{ name, value []byte }

var errPAX = errors.New("malformed PAX header")

// decode reads the body of an extended header, replacing what p held.
func (p *pax) decode(body []byte) error {
	*p = pax{xattrs: p.xattrs[:0], sparseList: p.sparseList[:0]}
	for len(body) > 0 {
		key, value, rest, ok := record(body)
		if !ok {
			return errPAX
		}
		body = rest
		if err := p.take(key, value); err != nil {
			return err
		}
	}
	return nil
}

// record splits off one "%d key=value\n"; the number is the record's length.
func record(b []byte) (key, value, rest []byte, ok bool) {
	sp := bytes.IndexByte(b, ' ')
	if sp < 0 {
		return nil, nil, nil, false
	}
	n, valid := parseDecimal(b[:sp])
	if !valid || n < 5 || n > int64(len(b)) || n <= int64(sp)+1 || b[n-1] != '\n' {
		return nil, nil, nil, false
	}
	rec := b[sp+1 : n-1]
	eq := bytes.IndexByte(rec, '=')
	if eq <= 0 || bytes.IndexByte(rec[:eq], 0) >= 0 {
		return nil, nil, nil, false
	}
	return rec[:eq], rec[eq+1:], b[n:], true
}

func (p *pax) take(key, value []byte) error {
	switch string(key) {
	case "path":
		p.path = value
		return noNUL(value)
	case "linkpath":
		p.linkpath = value
		return noNUL(value)
	case "uname", "gname":
		return noNUL(value)
	case "uid":
		return p.uid.take(value)
	case "gid":
		return p.gid.take(value)
	case "size":
		return p.size.take(value)
	case "SCHILY.devmajor":
		return p.major.take(value)
	case "SCHILY.devminor":
		return p.minor.take(value)
	case "SCHILY.filetype":
		p.socket = string(value) == "socket"
	case "mtime":
		return p.takeTime(value)
	case "GNU.sparse.major":
		p.sparseMajor = value
	case "GNU.sparse.minor":
		p.sparseMinor = value
	case "GNU.sparse.name":
		p.sparseName = value
	case "GNU.sparse.size":
		p.sparseSize = value
	case "GNU.sparse.realsize":
		p.sparseReal = value
	case "GNU.sparse.numblocks":
		p.sparseBlocks = value
	case "GNU.sparse.map":
		p.sparseMap = value
	case "GNU.sparse.offset", "GNU.sparse.numbytes":
		wantOffset := p.sparseCount%2 == 0
		if wantOffset != (len(key) == len("GNU.sparse.offset")) || bytes.IndexByte(value, ',') >= 0 {
			return errPAX
		}
		if p.sparseCount++; p.sparseCount > 1 {
			p.sparseList = append(p.sparseList, ',')
		}
		p.sparseList = append(p.sparseList, value...)
	default:
		if name, ok := bytes.CutPrefix(key, []byte("SCHILY.xattr.")); ok {
			p.xattrs = append(p.xattrs, rawXattr{name, value})
		} else if name, ok := bytes.CutPrefix(key, []byte("LIBARCHIVE.xattr.")); ok {
			p.takeLibarchive(name, value)
		}
	}
	return nil
}

// takeLibarchive takes a name in URL encoding with a value in base64, padded or not.
func (p *pax) takeLibarchive(name, value []byte) {
	plain, ok := unescape(name)
	value = bytes.TrimRight(value, "=")
	out := make([]byte, base64.RawStdEncoding.DecodedLen(len(value)))
	n, err := base64.RawStdEncoding.Decode(out, value)
	if !ok || err != nil {
		p.undecodable++
		return
	}
	p.xattrs = append(p.xattrs, rawXattr{plain, out[:n]})
}

func unescape(s []byte) ([]byte, bool) {
	out := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c == '%' {
			if i+2 >= len(s) {
				return nil, false
			}
			hi, lo := unhex(s[i+1]), unhex(s[i+2])
			if hi > 15 || lo > 15 {
				return nil, false
			}
			c = hi<<4 | lo
			i += 2
		}
		if c == 0 {
			return nil, false
		}
		out = append(out, c)
	}
	return out, true
}

func unhex(c byte) byte {
	switch {
	case c >= '0' && c <= '9':
		return c - '0'
	case c >= 'a' && c <= 'f':
		return c - 'a' + 10
	case c >= 'A' && c <= 'F':
		return c - 'A' + 10
	}
	return 0xff
}

// takeTime reads "[-]seconds[.fraction]"; digits past the ninth are cut off.
func (p *pax) takeTime(value []byte) error {
	p.mtime, p.nsec = decimal{}, 0
	if len(value) == 0 {
		return nil
	}
	whole, fraction, _ := bytes.Cut(value, []byte("."))
	sec, ok := parseDecimal(whole)
	if !ok {
		return errPAX
	}
	var nsec uint32
	for i := range max(9, len(fraction)) {
		c := byte('0')
		if i < len(fraction) {
			c = fraction[i]
		}
		if c < '0' || c > '9' {
			return errPAX
		}
		if i < 9 {
			nsec = nsec*10 + uint32(c-'0')
		}
	}
	if whole[0] == '-' && nsec > 0 { // -1.25 is 1.25 seconds before the epoch
		if sec == math.MinInt64 {
			return errPAX
		}
		sec, nsec = sec-1, 1e9-nsec
	}
	p.mtime, p.nsec = decimal{true, sec}, nsec
	return nil
}

func (d *decimal) take(value []byte) error {
	*d = decimal{}
	if len(value) == 0 {
		return nil
	}
	v, ok := parseDecimal(value)
	if !ok {
		return errPAX
	}
	*d = decimal{true, v}
	return nil
}

// parseDecimal is strconv.ParseInt(string(b), 10, 64) without the string.
func parseDecimal(b []byte) (int64, bool) {
	neg := false
	if len(b) > 0 && (b[0] == '-' || b[0] == '+') {
		neg = b[0] == '-'
		b = b[1:]
	}
	if len(b) == 0 {
		return 0, false
	}
	var x uint64
	for _, c := range b {
		if c < '0' || c > '9' || x > (math.MaxInt64+1)/10 {
			return 0, false
		}
		x = x*10 + uint64(c-'0')
	}
	switch {
	case neg && x <= math.MaxInt64+1:
		return -int64(x), true
	case !neg && x <= math.MaxInt64:
		return int64(x), true
	}
	return 0, false
}

func noNUL(b []byte) error {
	if bytes.IndexByte(b, 0) >= 0 {
		return errPAX
	}
	return nil
}

// merge lays the records over the header they precede.
func (p *pax) merge(h *header) {
	if len(p.path) > 0 {
		h.name = p.path
	}
	if len(p.linkpath) > 0 {
		h.link = p.linkpath
	}
	for _, f := range []struct {
		d *decimal
		v *int64
	}{{&p.uid, &h.uid}, {&p.gid, &h.gid}, {&p.size, &h.size}, {&p.major, &h.major}, {&p.minor, &h.minor}, {&p.mtime, &h.mtime}} {
		if f.d.set {
			*f.v = f.d.v
		}
	}
	h.nsec = p.nsec
	h.pax = p
}

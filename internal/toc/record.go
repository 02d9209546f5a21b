package toc

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"time"
	"unicode/utf8"

	"github.com/imgfs/imgfs/internal/erofs"
)

// record is an entry of the TOC as JSON has it, of all dialects.
type record struct {
	typ          byte // type flag of tar, or typeChunk; 0: none
	name, link   string
	mode         int64
	size         int64
	uid, gid     int64
	major, minor int64
	mtime        time.Time
	xattrs       []erofs.Xattr
	digest       dataSum // of the file

	offset, end int64 // of the member or frame in the blob; end 0: not said
	inner       int64 // decoded bytes in front of the chunk
	chunkOff    int64 // in the file
	chunkSize   int64 // 0: the rest of the file
	chunkDigest dataSum
	chunkZeros  bool
}

// dataSum is a sha256 that may be missing.
type dataSum struct {
	sum [sha256.Size]byte
	ok  bool
}

const typeChunk = 'c'

// read reads an entry. Keys are matched whatever their case, as by all readers
// of these formats.
func (e *record) read(j *jsonReader) error {
	return j.object(func(key []byte) (err error) {
		for i, c := range key {
			if c >= 'A' && c <= 'Z' {
				key[i] = c + 'a' - 'A'
			}
		}
		switch string(key) {
		case "type":
			e.typ, err = j.entryType()
		case "name":
			e.name, err = j.name()
		case "linkname":
			e.link, err = j.name()
		case "mode":
			e.mode, err = j.number()
		case "size":
			e.size, err = j.number()
		case "uid":
			e.uid, err = j.number()
		case "gid":
			e.gid, err = j.number()
		case "modtime":
			e.mtime, err = j.time()
		case "devmajor":
			e.major, err = j.number()
		case "devminor":
			e.minor, err = j.number()
		case "xattrs":
			e.xattrs, err = j.xattrs()
		case "digest":
			e.digest, err = j.dataSum()
		case "offset":
			e.offset, err = j.number()
		case "endoffset":
			e.end, err = j.number()
		case "inneroffset":
			e.inner, err = j.number()
		case "chunksize":
			e.chunkSize, err = j.number()
		case "chunkoffset":
			e.chunkOff, err = j.number()
		case "chunkdigest":
			e.chunkDigest, err = j.dataSum()
		case "chunktype":
			e.chunkZeros, err = j.chunkType()
		default:
			err = j.skip(jsonDepth)
		}
		return err
	})
}

func (j *jsonReader) entryType() (byte, error) {
	b, err := j.bytes()
	switch string(b) {
	case "reg":
		return '0', err
	case "hardlink":
		return '1', err
	case "symlink":
		return '2', err
	case "char":
		return '3', err
	case "block":
		return '4', err
	case "dir":
		return '5', err
	case "fifo":
		return '6', err
	case "chunk":
		return typeChunk, err
	}
	if err == nil {
		err = fmt.Errorf("unknown type %.32q", b)
	}
	return 0, err
}

// name reads a name, which must be the one in the tar. JSON is UTF-8: writers
// put something else for bytes of a name that are not.
func (j *jsonReader) name() (string, error) {
	b, err := j.bytes()
	if err == nil && (!utf8.Valid(b) || bytes.ContainsRune(b, utf8.RuneError)) {
		err = fmt.Errorf("%.200q: the name is not the one in the tar, which is not UTF-8", b)
	}
	return string(b), err
}

func (j *jsonReader) time() (time.Time, error) {
	b, err := j.bytes()
	if err != nil || len(b) == 0 {
		return time.Time{}, err
	}
	return time.Parse(time.RFC3339, string(b))
}

func (j *jsonReader) dataSum() (c dataSum, err error) {
	b, err := j.bytes()
	if err != nil || len(b) == 0 {
		return c, err
	}
	digits, ok := bytes.CutPrefix(b, []byte("sha256:"))
	if !ok || len(digits) != 2*len(c.sum) {
		return c, fmt.Errorf("%.80q is not a sha256 digest", b)
	}
	_, err = hex.Decode(c.sum[:], digits)
	c.ok = err == nil
	return c, err
}

func (j *jsonReader) chunkType() (zeros bool, err error) {
	b, err := j.bytes()
	if err == nil && len(b) > 0 && string(b) != "zeros" {
		err = fmt.Errorf("chunk of unknown type %.32q", b)
	}
	return len(b) > 0, err
}

func (j *jsonReader) xattrs() (set []erofs.Xattr, err error) {
	if null, err := j.null(); null || err != nil {
		return nil, err
	}
	err = j.object(func(key []byte) error {
		name := string(key)
		b, err := j.bytes()
		if err != nil {
			return err
		}
		value := make([]byte, base64.StdEncoding.DecodedLen(len(b)))
		n, err := base64.StdEncoding.Decode(value, b)
		set = append(set, erofs.Xattr{Name: name, Value: value[:n]})
		return err
	})
	return set, err
}

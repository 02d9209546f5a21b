package imgtest

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
)

// Tar makes a tar stream of a text, a line for each entry. Words are separated
// by spaces; any part of a word can be a Go string ("a b\x00"); # at the start
// of a line begins a comment.
//
//	file NAME [DATA]      dir NAME        fifo NAME
//	symlink NAME TARGET   link NAME TARGET
//	char NAME MAJ:MIN     block NAME MAJ:MIN
//
// with, in any order behind them:
//
//	mode=0644 uid=0 gid=0 mtime=SECONDS[.FRACTION]
//	size=N             N bytes of a pattern as data
//	noise=N            N bytes that do not compress as data
//	xattr:NAME=VALUE   as SCHILY.xattr; pax:KEY=VALUE any PAX record,
//	                   paxraw=BYTES what may be none
//	libarchive:NAME=VALUE  as LIBARCHIVE.xattr
//	format=v7|ustar|gnu    gnu writes long names as entries of type L and K
//	base256=1          numbers in GNU's binary form
//	type=C             another type flag; "\x00" is the old one of files
//	declare=N          the size field, if it is to differ from the data
//	sparse=old|0.0|0.1|1.0 map=OFF+LEN,OFF+LEN size=N    a sparse file of N
//	                   bytes; its data is DATA or a pattern
//	at:OFFSET=BYTES    overwrites bytes of the header; sum=signed|bad
//
// What a header cannot hold goes into PAX records. Other lines:
//
//	global KEY=VALUE   a PAX global header
//	zeros N            N bytes of zeros        bytes DATA   these bytes
//	truncate N         cuts N bytes off what precedes
//	noend              no end-of-archive records
func Tar(text string) ([]byte, error) {
	w := tarWriter{end: true}
	for i, line := range strings.Split(text, "\n") {
		words, err := splitWords(line)
		if err == nil && len(words) > 0 {
			err = w.line(words)
		}
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", i+1, err)
		}
	}
	if w.end {
		w.Write(make([]byte, 1024))
	}
	return w.Bytes(), nil
}

// splitWords splits a line; it returns none for a comment.
func splitWords(line string) ([]string, error) {
	var words []string
	line = strings.TrimSpace(line)
	if strings.HasPrefix(line, "#") {
		return nil, nil
	}
	for line != "" {
		var word strings.Builder
		for line != "" && line[0] != ' ' && line[0] != '\t' {
			if line[0] != '"' {
				word.WriteByte(line[0])
				line = line[1:]
				continue
			}
			q, err := strconv.QuotedPrefix(line)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", line, err)
			}
			s, err := strconv.Unquote(q)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", q, err)
			}
			word.WriteString(s)
			line = line[len(q):]
		}
		words = append(words, word.String())
		line = strings.TrimLeft(line, " \t")
	}
	return words, nil
}

type tarWriter struct {
	bytes.Buffer
	end bool
}

func (w *tarWriter) line(words []string) error {
	verb, args := words[0], words[1:]
	if verb == "noend" {
		w.end = false
		return nil
	}
	if len(args) == 0 {
		return fmt.Errorf("%s: needs an argument", verb)
	}
	switch verb {
	case "zeros", "truncate":
		n, err := strconv.Atoi(args[0])
		if err != nil || n < 0 || verb == "truncate" && n > w.Len() {
			return fmt.Errorf("%s: bad number %q", verb, args[0])
		}
		if verb == "zeros" {
			w.Write(make([]byte, n))
		} else {
			w.Truncate(w.Len() - n)
		}
		return nil
	case "bytes":
		w.WriteString(args[0])
		return nil
	case "global":
		k, v, _ := strings.Cut(args[0], "=")
		w.meta('g', "pax_global_header", record(k, v))
		return nil
	}
	e := entry{typ: 0, name: args[0], mode: 0o644, declare: -1}
	args = args[1:]
	positional := func(p *string, needed bool) error {
		if len(args) > 0 && (needed || !isOption(args[0])) {
			*p, args = args[0], args[1:]
			return nil
		}
		if needed {
			return fmt.Errorf("%s: needs another argument", verb)
		}
		return nil
	}
	var dev, content string
	var err error
	switch verb {
	case "file":
		e.typ = '0'
		err = positional(&content, false)
	case "dir":
		e.typ, e.mode = '5', 0o755
	case "fifo":
		e.typ = '6'
	case "symlink":
		e.typ, e.mode = '2', 0o777
		err = positional(&e.link, true)
	case "link":
		e.typ = '1'
		err = positional(&e.link, true)
	case "char", "block":
		e.typ = '3'
		if verb == "block" {
			e.typ = '4'
		}
		if err = positional(&dev, true); err == nil {
			_, err = fmt.Sscanf(dev, "%d:%d", &e.major, &e.minor)
		}
	default:
		return fmt.Errorf("%s: unknown verb", verb)
	}
	if err != nil {
		return err
	}
	e.data = []byte(content)
	for _, a := range args {
		if err := e.option(a); err != nil {
			return fmt.Errorf("%s: %w", a, err)
		}
	}
	return w.entry(&e)
}

// noise returns n bytes that do not compress, the same for a name each time.
func noise(name string, n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8(sha256.Sum256([]byte(name))).Read(b)
	return b
}

func isOption(word string) bool {
	k, _, ok := strings.Cut(word, "=")
	k, _, _ = strings.Cut(k, ":")
	return ok && strings.Contains(" mode uid gid mtime size noise xattr libarchive pax format base256 type declare sparse map at sum paxraw ", " "+k+" ")
}

// entry is one tar entry to be written.
type entry struct {
	typ          byte
	name, link   string
	mode         int64
	uid, gid     int64
	major, minor int64
	mtime        string
	data         []byte
	size         int64 // of a sparse file
	declare      int64 // -1: the data's size
	format       string
	base256      bool
	records      []byte // PAX
	sparse       string
	segs         [][2]int64
	patches      map[int]string
	sum          string
}

func (e *entry) option(word string) error {
	key, value, _ := strings.Cut(word, "=")
	kind, sub, _ := strings.Cut(key, ":")
	if kind == "xattr" || kind == "pax" || kind == "libarchive" || kind == "at" {
		// A name may hold '=' only as %3D, which PAX cannot express either.
		switch kind {
		case "xattr":
			e.records = append(e.records, record("SCHILY.xattr."+sub, value)...)
		case "libarchive":
			e.records = append(e.records, record("LIBARCHIVE.xattr."+sub, base64.RawStdEncoding.EncodeToString([]byte(value)))...)
		case "pax":
			e.records = append(e.records, record(sub, value)...)
		case "at":
			off, err := strconv.Atoi(sub)
			if err != nil || off < 0 || off+len(value) > 512 {
				return fmt.Errorf("bad place")
			}
			if e.patches == nil {
				e.patches = map[int]string{}
			}
			e.patches[off] = value
		}
		return nil
	}
	var err error
	switch key {
	case "mode":
		e.mode, err = strconv.ParseInt(value, 8, 64)
	case "uid":
		e.uid, err = strconv.ParseInt(value, 10, 64)
	case "gid":
		e.gid, err = strconv.ParseInt(value, 10, 64)
	case "mtime":
		e.mtime = value
	case "size":
		e.size, err = strconv.ParseInt(value, 10, 64)
	case "noise":
		var n int
		if n, err = strconv.Atoi(value); err == nil {
			e.data = noise(e.name, n)
		}
	case "declare":
		e.declare, err = strconv.ParseInt(value, 10, 64)
	case "format":
		e.format = value
	case "base256":
		e.base256 = true
	case "type":
		if len(value) != 1 {
			return fmt.Errorf("a type is one byte")
		}
		e.typ = value[0]
	case "sparse":
		e.sparse = value
	case "map":
		for _, s := range strings.Split(value, ",") {
			var seg [2]int64
			if _, err := fmt.Sscanf(s, "%d+%d", &seg[0], &seg[1]); err != nil {
				return err
			}
			e.segs = append(e.segs, seg)
		}
	case "sum":
		e.sum = value
	case "paxraw":
		e.records = append(e.records, value...)
	default:
		return fmt.Errorf("unknown option")
	}
	return err
}

// Pattern returns n bytes that differ from place to place.
func Pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte('a' + (i+i/26+i/512)%26)
	}
	return b
}

func record(key, value string) []byte {
	n := len(key) + len(value) + 3
	n += len(strconv.Itoa(n))
	if s := strconv.Itoa(n); len(s)+len(key)+len(value)+3 != n {
		n++
	}
	return []byte(strconv.Itoa(n) + " " + key + "=" + value + "\n")
}

// meta writes an entry that describes the next one.
func (w *tarWriter) meta(typ byte, name string, body []byte) {
	var h [512]byte
	copy(h[:], name)
	e := entry{typ: typ, mode: 0o644}
	e.fill(&h, int64(len(body)), 0)
	setChecksum(&h, "")
	w.Write(h[:])
	w.padded(body)
}

func (w *tarWriter) padded(b []byte) {
	w.Write(b)
	w.Write(make([]byte, -len(b)&511))
}

// entry writes e, preceded by what its header cannot hold.
func (w *tarWriter) entry(e *entry) error {
	if e.sparse == "" && len(e.data) == 0 {
		e.data = Pattern(int(e.size))
	}
	if err := e.makeSparse(); err != nil {
		return err
	}
	size := int64(len(e.data))
	if e.declare >= 0 {
		size = e.declare
	}
	plain := e.format == "" && !e.base256
	if plain {
		for _, f := range []struct {
			key   string
			v     int64
			limit int64
		}{{"uid", e.uid, 1 << 21}, {"gid", e.gid, 1 << 21}, {"size", size, 1 << 33}} {
			if f.v < 0 || f.v >= f.limit {
				e.records = append(e.records, record(f.key, strconv.FormatInt(f.v, 10))...)
			}
		}
	}
	sec, frac, _ := strings.Cut(e.mtime, ".")
	mtime, err := int64(0), error(nil)
	if e.mtime != "" {
		mtime, err = strconv.ParseInt(sec, 10, 64)
	}
	if err != nil {
		return err
	}
	if plain && (frac != "" || mtime < 0 || mtime >= 1<<33) {
		e.records = append(e.records, record("mtime", e.mtime)...)
		mtime = 0
	}
	for _, f := range []struct {
		value string
		long  byte
		key   string
	}{{e.name, 'L', "path"}, {e.link, 'K', "linkpath"}} {
		switch {
		case len(f.value) <= 100:
		case e.format == "gnu":
			w.meta(f.long, "././@LongLink", append([]byte(f.value), 0))
		case e.format == "":
			e.records = append(e.records, record(f.key, f.value)...)
		default:
			return fmt.Errorf("name of %d bytes in format %s", len(f.value), e.format)
		}
	}
	if len(e.records) > 0 {
		w.meta('x', "PaxHeaders.0/entry", e.records)
	}
	var h [512]byte
	copy(h[0:100], e.name)
	copy(h[157:257], e.link)
	e.fill(&h, size, mtime)
	var more []byte
	if e.sparse == "old" {
		more = e.oldMap(&h)
	}
	offsets := make([]int, 0, len(e.patches))
	for off := range e.patches {
		offsets = append(offsets, off)
	}
	sort.Ints(offsets)
	for _, off := range offsets {
		copy(h[off:], e.patches[off])
	}
	setChecksum(&h, e.sum)
	w.Write(h[:])
	w.Write(more)
	w.padded(e.data)
	return nil
}

// fill sets all but the names and the checksum.
func (e *entry) fill(h *[512]byte, size, mtime int64) {
	put := func(off, n int, v int64) {
		if e.base256 {
			for i := n - 1; i >= 0; i-- {
				h[off+i] = byte(v)
				v >>= 8
			}
			h[off] |= 0x80
			return
		}
		if v < 0 || v >= 1<<(3*uint(n-1)) {
			v = 0 // in a PAX record
		}
		copy(h[off:off+n-1], fmt.Sprintf("%0*o", n-1, v))
	}
	put(100, 8, e.mode)
	put(108, 8, e.uid)
	put(116, 8, e.gid)
	put(124, 12, size)
	put(136, 12, mtime)
	h[156] = e.typ
	switch e.format {
	case "v7":
		return
	case "gnu":
		copy(h[257:], "ustar  \x00")
	default:
		copy(h[257:], "ustar\x0000")
	}
	put(329, 8, e.major)
	put(337, 8, e.minor)
}

func setChecksum(h *[512]byte, how string) {
	copy(h[148:156], "        ")
	n := 0
	for _, c := range h {
		if n += int(c); how == "signed" && c >= 0x80 {
			n -= 256
		}
	}
	if how == "bad" {
		n++
	}
	copy(h[148:], fmt.Sprintf("%06o\x00 ", n))
}

// makeSparse turns e into its sparse form: map, records, data of the segments.
func (e *entry) makeSparse() error {
	if e.sparse == "" {
		return nil
	}
	total := 0
	var list []string
	for _, s := range e.segs {
		total += int(s[1])
		list = append(list, strconv.FormatInt(s[0], 10), strconv.FormatInt(s[1], 10))
	}
	if len(e.data) == 0 {
		e.data = Pattern(total)
	}
	add := func(k, v string) { e.records = append(e.records, record("GNU.sparse."+k, v)...) }
	count, size := strconv.Itoa(len(e.segs)), strconv.FormatInt(e.size, 10)
	switch e.sparse {
	case "old":
		e.typ, e.format = 'S', "gnu"
	case "0.0":
		add("size", size)
		add("numblocks", count)
		for i := 0; i < len(list); i += 2 {
			add("offset", list[i])
			add("numbytes", list[i+1])
		}
	case "0.1":
		add("size", size)
		add("numblocks", count)
		add("map", strings.Join(list, ","))
	case "1.0":
		add("major", "1")
		add("minor", "0")
		add("name", e.name)
		add("realsize", size)
		m := []byte(strings.Join(append([]string{count}, list...), "\n") + "\n")
		m = append(m, make([]byte, -len(m)&511)...)
		e.data = append(m, e.data...)
		e.name = "GNUSparseFile.0/" + filepath.Base(e.name)
	default:
		return fmt.Errorf("sparse=%s: unknown format", e.sparse)
	}
	return nil
}

// oldMap writes the map of an old GNU sparse file: four segments in the header,
// 21 in each record behind it.
func (e *entry) oldMap(h *[512]byte) []byte {
	segs := e.segs
	put := func(b []byte, n int) {
		for i := 0; i < n && len(segs) > 0; i++ {
			copy(b[i*24:], fmt.Sprintf("%011o\x00%011o\x00", segs[0][0], segs[0][1]))
			segs = segs[1:]
		}
	}
	put(h[386:], 4)
	copy(h[483:], fmt.Sprintf("%011o\x00", e.size))
	if len(segs) > 0 {
		h[482] = 1
	}
	var more []byte
	for len(segs) > 0 {
		var b [512]byte
		put(b[:], 21)
		if len(segs) > 0 {
			b[504] = 1
		}
		more = append(more, b[:]...)
	}
	return more
}

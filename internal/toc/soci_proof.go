package toc

import (
	"archive/tar"
	"bytes"
	"fmt"
	"hash/maphash"
	"io"
	"maps"
	"slices"
	"sort"
	"strings"
	"sync"
)

// Proof returns the Proof that a stream is the one the zTOC tells of. It reads
// headers as SOCI does, with archive/tar, and compares all that is told. What it
// holds is 24 bytes for each entry, and is made when it is first asked.
func (z *Ztoc) Proof() Proof {
	p := &ztocProof{seed: maphash.MakeSeed()}
	p.load = sync.OnceValue(func() error {
		p.entries = make([]entrySum, 0, len(z.files))
		return z.each(func(start, data int64, e *told) error {
			p.entries = append(p.entries, entrySum{start, data, e.sum(p.seed)})
			return nil
		})
	})
	return p
}

// ztocProof knows all entries by their sums, with a seed of its own.
type ztocProof struct {
	seed    maphash.Seed
	load    func() error
	entries []entrySum // by start
}

// entrySum is an entry whose headers are [start, data) of the stream.
type entrySum struct {
	start, data int64
	sum         uint64
}

// Start implements [Proof].
func (p *ztocProof) Start(off int64) int64 {
	if p.load() != nil || len(p.entries) == 0 {
		return 0 // Check says why
	}
	return p.entries[p.entry(off)].start
}

// entry returns the entry that holds byte off.
func (p *ztocProof) entry(off int64) int {
	return max(0, sort.Search(len(p.entries), func(i int) bool { return p.entries[i].start > off })-1)
}

// Check implements [Proof].
func (p *ztocProof) Check(r io.ReaderAt, from, to int64) error {
	if err := p.load(); err != nil {
		return err
	}
	if len(p.entries) == 0 {
		return nil
	}
	var buf []byte
	for _, e := range p.entries[p.entry(from):] {
		if e.data > to {
			return nil // is checked with what comes next
		}
		buf = append(buf[:0], make([]byte, e.data-e.start)...)
		if n, err := r.ReadAt(buf, e.start); n < len(buf) {
			return fmt.Errorf("header at byte %d: %w", e.start, err)
		}
		headers := bytes.NewReader(buf)
		h, err := tar.NewReader(headers).Next()
		if err != nil || headers.Len() > 0 || tells(h).sum(p.seed) != e.sum {
			return errHeader(e.start)
		}
	}
	return nil
}

// tells returns what a zTOC would tell of a header.
func tells(h *tar.Header) *told {
	e := &told{
		name: h.Name, link: h.Linkname, uname: h.Uname, gname: h.Gname, typ: h.Typeflag, mode: h.Mode,
		uid: uint32(h.Uid), gid: uint32(h.Gid), size: h.Size, time: h.ModTime, major: h.Devmajor, minor: h.Devminor,
	}
	for _, k := range slices.Sorted(maps.Keys(h.PAXRecords)) {
		e.pax = append(e.pax, paxRecord{k, h.PAXRecords[k]})
	}
	return e
}

// sum returns a sum over all that is told.
func (e *told) sum(seed maphash.Seed) uint64 {
	var h maphash.Hash
	h.SetSeed(seed)
	num := func(vs ...int64) {
		for _, v := range vs {
			maphash.WriteComparable(&h, v)
		}
	}
	for _, s := range []string{e.name, e.link, e.uname, e.gname} {
		num(int64(len(s)))
		h.WriteString(s)
	}
	num(int64(e.typ), e.mode, int64(e.uid), int64(e.gid), e.size, e.time.Unix(), int64(e.time.Nanosecond()), e.major, e.minor)
	for _, p := range e.pax {
		num(int64(len(p.key)), int64(len(p.value)))
		h.WriteString(p.key)
		h.WriteString(p.value)
	}
	return h.Sum64()
}

// hasSparse says whether a header is of a sparse file, whose payload is not at
// its place in the stream.
func hasSparse(h *tar.Header) bool {
	for k := range h.PAXRecords {
		if strings.HasPrefix(k, "GNU.sparse.") {
			return true
		}
	}
	return false
}

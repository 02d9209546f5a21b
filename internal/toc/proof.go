package toc

import (
	"fmt"
	"hash/maphash"
	"io"
	"sort"
	"sync"
)

// Reopen makes the Proof of an index again from Index.Raw, for a layer that was
// imported before. nil: its kind needs none.
func Reopen(kind string, raw []byte) (Proof, error) {
	switch kind {
	case Own, Tar:
		s, err := parseSkeleton(raw)
		if err != nil {
			return nil, err
		}
		return s.Proof(), nil
	case Soci:
		z, err := parseZtoc(raw)
		if err != nil {
			return nil, err
		}
		return z.Proof(), nil
	}
	return nil, nil
}

// Proof returns the Proof that a stream is the one the skeleton was made of,
// for a skeleton that Fill has accepted. It compares the bytes of headers. What
// it holds is 24 bytes for each piece, and is made when it is first asked.
func (s *Skeleton) Proof() Proof {
	p := &headerProof{seed: maphash.MakeSeed()}
	p.load = sync.OnceValue(func() error {
		return s.pieces(func(off int64, b []byte, first bool) error {
			p.pieces = append(p.pieces, piece{off, maphash.Bytes(p.seed, b), uint32(len(b)), first})
			return nil
		})
	})
	return p
}

// headerProof knows all pieces of a skeleton by their sums. The seed is its
// own, so that nobody can make two pieces of one sum.
type headerProof struct {
	seed   maphash.Seed
	load   func() error
	pieces []piece // by offset
}

type piece struct {
	off   int64
	sum   uint64
	size  uint32
	first bool // of an entry
}

// Start implements [Proof].
func (p *headerProof) Start(off int64) int64 {
	if p.load() != nil || len(p.pieces) == 0 {
		return 0 // Check says why
	}
	return p.pieces[p.entry(off)].off
}

// entry returns the first piece of the entry that holds byte off.
func (p *headerProof) entry(off int64) int {
	i := max(0, sort.Search(len(p.pieces), func(i int) bool { return p.pieces[i].off > off })-1)
	for i > 0 && !p.pieces[i].first {
		i--
	}
	return i
}

// Check implements [Proof].
func (p *headerProof) Check(r io.ReaderAt, from, to int64) error {
	if err := p.load(); err != nil {
		return err
	}
	if len(p.pieces) == 0 {
		return nil
	}
	var buf []byte
	for i := p.entry(from); i < len(p.pieces); i++ {
		e := &p.pieces[i]
		end := e.off + int64(e.size)
		if end > to {
			return nil // is checked with what comes next
		}
		if cap(buf) < int(e.size) {
			buf = make([]byte, max(blockSize, e.size))
		}
		b := buf[:e.size]
		if n, err := r.ReadAt(b, e.off); n < len(b) {
			return fmt.Errorf("header at byte %d: %w", e.off, err)
		}
		if maphash.Bytes(p.seed, b) != e.sum {
			return errHeader(e.off)
		}
	}
	return nil
}

func errHeader(off int64) error {
	return fmt.Errorf("%w: the layer's header at byte %d is not the one it has", ErrCorrupt, off)
}

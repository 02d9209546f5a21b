package lazy

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/cespare/xxhash/v2"
	"github.com/imgfs/imgfs/internal/span"
)

// seen keeps the SHA-256 of spans for which the table has none: what came first
// is believed, and what comes later must be the same. By span it has the
// digest and the xxh64 of that, without which an entry is none. It outlives
// eviction.
type seen struct{ f *os.File }

const seenSize = sha256.Size + 8

// openSeen opens the file, making it if it is not there; nil if t needs none.
func openSeen(path string, t *span.Table) (*seen, error) {
	for i := range t.Spans() {
		if !t.Proves(i) {
			f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
			return &seen{f}, err
		}
	}
	return nil, nil
}

// check compares data with what span i was when it was first seen.
func (s *seen) check(i int, data []byte) error {
	sum := sha256.Sum256(data)
	var was [seenSize]byte
	_, err := s.f.ReadAt(was[:], int64(i)*seenSize)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if binary.LittleEndian.Uint64(was[sha256.Size:]) == xxhash.Sum64(was[:sha256.Size]) {
		if !bytes.Equal(sum[:], was[:sha256.Size]) {
			return fmt.Errorf("span %d is not what it was when it was first read: %w", i, span.ErrDigest)
		}
		return nil
	}
	entry := binary.LittleEndian.AppendUint64(sum[:], xxhash.Sum64(sum[:]))
	_, err = s.f.WriteAt(entry, int64(i)*seenSize)
	return err
}

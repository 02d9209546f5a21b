package lazy

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"

	"github.com/cespare/xxhash/v2"
	"github.com/imgfs/imgfs/internal/span"
)

// The file "present" is, all little endian:
//
//	 8   magic, with the version of the format
//	 8   1: closed cleanly, else 0
//	 8   hash of the table's spans: whose checksums these are
//	24   of the data file when it was closed: size, time, inode
//	 8   hash of all checksums when it was closed
//	 8   hash of the header up to here
//	     by span: checksum of its data, 0: not present
const (
	presentMagic = "imgpres1"
	headerSize   = 8 * 8
	sumSize      = 8
)

// header is the first part of "present".
type header struct {
	clean bool   // when it was written
	table uint64 // hash of the table's spans
	data  stamp
	sums  uint64 // hash of the checksums
}

// stamp tells whether a data file is the one it was.
type stamp struct {
	size, time int64 // time in nanoseconds since 1970
	inode      uint64
}

func stampOf(f *os.File) (stamp, error) {
	st, err := f.Stat()
	if err != nil {
		return stamp{}, err
	}
	s := stamp{size: st.Size(), time: st.ModTime().UnixNano()}
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		s.inode = sys.Ino
	}
	return s, nil
}

func (h header) encode() []byte {
	b := make([]byte, 0, headerSize)
	b = append(b, presentMagic...)
	clean := uint64(0)
	if h.clean {
		clean = 1
	}
	for _, v := range [...]uint64{clean, h.table, uint64(h.data.size), uint64(h.data.time), h.data.inode, h.sums} {
		b = binary.LittleEndian.AppendUint64(b, v)
	}
	return binary.LittleEndian.AppendUint64(b, xxhash.Sum64(b))
}

// parsePresent returns the header and the checksums of a file "present", for a
// table of n spans with the given hash. ok is false when it cannot be one:
// then nothing is present.
func parsePresent(b []byte, n int, table uint64) (h header, sums []byte, ok bool) {
	if len(b)-headerSize != n*sumSize || string(b[:8]) != presentMagic {
		return header{}, nil, false
	}
	field := func(i int) uint64 { return binary.LittleEndian.Uint64(b[8*i:]) }
	if field(7) != xxhash.Sum64(b[:headerSize-8]) || field(2) != table || field(1) > 1 {
		return header{}, nil, false
	}
	return header{
		clean: field(1) == 1,
		table: field(2),
		data:  stamp{int64(field(3)), int64(field(4)), field(5)},
		sums:  field(6),
	}, b[headerSize:], true
}

// describes reports whether the checksums, and the data file as it is now, are
// what they were when the header was written, cleanly.
func (h header) describes(sums []byte, now stamp) bool {
	return h.clean && h.data == now && h.sums == hashSums(sums)
}

// hashTable names the spans of t: checksums are of no use for others.
func hashTable(t *span.Table) uint64 {
	d := xxhash.New()
	var b [32]byte
	for i := range t.Spans() {
		s := t.At(i)
		binary.LittleEndian.PutUint64(b[0:], uint64(s.Off))
		binary.LittleEndian.PutUint64(b[8:], uint64(s.Len))
		binary.LittleEndian.PutUint64(b[16:], uint64(s.From))
		binary.LittleEndian.PutUint64(b[24:], uint64(s.To))
		d.Write(b[:])
	}
	return d.Sum64()
}

// hashSums names a file's checksums.
func hashSums(sums []byte) uint64 { return xxhash.Sum64(sums) }

// checksum returns the checksum of a span's data: never 0.
func checksum(data []byte) uint64 { return max(xxhash.Sum64(data), 1) }

// makePresent writes a file that says that nothing is present, and syncs it.
func makePresent(path string, n int, table uint64) (err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	b := append(header{table: table}.encode(), make([]byte, n*sumSize)...)
	if _, err := f.Write(b); err != nil {
		return err
	}
	return f.Sync()
}

// makeData makes an empty data file.
func makeData(path string, size int64) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	if err := f.Truncate(size); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// readSum returns the checksum of span i as it is on disk; 0: none.
func readSum(present *os.File, i int) (uint64, error) {
	var b [sumSize]byte
	if _, err := present.ReadAt(b[:], headerSize+int64(i)*sumSize); err != nil {
		return 0, fmt.Errorf("checksum of span %d: %w", i, err)
	}
	return binary.LittleEndian.Uint64(b[:]), nil
}

// writeSums enters the checksums of the spans from i on.
func writeSums(present *os.File, i int, sums []uint64) error {
	b := make([]byte, 0, len(sums)*sumSize)
	for _, s := range sums {
		b = binary.LittleEndian.AppendUint64(b, s)
	}
	_, err := present.WriteAt(b, headerSize+int64(i)*sumSize)
	return err
}

// exists reports whether path is there.
func exists(path string) (bool, error) {
	_, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

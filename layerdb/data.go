package layerdb

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/internal/erofs"
	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/layertar"
)

const (
	holeUnit = 32 << 10  // zeros become a hole in aligned units of this many bytes
	writeout = 8 << 20   // bytes after which the kernel is told to begin writing
	lookout  = 64 << 20  // bytes after which free space is looked at
	reserve  = 256 << 20 // bytes of free space a pass leaves, or 2 % of a smaller disk
)

// dataWriter writes a stream to a sparse file. The buffers it is given must be
// multiples of holeUnit, all but the last.
type dataWriter struct {
	f      *os.File
	off    int64 // bytes taken
	begun  int64 // bytes whose writing to disk has begun
	looked int64 // off when free space was last looked at
}

var zeros [holeUnit]byte

// write appends p, leaving out the units that are all zero.
func (d *dataWriter) write(p []byte) error {
	for from := 0; from < len(p); {
		to := min(from+holeUnit, len(p))
		if isZero(p[from:to]) {
			from = to
			continue
		}
		for to < len(p) {
			next := min(to+holeUnit, len(p))
			if isZero(p[to:next]) {
				break
			}
			to = next
		}
		if _, err := d.f.WriteAt(p[from:to], d.off+int64(from)); err != nil {
			return err
		}
		from = to
	}
	d.off += int64(len(p))
	if d.off-d.begun >= writeout {
		// The disk works while the processor does; the fsync at the end then
		// finds little left. A hint: its failure is the fsync's to report.
		_ = unix.SyncFileRange(int(d.f.Fd()), d.begun, d.off-d.begun, unix.SYNC_FILE_RANGE_WRITE)
		d.begun = d.off
	}
	if d.off-d.looked >= lookout {
		d.looked = d.off
		return checkSpace(d.f, 0)
	}
	return nil
}

func isZero(p []byte) bool { return bytes.Equal(p, zeros[:len(p)]) }

// checkSpace returns ENOSPC if the disk of f has no room for n more bytes and
// the reserve: a layer of unknown size must not fill the disk of the host.
func checkSpace(f *os.File, n int64) error {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
		return nil // not a reason to refuse; the writes will tell
	}
	return lacks(&st, n)
}

// space is checkSpace for the store's directory.
func (s *Store) space(n int64) error {
	var st unix.Statfs_t
	if err := unix.Statfs(s.dir, &st); err != nil {
		return nil
	}
	return lacks(&st, n)
}

func lacks(st *unix.Statfs_t, n int64) error {
	bs := int64(st.Bsize)
	if int64(st.Bavail)*bs < n+min(reserve, int64(st.Blocks)*bs/50) {
		return unix.ENOSPC
	}
	return nil
}

// finish gives the file its final size and copies the annex within it.
func (d *dataWriter) finish(sum *layertar.Summary) error {
	if sum.StreamSize != d.off || sum.DataSize < roundUp(d.off) || sum.DataSize > MaxStream || sum.DataSize%erofs.BlockSize != 0 {
		return fmt.Errorf("index: stream of %d bytes gives data of %d", d.off, sum.DataSize)
	}
	if err := d.f.Truncate(sum.DataSize); err != nil {
		return err
	}
	for n, c := range sum.Annex {
		if c.Len < 0 || c.From < 0 || c.From > d.off-c.Len || c.To < roundUp(d.off) || c.To > sum.DataSize-c.Len {
			return fmt.Errorf("index: annex copy %+v is outside its file", c)
		}
		if err := copyWithin(d.f, c); err != nil {
			return err
		}
		if n%1024 == 0 {
			if err := checkSpace(d.f, 0); err != nil {
				return err
			}
		}
	}
	return nil
}

func roundUp(n int64) int64 { return (n + erofs.BlockSize - 1) &^ (erofs.BlockSize - 1) }

// copyWithin does one copy, in the kernel where that can.
func copyWithin(f *os.File, c layertar.Copy) error {
	from, to := c.From, c.To
	for end := c.From + c.Len; from < end; {
		n, err := unix.CopyFileRange(int(f.Fd()), &from, int(f.Fd()), &to, int(min(end-from, 1<<30)), 0)
		switch {
		case err == unix.EINTR:
		case err == unix.ENOSPC || err == unix.EDQUOT || err == unix.EIO:
			return os.NewSyscallError("copy_file_range", err)
		case err != nil || n == 0:
			_, err := io.Copy(io.NewOffsetWriter(f, to), io.NewSectionReader(f, from, end-from))
			return err
		}
	}
	return nil
}

// diskError gives what the disk said the words and the hint it needs, if it is
// full or not writable; other errors pass unchanged.
func (s *Store) diskError(err error) error {
	switch {
	case errors.Is(err, unix.ENOSPC):
		err = fmt.Errorf("disk of %s is full: %w", s.dir, err)
	case errors.Is(err, unix.EDQUOT):
		err = fmt.Errorf("disk quota for %s is used up: %w", s.dir, err)
	case errors.Is(err, unix.EROFS):
		return fault.WithHint(fmt.Errorf("%s is not writable: %w", s.dir, err), "another place for the store: --root DIR or IMGFS_ROOT")
	default:
		return err
	}
	return fault.WithHint(err, "what no image needs is removed by: imgfs gc")
}

// allocated returns the bytes that a file takes on disk.
func allocated(st fs.FileInfo) int64 {
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		return sys.Blocks * 512
	}
	return st.Size()
}

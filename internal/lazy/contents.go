package lazy

import (
	"errors"
	"fmt"
	"io"
	"math/bits"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// contents is a data file and what is known of it.
type contents struct {
	data    *os.File
	present *os.File // nil: has no checksums
	// mark makes "present" say, synced, that it was not closed cleanly. It is
	// called before anything is written, and works once.
	mark func() error

	// writing is held while data is written, or compared with noted: what it
	// was after the last of our own writes.
	writing sync.Mutex
	noted   stamp

	// ready has a bit for each span that was used since it is present. A bit
	// is set under File.mu, and read without.
	ready []atomic.Uint64

	// By span; guarded by File.mu.
	have    bitmap // present
	raw     bitmap // in data, and what the table says; nil where there is no Proof
	suspect bitmap // of those in have: to be compared with its checksum; nil: none
	bytes   int64  // data bytes of the spans in have or raw
	used    int64  // blob bytes of the spans that are ready

	written atomic.Int64 // data bytes written; of contents in memory only
}

func newContents(data *os.File, n int, proof bool) *contents {
	c := &contents{
		data:  data,
		mark:  func() error { return nil },
		ready: make([]atomic.Uint64, (n+63)/64),
		have:  newBitmap(n),
	}
	if proof {
		c.raw = newBitmap(n)
	}
	return c
}

// isReady reports whether the spans [i, j) are ready.
func (c *contents) isReady(i, j int) bool {
	for ; i < j; i = (i | 63) + 1 {
		want := ^uint64(0) << (i & 63)
		if rest := j - i&^63; rest < 64 {
			want &= 1<<rest - 1
		}
		if c.ready[i>>6].Load()&want != want {
			return false
		}
	}
	return true
}

// readyIn returns how many of the spans [i, j) are ready.
func (c *contents) readyIn(i, j int) (n int) {
	for ; i < j; i = (i | 63) + 1 {
		w := c.ready[i>>6].Load() >> (i & 63)
		if rest := j - i; rest < 64 {
			w &= 1<<rest - 1
		}
		n += bits.OnesCount64(w)
	}
	return n
}

// isSuspect reports whether span i must be compared with its checksum before
// it is used. Preconditions: File.mu is held.
func (c *contents) isSuspect(i int) bool { return c.suspect != nil && c.suspect.has(i) }

// has reports whether span i is present, or, with raw, at least its bytes are
// in the data file. Preconditions: File.mu is held.
func (c *contents) has(i int, raw bool) bool {
	return c.have.has(i) && !c.isSuspect(i) || raw && c.raw != nil && c.raw.has(i)
}

// openContents opens the files in dir. What it cannot believe is not present.
func (f *File) openContents() (*contents, error) {
	n := f.at.n
	data, err := os.OpenFile(filepath.Join(f.dir, DataName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	now, err := stampOf(data)
	if err != nil {
		return nil, err
	}
	c := newContents(data, n, f.o.Proof != nil)
	path := filepath.Join(f.dir, PresentName)
	incomplete, err := exists(path)
	if err != nil {
		return nil, err
	}
	if !incomplete && now.size >= f.o.Table.DataSize() {
		f.allPresent(c)
		return c, nil
	}
	if !incomplete { // cut short: nobody knows what it has
		if err := makePresent(path, n, f.table); err != nil {
			return nil, err
		}
	}
	if now.size < f.size {
		if err := data.Truncate(f.size); err != nil {
			return nil, err
		}
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	h, sums, ok := parsePresent(b, n, f.table)
	if !ok {
		f.log.Warn("the record of what is present is damaged: nothing is", "dir", f.dir)
		if err := makePresent(path, n, f.table); err != nil {
			return nil, err
		}
	}
	if c.present, err = os.OpenFile(path, os.O_RDWR, 0); err != nil {
		return nil, err
	}
	if h.clean {
		c.mark = sync.OnceValue(func() error { return f.writeHeader(c, header{table: f.table}) })
	}
	if c.noted, err = stampOf(data); err != nil {
		return nil, err
	}
	clean := h.describes(sums, now)
	if ok && !clean {
		c.suspect = newBitmap(n)
	}
	for i := range len(sums) / sumSize {
		if [sumSize]byte(sums[i*sumSize:]) == [sumSize]byte{} {
			continue
		}
		c.have.set(i)
		c.bytes += f.o.Table.At(i).Len
		if !clean {
			c.suspect.set(i)
		}
	}
	return c, nil
}

// allPresent enters that no byte is missing.
func (f *File) allPresent(c *contents) {
	for i := range f.at.n {
		c.have.set(i)
		c.bytes += f.o.Table.At(i).Len
	}
	for i := range c.ready {
		c.ready[i].Store(^uint64(0))
	}
}

func (f *File) writeHeader(c *contents, h header) error {
	if _, err := c.present.WriteAt(h.encode(), 0); err != nil {
		return err
	}
	return unix.Fdatasync(int(c.present.Fd()))
}

// seal makes "present" say that it was closed cleanly. Preconditions: nobody
// writes to c any more.
func (f *File) seal(c *contents) error {
	if err := c.data.Sync(); err != nil {
		return err
	}
	if err := f.look(c); err != nil {
		return err
	}
	h := header{clean: c.suspect == nil || c.suspect.next(0, f.at.n, true) == f.at.n, table: f.table, data: c.noted}
	sums := make([]byte, f.at.n*sumSize)
	if _, err := c.present.ReadAt(sums, headerSize); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	h.sums = hashSums(sums)
	return f.writeHeader(c, h)
}

// write puts data at off, unless there is no space.
func (f *File) write(c *contents, data []byte, off int64) error {
	if f.o.Space != nil {
		if err := f.o.Space(int64(len(data))); err != nil {
			return fmt.Errorf("%w: %w", err, syscall.ENOSPC)
		}
	}
	if err := c.mark(); err != nil {
		return err
	}
	c.writing.Lock()
	defer c.writing.Unlock()
	if err := f.lookWriting(c); err != nil {
		return err
	}
	if _, err := c.data.WriteAt(data, off); err != nil {
		return err
	}
	var err error
	c.noted, err = stampOf(c.data)
	return err
}

// Recheck looks whether somebody else has written to the data file. If so,
// nothing in it is believed before it was compared with its checksum.
func (f *File) Recheck() error {
	if err := f.look(f.now.Load()); err != nil {
		return fmt.Errorf("data of a layer: %w", err)
	}
	return nil
}

func (f *File) look(c *contents) error {
	if c.present == nil {
		return nil // there are no checksums
	}
	c.writing.Lock()
	defer c.writing.Unlock()
	return f.lookWriting(c)
}

// lookWriting is look. Preconditions: c.writing is held.
func (f *File) lookWriting(c *contents) error {
	now, err := stampOf(c.data)
	if err != nil || now == c.noted || c.present == nil {
		return err
	}
	f.log.Warn("somebody else has written to a layer's data: it is compared with its checksums", "dir", f.dir)
	f.mu.Lock()
	f.doubtLocked(c)
	f.mu.Unlock()
	if now.size < f.size {
		if err := c.data.Truncate(f.size); err != nil {
			return err
		}
	}
	c.noted, err = stampOf(c.data)
	return err
}

// doubtLocked makes all that is present suspect. What has no checksum yet is
// fetched again.
func (f *File) doubtLocked(c *contents) {
	c.suspect = slices.Clone(c.have)
	for i := range c.ready {
		c.ready[i].Store(0)
	}
	c.used, c.bytes = 0, 0
	if c.raw != nil {
		c.raw = newBitmap(f.at.n)
	}
	for i := c.have.next(0, f.at.n, true); i < f.at.n; i = c.have.next(i+1, f.at.n, true) {
		c.bytes += f.o.Table.At(i).Len
	}
}

// full reports whether err says that there is no space for more bytes.
func full(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// newSpill returns contents in memory, for what finds no space on disk.
func (f *File) newSpill() (*contents, error) {
	fd, err := unix.MemfdCreate("imgfs-uncached", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("memory for what the disk has no space for: %w", err)
	}
	m := os.NewFile(uintptr(fd), "uncached")
	if err := m.Truncate(f.size); err != nil {
		m.Close()
		return nil, err
	}
	return newContents(m, f.at.n, f.o.Proof != nil), nil
}

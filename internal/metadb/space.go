package metadb

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/dgraph-io/badger/v4"
	"golang.org/x/sys/unix"
)

// Badger writes through mappings of sparse files. Where the disk has no block
// for one of their pages, the kernel does not return an error but kills the
// process with SIGBUS. So there is always room for what Badger may touch:
//
//   - its write-ahead log has its blocks from the start;
//   - an Update that adds is refused while the disk has less than headroom, one
//     that only deletes goes through: it is how room is made;
//   - the file "reserve" is given up for as long as an Open or a Close lasts,
//     which make a log and a table.
const (
	headroom = 16 << 20 // bytes: a new log of 8 MiB, a table of 4 MiB, and some
	reserve  = "reserve"
)

// free returns ENOSPC, wrapped, if the disk of dir has less than headroom.
func free(dir string) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return fmt.Errorf("statfs %s: %w", dir, err)
	}
	if int64(st.Bavail)*int64(st.Bsize) < headroom {
		return fmt.Errorf("less than %d MiB are left on the disk of %s: %w", headroom>>20, dir, unix.ENOSPC)
	}
	return nil
}

// room returns ENOSPC, wrapped, if changes must not be made for lack of space.
func room(dir string, changes map[string][]byte) error {
	err := free(dir)
	if err == nil {
		return nil
	}
	for _, v := range changes {
		if v != nil {
			return err
		}
	}
	return allocate(dir) // a log that was begun since Open may have no blocks yet
}

// yield gives up the reserve.
func yield(dir string) error {
	err := os.Remove(filepath.Join(dir, reserve))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// take makes the reserve, if there is room for it. Where there is none, or the
// file system cannot allocate, the store works until its disk is full.
func take(dir string) {
	path := filepath.Join(dir, reserve)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return
	}
	defer f.Close()
	if unix.Fallocate(int(f.Fd()), 0, 0, headroom) != nil {
		_ = os.Remove(path)
	}
}

// allocate gives the write-ahead logs all their blocks.
func allocate(dir string) error {
	logs, err := filepath.Glob(filepath.Join(dir, "*.mem"))
	if err != nil {
		return err
	}
	for _, path := range logs {
		if err := allocateFile(path); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	return nil
}

func allocateFile(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil // flushed into a table since it was listed
	}
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil || st.Size() == 0 {
		return err
	}
	err = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, st.Size())
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) {
		return nil
	}
	return err
}

// Close closes a database that Open opened, also on a full disk. One whose
// directory was removed is left as it is: Badger would try for ever to write
// its last table there.
func Close(db *badger.DB) error {
	dir := db.Opts().Dir
	if _, err := os.Stat(dir); err != nil {
		return fmt.Errorf("metadata database: %w", err)
	}
	err := errors.Join(yield(dir), db.Close())
	take(dir)
	if err != nil {
		return fmt.Errorf("metadata database: %w", err)
	}
	return nil
}

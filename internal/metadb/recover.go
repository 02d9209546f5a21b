package metadb

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"
	"github.com/dgraph-io/badger/v4/table"
	"github.com/dgraph-io/badger/v4/y"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// Recover makes a database in dir of what can be read of the one that is there,
// which Open found to be damaged, and which it leaves beside it as aside. What
// was written last may be missing, and what was deleted last be there again. If
// it fails everything is as it was. A process that is killed meanwhile leaves
// one of the two in Unfinished(dir), and the other in dir.
func Recover(dir, aside string) (*badger.DB, error) {
	if err := recoverTo(dir, aside); err != nil {
		return nil, fmt.Errorf("metadata database: %w", err)
	}
	return Open(dir)
}

func recoverTo(dir, aside string) error {
	if err := readable(dir); err != nil {
		return err
	}
	made := Unfinished(dir)
	if err := os.RemoveAll(made); err != nil {
		return err
	}
	db, err := remake(made, dir)
	if err == nil {
		err = Close(db)
	}
	if err == nil {
		err = exchange(made, dir)
	}
	if err != nil {
		return errors.Join(err, os.RemoveAll(made))
	}
	return os.Rename(made, aside)
}

// exchange has two directories change places: at once, where that can be done.
func exchange(a, b string) error {
	err := unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE)
	if !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOSYS) {
		return err
	}
	tmp := a + ".x"
	if err := os.Rename(b, tmp); err != nil {
		return err
	}
	if err := os.Rename(a, b); err != nil {
		return errors.Join(err, os.Rename(tmp, b))
	}
	return os.Rename(tmp, a)
}

// Unfinished returns where a database lies that Recover did not come to an end
// with.
func Unfinished(dir string) string { return dir + ".recover" }

// readable returns why files of a database cannot be read: then it is not known
// to be damaged.
func readable(dir string) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		return f.Close()
	})
}

func remake(dir, old string) (*badger.DB, error) {
	db, err := replay(dir, old)
	if err != nil {
		if err := os.RemoveAll(dir); err != nil {
			return nil, err
		}
		if db, err = Open(dir); err != nil {
			return nil, err
		}
	}
	have := map[string]bool{}
	if err := allKeys(db, have); err != nil {
		return nil, errors.Join(err, Close(db))
	}
	changes := map[string][]byte{}
	for key, r := range rescue(old) {
		if r.deleted || have[key] {
			continue
		}
		if changes[key] = r.value; len(changes) == maxRescued {
			if err := Update(db, changes); err != nil {
				return nil, errors.Join(err, Close(db))
			}
			clear(changes)
		}
	}
	if err := Update(db, changes); err != nil {
		return nil, errors.Join(err, Close(db))
	}
	return db, nil
}

// maxRescued bounds a transaction; Badger's own bound is about 6,000.
const maxRescued = 1000

// memHead is the part of a log's header that names an encryption key: we have
// none, so it is zero.
const memHead = 8

// replay makes a database of the logs of another: of what was written last.
func replay(dir, old string) (db *badger.DB, err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("log: panic: %v", v)
		}
	}()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	logs, err := filepath.Glob(filepath.Join(old, "*.mem"))
	if err != nil {
		return nil, err
	}
	for _, path := range logs {
		b, err := os.ReadFile(path)
		if err != nil || len(b) < memHead {
			continue
		}
		clear(b[:memHead])
		if err := os.WriteFile(filepath.Join(dir, filepath.Base(path)), b, 0o600); err != nil {
			return nil, err
		}
	}
	return Open(dir)
}

// allKeys enters the keys of a database, those of deleted records included.
func allKeys(db *badger.DB, into map[string]bool) error {
	return db.View(func(txn *badger.Txn) error {
		o := badger.DefaultIteratorOptions
		o.PrefetchValues, o.AllVersions = false, true
		it := txn.NewIterator(o)
		defer it.Close()
		for it.Rewind(); it.Valid(); it.Next() {
			into[string(it.Item().Key())] = true
		}
		return nil
	})
}

// rescued is the newest that is known of a record.
type rescued struct {
	version uint64
	value   []byte
	deleted bool
}

// What Badger keeps for itself, and how it marks records (badger/value.go).
const (
	ownKeys    = "!badger!"
	bitDelete  = 1 << 0
	bitPointer = 1 << 1 // the value is in a value log: none of ours is so long
)

// rescue reads what it can of a database's tables.
func rescue(dir string) map[string]rescued {
	found := map[string]rescued{}
	paths, _ := filepath.Glob(filepath.Join(dir, "*"+tableExt))
	for _, path := range paths {
		_ = withTable(path, func(t *table.Table) error {
			// From both ends: an iterator stops at a block that is damaged.
			for _, how := range []int{0, table.REVERSED} {
				_ = guarded(func() error { readTable(t, how, found); return nil })
			}
			return nil
		})
	}
	return found
}

func readTable(t *table.Table, how int, found map[string]rescued) {
	it := t.NewIterator(how | table.NOCACHE)
	defer it.Close()
	for it.Rewind(); it.Valid(); it.Next() {
		key, version := string(y.ParseKey(it.Key())), y.ParseTs(it.Key())
		if strings.HasPrefix(key, ownKeys) {
			continue
		}
		if old, ok := found[key]; ok && old.version >= version {
			continue
		}
		v := it.Value()
		if v.Meta&bitPointer != 0 {
			continue
		}
		found[key] = rescued{version, append([]byte{}, v.Value...), v.Meta&bitDelete != 0}
	}
}

// checkFiles looks for damage that Badger would not survive, or not notice.
func checkFiles(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	tables := 0
	for _, e := range entries {
		if !e.Type().IsRegular() {
			return fmt.Errorf("%s is no file", e.Name())
		}
		if filepath.Ext(e.Name()) == tableExt {
			tables++
		}
	}
	f, err := os.Open(filepath.Join(dir, badger.ManifestFilename))
	if errors.Is(err, os.ErrNotExist) && tables == 0 {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	listed, end, err := badger.ReplayManifestFile(f, 0, tuned(dir))
	if err != nil {
		return err
	}
	if end != st.Size() {
		return fmt.Errorf("%s ends early", badger.ManifestFilename) // tables of which it does not speak would be removed
	}
	var g errgroup.Group // all of them are read
	g.SetLimit(runtime.GOMAXPROCS(0))
	for n := range listed.Tables {
		g.Go(func() error {
			path := table.NewFilename(n, dir)
			if err := withTable(path, func(t *table.Table) error { return t.VerifyChecksum() }); err != nil {
				return fmt.Errorf("%s: %w", filepath.Base(path), err)
			}
			return nil
		})
	}
	return g.Wait()
}

const tableExt = ".sst"

// withTable calls use with a table whose blocks are checked when they are read.
func withTable(path string, use func(*table.Table) error) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if st.Size() < footer || st.Size() > maxTable {
		return fmt.Errorf("%d bytes long", st.Size())
	}
	b, err := unix.Mmap(int(f.Fd()), 0, int(st.Size()), unix.PROT_READ, unix.MAP_PRIVATE)
	if err != nil {
		return err
	}
	defer unix.Munmap(b)
	if err := checkFooter(b); err != nil {
		return err
	}
	return guarded(func() error {
		t, err := table.OpenInMemoryTable(b, 1, &table.Options{ChkMode: options.OnTableAndBlockRead, Compression: options.None})
		if err != nil {
			return err
		}
		return use(t)
	})
}

const (
	footer   = 8       // bytes of the two lengths that a table ends with
	maxTable = 1 << 30 // bytes: far more than any has
)

// checkFooter looks whether the lengths that a table ends with lie inside of
// it: Badger ends the process if not.
func checkFooter(b []byte) error {
	end := int64(len(b)) - 4
	sum := int64(binary.BigEndian.Uint32(b[end:]))
	if end -= sum + 4; end < 0 {
		return errors.New("its footer is damaged")
	}
	if index := int64(binary.BigEndian.Uint32(b[end:])); index > end {
		return errors.New("its footer is damaged")
	}
	return nil
}

// guarded is f, whose panic becomes its error: foreign bytes are read here by
// what trusts them.
func guarded(f func() error) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("damaged: %.200v", v)
		}
	}()
	return f()
}

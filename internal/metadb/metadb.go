// Package metadb opens the store's one Badger database, tuned for what imgfs
// keeps in it: some thousands of records below 4 KiB each. Everything bulky is
// a file beside it.
//
// Terms: a key is PREFIX/REST; each prefix belongs to one package ("layerdb/",
// "imagedb/", "daemon/"), which declares its keys and may read no other's.
//
// Invariants: one process has a database open (the daemon holds the flock that
// makes it so); every committed transaction is synced before Update returns,
// because names exist nowhere else. It costs about 2 ms each, and a pull
// commits as many times as it has layers.
package metadb

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"
)

// attempts is how often Open tries. A process that was killed while it made a
// log file leaves it with a length of zero; Badger then fails with z.NewFile
// once per such file, having given the file its size, so the next attempt gets
// past it. At most a memtable log and a value log can be in that state, and
// the last attempt's error is the one to tell.
const attempts = 4

// Open opens the database in dir, which it makes if absent. Close it with
// [Close].
//
// An error says that dir is not writable or the disk full, or wraps ErrUnusable:
// Badger cannot open what there is.
func Open(dir string) (*badger.DB, error) {
	db, err := open(dir)
	if err != nil {
		return nil, fmt.Errorf("metadata database: %w", err)
	}
	return db, nil
}

// ErrUnusable is wrapped by errors about a database that is damaged, as far as
// can be told.
var ErrUnusable = errors.New("cannot be used")

func open(dir string) (*badger.DB, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	if err := yield(dir); err != nil {
		return nil, err
	}
	defer take(dir)
	if err := free(dir); err != nil {
		return nil, err
	}
	if err := checkFiles(dir); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnusable, err)
	}
	var err error
	for range attempts {
		var db *badger.DB
		if db, err = badger.Open(tuned(dir)); err != nil {
			if !strings.Contains(err.Error(), "directory lock") { // Badger hides the cause of its errors
				err = fmt.Errorf("%w: %w", ErrUnusable, err)
			}
			continue
		}
		if err = allocate(dir); err != nil {
			return nil, errors.Join(err, db.Close())
		}
		return db, nil
	}
	return nil, err
}

// tuned returns the options: small logs (they are mapped at twice their size),
// no caches and no compression (the records fit in the memtable and in two or
// three tables, which are mapped anyway), the fewest goroutines Badger allows.
func tuned(dir string) badger.Options {
	return badger.DefaultOptions(dir).
		WithLogger(nil).
		WithMetricsEnabled(false).
		WithMemTableSize(4 << 20).
		WithNumMemtables(2).
		WithNumLevelZeroTables(2).
		WithNumLevelZeroTablesStall(4).
		WithNumCompactors(2). // one is refused, none lets level 0 grow
		WithNumGoroutines(1).
		WithBaseTableSize(1 << 20).
		WithValueLogFileSize(4 << 20).
		WithValueThreshold(64 << 10).
		WithCompression(options.None).
		WithBlockCacheSize(0).
		WithIndexCacheSize(0).
		WithSyncWrites(true)
}

// Scan calls visit with each key below prefix, the prefix cut off, and its
// value. Both die when visit returns. It stops at visit's first error.
func Scan(db *badger.DB, prefix string, visit func(rest string, value []byte) error) error {
	return db.View(func(txn *badger.Txn) error {
		o := badger.DefaultIteratorOptions
		o.Prefix = []byte(prefix)
		o.PrefetchValues = false // it costs a goroutine each; they are mapped, or in memory
		it := txn.NewIterator(o)
		defer it.Close()
		for it.Rewind(); it.Valid(); it.Next() {
			item := it.Item()
			rest := string(item.Key()[len(prefix):])
			if err := item.Value(func(v []byte) error { return visit(rest, v) }); err != nil {
				return err
			}
		}
		return nil
	})
}

// Get returns the value of a key, nil if there is none.
func Get(db *badger.DB, key string) (value []byte, err error) {
	err = db.View(func(txn *badger.Txn) error {
		item, err := txn.Get([]byte(key))
		if errors.Is(err, badger.ErrKeyNotFound) {
			return nil
		}
		if err == nil {
			value, err = item.ValueCopy(nil)
		}
		return err
	})
	return value, err
}

// UpdateAll is Update for any number of changes, which need not come about
// together: beyond a thousand they are several transactions.
func UpdateAll(db *badger.DB, changes map[string][]byte) error {
	part := make(map[string][]byte, min(len(changes), maxChanges))
	for k, v := range changes {
		if part[k] = v; len(part) == maxChanges {
			if err := Update(db, part); err != nil {
				return err
			}
			clear(part)
		}
	}
	if len(part) == 0 {
		return nil
	}
	return Update(db, part)
}

// maxChanges bounds a transaction; Badger's own bound is about 6,000.
const maxChanges = 1000

// Update applies sets and deletes, of which there may be some thousand, in one
// synced transaction. A nil value deletes its key; deleting an absent key is no
// error. If the disk is full, ENOSPC is returned, unless it only deletes.
func Update(db *badger.DB, changes map[string][]byte) error {
	if err := room(db.Opts().Dir, changes); err != nil {
		return err
	}
	for {
		err := db.Update(func(txn *badger.Txn) error {
			for k, v := range changes {
				var err error
				if v == nil {
					err = txn.Delete([]byte(k))
				} else {
					err = txn.Set([]byte(k), v)
				}
				if err != nil {
					return err
				}
			}
			return nil
		})
		if !errors.Is(err, badger.ErrConflict) {
			return err
		}
	}
}

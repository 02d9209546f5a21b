package metadb

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dgraph-io/badger/v4"
)

// TestRecover damages each file of a database in many ways. It is opened as it
// was, or refused and made anew of what is left: no record is another one then,
// and none that was deleted long ago is back. Nothing ends the process.
func TestRecover(t *testing.T) {
	t.Parallel()
	const batches, each = 8, 100
	value := func(key string) string { return key + strings.Repeat("=", 150) }
	live, base := filepath.Join(t.TempDir(), "live"), filepath.Join(t.TempDir(), "db")
	var tables int
	for part := range 3 { // of each but the last a table is made
		db, err := Open(live)
		if err != nil {
			t.Fatal(err)
		}
		for i := range batches {
			changes := map[string][]byte{}
			for j := range each {
				key := fmt.Sprintf("p/%d/%02d/%03d", part, i, j)
				changes[key] = []byte(value(key))
			}
			if part > 0 {
				changes[fmt.Sprintf("p/%d/%02d/000", part-1, i)] = nil
			}
			if err := Update(db, changes); err != nil {
				t.Fatal(err)
			}
		}
		if part < 2 {
			if err := Close(db); err != nil {
				t.Fatal(err)
			}
			continue
		}
		// As if it were killed now, its last records in a log alone. Badger
		// may be about to merge tables: until a copy is a whole one.
		for whole := false; !whole; {
			if err := os.RemoveAll(base); err != nil {
				t.Fatal(err)
			}
			whole = os.CopyFS(base, os.DirFS(live)) == nil && os.Remove(filepath.Join(base, "LOCK")) == nil && checkFiles(base) == nil
		}
		if err := Close(db); err != nil {
			t.Fatal(err)
		}
	}
	want := 3*batches*each - 2*batches
	entries, err := os.ReadDir(base)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		name := e.Name()
		if filepath.Ext(name) == tableExt {
			tables++
		}
		for how, damage := range map[string]func(path string, b []byte) error{
			"gone": func(path string, _ []byte) error { return os.Remove(path) },
			"half": func(path string, b []byte) error { return os.Truncate(path, int64(len(b)/2)) },
			"garbage": func(path string, b []byte) error {
				return os.WriteFile(path, []byte(strings.Repeat("garbage!", len(b)/8)), 0o600)
			},
			"a directory": func(path string, _ []byte) error {
				return errors.Join(os.Remove(path), os.Mkdir(path, 0o700))
			},
			"another first byte": func(path string, b []byte) error {
				b[0] ^= 0xff
				return os.WriteFile(path, b, 0o600)
			},
			"another last byte": func(path string, b []byte) error {
				b[len(b)-1] ^= 0x10
				return os.WriteFile(path, b, 0o600)
			},
			"another byte": func(path string, b []byte) error {
				b[min(len(b)/2, 40_000)] ^= 0x10
				return os.WriteFile(path, b, 0o600)
			},
		} {
			t.Run(name+" "+how, func(t *testing.T) {
				t.Parallel()
				dir := filepath.Join(t.TempDir(), "db")
				if err := os.CopyFS(dir, os.DirFS(base)); err != nil {
					t.Fatal(err)
				}
				path := filepath.Join(dir, name)
				b, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				if len(b) == 0 {
					t.Skip("is empty")
				}
				if err := damage(path, b); err != nil {
					t.Fatal(err)
				}
				db, err := Open(dir)
				what := "opened"
				if err != nil {
					if !errors.Is(err, ErrUnusable) {
						t.Fatal(err)
					}
					what = "made anew"
					if db, err = Recover(dir, dir+".aside"); err != nil {
						t.Fatal(err)
					}
				}
				if _, err := os.Lstat(Unfinished(dir)); !errors.Is(err, os.ErrNotExist) {
					t.Errorf("something is left over: %v", err)
				}
				n, back := 0, 0
				err = Scan(db, "p/", func(rest string, v []byte) error {
					n++
					if string(v) != value("p/"+rest) {
						t.Errorf("%s is %.60q", rest, v)
					}
					if strings.HasSuffix(rest, "/000") && rest[0] != '2' {
						back++
					}
					return nil
				})
				if err != nil {
					t.Error(err)
				}
				t.Logf("%s: %d of %d records, %d that were deleted", what, n-back, want, back)
				if filepath.Ext(name) != tableExt && filepath.Ext(name) != ".mem" && (n != want || back != 0) {
					t.Errorf("%d records, %d that were deleted; want %d", n, back, want)
				}
				if n < want/2 {
					t.Errorf("%d records are left of %d", n, want)
				}
				if err := Update(db, map[string][]byte{"p/new": []byte("new")}); err != nil {
					t.Error(err)
				}
				if err := Close(db); err != nil {
					t.Error(err)
				}
				if db, err = Open(dir); err != nil {
					t.Fatalf("again: %v", err)
				}
				if err := db.View(func(txn *badger.Txn) error { _, err := txn.Get([]byte("p/new")); return err }); err != nil {
					t.Errorf("again: %v", err)
				}
				if err := Close(db); err != nil {
					t.Error(err)
				}
			})
		}
	}
	if tables == 0 {
		t.Error("the test has no table to damage")
	}
}

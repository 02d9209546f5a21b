package metadb

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/internal/imgtest"
)

// TestFullDisk has the disk fill up under an open database. Badger writes
// through mappings of sparse files: without a look at the free space first,
// the kernel kills the process (SIGBUS).
func TestFullDisk(t *testing.T) {
	disk := t.TempDir()
	imgtest.Tmpfs(t, disk, "64m")
	db, err := Open(filepath.Join(disk, "meta"))
	if err != nil {
		t.Fatal(err)
	}
	if err := Update(db, map[string][]byte{"p/a": []byte("1"), "p/b": []byte("2")}); err != nil {
		t.Fatal(err)
	}
	filler := filepath.Join(disk, "filler")
	fill(t, filler)
	value := []byte(strings.Repeat("v", 1000))
	for range 100 {
		if err := Update(db, map[string][]byte{"p/c": value}); !errors.Is(err, unix.ENOSPC) {
			t.Fatalf("update on a full disk: %v, want ENOSPC", err)
		}
	}
	// What makes room must not need any.
	if err := Update(db, map[string][]byte{"p/a": nil}); err != nil {
		t.Errorf("delete on a full disk: %v", err)
	}
	if got := scan(t, db, "p/"); got != "b=2 " {
		t.Errorf("records %q", got)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	if err := Update(db, map[string][]byte{"p/c": []byte("3")}); err != nil {
		t.Errorf("update after it: %v", err)
	}
	// It can be closed and opened on a full disk too.
	fill(t, filler)
	for range 3 {
		if err := Close(db); err != nil {
			t.Fatal(err)
		}
		if db, err = Open(filepath.Join(disk, "meta")); err != nil {
			t.Fatal(err)
		}
		if got := scan(t, db, "p/"); got != "b=2 c=3 " {
			t.Errorf("records %q", got)
		}
		if err := Update(db, map[string][]byte{"p/b": nil, "p/d": value}); !errors.Is(err, unix.ENOSPC) {
			t.Errorf("update: %v, want ENOSPC", err)
		}
	}
	if err := Close(db); err != nil {
		t.Fatal(err)
	}

	// Without the reserve it is refused, not killed.
	if err := os.Remove(filepath.Join(disk, "meta", reserve)); err != nil {
		t.Fatal(err)
	}
	fill(t, filepath.Join(disk, "filler2"))
	if db, err := Open(filepath.Join(disk, "meta")); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("open without a reserve: %v, want ENOSPC", err)
		if err == nil {
			Close(db)
		}
	}
}

// fill writes a file until the disk is full.
func fill(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for b := make([]byte, 1<<20); len(b) > 0; {
		if _, err := f.Write(b); err != nil {
			b = b[:len(b)/2]
		}
	}
}

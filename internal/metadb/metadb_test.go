package metadb

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"github.com/dgraph-io/badger/v4"
)

// TestOpenAfterKill has an Open meet what a kill -9 between creat(2) and
// ftruncate(2) leaves. Badger itself fails on each of these once.
func TestOpenAfterKill(t *testing.T) {
	for _, tt := range []struct {
		name  string
		files []string
	}{
		{"memtable log", []string{"00099.mem"}},
		{"value log", []string{"000099.vlog"}},
		{"both", []string{"00099.mem", "000099.vlog"}},
		{"two memtable logs", []string{"00098.mem", "00099.mem"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			db, err := Open(dir)
			if err != nil {
				t.Fatal(err)
			}
			if err := Update(db, map[string][]byte{"x/a": []byte("1")}); err != nil {
				t.Fatal(err)
			}
			if err := db.Close(); err != nil {
				t.Fatal(err)
			}
			for _, f := range tt.files {
				if err := os.WriteFile(filepath.Join(dir, f), nil, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			db, err = Open(dir)
			if err != nil {
				t.Fatalf("open after the kill: %v", err)
			}
			defer db.Close()
			if got := scan(t, db, "x/"); got != "a=1 " {
				t.Errorf("records = %q, want the one written before", got)
			}
		})
	}
}

func TestOpenTwice(t *testing.T) {
	dir := t.TempDir()
	db, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if db2, err := Open(dir); err == nil {
		db2.Close()
		t.Fatal("a second Open of a database in use succeeded")
	}
}

func TestScanUpdate(t *testing.T) {
	db, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	step := func(changes map[string][]byte, want string) {
		t.Helper()
		if err := Update(db, changes); err != nil {
			t.Fatal(err)
		}
		if got := scan(t, db, "p/"); got != want {
			t.Errorf("after %q: %q, want %q", changes, got, want)
		}
	}
	step(nil, "")
	step(map[string][]byte{"p/b": []byte("2"), "p/a": []byte("1"), "pa": []byte("no"), "q/a": []byte("no")}, "a=1 b=2 ")
	step(map[string][]byte{"p/b": nil, "p/c": []byte("3")}, "a=1 c=3 ")
	step(map[string][]byte{"p/absent": nil, "p/e": {}}, "a=1 c=3 e= ")
}

func scan(t testing.TB, db *badger.DB, prefix string) string {
	t.Helper()
	var b strings.Builder
	if err := Scan(db, prefix, func(rest string, v []byte) error {
		fmt.Fprintf(&b, "%s=%s ", rest, v)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// BenchmarkOpen reports what the database costs the daemon: the time of an
// Open with 5,000 records, the anonymous memory it adds, its goroutines.
func BenchmarkOpen(b *testing.B) {
	dir := b.TempDir()
	db, err := Open(dir)
	if err != nil {
		b.Fatal(err)
	}
	changes := map[string][]byte{}
	for i := range 5000 {
		changes["x/"+strconv.Itoa(i)] = []byte(strings.Repeat("r", 300))
		if len(changes) == 500 {
			if err := Update(db, changes); err != nil {
				b.Fatal(err)
			}
			clear(changes)
		}
	}
	if err := db.Close(); err != nil {
		b.Fatal(err)
	}
	runtime.GC()
	before, goroutines := rssAnon(b), runtime.NumGoroutine()
	first := true
	for b.Loop() {
		db, err := Open(dir)
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if first {
			b.ReportMetric(float64(rssAnon(b)-before), "RssAnon-KiB")
			b.ReportMetric(float64(runtime.NumGoroutine()-goroutines), "goroutines")
			first = false
		}
		if err := db.Close(); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

// BenchmarkUpdate is one synced record.
func BenchmarkUpdate(b *testing.B) {
	db, err := Open(b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	defer db.Close()
	for b.Loop() {
		if err := Update(db, map[string][]byte{"x/a": []byte("1")}); err != nil {
			b.Fatal(err)
		}
	}
}

// rssAnon returns the process's anonymous resident memory in KiB.
func rssAnon(b testing.TB) int64 {
	b.Helper()
	data, err := os.ReadFile("/proc/self/status")
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, "RssAnon:"); ok {
			n, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			if err != nil {
				b.Fatal(err)
			}
			return n
		}
	}
	b.Fatal("no RssAnon in /proc/self/status")
	return 0
}

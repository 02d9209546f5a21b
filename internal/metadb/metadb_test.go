package metadb

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

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
			if err := Close(db); err != nil {
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
			defer Close(db)
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
	defer Close(db)
	if db2, err := Open(dir); err == nil {
		Close(db2)
		t.Fatal("a second Open of a database in use succeeded")
	}
}

func TestScanUpdate(t *testing.T) {
	db, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer Close(db)
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

// childEnv names the directory of the database that a child process opens.
const childEnv = "IMGFS_METADB_CHILD"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childEnv); dir != "" {
		child(dir)
		return
	}
	os.Exit(m.Run())
}

// child opens a database and says what that added to its process: KiB of
// anonymous memory, goroutines, microseconds.
func child(dir string) {
	runtime.GC()
	before, goroutines, start := rssAnon(), runtime.NumGoroutine(), time.Now()
	db, err := Open(dir)
	if err != nil {
		panic(err)
	}
	took := time.Since(start).Microseconds()
	fmt.Println(rssAnon()-before, runtime.NumGoroutine()-goroutines, took)
	if err := Close(db); err != nil {
		panic(err)
	}
}

// BenchmarkOpen reports what the database costs a fresh process: the time of
// an Open with 5,000 records, the anonymous memory it adds, its goroutines.
func BenchmarkOpen(b *testing.B) {
	dir := b.TempDir()
	db, err := Open(dir)
	if err != nil {
		b.Fatal(err)
	}
	for i := range 10 {
		changes := map[string][]byte{}
		for j := range 500 {
			changes["x/"+strconv.Itoa(i*500+j)] = []byte(strings.Repeat("r", 300))
		}
		if err := Update(db, changes); err != nil {
			b.Fatal(err)
		}
	}
	if err := Close(db); err != nil {
		b.Fatal(err)
	}
	var sum [3]float64
	n := 0.0
	for b.Loop() {
		c := exec.Command(os.Args[0])
		c.Env = append(os.Environ(), childEnv+"="+dir)
		out, err := c.Output()
		if err != nil {
			b.Fatal(err)
		}
		var v [3]float64
		if _, err := fmt.Sscan(string(out), &v[0], &v[1], &v[2]); err != nil {
			b.Fatalf("%v: %s", err, out)
		}
		for i := range v {
			sum[i] += v[i]
		}
		n++
	}
	b.ReportMetric(sum[0]/n, "RssAnon-KiB")
	b.ReportMetric(sum[1]/n, "goroutines")
	b.ReportMetric(sum[2]/n, "open-µs")
}

// BenchmarkUpdate is one synced record.
func BenchmarkUpdate(b *testing.B) {
	db, err := Open(b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	defer Close(db)
	for b.Loop() {
		if err := Update(db, map[string][]byte{"x/a": []byte("1")}); err != nil {
			b.Fatal(err)
		}
	}
}

// rssAnon returns the process's anonymous resident memory in KiB.
func rssAnon() int64 {
	data, err := os.ReadFile("/proc/self/status")
	if err != nil {
		panic(err)
	}
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, "RssAnon:"); ok {
			n, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			if err != nil {
				panic(err)
			}
			return n
		}
	}
	panic("no RssAnon in /proc/self/status")
}

// TestCloseRemoved: a store that somebody removed does not keep its process.
func TestCloseRemoved(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "db")
	db, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Update(func(txn *badger.Txn) error { return txn.Set([]byte("k"), []byte("v")) }); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := Close(db); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("error %v", err)
	}
}

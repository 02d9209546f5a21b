package lazy

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"testing"
)

// FuzzPresent opens a data file of which some bytes are right, with any file
// "present": whatever that says, no wrong byte is served.
func FuzzPresent(f *testing.F) {
	x := newFixture(f, shape{spans: 9, size: 100, gap: 3})
	table := hashTable(x.table)
	empty := append(header{table: table}.encode(), make([]byte, 9*sumSize)...)
	sums := make([]byte, 9*sumSize)
	full := header{clean: true, table: table, sums: hashSums(sums)}.encode()
	f.Add([]byte{})
	f.Add(empty)
	f.Add(append(full, sums...))
	f.Add(append(bytes.Clone(empty[:headerSize]), bytes.Repeat([]byte{1}, 9*sumSize)...))
	f.Add(empty[:headerSize+3])
	dir := filled(f, x, 1, 2, 5)
	real, err := os.ReadFile(filepath.Join(dir, PresentName))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(real)
	f.Fuzz(func(t *testing.T, b []byte) {
		h, sums, ok := parsePresent(b, 9, table)
		if ok && (len(sums) != 9*sumSize || h.table != table) {
			t.Fatal("accepted")
		}
		dir := t.TempDir()
		data := bytes.Clone(x.data)
		clear(data[:400])
		if err := os.WriteFile(filepath.Join(dir, DataName), data, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, PresentName), b, 0o600); err != nil {
			t.Fatal(err)
		}
		o := x.options(&script{})
		file, err := Open(dir, o)
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		x.check(t, file, 0, int64(len(x.data)))
		if err := file.Complete(context.Background(), nil); err != nil || !file.Whole() {
			t.Fatal(err)
		}
	})
}

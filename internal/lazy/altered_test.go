package lazy

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

// alter writes to the data file behind the File's back.
func alter(t *testing.T, dir string, change func(f *os.File) error) {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(dir, DataName), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := change(f); err != nil {
		t.Fatal(err)
	}
	// The clock of file times ticks slowly; a change that is seen a moment
	// after another has its time.
	if err := os.Chtimes(filepath.Join(dir, DataName), time.Time{}, time.Now().Add(time.Second)); err != nil {
		t.Fatal(err)
	}
}

// What precedes a step is compared with its checksum before anything is decoded
// with it: damage does not spread, and is mended.
func TestDamageBeforeStep(t *testing.T) {
	t.Parallel()
	x := newGzip(t, 4<<20)
	step := 0
	for i := range x.table.Spans() {
		if x.table.Needs(i) < i {
			step = i
			break
		}
	}
	s, dir := &script{}, t.TempDir()
	f := create(t, dir, x.options(s))
	before := x.table.At(step - 1)
	x.check(t, f, before.Off, before.Len)
	alter(t, dir, func(d *os.File) error {
		_, err := d.WriteAt([]byte("altered"), before.Off+before.Len-100)
		return err
	})
	next := x.table.At(step)
	x.check(t, f, next.Off, next.Len)
	x.check(t, f, before.Off, before.Len)
}

// A data file that somebody else cuts or writes to while it is open is compared
// with its checksums, when it is looked at, written to, or closed.
func TestAlteredWhileOpen(t *testing.T) {
	t.Parallel()
	x := newGzip(t, 4<<20)
	changes := map[string]func(d *os.File) error{
		"cut": func(d *os.File) error { return d.Truncate(4096) },
		"written": func(d *os.File) error {
			_, err := d.WriteAt(make([]byte, 1<<20), 1<<20)
			return err
		},
	}
	notice := map[string]func(t *testing.T, f *File, dir string, o Options) *File{
		"looked at": func(t *testing.T, f *File, _ string, _ Options) *File {
			if err := f.Recheck(); err != nil {
				t.Fatal(err)
			}
			return f
		},
		"written to": func(t *testing.T, f *File, _ string, _ Options) *File {
			x.check(t, f, 4<<20-2000, 1000)
			return f
		},
		"closed": func(t *testing.T, f *File, dir string, o Options) *File {
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
			return open(t, dir, o)
		},
	}
	for how, change := range changes {
		for when, see := range notice {
			t.Run(how+", "+when, func(t *testing.T) {
				t.Parallel()
				s, dir := &script{}, t.TempDir()
				o := x.options(s)
				f := create(t, dir, o)
				// No further, and to its end: what is read ahead would be there
				// before it is to be written, or be written behind the change.
				if _, err := f.Fill(t.Context(), 0, 2<<20, 2<<20); err != nil {
					t.Fatal(err)
				}
				f.tasks.Wait()
				alter(t, dir, change)
				f = see(t, f, dir, o)
				x.check(t, f, 0, int64(len(x.data)))
			})
		}
	}
}

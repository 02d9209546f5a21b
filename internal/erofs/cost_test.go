package erofs

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"testing"
)

// largeTree adds about count files of one chunk to b, 40 to a directory, with
// names like those of a Debian image.
func largeTree(tb testing.TB, b *Builder, count int) {
	root, err := b.Add(&Inode{Mode: dirMode})
	if err != nil {
		tb.Fatal(err)
	}
	dir, file := Inode{Mode: dirMode}, oneChunk(3000, 0, 1)
	var in Ref
	for i := range count {
		if i%40 == 0 {
			if in, err = b.Add(&dir); err != nil {
				tb.Fatal(err)
			}
			if err := b.Link(root, fmt.Sprintf("directory%d", i/40), in); err != nil {
				tb.Fatal(err)
			}
			continue
		}
		file.Chunks[0].Block = uint32(i)
		ref, err := b.Add(&file)
		if err != nil {
			tb.Fatal(err)
		}
		if err := b.Link(in, fmt.Sprintf("file-%x.py", i*2654435761%1000003), ref); err != nil {
			tb.Fatal(err)
		}
	}
}

var largeDevices = []Device{{"", 1 << 30}}

// largeImage writes a tree of count entries, or one directory of as many, to a
// file and opens it.
func largeImage(tb testing.TB, count int, flat bool) *Image {
	tb.Helper()
	b := NewBuilder(largeDevices, "")
	if flat {
		root, _ := b.Add(&Inode{Mode: dirMode})
		file, _ := b.Add(&Inode{Mode: regular})
		for i := range count {
			if err := b.Link(root, fmt.Sprintf("file-%d", i), file); err != nil {
				tb.Fatal(err)
			}
		}
	} else {
		largeTree(tb, b, count)
	}
	path := filepath.Join(tb.TempDir(), "index")
	f, err := os.Create(path)
	if err != nil {
		tb.Fatal(err)
	}
	defer f.Close()
	if _, err := b.WriteTo(f); err != nil {
		tb.Fatal(err)
	}
	m, err := Open(path)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := m.Close(); err != nil {
			tb.Error(err)
		}
	})
	return m
}

func TestReaderAllocatesNothing(t *testing.T) {
	devices, tree := zoo()
	m := open(t, write(t, build(t, devices, "", tree)))
	dir := walkTo(t, m, "sizes/129")
	var name []byte
	m.ReadDir(dir, 0, func(e *Dirent) bool { name = e.Name; return true })
	if _, _, err := m.Lookup(dir, name); err != nil {
		t.Fatal(err)
	}
	file, link, attrs := walkTo(t, m, "files/chunks"), walkTo(t, m, "symlinks/4095"), walkTo(t, m, "xattrs/many")
	var a Attr
	entries := 0
	count := func(*Dirent) bool { entries++; return true }
	for _, c := range []struct {
		name string
		call func()
	}{
		{"Stat", func() { m.Stat(file, &a) }},
		{"Lookup", func() { m.Lookup(dir, name) }},
		{"Lookup of an absent name", func() { m.Lookup(dir, name[1:]) }},
		{"ReadDir", func() { m.ReadDir(dir, 0, count) }},
		{"ReadLink", func() { m.ReadLink(link) }},
		{"Extent", func() { m.Extent(file, 5000) }},
		{"Extent at the end", func() { m.Extent(file, 1<<40) }},
		{"Xattr", func() { m.Xattr(attrs, "user.many7") }},
		{"Xattr that is absent", func() { m.Xattr(attrs, "security.capability") }},
	} {
		if n := testing.AllocsPerRun(100, c.call); n != 0 {
			t.Errorf("%s allocates %v times", c.name, n)
		}
	}
	if entries == 0 {
		t.Error("ReadDir found nothing")
	}
}

func BenchmarkOpen(b *testing.B) {
	for _, count := range []int{1000, 1_000_000} {
		path := filepath.Join(b.TempDir(), "index")
		f, err := os.Create(path)
		if err != nil {
			b.Fatal(err)
		}
		builder := NewBuilder(largeDevices, "")
		largeTree(b, builder, count)
		if _, err := builder.WriteTo(f); err != nil {
			b.Fatal(err)
		}
		f.Close()
		b.Run(fmt.Sprint(count), func(b *testing.B) {
			for b.Loop() {
				m, err := Open(path)
				if err != nil {
					b.Fatal(err)
				}
				m.Close()
			}
		})
	}
}

func BenchmarkLookup(b *testing.B) {
	for _, count := range []int{1000, 100_000, 1_000_000} {
		m := largeImage(b, count, true)
		var names [1024][]byte
		for i := range names {
			names[i] = fmt.Appendf(nil, "file-%d", i*7919%count)
		}
		b.Run(fmt.Sprint(count), func(b *testing.B) {
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				if _, _, err := m.Lookup(m.Root(), names[i%len(names)]); err != nil {
					b.Fatal(err)
				}
				i++
			}
		})
	}
}

func BenchmarkReadDir(b *testing.B) {
	const count = 1000
	m := largeImage(b, count, true)
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		m.ReadDir(m.Root(), 0, func(*Dirent) bool { n++; return true })
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(n), "ns/entry")
}

func BenchmarkStat(b *testing.B) {
	m := largeImage(b, 1000, false)
	n := walkTo(b, m, "directory1/"+fmt.Sprintf("file-%x.py", 41*2654435761%1000003))
	b.ReportAllocs()
	var a Attr
	for b.Loop() {
		if err := m.Stat(n, &a); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkBuild(b *testing.B) {
	const count = 1_000_000
	for b.Loop() {
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		builder := NewBuilder(largeDevices, "")
		largeTree(b, builder, count)
		n, err := builder.WriteTo(io.Discard)
		if err != nil {
			b.Fatal(err)
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		runtime.KeepAlive(builder)
		b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/count, "heapB/entry")
		b.ReportMetric(float64(after.Sys)/count, "sysB/entry")
		b.ReportMetric(float64(n)/count, "imageB/entry")
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/count, "ns/entry")
}

// BenchmarkBuildFlat is a million names in one directory, not in order.
func BenchmarkBuildFlat(b *testing.B) {
	const count = 1_000_000
	for b.Loop() {
		builder := NewBuilder(nil, "")
		root, _ := builder.Add(&Inode{Mode: dirMode})
		for i := range count {
			file, _ := builder.Add(&Inode{Mode: regular})
			if err := builder.Link(root, fmt.Sprintf("file-%x", uint32(i)*2654435761), file); err != nil {
				b.Fatal(err)
			}
		}
		if _, err := builder.WriteTo(io.Discard); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/count, "ns/entry")
}

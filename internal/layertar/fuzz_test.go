package layertar

import (
	"archive/tar"
	"bytes"
	"io"
	"math/rand/v2"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/imgtest"
)

// FuzzIndexer feeds arbitrary streams, cut at random. There is no panic, no
// cut matters, an index that is made can be walked to the end, and what
// archive/tar refuses is refused.
func FuzzIndexer(f *testing.F) {
	for _, text := range []string{
		"dir a\nfile a/b \"x\" xattr:user.a=b mtime=1.5\nlink c a/b\nsymlink d a\nfile d/e \"y\"\n",
		"file .wh.a\nfile b/.wh..wh..opq\nfile /.wh..wh.plnk/1 \"x\"\nlink c .wh..wh.plnk/1\n",
		"file a sparse=old size=5000 map=0+1,9+1,20+1,30+1,40+1,512+512\n",
		"file a sparse=1.0 size=5000 map=0+1,4096+4\nfile b sparse=0.0 size=700 map=512+3\n",
		"file " + strings.Repeat("l", 120) + " format=gnu\nlink a b\nlink b a\n",
		"char c 1:3 format=gnu base256=1\nglobal a=b\nfile v format=v7\nzeros 1024\nbytes \"x\"\n",
		"symlink a b\nsymlink b a\nfile a/x\n",
	} {
		b, err := imgtest.Tar(text)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, uint64(1))
	}
	limits := Limits{Entries: 500, Memory: 1 << 20, Special: 8 << 10, Path: 300, Depth: 30, Device: 8 << 20}
	f.Fuzz(func(t *testing.T, stream []byte, seed uint64) {
		// A checksum that does not match ends most mutations: mend them.
		stream = mendChecksums(bytes.Clone(stream))
		whole, data, err := index(stream, limits)
		rnd := rand.New(rand.NewPCG(seed, 0))
		x := NewIndexer(limits)
		var err2 error
		for p := stream; len(p) > 0 && err2 == nil; {
			n := 1 + rnd.IntN(min(len(p), 700))
			_, err2 = x.Write(p[:n:n])
			p = p[n:]
		}
		if err2 == nil {
			_, err2 = x.Finish(io.Discard, strings.Repeat("0", 64))
		}
		if (err == nil) != (err2 == nil) || err != nil && err.Error() != err2.Error() {
			t.Fatalf("whole: %v, in pieces: %v", err, err2)
		}
		if err != nil {
			if fault.KindOf(err) != fault.Integrity {
				t.Fatalf("%v is %v", err, fault.KindOf(err))
			}
			return
		}
		if list := imgtest.List(whole, data.read); strings.Contains(list, "error: ") {
			t.Fatal(list)
		}
		if err := readAll(stream); err != nil {
			t.Fatalf("archive/tar refuses: %v", err)
		}
	})
}

// readAll reads a stream with archive/tar, the maps of sparse files included.
func readAll(stream []byte) error {
	r := tar.NewReader(bytes.NewReader(stream))
	for {
		if _, err := r.Next(); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
	}
}

// mendChecksums gives every record that could be a header the checksum it needs.
func mendChecksums(b []byte) []byte {
	for off := 0; off+blockSize <= len(b); off += blockSize {
		h := b[off : off+blockSize]
		if !bytes.Contains(h[257:265], []byte("ustar")) {
			continue
		}
		sum := 0
		for i, c := range h {
			if i >= 148 && i < 156 {
				c = ' '
			}
			sum += int(c)
		}
		for i := 5; i >= 0; i-- {
			h[148+i] = byte('0' + sum&7)
			sum >>= 3
		}
		h[154], h[155] = 0, ' '
	}
	return b
}

// TestMemoryIsBounded feeds endless archives of each kind that makes an Indexer
// hold something, until it refuses. What it holds then is near the limit.
func TestMemoryIsBounded(t *testing.T) {
	const limit = 8 << 20
	segments := "0+1"
	for i := 1; i < 200; i++ {
		segments += "," + strconv.Itoa(3*i) + "+1"
	}
	kinds := map[string]func(i int) string{
		"names":     func(i int) string { return "file " + number0(i) + strings.Repeat("n", 200) + "\n" },
		"parents":   func(i int) string { return "file " + strings.Repeat(number0(i)+"/", 100) + "f\n" },
		"symlinks":  func(i int) string { return "symlink " + number0(i) + " " + strings.Repeat("t", 4000) + "\n" },
		"links":     func(i int) string { return "link " + number0(i) + " " + strings.Repeat("t/", 2000) + number0(i) + "\n" },
		"xattrs":    func(i int) string { return "file " + number0(i) + " xattr:user.a=" + strings.Repeat("x", 30000) + "\n" },
		"sparse":    func(i int) string { return "file a sparse=0.1 size=9000 map=" + segments + "\n" },
		"same name": func(i int) string { return "file a \"" + number0(i) + "\"\n" },
	}
	for name, entry := range kinds {
		t.Run(name, func(t *testing.T) {
			x := NewIndexer(Limits{Memory: limit, Entries: 1 << 30})
			var before, after runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&before)
			var err error
			for i := 0; err == nil && i < 100000; i++ {
				b, terr := imgtest.Tar(entry(i) + "noend\n")
				if terr != nil {
					t.Fatal(terr)
				}
				_, err = x.Write(b)
			}
			runtime.GC()
			runtime.ReadMemStats(&after)
			if err == nil || !strings.Contains(err.Error(), "more than") {
				t.Fatalf("not refused: %v", err)
			}
			// Slices that grow keep up to as much again in reserve.
			if held := int64(after.HeapAlloc) - int64(before.HeapAlloc); held > 3*limit {
				t.Errorf("holds %d bytes, the limit is %d", held, limit)
			}
			runtime.KeepAlive(x)
		})
	}
}

func number0(i int) string {
	return string([]byte{byte('a' + i/17576%26), byte('a' + i/676%26), byte('a' + i/26%26), byte('a' + i%26), byte('a' + i/456976%26)})
}

// TestChunksAreBounded makes sparse files whose place costs more than their
// map: the indexes of a large file of few, unaligned segments.
func TestChunksAreBounded(t *testing.T) {
	one, err := imgtest.Tar("file a sparse=0.1 size=33554433 map=0+1,9+1\nnoend\n")
	if err != nil {
		t.Fatal(err)
	}
	x := NewIndexer(Limits{Memory: 1 << 20})
	for i := range 100 {
		b := bytes.Clone(one)
		for off := 0; off < len(b); off += blockSize {
			if b[off] == 'a' && b[off+1] == 0 {
				b[off+1], b[off+2] = byte('a'+i%26), byte('a'+i/26)
			}
		}
		if _, err := x.Write(mendChecksums(b)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := x.Finish(io.Discard, ""); err == nil || !strings.Contains(err.Error(), "more than") {
		t.Errorf("100 files of 4096 chunks within 1 MiB: %v", err)
	}
}

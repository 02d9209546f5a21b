package layertar

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/imgfs/imgfs/internal/erofs"
	"github.com/imgfs/imgfs/internal/imgtest"
)

// TestBombs gives entries that are small when compressed, and whose cost must
// not grow with the square of their size.
func TestBombs(t *testing.T) {
	t.Parallel()
	feed := func(x *Indexer, stream []byte) error {
		_, err := x.Write(stream)
		return err
	}
	tarOf := func(text string) []byte {
		b, err := imgtest.Tar(text)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	var attributes []erofs.Xattr
	for i := range 100_000 {
		attributes = append(attributes, erofs.Xattr{Name: fmt.Sprintf("user.%06d", 999_999-i)})
	}

	// Links that lead to each other, with much behind each.
	var links strings.Builder
	long := strings.Repeat("/"+strings.Repeat("n", 250)+"/..", 7)
	for i := range 250 {
		fmt.Fprintf(&links, "symlink l%d l%d%s\n", i, i+1, long)
	}
	links.WriteString("dir l250\n")

	// A count with a megabyte of zeros in front.
	sparse := tarOf("file s sparse=1.0 size=2000000 map=0+1000000\n")
	at := bytes.Index(sparse, []byte("1\n0\n1000000\n"))
	if at < 0 {
		t.Fatal("no map")
	}
	sparse = append(append(bytes.Clone(sparse[:at]), bytes.Repeat([]byte("0"), 900_000)...), "90000\n"...)
	sparse = append(sparse, make([]byte, 100_000)...)

	for name, bomb := range map[string]func(x *Indexer) error{
		"attributes": func(x *Indexer) error { return x.Add(&Entry{Name: "a", Type: '0', Xattrs: attributes}) },
		"links":      func(x *Indexer) error { return feed(x, tarOf(links.String()+"file l0/a\n")) },
		"map":        func(x *Indexer) error { return feed(x, sparse) },
	} {
		start := time.Now()
		x := NewIndexer(Limits{})
		err := bomb(x)
		if err == nil {
			_, err = x.Finish(io.Discard, "tag")
		}
		if took := time.Since(start); err == nil || took > 10*time.Second {
			t.Errorf("%s: %v, after %v", name, err, took)
		} else {
			t.Logf("%s: %v, after %v", name, err, took)
		}
	}
}

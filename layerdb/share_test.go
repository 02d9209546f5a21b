package layerdb

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/imgfs/imgfs/internal/toc"
)

// TestShare reads a packed layer of which another has most files already: by
// their digests they are taken from there. What the other has not, or no longer
// has whole, is fetched.
func TestShare(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	for _, kind := range []string{toc.Estargz, toc.ZstdChunked} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			p, r := newLazyPlace(t)
			older, _ := lazyLayer(t, r, kind, lazyText())
			text := strings.Replace(lazyText(), "127.0.0.1 localhost", "127.0.0.1 newer", 1)
			newer, _ := lazyLayer(t, r, kind, fmt.Sprintf("file own %q\n%s", bigFile(9), text))
			k1, err := p.Import(ctx, older)
			if err != nil {
				t.Fatal(err)
			}
			k2, err := p.Import(ctx, newer)
			if err != nil {
				t.Fatal(err)
			}
			p.want(k1, "big0", bigFile(0))
			p.reopen()
			r.down.Store(true)
			p.want(k2, "big0", bigFile(0))
			if _, err := p.content(k2, "own"); err == nil {
				t.Error("a file that nobody has was read offline")
			}
			r.down.Store(false)
			p.want(k2, "own", bigFile(9))
			p.want(k2, "big1", bigFile(1))

			// And back, after the lender was damaged.
			if _, err := p.Evict(ctx, k1); err != nil {
				t.Fatal(err)
			}
			flip(t, p.dataPath(k2), 3<<20)
			p.want(k1, "big0", bigFile(0))
			p.want(k1, "big1", bigFile(1))
			if err := p.Seal(ctx, k1, nil); err != nil {
				t.Error(err)
			}
		})
	}
}

package layerdb

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"

	"github.com/imgfs/imgfs/internal/metadb"
	"github.com/imgfs/imgfs/internal/toc"
)

// lazyChildEnv is childEnv of a process that works on lazy layers.
const lazyChildEnv = "IMGFS_LAYERDB_LAZY_CHILD"

// lazyKillText is small: what matters is how often something is written.
func lazyKillText() string {
	return "file a first\n" + random(7, 3<<19) + "file z last\n"
}

// lazyKillLayers puts a layer of each form on the remote.
func lazyKillLayers(t testing.TB, r *remote) []ImportSpec {
	var specs []ImportSpec
	for _, kind := range []string{toc.Own, toc.Estargz} {
		spec, _ := lazyLayer(t, r, kind, lazyKillText())
		specs = append(specs, spec)
	}
	return specs
}

// lazyChild imports, reads, evicts, completes, seals and removes, in any order,
// until it is killed.
func lazyChild(t testing.TB, dir string) {
	fail := func(err error) {
		if err != nil {
			fmt.Println("failed:", err)
			os.Exit(1)
		}
	}
	db, err := metadb.Open(dir + "/meta")
	fail(err)
	r := &remote{}
	specs := lazyKillLayers(t, r)
	s, err := Open(dir, db, Options{Merge: mergeFlat, Source: r.source})
	fail(err)
	p := &place{Store: s, t: t, dir: dir}
	ctx := context.Background()
	fmt.Println("passing")
	for {
		key, err := p.Import(ctx, r.again(t, specs[rand.IntN(len(specs))]))
		fail(err)
		switch rand.IntN(8) {
		case 0:
			_, err = p.Evict(ctx, key)
		case 1:
			err = p.Seal(ctx, key, nil)
		case 2:
			err = p.Complete(ctx, key, nil)
		case 3:
			if rand.IntN(4) == 0 {
				_, err = p.GC(ctx)
			}
		default:
			_, err = p.content(key, []string{"a", "f", "z"}[rand.IntN(3)])
		}
		fail(err)
	}
}

// TestLazyKill kills a process at random moments of an eventful life. What the
// next process reads is right, and what it believes to be sealed is so.
func TestLazyKill(t *testing.T) {
	t.Parallel()
	if dir := os.Getenv(lazyChildEnv); dir != "" {
		lazyChild(t, dir)
	}
	rounds := 12
	if testing.Short() {
		rounds = 4
	}
	r := &remote{}
	specs := lazyKillLayers(t, r)
	want := map[string]string{"a": "first", "z": "last"}
	ctx := context.Background()
	dir := t.TempDir()
	met := map[string]int{}
	for round := range rounds {
		kill(t, dir, lazyChildEnv, "-test.run=^TestLazyKill$")
		p := &place{t: t, dir: dir}
		p.opts.Source = r.source
		p.open()
		if n := p.Problems(); len(n) > 0 {
			t.Errorf("round %d: problems %q", round, n)
		}
		list, err := p.Layers()
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range list {
			met["layers"]++
			if l.Sealed {
				met["sealed"]++
			}
			if l.Present > 0 {
				met["with data"]++
			}
		}
		// What is here can be read offline or not at all; never wrongly.
		r.down.Store(true)
		for _, spec := range specs {
			key, ok := p.Imported(spec.Desc, spec.Index.Form, spec.Index.Digest, spec.Scope)
			if !ok {
				continue
			}
			for name, content := range want {
				if got, err := p.content(key, name); err == nil {
					met["read offline"]++
					if string(got) != content {
						t.Errorf("round %d: %s is %q offline", round, name, got)
					}
				}
			}
		}
		r.down.Store(false)
		for _, spec := range specs {
			key, err := p.Import(ctx, r.again(t, spec))
			if err != nil {
				t.Fatalf("round %d: %v", round, err)
			}
			for name, content := range want {
				p.want(key, name, content)
			}
			if round%4 == 3 {
				if err := p.Seal(ctx, key, nil); err != nil {
					t.Errorf("round %d: %v", round, err)
				}
				if bad, err := p.Verify(ctx, key, false); bad > 0 || err != nil {
					t.Errorf("round %d: verify: %d, %v", round, bad, err)
				}
			}
		}
		if round%4 == 3 {
			if _, err := p.GC(ctx); err != nil {
				t.Fatal(err)
			}
			p.nothing()
		}
		p.close()
	}
	t.Logf("met after %d kills: %v", rounds, met)
	if met["layers"] == 0 || met["with data"] == 0 {
		t.Error("no kill hit a layer: the test shows nothing")
	}
}

package layerdb

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/imgfs/imgfs/internal/erofs"
	"github.com/imgfs/imgfs/internal/id"
	"github.com/imgfs/imgfs/internal/imgtest"
	"github.com/imgfs/imgfs/internal/metadb"
)

// childEnv names the directory of the store that a child process works on.
const childEnv = "IMGFS_LAYERDB_CHILD"

// killLayers returns the layers that child and test work on: plain, some MiB.
func killLayers() []Spec {
	var specs []Spec
	for i := range 4 {
		text := fmt.Sprintf("file f%d size=%d\nfile top %d\n", i, 2<<20+i, i)
		b, err := imgtest.Tar(text)
		if err != nil {
			panic(err)
		}
		specs = append(specs, Spec{
			DiffID: id.DiffIDFrom(sha256.Sum256(b)), Blob: id.BlobOf(b), Size: int64(len(b)),
			Open: func(context.Context) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil },
		})
	}
	return specs
}

// child takes layers, builds chains, and removes them again, until it is
// killed. It says "passing" when it begins.
func child() {
	fail := func(err error) {
		if err != nil {
			fmt.Println("failed:", err)
			os.Exit(1)
		}
	}
	dir := os.Getenv(childEnv)
	db, err := metadb.Open(dir + "/meta")
	fail(err)
	s, err := Open(dir, db, Options{Merge: mergeFlat})
	fail(err)
	specs := killLayers()
	fmt.Println("passing")
	for {
		var diffs []id.LayerKey
		for _, spec := range specs {
			_, _, err := s.Ensure(context.Background(), spec, nil)
			fail(err)
			diffs = append(diffs, spec.DiffID.Key())
			fail(s.Retain("image:1", diffs))
			c, err := s.Chain(context.Background(), diffs)
			fail(err)
			c.Release()
		}
		_, err := s.Release("image:1")
		fail(err)
	}
}

// TestKill kills a process at random moments of passes, merges and removals.
// Whatever the next process finds is whole, and it can go on.
func TestKill(t *testing.T) {
	rounds := 25
	if testing.Short() {
		rounds = 5
	}
	specs := killLayers()
	dir := t.TempDir()
	met := map[string]int{}
	for round := range rounds {
		kill(t, dir, childEnv)
		for _, sub := range []string{"tmp", "layers", "chains"} {
			names, err := readNames(dir + "/" + sub)
			if err != nil {
				t.Fatal(err)
			}
			met[sub] += len(names)
		}

		p := &place{t: t, dir: dir}
		p.open()
		if n := p.names("tmp"); len(n) > 0 {
			t.Errorf("round %d: Open left in tmp/: %q", round, n)
		}
		if n := p.Problems(); len(n) > 0 {
			t.Errorf("round %d: problems %q", round, n)
		}
		list, err := p.Layers()
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range list {
			if !p.Has(l.DiffID.Key()) {
				t.Errorf("round %d: layer %s is not whole", round, l.DiffID.Short())
			}
			if _, err := p.Verify(context.Background(), l.DiffID.Key(), false); err != nil {
				t.Errorf("round %d: %v", round, err)
			}
		}
		chains, err := p.storedChains()
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range chains {
			img, err := erofs.Open(p.chainIndex(c))
			if err != nil {
				t.Errorf("round %d: chain %s: %v", round, c.Short(), err)
				continue
			}
			img.Close()
		}
		var diffs []id.LayerKey
		for _, spec := range specs {
			if _, _, err := p.Ensure(context.Background(), spec, nil); err != nil {
				t.Fatalf("round %d: %v", round, err)
			}
			diffs = append(diffs, spec.DiffID.Key())
		}
		if got := p.read(diffs, "top"); got != "3" {
			t.Errorf("round %d: top = %q", round, got)
		}
		if round%2 == 0 { // the next one begins with nothing
			if _, err := p.Release("image:1"); err != nil {
				t.Fatal(err)
			}
			if _, err := p.GC(context.Background()); err != nil {
				t.Fatal(err)
			}
			p.nothing()
		}
		p.close()
	}
	t.Logf("entries met after %d kills: %v", rounds, met)
	if met["tmp"] == 0 {
		t.Error("no kill hit a pass: the test shows nothing")
	}
}

// kill runs a child on dir, which the variable env makes one, and kills it after
// a random time.
func kill(t *testing.T, dir, env string, args ...string) {
	t.Helper()
	c := exec.Command(os.Args[0], args...)
	c.Env = append(os.Environ(), env+"="+dir)
	c.Stderr = os.Stderr
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(out)
	first, err := lines.ReadString('\n')
	if err != nil || first != "passing\n" {
		c.Process.Kill()
		c.Wait()
		t.Fatalf("child: %q %v", first, err)
	}
	timer := time.AfterFunc(time.Duration(rand.IntN(int(150*time.Millisecond))), func() { c.Process.Kill() })
	rest, _ := io.ReadAll(lines)
	timer.Stop()
	c.Wait()
	if len(rest) > 0 {
		t.Fatalf("child: %s", rest)
	}
}

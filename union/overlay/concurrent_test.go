package overlay_test

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

// workerChain is a chain with a random tree for each of n workers, that share
// nothing, and one named shared.
func workerChain(r *rand.Rand, can abilities, n int) chain {
	c := chain{"dir . mode=0755 mtime=1000000001\n", "", ""}
	for w := range n + 1 {
		dir := fmt.Sprint("w", w)
		if w == n {
			dir = "shared"
		}
		g := chainGenerator{r: r, can: can, attrs: map[string]string{}}
		for i := range c {
			g.lines, g.layer, g.links = nil, i, nil
			if i == 0 {
				g.lines = append(g.lines, "dir "+dir+" mode=0755 mtime=1000000001")
			}
			g.directory(dir+"/", 1)
			for _, p := range slices.Clone(g.links) {
				g.link(p)
			}
			c[i] += strings.Join(g.lines, "\n") + "\n"
		}
	}
	return c
}

// TestConcurrent: workers that have a directory each see what the model has,
// while others make a mess of a directory they share. That has whatever it
// has, but nothing fails with what no file system may say, and the next mount
// shows the same.
func TestConcurrent(t *testing.T) {
	for _, k := range []kind{asRoot, rootless} {
		t.Run(k.name, func(t *testing.T) {
			workers, mess, ops := 6, 6, 150
			if *long {
				workers, mess, ops = 16, 16, 800
			}
			c := workerChain(rand.New(rand.NewPCG(max(1, *seed), 0x636f_6e63)), k.can, workers)
			u := start(t, k, c)
			dir := workDir(t)
			model, err := newModel(dir, c)
			must(t, err)
			defer model.close()
			var all sync.WaitGroup
			var roots []*root
			at := func(path string) *root {
				r, err := openRoot(path)
				must(t, err)
				roots = append(roots, r)
				return r
			}
			for w := range workers {
				m, to := at(filepath.Join(dir, "model", fmt.Sprint("w", w))), at(filepath.Join(u.at, fmt.Sprint("w", w)))
				g := opGenerator{r: rand.New(rand.NewPCG(uint64(w), *seed)), can: k.can}
				all.Go(func() {
					for i := range ops {
						op := g.next(m)
						if want, got := m.do(op), to.do(op); !k.masks.same(want, got) {
							t.Errorf("worker %d, operation %d, %s: model says %s, here %s", w, i, op, want, got)
							return
						}
					}
				})
			}
			for w := range mess {
				to := at(filepath.Join(u.at, "shared"))
				g := opGenerator{r: rand.New(rand.NewPCG(uint64(w), *seed+1)), can: k.can}
				all.Go(func() {
					for range ops {
						op := g.next(to)
						switch got := to.do(op); got {
						case "EIO", "ENOTCONN", "ESTALE", "EFAULT", "ENOSYS", "EDEADLK":
							t.Errorf("shared, %s: %s", op, got)
							return
						}
					}
				})
			}
			all.Wait()
			for _, r := range roots {
				r.close()
			}
			before, err := takeSnapshot(u.r.fd, k.masks)
			must(t, err)
			for w := range workers {
				m, to := at(filepath.Join(dir, "model", fmt.Sprint("w", w))), at(filepath.Join(u.at, fmt.Sprint("w", w)))
				if err := compare(m, to, k.masks); err != nil {
					t.Errorf("worker %d: %v", w, err)
				}
				m.close()
				to.close()
			}
			must(t, u.remount())
			after, err := takeSnapshot(u.r.fd, k.masks)
			must(t, err)
			if d := differences(before.lines, after.lines); d != "" {
				t.Errorf("after the remount:\n%s", d)
			}
			if u.errs.String() != "" {
				t.Errorf("the server says:\n%s", &u.errs)
			}
		})
	}
}

package lazy

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"sync"
	"testing"
)

func TestFill(t *testing.T) {
	shapes := map[string]shape{
		"one span":     {spans: 1, size: 1000},
		"equal":        {spans: 100, size: 4096},
		"ragged":       {spans: 300, size: 3000, ragged: true},
		"gaps":         {spans: 200, size: 700, gap: 300, ragged: true},
		"wide gaps":    {spans: 50, size: 1000, gap: 20000},
		"large spans":  {spans: 10, size: 1 << 20},
		"undigested":   {spans: 100, size: 5000, unproven: true, ragged: true},
		"tiny and gap": {spans: 2000, size: 1, gap: 511},
	}
	for name, s := range shapes {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			x := newFixture(t, s)
			f := create(t, t.TempDir(), x.options(&script{}))
			rnd := rand.New(rand.NewPCG(2, 3))
			size := int64(len(x.data))
			for range 200 {
				off := rnd.Int64N(size)
				x.check(t, f, off, rnd.Int64N(min(size-off, 1<<17))+1)
			}
			x.check(t, f, 0, size)
			if have, total := f.Present(); have != total || !f.Whole() {
				t.Fatalf("%d of %d present", have, total)
			}
			if file, err := f.Fill(ended, 0, size, math.MaxInt64); err != nil || file == nil {
				t.Fatal(err)
			}
		})
	}
}

func TestFillParallel(t *testing.T) {
	t.Parallel()
	x := newFixture(t, shape{spans: 400, size: 10000, ragged: true})
	f := create(t, t.TempDir(), x.options(&script{}))
	var wg sync.WaitGroup
	for g := range 16 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(g), 1))
			for range 300 {
				off := rnd.Int64N(int64(len(x.data)))
				n := rnd.Int64N(min(int64(len(x.data))-off, 30000)) + 1
				if err := x.compare(f, off, n); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}

func TestFillRefuses(t *testing.T) {
	t.Parallel()
	x := newFixture(t, shape{spans: 3, size: 100})
	f := create(t, t.TempDir(), x.options(&script{}))
	for _, r := range []Range{{-1, 1}, {0, -1}, {1 << 62, 1 << 62}} {
		if _, err := f.Fill(context.Background(), r.Off, r.Len, math.MaxInt64); err == nil {
			t.Errorf("filled %v", r)
		}
	}
	if _, err := f.Fill(ended, 0, 1, math.MaxInt64); !errors.Is(err, context.Canceled) {
		t.Errorf("with an ended context: %v", err)
	}
}

package lazy

import (
	"context"
	"errors"
	"io"
	"math"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// The tests of this file run in synctest's bubbles: a wait costs no time, and
// the clock says how long the link was waited for.

func ms(n int) time.Duration { return time.Duration(n) * time.Millisecond }

// bubble runs test with a new File on the fixture.
func bubble(t *testing.T, x *fixture, s *script, test func(t *testing.T, f *File)) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) { test(t, create(t, dir, x.options(s))) })
}

func TestSequentialIsAsFastAsOneDownload(t *testing.T) {
	for name, c := range map[string]struct {
		s    shape
		rtt  time.Duration
		rate float64
	}{
		"20 ms 1 Gbit/s":             {shape{spans: 120, size: 1 << 20}, ms(20), 125e6},
		"50 ms 200 Mbit/s":           {shape{spans: 120, size: 1 << 20}, ms(50), 25e6},
		"small files, 20 ms 1Gbit/s": {shape{spans: 60000, size: 1000, gap: 300, ragged: true}, ms(20), 125e6},
		"8 MiB, 50 ms 1 Gbit/s":      {shape{spans: 16, size: 8 << 20}, ms(50), 125e6},
	} {
		t.Run(name, func(t *testing.T) {
			x := newFixture(t, c.s)
			s := &script{rtt: c.rtt, rate: c.rate}
			bubble(t, x, s, func(t *testing.T, f *File) {
				began := time.Now()
				const step = 128 << 10
				for off := int64(0); off < int64(len(x.data)); off += step {
					x.check(t, f, off, min(step, int64(len(x.data))-off))
				}
				took := time.Since(began)
				pull := c.rtt + time.Duration(float64(len(x.blob))/c.rate*1e9)
				if took > pull+pull/10+8*c.rtt {
					t.Errorf("took %v, one download %v", took, pull)
				}
				if s.given() > int64(len(x.blob)) {
					t.Errorf("%d bytes fetched of %d", s.given(), len(x.blob))
				}
			})
		})
	}
}

// Readers that read everything in an order of their own, a directory at a
// time, are not to wait for each span.
func TestScatteredButAll(t *testing.T) {
	x := newFixture(t, shape{spans: 120, size: 1 << 20})
	s := &script{rtt: ms(20), rate: 125e6}
	bubble(t, x, s, func(t *testing.T, f *File) {
		began := time.Now()
		rnd := rand.New(rand.NewPCG(7, 7))
		for region := 0; region < 120; region += 20 {
			for _, i := range rnd.Perm(20) {
				x.check(t, f, int64(region+i)<<20, 4096)
			}
		}
		pull := ms(20) + time.Duration(float64(len(x.blob))/s.rate*1e9)
		if took := time.Since(began); took > 2*pull {
			t.Errorf("took %v with %d requests, one download %v", took, len(s.opened()), pull)
		}
	})
}

func TestScatteredReaderFetchesWhatItReads(t *testing.T) {
	x := newFixture(t, shape{spans: 200, size: 100 << 10})
	s := &script{rtt: ms(20), rate: 125e6}
	bubble(t, x, s, func(t *testing.T, f *File) {
		rnd := rand.New(rand.NewPCG(7, 7))
		for _, i := range rnd.Perm(100)[:20] {
			x.check(t, f, int64(2*i)*100<<10, 4096)
		}
		synctest.Wait()
		if got, want := s.given(), int64(20*100<<10); got != want {
			t.Errorf("%d bytes fetched, read were %d", got, want)
		}
	})
}

func TestSingleFlight(t *testing.T) {
	x := newFixture(t, shape{spans: 4, size: 100 << 10})
	s := &script{rtt: ms(20), rate: 125e6}
	bubble(t, x, s, func(t *testing.T, f *File) {
		for range 50 {
			go func() {
				if err := x.compare(f, 100<<10, 100); err != nil {
					t.Error(err)
				}
			}()
		}
		synctest.Wait()
		if n := len(s.opened()); n != 1 {
			t.Errorf("%d requests", n)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		x.check(t, f, 100<<10, 100)
		if n := len(s.opened()); n != 1 {
			t.Errorf("%d requests in the end", n)
		}
	})
}

// One range asked for is one request, and each span wakes its own waiters.
func TestWokenBySpan(t *testing.T) {
	x := newFixture(t, shape{spans: 64, size: 1 << 20})
	s := &script{rtt: ms(20), rate: 1 << 20} // a span takes a second
	bubble(t, x, s, func(t *testing.T, f *File) {
		began := time.Now()
		var all, first atomic.Int64
		go func() {
			if err := x.compare(f, 0, 4<<20); err != nil {
				t.Error(err)
			}
			all.Store(int64(time.Since(began)))
		}()
		synctest.Wait()
		x.check(t, f, 0, 10)
		first.Store(int64(time.Since(began)))
		time.Sleep(10 * time.Second)
		if n := len(s.opened()); n != 1 {
			t.Errorf("%d requests", n)
		}
		if d := time.Duration(first.Load()); d > 1100*time.Millisecond {
			t.Errorf("first span after %v", d)
		}
		if d := time.Duration(all.Load()); d < 4*time.Second {
			t.Errorf("all spans after %v", d)
		}
	})
}

func TestInterrupted(t *testing.T) {
	x := newFixture(t, shape{spans: 64, size: 1 << 20})
	s := &script{rtt: time.Hour}
	bubble(t, x, s, func(t *testing.T, f *File) {
		one, stopOne := context.WithCancel(context.Background())
		two, stopTwo := context.WithCancel(context.Background())
		errs := make(chan error, 2)
		go func() { _, err := f.Fill(one, 0, 1, math.MaxInt64); errs <- err }()
		synctest.Wait()
		go func() { _, err := f.Fill(two, 1, 1, math.MaxInt64); errs <- err }()
		synctest.Wait()
		stopOne()
		if err := <-errs; !errors.Is(err, context.Canceled) {
			t.Errorf("interrupted: %v", err)
		}
		synctest.Wait()
		if len(f.requests) != 1 {
			t.Fatal("the first to leave stopped the request of others")
		}
		stopTwo()
		if err := <-errs; !errors.Is(err, context.Canceled) {
			t.Errorf("interrupted: %v", err)
		}
		synctest.Wait()
		if len(f.requests) != 0 || f.pool.hot != 0 {
			t.Fatal("a request runs that nobody waits for")
		}
		s.rtt = 0
		x.check(t, f, 0, 100)
	})
}

// What is read now does not wait for what is read ahead, or for completion.
func TestDemandComesFirst(t *testing.T) {
	x := newFixture(t, shape{spans: 100, size: 1 << 20})
	s := &script{rtt: ms(20), rate: 10 << 20}
	bubble(t, x, s, func(t *testing.T, f *File) {
		done := make(chan error, 1)
		began := time.Now()
		go func() { done <- f.Complete(context.Background(), nil) }()
		time.Sleep(time.Second)
		asked := time.Now()
		x.check(t, f, 80<<20, 100)
		if d := time.Since(asked); d > ms(250) {
			t.Errorf("waited %v for a span that takes 100 ms", d)
		}
		if err := <-done; err != nil || !f.Whole() {
			t.Fatal(err)
		}
		if d := time.Since(began); d > 11*time.Second {
			t.Errorf("complete after %v", d)
		}
		if n := len(s.opened()); n > 3 {
			t.Errorf("%d requests", n)
		}
	})
}

func TestPrefetchInOrder(t *testing.T) {
	x := newFixture(t, shape{spans: 1000, size: 10 << 10})
	s := &script{rtt: ms(20), rate: 125e6}
	bubble(t, x, s, func(t *testing.T, f *File) {
		var ranges []Range
		want := int64(0)
		for i := 990; i >= 0; i -= 30 {
			ranges = append(ranges, Range{int64(i) * 10 << 10, 15 << 10})
			want += 20 << 10
		}
		began := time.Now()
		if err := f.Prefetch(context.Background(), ranges); err != nil {
			t.Fatal(err)
		}
		if d := time.Since(began); d > 8*ms(21) {
			t.Errorf("%d ranges took %v", len(ranges), d)
		}
		if have, _ := f.Present(); have != want || s.given() != want {
			t.Errorf("%d bytes present, %d fetched, want %d", have, s.given(), want)
		}
		n := len(s.opened())
		if err := f.Prefetch(context.Background(), ranges); err != nil || len(s.opened()) != n {
			t.Errorf("again: %v, %d requests", err, len(s.opened())-n)
		}
	})
}

func TestPrefetchStops(t *testing.T) {
	x := newFixture(t, shape{spans: 100, size: 1 << 20})
	s := &script{rtt: ms(20), rate: 10 << 20}
	bubble(t, x, s, func(t *testing.T, f *File) {
		ctx, stop := context.WithTimeout(context.Background(), time.Second)
		defer stop()
		if err := f.Complete(ctx, nil); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
		synctest.Wait()
		if len(f.requests) != 0 {
			t.Error("a request goes on")
		}
		if have, _ := f.Present(); have < 5<<20 {
			t.Errorf("only %d bytes came in", have)
		}
	})
}

func TestCompleteIsOneRequest(t *testing.T) {
	x := newFixture(t, shape{spans: 300, size: 64 << 10, gap: 512, ragged: true})
	s := &script{rtt: ms(20), rate: 125e6}
	bubble(t, x, s, func(t *testing.T, f *File) {
		x.check(t, f, 1<<20, 100)
		x.check(t, f, 9<<20, 100)
		time.Sleep(time.Second)
		before := len(s.opened())
		last := int64(-1)
		err := f.Complete(context.Background(), func(done, total int64) {
			if done < last || done > total {
				t.Errorf("progress: %d after %d", done, last)
			}
			last = done
		})
		if have, total := f.Present(); err != nil || have != total || last != total {
			t.Fatalf("%v; %d of %d, last told %d", err, have, total, last)
		}
		if n := len(s.opened()) - before; n != 1 {
			t.Errorf("%d requests", n)
		}
		asked := f.source.got.Load()
		if err := f.Complete(context.Background(), nil); err != nil || f.source.got.Load() != asked {
			t.Error(err)
		}
		x.check(t, f, 0, int64(len(x.data)))
	})
}

// A source that ignores ranges is found out by the first that fails, and gives
// all of the blob once.
func TestWholeSource(t *testing.T) {
	for _, first := range []int64{0, 70 << 20} {
		x := newFixture(t, shape{spans: 100, size: 1 << 20})
		s := &script{rtt: ms(20), rate: 100 << 20}
		s.open = func(_ context.Context, off, _ int64) error {
			s.mu.Lock()
			defer s.mu.Unlock()
			if was := s.whole; !was {
				s.whole = true
				if off > 8<<20 {
					return errors.New("ranges are ignored")
				}
			}
			return nil
		}
		bubble(t, x, s, func(t *testing.T, f *File) {
			for _, off := range []int64{first, 70 << 20, 30 << 20, 99 << 20, 30 << 20} {
				x.check(t, f, off, 10)
			}
			x.check(t, f, 0, int64(len(x.data)))
			if s.given() > int64(len(x.blob))+1<<20 {
				t.Errorf("%d bytes of %d fetched from a source that gives all or nothing", s.given(), len(x.blob))
			}
			if n := len(s.opened()); n != 2 {
				t.Errorf("%d requests", n)
			}
		})
	}
}

// Two sequential readers, and completion, share a link that is kept busy.
func TestReadersShareTheLink(t *testing.T) {
	x := newFixture(t, shape{spans: 60, size: 1 << 20})
	pool, wire := NewPool(2), &link{}
	dirs := [...]string{t.TempDir(), t.TempDir(), t.TempDir()}
	synctest.Test(t, func(t *testing.T) {
		pool = NewPool(2)
		done := make(chan struct{}, len(dirs))
		began := time.Now()
		for i, dir := range dirs {
			o := x.options(&script{rtt: ms(20), rate: 125e6, busy: wire})
			o.Pool = pool
			f := create(t, dir, o)
			go func() {
				defer func() { done <- struct{}{} }()
				if i == 0 {
					if err := f.Complete(context.Background(), nil); err != nil {
						t.Error(err)
					}
					return
				}
				for off := int64(0); off < int64(len(x.data)); off += 128 << 10 {
					if err := x.compare(f, off, 128<<10); err != nil {
						t.Error(err)
					}
				}
			}()
		}
		for range dirs {
			<-done
		}
		all := time.Duration(3 * float64(len(x.blob)) / 125e6 * 1e9)
		if d := time.Since(began); d > all+all/10+10*ms(20) {
			t.Errorf("took %v, the link needs %v", d, all)
		}
	})
}

func TestFailureIsNotRemembered(t *testing.T) {
	x := newFixture(t, shape{spans: 10, size: 1000})
	down := errors.New("registry is down")
	for name, fail := range map[string]func(o *Options, s *script, err error){
		"source": func(o *Options, s *script, err error) {
			o.Source = func(context.Context) (Source, error) { return s, err }
		},
		"range": func(_ *Options, s *script, err error) {
			s.open = func(context.Context, int64, int64) error { return err }
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := &script{}
			o := x.options(s)
			fail(&o, s, down)
			f := create(t, t.TempDir(), o)
			if _, err := f.Fill(context.Background(), 0, 1, math.MaxInt64); !errors.Is(err, down) {
				t.Fatalf("%v", err)
			}
			if err := f.Complete(context.Background(), nil); !errors.Is(err, down) {
				t.Fatalf("%v", err)
			}
			fail(&f.o, s, nil)
			f.source.ask = f.o.Source
			x.check(t, f, 0, int64(len(x.data)))
		})
	}
	t.Run("cut short", func(t *testing.T) {
		s := &script{}
		f := create(t, t.TempDir(), x.options(s))
		f.o.Source = nil
		f.source.ask = func(context.Context) (Source, error) { return short{s}, nil }
		if _, err := f.Fill(context.Background(), 0, 1, math.MaxInt64); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatalf("%v", err)
		}
	})
}

// short gives less than it promised.
type short struct{ *script }

func (s short) Range(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	return s.script.Range(ctx, off, n-1)
}

// Reading ahead ends where the file ends, unless files are read one after the
// other.
func TestReadAheadEndsWithTheFile(t *testing.T) {
	const span, file = 100 << 10, 1 << 20
	x := newFixture(t, shape{spans: 200, size: span})
	s := &script{rtt: ms(20), rate: 125e6}
	bubble(t, x, s, func(t *testing.T, f *File) {
		read := func(k int64) {
			for off := k * file; off < (k+1)*file; off += 64 << 10 {
				if _, err := f.Fill(context.Background(), off, 64<<10, (k+1)*file); err != nil {
					t.Fatal(err)
				}
			}
			time.Sleep(time.Second)
		}
		read(5)
		if have := f.PresentIn(0, int64(len(x.data))); have != 1100<<10 { // of 5.0 to 6.05 MiB
			t.Errorf("%d KiB fetched for a file of 1 MiB", have>>10)
		}
		n := len(s.opened())
		for k := int64(6); k < 14; k++ {
			read(k)
		}
		if more := len(s.opened()) - n; more > 20 {
			t.Errorf("%d requests for 8 files read in a row", more)
		}
	})
}

// A span and the one that proves it are asked for at the same time.
func TestProofTakesNoTime(t *testing.T) {
	x := newFixture(t, shape{spans: 100, size: 100 << 10})
	dir := t.TempDir()
	s := &script{rtt: ms(20)}
	synctest.Test(t, func(t *testing.T) {
		o := x.options(s)
		o.Proof = &headers{index: x.data, size: 3<<20 + 5}
		f := create(t, dir, o)
		for i, off := range []int64{9 << 20, 4 << 20} {
			began := time.Now()
			x.check(t, f, off, 100)
			if d := time.Since(began); d != ms(20) {
				t.Errorf("read %d took %v", i, d)
			}
		}
	})
}

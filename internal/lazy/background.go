package lazy

import (
	"cmp"
	"context"
	"fmt"
	"slices"
)

// run is a run of spans [i, j).
type run struct{ i, j int }

// Prefetch brings in ranges, in their order as far as several are under way at
// a time, and yields to reads. It returns when they are present.
func (f *File) Prefetch(ctx context.Context, ranges []Range) error {
	return f.bringAll(ctx, f.clusters(f.missing(f.runs(ranges))), background, func() {})
}

// missing returns the runs of which something is missing, from there on.
func (f *File) missing(runs []run) []run {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := f.now.Load()
	n := 0
	for _, r := range runs {
		if r.i = c.have.next(r.i, r.j, false); r.i < r.j {
			runs[n] = r
			n++
		}
	}
	return runs[:n]
}

// prefetchGap is how many bytes of the blob between two runs are rather fetched
// than asked around.
const prefetchGap = 64 << 10

// clusters returns runs with the spans that they need before them, and those
// that are close in the blob as one: so few requests are made that all of them
// go out at once. The order is that in which something of each is first wanted.
func (f *File) clusters(runs []run) []run {
	type cluster struct {
		run
		rank int
	}
	all := make([]cluster, len(runs))
	for k, r := range runs {
		all[k] = cluster{run{f.o.Table.Needs(r.i), r.j}, k}
	}
	slices.SortFunc(all, func(a, b cluster) int { return cmp.Compare(a.i, b.i) })
	n := 0
	for _, next := range all {
		if n > 0 {
			last := &all[n-1]
			if next.i <= last.j || f.o.Table.At(next.i).From-f.o.Table.At(last.j-1).To <= prefetchGap {
				last.j, last.rank = max(last.j, next.j), min(last.rank, next.rank)
				continue
			}
		}
		all[n] = next
		n++
	}
	all = all[:n]
	slices.SortFunc(all, func(a, b cluster) int { return cmp.Compare(a.rank, b.rank) })
	runs = runs[:0]
	for _, c := range all {
		runs = append(runs, c.run)
	}
	return runs
}

// Complete brings in all that is missing, from the first hole on in long
// requests, and yields to reads. It returns when everything is present, and
// compared with its checksum where that was needed, or ctx's error. Progress,
// which may be nil, is told bytes of data.
func (f *File) Complete(ctx context.Context, progress func(done, total int64)) error {
	say := func() {
		if progress != nil {
			progress(f.Present())
		}
	}
	for !f.Whole() {
		if err := f.recheckAll(ctx); err != nil {
			return err
		}
		if err := f.bringAll(ctx, []run{{0, f.at.n}}, 1, say); err != nil {
			return err
		}
	}
	say()
	return f.state()
}

// state returns why nothing is served any more, if so.
func (f *File) state() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.bad
}

// runs returns the spans that hold the ranges, in their order. Runs that follow
// each other closely are one.
func (f *File) runs(ranges []Range) (runs []run) {
	for _, r := range ranges {
		i, j := f.at.covering(max(r.Off, 0), r.Off+r.Len)
		if r.Len <= 0 || i >= j {
			continue
		}
		if n := len(runs); n > 0 {
			last := &runs[n-1]
			if i >= last.i && (i <= last.j || f.o.Table.At(i).From-f.o.Table.At(last.j-1).To <= leastRequest) {
				last.j = max(last.j, j)
				continue
			}
		}
		runs = append(runs, run{i, j})
	}
	return runs
}

// bringAll brings in runs of spans, with atOnce requests under way.
func (f *File) bringAll(ctx context.Context, runs []run, atOnce int, say func()) error {
	var under []*request
	defer func() { f.unkeep(under) }()
	oldest := func() error {
		r := under[0]
		for {
			select {
			case <-r.moved:
				say()
				continue
			case <-ctx.Done():
				return ctx.Err()
			case <-r.done:
			}
			break
		}
		if r.err != nil {
			return r.err
		}
		f.unkeep(under[:1])
		under = under[1:]
		return nil
	}
	for missing := true; missing; { // until nothing is: a request may end without bringing all
		missing = false
		for _, next := range runs {
			for {
				r, err := f.bring(&next)
				if err != nil {
					return err
				}
				if r == nil {
					break
				}
				missing = true
				if under = append(under, r); len(under) < atOnce {
					continue
				}
				if err := oldest(); err != nil {
					return err
				}
			}
		}
		for len(under) > 0 {
			if err := oldest(); err != nil {
				return err
			}
		}
	}
	return nil
}

// bring returns the request that brings the first span that is missing of next,
// starting it if need be, and takes off next what it brings; nil if none is
// missing. The caller calls unkeep.
func (f *File) bring(next *run) (*request, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.bad != nil {
		return nil, f.bad
	}
	c := f.now.Load()
	i := c.have.next(next.i, next.j, false)
	if i == next.j {
		return nil, nil
	}
	r := f.ownerLocked(i, false)
	if r == nil {
		r = f.startLocked(c, i, f.freeLocked(i, next.j), &want{})
	}
	r.keepers++
	next.i = min(max(i+1, r.hi), next.j)
	return r, nil
}

// unkeep takes back what bring returned.
func (f *File) unkeep(requests []*request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, r := range requests {
		r.keepers--
		f.releaseLocked(r)
	}
}

// recheckAll compares all that is suspect with its checksums.
func (f *File) recheckAll(ctx context.Context) error {
	for i := 0; ; i++ {
		f.mu.Lock()
		c := f.now.Load()
		if c.suspect == nil || f.bad != nil {
			f.mu.Unlock()
			return nil
		}
		if i = c.suspect.next(i, f.at.n, true); i == f.at.n {
			c.suspect = nil
			f.mu.Unlock()
			return nil
		}
		f.tasks.Add(1)
		f.mu.Unlock()
		err := f.recheck(c, i)
		f.tasks.Done()
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return err
		}
	}
}

// Verify compares what is present with its checksums, and returns how many
// spans are not what they were. With repair these are dropped, to be fetched
// when they are needed; without it they are as after an unclean stop. Data
// without a file "present" has no checksums: nothing is compared.
func (f *File) Verify(ctx context.Context, repair bool) (bad int, err error) {
	f.mu.Lock()
	c := f.now.Load()
	have := slices.Clone(c.have)
	if f.bad != nil || c.present == nil {
		defer f.mu.Unlock()
		return 0, f.bad
	}
	f.tasks.Add(1)
	f.mu.Unlock()
	defer f.tasks.Done()
	for i := have.next(0, f.at.n, true); i < f.at.n; i = have.next(i+1, f.at.n, true) {
		if err := ctx.Err(); err != nil {
			return bad, err
		}
		want, err := readSum(c.present, i)
		if err != nil {
			return bad, fmt.Errorf("data of a layer: %w", err)
		}
		got, err := f.sumOf(c, i)
		if err != nil {
			return bad, err
		}
		if got == want {
			continue
		}
		bad++
		if repair {
			if err := f.drop(c, i); err != nil {
				return bad, err
			}
			continue
		}
		f.mu.Lock()
		if c.suspect == nil {
			c.suspect = newBitmap(f.at.n)
		}
		c.suspect.set(i)
		c.ready[i>>6].And(^(uint64(1) << (i & 63)))
		f.mu.Unlock()
	}
	return bad, nil
}

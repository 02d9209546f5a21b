package lazy

import "slices"

// How much is fetched at a time, in bytes of the blob unless it says otherwise.
const (
	leastRequest = 32 << 10 // the smallest request, if there is that much missing in a row
	unknownLink  = 1 << 20  // bytes in a round trip, before that is measured
	leastLink    = 256 << 10
	mostLink     = 16 << 20
	leastWindow  = 8 << 20 // the most that is read ahead, on the slowest link
	mostWindow   = 64 << 20
	manyFiles    = 3         // files read in a row that make more of them certain
	maxReaders   = 8         // that are told apart
	manySpans    = 16        // spans used in a row that make more of them certain
	groupData    = 256 << 10 // bytes of data, of small spans that are decoded and written as one
	groupGap     = 4 << 10   // bytes of data, or of blob, between spans of a group
	lanes        = 8         // requests of a File that read at a time
	mostHeld     = 4 << 20   // of a request, read and not decoded yet
	mostSpill    = 32 << 20  // bytes of data in memory that the disk has no space for
)

// window returns how many bytes are read ahead at most.
func (f *File) window() int64 {
	return min(max(8*f.link.Load(), leastWindow), mostWindow)
}

// lookahead returns how many bytes behind span i, which is asked for, are
// likely to be asked for next: twice as many as were used in a row, or nearly,
// before i; as many as the link holds, if those were many spans. Where half
// of the blob was used, the rest will be too.
func (f *File) lookahead(c *contents, i int) int64 {
	most := f.window()
	if f.mostUsed(c) {
		return most
	}
	n, failed := 0, 0
	for w := 1; w <= i && failed < 2 && f.blobBytes(i-n, i) < most; w *= 2 {
		if 4*c.readyIn(i-w, i) >= 3*w {
			n, failed = w, 0
		} else {
			failed++
		}
	}
	ahead := 2 * f.blobBytes(i-n, i)
	if n >= manySpans {
		ahead = max(ahead, f.link.Load())
	}
	return min(ahead, most)
}

// mostUsed reports whether half of the blob was used.
func (f *File) mostUsed(c *contents) bool { return 2*c.used >= f.o.Table.BlobSize() }

// reader is one of those who read in the order of the data, file by file.
type reader struct {
	end   int64 // of the file that it reads
	files int   // read before that one
}

// stopLocked returns the span at which reading ahead ends for w: that where its
// file ends, unless its reader has gone from file to file.
func (f *File) stopLocked(c *contents, w *want) int {
	if w.raw {
		return w.hi
	}
	at := slices.IndexFunc(f.readers, func(r reader) bool {
		return r.end == w.end || f.at.ends[w.lo] > r.end && c.isReady(f.at.find(r.end), w.lo)
	})
	var r reader
	if at >= 0 {
		r = f.readers[at]
		f.readers = slices.Delete(f.readers, at, at+1)
	} else if len(f.readers) == maxReaders {
		f.readers = slices.Delete(f.readers, 0, 1)
	}
	if at >= 0 && r.end != w.end {
		r.files++
	}
	r.end = w.end
	f.readers = append(f.readers, r)
	if r.files >= manyFiles || f.mostUsed(c) {
		return f.at.n
	}
	_, stop := f.at.covering(w.end-1, w.end)
	return max(stop, w.hi)
}

// blobBytes returns how much of the blob the spans [i, j) take.
func (f *File) blobBytes(i, j int) int64 {
	if i >= j {
		return 0
	}
	return f.o.Table.At(j-1).To - f.o.Table.At(i).From
}

// reach returns the end of the run of spans from i on that ends no more than n
// bytes behind blob offset from, and no later than limit.
func (f *File) reach(i, limit int, from, n int64) int {
	lo, hi := i, limit
	for lo < hi {
		if m := int(uint(lo+hi) >> 1); f.o.Table.At(m).To-from > n {
			hi = m
		} else {
			lo = m + 1
		}
	}
	return lo
}

// ownerLocked returns the request that will have span i, raw at least if raw is
// set; nil for none. One that has read it is first; of others it is the
// youngest: it took the span from them.
func (f *File) ownerLocked(i int, raw bool) *request {
	for _, r := range f.requests {
		if r.lands(i, raw) {
			return r
		}
	}
	for _, r := range slices.Backward(f.requests) {
		if r.brings(i, raw) {
			return r
		}
	}
	return nil
}

// nearLocked returns the request that will have span i before a new one would;
// nil for none.
func (f *File) nearLocked(i int, raw bool) *request {
	r := f.ownerLocked(i, raw)
	if r == nil || i < r.next || r.whole || f.blobBytes(r.next, i) <= f.link.Load() {
		return r
	}
	return nil
}

// unclaimedLocked returns the first span in [i, limit) that is neither present
// nor on its way; limit if there is none.
func (f *File) unclaimedLocked(c *contents, i, limit int) int {
	for {
		if i = c.have.next(i, limit, false); i == limit {
			return i
		}
		r := f.ownerLocked(i, false)
		switch {
		case r == nil:
			return i
		case i < r.next:
			i++
		default:
			i = min(r.hi, limit)
		}
	}
}

// freeLocked returns where the run of spans from i on ends that no request is
// to read; no later than limit.
func (f *File) freeLocked(i, limit int) int {
	for _, r := range f.requests {
		if !r.dropped && r.next < limit && r.hi > i {
			limit = max(r.next, i)
		}
	}
	return limit
}

// baseLocked returns the first span that must be brought so that span i can be
// decoded: i itself, but for a step.
func (f *File) baseLocked(c *contents, i int) int {
	for k := f.o.Table.Needs(i); k < i; k++ {
		if !c.has(k, true) && !c.isSuspect(k) && f.nearLocked(k, true) == nil {
			i = k // and what that needs
			k = f.o.Table.Needs(i) - 1
		}
	}
	return i
}

// missingEnd returns where a request for span i and what w wants behind it
// ends: small runs that are present may lie between, and some is read ahead.
func (f *File) missingEnd(c *contents, w *want, i int) int {
	t, end, far := f.o.Table, i+1, f.ownerLocked(i, w.raw)
	for k := end; k < w.hi; k++ {
		if c.have.has(k) {
			continue
		}
		if o := f.ownerLocked(k, w.raw); o != nil && o != far || t.At(k).From-t.At(end-1).To > leastRequest {
			break
		}
		end = k + 1
	}
	if w.raw {
		return end
	}
	from := t.At(end - 1).To
	limit := f.freeLocked(end, c.have.next(end, f.at.n, true))
	least := f.reach(end, limit, from, leastRequest-f.blobBytes(i, end))
	return max(least, f.reach(end, min(limit, w.stop), from, f.lookahead(c, i)))
}

// readAheadLocked has the spans brought that are likely to be asked for after
// those of w, which somebody just asked for.
func (f *File) readAheadLocked(c *contents, w *want) {
	ahead := f.lookahead(c, w.lo)
	if ahead == 0 || w.stop <= w.hi {
		return
	}
	from := f.o.Table.At(w.hi - 1).To
	limit := f.reach(w.hi, w.stop, from, ahead)
	k := f.unclaimedLocked(c, w.hi, limit)
	if k == limit || f.o.Table.At(k).From-from > ahead/2 {
		return
	}
	f.startLocked(c, k, f.freeLocked(k, c.have.next(k, limit, true)), &want{})
}

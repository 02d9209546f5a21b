package daemon

import (
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/dgraph-io/badger/v4"

	"github.com/imgfs/imgfs/internal/id"
	"github.com/imgfs/imgfs/internal/metadb"
)

// traceKey is followed by the hexadecimal key of a chain; the value is a trace
// as JSON.
const traceKey = "daemon/trace/"

const (
	traceUnit  = 512      // bytes: a file's payload shares none with another's
	traceLimit = 64 << 20 // bytes of one trace
	traceParts = 4096     // of one trace
)

// part is a stretch of a chain's data that was read: Len bytes at Off of the
// data file of the layer Index, counted from the lowest.
type part struct {
	Index int   `json:"i"`
	Off   int64 `json:"o"`
	Len   int64 `json:"n"`
}

// trace is what was read first of a chain, in that order.
type trace []part

// then returns t and, after it, what of old is not in it, within the limits.
func (t trace) then(old trace) trace {
	seen := touched{}
	var all trace
	var size int64
	for _, p := range append(t[:len(t):len(t)], old...) {
		for _, p := range seen.add(p) {
			if len(all) == traceParts || size+p.Len > traceLimit {
				return all
			}
			size += p.Len
			all = append(all, p)
		}
	}
	return all
}

// touched is a set of units of a chain's data.
type touched map[page]uint64 // a bit for each of its units

// page is 64 units of a layer's data.
type page struct {
	index int
	n     int64
}

// add adds the units that p touches and returns those that are new, in as few
// parts as they make.
func (t touched) add(p part) (fresh []part) {
	first, last := p.Off/traceUnit, (p.Off+p.Len-1)/traceUnit
	for u := first; u <= last; u++ {
		at, bit := page{p.Index, u / 64}, uint64(1)<<(u%64)
		if t[at]&bit != 0 {
			continue
		}
		t[at] |= bit
		if n := len(fresh); n > 0 && fresh[n-1].Off+fresh[n-1].Len == u*traceUnit {
			fresh[n-1].Len += traceUnit
			continue
		}
		fresh = append(fresh, part{p.Index, u * traceUnit, traceUnit})
	}
	return fresh
}

// recorder notes what is read of a mount.
type recorder struct {
	on atomic.Bool

	mu   sync.Mutex // guards the rest
	seen touched
	list trace
	size int64
}

func newRecorder() *recorder {
	r := &recorder{seen: touched{}}
	r.on.Store(true)
	return r
}

// note notes that n bytes at off of a layer's data are wanted.
func (r *recorder) note(index int, off, n int64) {
	if n <= 0 || !r.on.Load() {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range r.seen.add(part{index, off, n}) {
		if l := len(r.list); l > 0 && r.list[l-1].Index == p.Index && r.list[l-1].Off+r.list[l-1].Len == p.Off {
			r.list[l-1].Len += p.Len
		} else {
			r.list = append(r.list, p)
		}
		r.size += p.Len
	}
	if len(r.list) >= traceParts || r.size >= traceLimit {
		r.on.Store(false)
	}
}

// end returns what was noted, and notes no more.
func (r *recorder) end() trace {
	r.on.Store(false)
	r.mu.Lock()
	defer r.mu.Unlock()
	t := r.list
	r.seen, r.list = nil, nil
	return t
}

// loadTrace returns what was read first of a chain the last times, nil if
// nothing is known.
func loadTrace(db *badger.DB, c id.ChainKey) (trace, error) {
	v, err := metadb.Get(db, traceKey+c.Hex())
	if err != nil {
		return nil, fmt.Errorf("trace: %w", err)
	}
	var t trace
	if json.Unmarshal(v, &t) != nil {
		return nil, nil // there is none, or it is damaged: the next mount makes another
	}
	return t, nil
}

// saveTrace remembers t of a chain, where known is what loadTrace returned.
func saveTrace(db *badger.DB, c id.ChainKey, t, known trace) error {
	if slices.Equal(t, known) {
		return nil
	}
	b, err := json.Marshal(t)
	if err == nil {
		err = metadb.Update(db, map[string][]byte{traceKey + c.Hex(): b})
	}
	if err != nil {
		return fmt.Errorf("trace: %w", err)
	}
	return nil
}

// sweepTraces forgets the traces of chains that keep does not name.
func sweepTraces(db *badger.DB, held func() map[id.ChainKey]bool) error {
	changes := map[string][]byte{}
	var keep map[id.ChainKey]bool // nil until there is a trace: it takes a digest for each layer of each image
	err := metadb.Scan(db, traceKey, func(hex string, _ []byte) error {
		if keep == nil {
			keep = held()
		}
		if c, err := id.ParseChainKey("sha256:" + hex); err != nil || !keep[c] {
			changes[traceKey+hex] = nil
		}
		return nil
	})
	if err == nil {
		err = metadb.UpdateAll(db, changes)
	}
	if err != nil {
		return fmt.Errorf("traces: %w", err)
	}
	return nil
}

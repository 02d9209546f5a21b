package layerdb

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"os"
	"slices"
	"sort"
	"sync"
	"weak"

	"github.com/imgfs/imgfs/internal/erofs"
	"github.com/imgfs/imgfs/internal/id"
	"github.com/imgfs/imgfs/internal/span"
	"github.com/imgfs/imgfs/internal/toc"
)

// maxLenders is how many layers are looked through for what another needs:
// those used last.
const maxLenders = 32

// lent is where a packed layer has its files, by the first bytes of their
// digests: 12 bytes for each, kept while somebody borrows.
type lent struct {
	sums   []uint64 // sorted
	blocks []uint32 // where the span begins in the data file
}

func (l *lent) Len() int           { return len(l.sums) }
func (l *lent) Less(i, j int) bool { return l.sums[i] < l.sums[j] }
func (l *lent) Swap(i, j int) {
	l.sums[i], l.sums[j] = l.sums[j], l.sums[i]
	l.blocks[i], l.blocks[j] = l.blocks[j], l.blocks[i]
}

func newLent(t *span.Table) *lent {
	l := &lent{}
	for i := range t.Spans() {
		sum, ok := t.DataSum(i)
		if s := t.At(i); ok && s.Off%erofs.BlockSize == 0 {
			l.sums = append(l.sums, shortSum(sum))
			l.blocks = append(l.blocks, uint32(s.Off/erofs.BlockSize))
		}
	}
	sort.Sort(l)
	l.sums, l.blocks = slices.Clip(l.sums), slices.Clip(l.blocks)
	return l
}

func shortSum(sum [sha256.Size]byte) uint64 { return binary.LittleEndian.Uint64(sum[:]) }

// borrower takes spans of a packed layer from other such layers of the store,
// instead of fetching them. It need not know whether they have them, nor trust
// them: what is read there is compared with the digest.
type borrower struct {
	s     *Store
	key   id.LayerKey
	table *span.Table

	once    sync.Once
	lenders []lender // set by once
}

// lender is a layer's data file, which stays what it is whatever becomes of the
// layer.
type lender struct {
	data  *os.File
	spans *lent
}

// find fills dst with span i, if another layer has it.
func (b *borrower) find(_ context.Context, i int, dst []byte) bool {
	sum, ok := b.table.DataSum(i)
	if !ok {
		return false
	}
	b.once.Do(func() { b.lenders = b.s.lenders(b.key) })
	short := shortSum(sum)
	for _, l := range b.lenders {
		k, ok := slices.BinarySearch(l.spans.sums, short)
		if !ok {
			continue
		}
		_, err := l.data.ReadAt(dst, int64(l.spans.blocks[k])*erofs.BlockSize)
		if err != nil || isZero(dst[:min(len(dst), erofs.BlockSize)]) { // as good as always not here
			continue
		}
		if sha256.Sum256(dst) == sum {
			return true
		}
	}
	return false
}

// lenders returns the packed layers other than key, those used last first.
func (s *Store) lenders(key id.LayerKey) []lender {
	s.mu.Lock()
	var layers []*layer
	for k, l := range s.layers {
		if k != key && l.info.Form == toc.Packed && l.info.Damage == "" && s.lookLocked(l).disk > 0 {
			layers = append(layers, l)
		}
	}
	slices.SortFunc(layers, func(a, b *layer) int { return b.used.Compare(a.used) })
	var list []lender
	var infos []LayerInfo
	for _, l := range layers[:min(len(layers), maxLenders)] {
		infos = append(infos, l.info)
	}
	s.mu.Unlock()
	for i := range infos {
		spans, err := s.lentBy(&infos[i])
		if err != nil {
			continue // is met when the layer itself is opened
		}
		if f, err := os.Open(s.dataPath(infos[i].Key)); err == nil {
			list = append(list, lender{f, spans})
		}
	}
	return list
}

// lentBy returns what a layer can lend.
func (s *Store) lentBy(i *LayerInfo) (*lent, error) {
	s.mu.Lock()
	l := s.lent[i.Key].Value()
	s.mu.Unlock()
	if l != nil {
		return l, nil
	}
	t, err := readSpans(s.layerDir(i.Key), i)
	if err != nil {
		return nil, err
	}
	l = newLent(t)
	s.mu.Lock()
	s.lent[i.Key] = weak.Make(l)
	s.mu.Unlock()
	return l, nil
}

package layerdb

import (
	"iter"
	"slices"
	"sync"

	"github.com/imgfs/imgfs/internal/id"
)

// ledger is who holds what. Its lock is held while a change is committed, and
// while layers to be removed are chosen: a Retain that has returned counts.
type ledger struct {
	mu    sync.Mutex
	held  map[string][]id.LayerKey // by owner; the lists never change
	count map[id.LayerKey]int      // owners of each layer that has some
	refs  int                      // made since Open; see Ref
	lost  map[string]bool          // owners whose records cannot be read
}

func newLedger() ledger {
	return ledger{held: map[string][]id.LayerKey{}, count: map[id.LayerKey]int{}, lost: map[string]bool{}}
}

// setLocked makes owner hold layers, in place of what it held. The list is kept.
//
// Preconditions: g.mu is held.
func (g *ledger) setLocked(owner string, layers []id.LayerKey) {
	g.dropLocked(owner)
	g.held[owner] = layers
	for k := range distinct(layers) {
		g.count[k]++
	}
}

// dropLocked makes owner hold nothing.
//
// Preconditions: g.mu is held.
func (g *ledger) dropLocked(owner string) {
	layers := g.held[owner]
	delete(g.held, owner)
	for k := range distinct(layers) {
		if g.count[k]--; g.count[k] == 0 {
			delete(g.count, k)
		}
	}
}

// shortList is a list that is looked through faster than it is hashed.
const shortList = 64

// distinct yields each layer of a list once.
func distinct(layers []id.LayerKey) iter.Seq[id.LayerKey] {
	return func(yield func(id.LayerKey) bool) {
		var seen map[id.LayerKey]bool
		if len(layers) > shortList {
			seen = make(map[id.LayerKey]bool, len(layers))
		}
		for i, k := range layers {
			switch {
			case seen == nil && slices.Contains(layers[:i], k), seen[k]:
				continue
			case seen != nil:
				seen[k] = true
			}
			if !yield(k) {
				return
			}
		}
	}
}

// holdsLocked reports whether some owner holds exactly this stack.
//
// Preconditions: g.mu is held.
func (g *ledger) holdsLocked(stack []id.LayerKey) bool {
	if g.count[stack[len(stack)-1]] == 0 {
		return false
	}
	for _, held := range g.held {
		if slices.Equal(held, stack) {
			return true
		}
	}
	return false
}

// stacksLocked returns the keys of all stacks that owners hold.
//
// Preconditions: g.mu is held.
func (g *ledger) stacksLocked() map[id.ChainKey]bool {
	keys := make(map[id.ChainKey]bool, len(g.held))
	for _, held := range g.held {
		keys[id.Stack(held)] = true
	}
	return keys
}

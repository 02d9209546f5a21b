package layerdb

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"

	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
)

// MaxDepth is how many layers a stack may have that Register puts one on top
// of, docker's limit. A [Chain] has none.
const MaxDepth = 125

// Errors of Register, Get and Ref.Release, in docker's words. They are wrapped.
var (
	errNotRetained = errors.New("layer not retained")
	errMaxDepth    = errors.New("max depth exceeded")
)

// Ref is one use of a stack of layers, docker's Layer. While it is held no
// layer of the stack is removed. It ends with the process, at the latest: who
// needs a stack for longer calls [Store.Retain] before Release.
type Ref struct {
	s      *Store
	owner  string
	layers []id.LayerKey
	chain  id.ChainKey

	mu       sync.Mutex
	released bool
}

// Chain returns the key of the stack.
func (r *Ref) Chain() id.ChainKey { return r.chain }

// Top returns the layer that the stack ends with.
func (r *Ref) Top() id.LayerKey { return r.layers[len(r.layers)-1] }

// Layers returns the stack, lowest first.
func (r *Ref) Layers() []id.LayerKey { return slices.Clone(r.layers) }

// Parent returns the key of the stack without its last layer, "" if that is
// the empty one.
func (r *Ref) Parent() id.ChainKey { return id.Stack(r.layers[:len(r.layers)-1]) }

// Release ends the use, and removes the layers that nobody else holds, those
// beneath included; it returns their keys. A second call is an error:
// "layer not retained" (fault.Invalid).
func (r *Ref) Release() ([]id.LayerKey, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.released {
		return nil, fault.New(fault.Invalid, "%w: %s", errNotRetained, r.chain)
	}
	r.released = true
	return r.s.Release(r.owner)
}

// Get returns one more use of a stack that somebody holds: an image, a pin, an
// upper, or another Ref, be it that of a larger stack. "layer does not exist"
// (fault.NotFound) if nobody does, or one of its layers is not stored.
func (s *Store) Get(chain id.ChainKey) (*Ref, error) {
	s.owned.mu.Lock()
	defer s.owned.mu.Unlock()
	layers := s.owned.stackLocked(chain)
	if layers == nil {
		return nil, fault.New(fault.NotFound, "%w: %s", errAbsent, chain)
	}
	for _, k := range layers {
		if err := s.check(k); err != nil {
			return nil, err
		}
	}
	return s.refLocked(layers), nil
}

// Register stores a stream, perhaps compressed, as a layer on top of the stack
// parent, "" for none, and returns a use of the stack with it. The stream is
// read on a goroutine of the store; it must end when ctx does. report is as for
// [Store.Ensure].
//
// Errors are "layer does not exist" (fault.NotFound) of parent, "max depth
// exceeded" (fault.Invalid), and those of Ensure.
func (s *Store) Register(ctx context.Context, stream io.Reader, parent id.ChainKey, report func(Step)) (*Ref, error) {
	var below []id.LayerKey
	if parent != "" {
		p, err := s.Get(parent)
		if err != nil {
			return nil, err
		}
		defer p.Release()
		if below = p.Layers(); len(below) >= MaxDepth {
			return nil, fault.New(fault.Invalid, "%w: %d layers, and %d is the limit", errMaxDepth, len(below), MaxDepth)
		}
	}
	var ref *Ref
	left := false // the caller; the pass may not have noticed. Guarded by s.owned.mu, as ref is
	_, _, err := s.Ensure(ctx, Spec{
		Open: func(context.Context) (io.ReadCloser, error) { return io.NopCloser(stream), nil },
		Hold: func(k id.LayerKey) error {
			s.owned.mu.Lock()
			defer s.owned.mu.Unlock()
			if left {
				return context.Canceled
			}
			ref = s.refLocked(append(below, k))
			return nil
		},
	}, report)
	s.owned.mu.Lock()
	left = true
	s.owned.mu.Unlock()
	if err != nil && ref != nil {
		_, rerr := ref.Release()
		return nil, errors.Join(err, rerr)
	}
	return ref, err
}

// refLocked returns a use of a stack. It is in memory alone.
//
// Preconditions: s.owned.mu is held.
func (s *Store) refLocked(layers []id.LayerKey) *Ref {
	s.owned.refs++
	r := &Ref{s: s, owner: fmt.Sprintf("%s%d", refOwner, s.owned.refs), layers: slices.Clone(layers), chain: id.Stack(layers)}
	s.owned.setLocked(r.owner, r.layers)
	return r
}

// refOwner begins the names of owners that are a Ref.
const refOwner = "ref:"

// stackLocked returns the layers of a stack that is held, or is the lower part
// of one that is; nil if there is none.
//
// Preconditions: g.mu is held.
func (g *ledger) stackLocked(chain id.ChainKey) []id.LayerKey {
	for _, layers := range g.held {
		var c id.ChainKey
		for n, k := range layers {
			if c = c.Append(k); c == chain {
				return layers[:n+1]
			}
		}
	}
	return nil
}

// Stack returns the layers of a stack that somebody holds, lowest first; nil if
// nobody does.
func (s *Store) Stack(chain id.ChainKey) []id.LayerKey {
	s.owned.mu.Lock()
	defer s.owned.mu.Unlock()
	return slices.Clone(s.owned.stackLocked(chain))
}

// Stacks returns all stacks that somebody holds, and the lower parts of these,
// with the layer that each ends with.
func (s *Store) Stacks() map[id.ChainKey]id.LayerKey {
	s.owned.mu.Lock()
	defer s.owned.mu.Unlock()
	m := map[id.ChainKey]id.LayerKey{}
	for _, layers := range s.owned.held {
		var c id.ChainKey
		for _, k := range layers {
			c = c.Append(k)
			m[c] = k
		}
	}
	return m
}

// Blobs returns all blobs that were seen to inflate to a stored layer, with its
// key.
func (s *Store) Blobs() map[id.Blob]id.LayerKey {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.blobs)
}

// BlobsOf returns the blobs that were seen to inflate to a stream of this
// diffID, sorted; nil if there is none.
func (s *Store) BlobsOf(d id.DiffID) []id.Blob {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []id.Blob
	for _, k := range []id.LayerKey{d.Key(), s.proven[d]} {
		l := s.layers[k]
		if l == nil || !l.info.Sealed {
			continue
		}
		for _, b := range append(slices.Clone(l.more), l.info.Blob) {
			if b != "" && s.blobs[b] == k {
				list = append(list, b)
			}
		}
	}
	slices.Sort(list)
	return list
}

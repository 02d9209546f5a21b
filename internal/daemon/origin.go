package daemon

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dgraph-io/badger/v4"

	"github.com/imgfs/imgfs/fetch"
	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
	"github.com/imgfs/imgfs/internal/lazy"
	"github.com/imgfs/imgfs/internal/metadb"
	"github.com/imgfs/imgfs/layerdb"
)

// originKey is followed by the hexadecimal digest of a layer's blob; the value
// is a list of origins as JSON.
const originKey = "daemon/origin/"

// maxOrigins bounds how many places are remembered for one blob.
const maxOrigins = 4

// origin is a place that a layer's blob can be had from, days after the image
// was resolved and by another daemon. There is no secret in it: what a client
// said for itself alone lives as long as the daemon, in origins.logins.
type origin struct {
	Name      string                    `json:"name"` // repository: docker.io/library/ubuntu
	Size      int64                     `json:"size"`
	MediaType string                    `json:"mediaType,omitempty"`
	URLs      []string                  `json:"urls,omitempty"`
	Registry  engineapi.RegistryOptions `json:"registry,omitzero"` // without secrets
}

// way is how a repository is reached.
type way struct {
	name     string
	registry engineapi.RegistryOptions // without secrets
}

func (o *origin) way() way { return way{o.Name, o.Registry} }

// origins remembers where blobs come from, and makes supplies of them.
type origins struct {
	db      *badger.DB
	options func(engineapi.RegistryOptions) fetch.Options

	mu      sync.Mutex
	logins  map[way]engineapi.RegistryOptions // what was last said, with secrets
	clients map[engineapi.RegistryOptions]client
	pulses  map[id.Blob]*pulse
}

func newOrigins(db *badger.DB, options func(engineapi.RegistryOptions) fetch.Options) *origins {
	return &origins{
		db: db, options: options,
		logins:  map[way]engineapi.RegistryOptions{},
		clients: map[engineapi.RegistryOptions]client{},
		pulses:  map[id.Blob]*pulse{},
	}
}

// close closes idle connections.
func (o *origins) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, c := range o.clients {
		c.Close()
	}
}

// client returns the client with these options: tokens, connections and what
// it knows of hosts are shared by whoever uses it. One that is so old that the
// user's configuration may have changed goes on for those who have it.
func (o *origins) client(r engineapi.RegistryOptions) *fetch.Client {
	o.mu.Lock()
	defer o.mu.Unlock()
	if c, ok := o.clients[r]; ok && time.Since(c.made) < clientTime {
		return c.Client
	}
	c := client{fetch.New(o.options(r)), time.Now()}
	if len(o.clients) >= maxClients { // each with a token of its own, perhaps
		clear(o.clients)
	}
	o.clients[r] = c
	return c.Client
}

// drop has the next one who asks for a client get a new one: c has failed, and
// the user may mend its configuration.
func (o *origins) drop(c *fetch.Client) {
	o.mu.Lock()
	defer o.mu.Unlock()
	maps.DeleteFunc(o.clients, func(_ engineapi.RegistryOptions, old client) bool { return old.Client == c })
}

const (
	maxStrangers = 256 // ways of clients who are not trusted whose secrets are kept
	maxClients   = 32  // kept for who comes next
	clientTime   = 5 * time.Minute
)

// client is a fetch.Client and when it read its configuration.
type client struct {
	*fetch.Client
	made time.Time
}

// note remembers where the layers of an image are to be had, the latest place
// and way first. Those of a local source are not: they are read once, at once.
func (o *origins) note(ref fetch.Reference, layers []fetch.Layer, r engineapi.RegistryOptions) error {
	return o.noteAs(ref, layers, r, false)
}

// noteLast is note for a place that is asked after those that are known.
func (o *origins) noteLast(ref fetch.Reference, layers []fetch.Layer, r engineapi.RegistryOptions) error {
	return o.noteAs(ref, layers, r, true)
}

func (o *origins) noteAs(ref fetch.Reference, layers []fetch.Layer, r engineapi.RegistryOptions, last bool) error {
	if ref.Local() {
		return nil
	}
	to := way{ref.Name(), withoutSecrets(r)}
	o.remember(to, r)
	changes := map[string][]byte{}
	for _, l := range layers {
		if l.Blob == "" {
			continue
		}
		here := origin{Name: to.name, Size: l.Size, MediaType: l.MediaType, URLs: l.URLs, Registry: to.registry}
		old, err := o.of(l.Blob)
		if err != nil {
			return err
		}
		// A layer may not be proven yet, so who is not trusted has no say in
		// where the layers of others come from.
		ours := slices.DeleteFunc(slices.Clone(old), func(o origin) bool { return o.Registry.NoHostFiles })
		if r.NoHostFiles && len(ours) > 0 {
			continue
		}
		if !r.NoHostFiles {
			old = ours
		}
		at := slices.IndexFunc(old, func(o origin) bool { return o.way() == to })
		if at == 0 || at > 0 && last {
			continue
		}
		list := append([]origin{here}, slices.DeleteFunc(old, func(o origin) bool { return o.way() == to })...)
		if last {
			list = append(slices.Clone(old[:min(len(old), maxOrigins-1)]), here)
		}
		b, err := json.Marshal(list[:min(len(list), maxOrigins)])
		if err != nil {
			return err
		}
		changes[originKey+l.Blob.Hex()] = b
	}
	if len(changes) == 0 {
		return nil
	}
	if err := metadb.Update(o.db, changes); err != nil {
		return fmt.Errorf("origins: %w", err)
	}
	return nil
}

// remember keeps what a client said last of a way, if there are secrets in it.
func (o *origins) remember(to way, r engineapi.RegistryOptions) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if r == to.registry {
		delete(o.logins, to)
		return
	}
	if _, ok := o.logins[to]; !ok && r.NoHostFiles {
		n := 0
		for w := range o.logins {
			if !w.registry.NoHostFiles {
				continue
			}
			if n++; n >= maxStrangers { // any of them: they are asked again
				delete(o.logins, w)
			}
		}
	}
	o.logins[to] = r
}

// of returns the origins of a blob, none if there is no record, or a damaged one.
func (o *origins) of(b id.Blob) ([]origin, error) {
	v, err := metadb.Get(o.db, originKey+b.Hex())
	if err != nil {
		return nil, fmt.Errorf("origins: %w", err)
	}
	var list []origin
	if json.Unmarshal(v, &list) != nil {
		return nil, nil
	}
	return list, nil
}

// sweep forgets the origins of blobs that keep does not name.
func (o *origins) sweep(keep func(id.Blob) bool) error {
	changes := map[string][]byte{}
	err := metadb.Scan(o.db, originKey, func(hex string, _ []byte) error {
		if b, err := id.ParseBlob("sha256:" + hex); err != nil || !keep(b) {
			changes[originKey+hex] = nil
		}
		return nil
	})
	if err == nil {
		err = metadb.UpdateAll(o.db, changes)
	}
	if err != nil {
		return fmt.Errorf("origins: %w", err)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	maps.DeleteFunc(o.pulses, func(b id.Blob, _ *pulse) bool { return !keep(b) })
	return nil
}

// supply implements layerdb.Options.Source.
func (o *origins) supply(_ context.Context, l layerdb.LayerInfo) (lazy.Source, error) {
	list, err := o.of(l.Blob)
	if err != nil {
		return nil, err
	}
	s := &supply{pulse: o.pulse(l.Blob)}
	for _, at := range list {
		ref, err := fetch.ParseReference(at.Name)
		if err != nil {
			continue
		}
		layer := fetch.Layer{Blob: l.Blob, Size: at.Size, MediaType: at.MediaType, URLs: at.URLs}
		s.blobs = append(s.blobs, o.client(o.login(&at)).Blob(ref, layer))
	}
	if len(s.blobs) == 0 {
		return nil, fault.WithHint(fault.New(fault.NotFound, "nobody knows where layer %s is to be had from", l.Blob.Short()), "imgfs pull its image again")
	}
	return s, nil
}

// login returns how an origin is reached, with the secrets last said.
func (o *origins) login(at *origin) engineapi.RegistryOptions {
	o.mu.Lock()
	defer o.mu.Unlock()
	if r, ok := o.logins[at.way()]; ok {
		return r
	}
	return at.Registry
}

// damaged returns the blobs whose records cannot be read.
func (o *origins) damaged() ([]id.Blob, error) {
	var blobs []id.Blob
	err := metadb.Scan(o.db, originKey, func(hex string, v []byte) error {
		var list []origin
		if b, err := id.ParseBlob("sha256:" + hex); err == nil && json.Unmarshal(v, &list) != nil {
			blobs = append(blobs, b)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("origins: %w", err)
	}
	return blobs, nil
}

// forget removes a record.
func (o *origins) forget(b id.Blob) error {
	if err := metadb.Update(o.db, map[string][]byte{originKey + b.Hex(): nil}); err != nil {
		return fmt.Errorf("origins: %w", err)
	}
	return nil
}

// pulse returns the signs of life of a blob's origins.
func (o *origins) pulse(b id.Blob) *pulse {
	o.mu.Lock()
	defer o.mu.Unlock()
	p := o.pulses[b]
	if p == nil {
		p = &pulse{}
		o.pulses[b] = p
	}
	return p
}

// pulse tells a slow origin from a dead one.
type pulse struct {
	heard atomic.Int64 // when bytes last came, in nanoseconds since 1970
	since atomic.Int64 // when it first failed after that; 0: it did not
}

func (p *pulse) beat() {
	p.heard.Store(time.Now().UnixNano())
	if p.since.Load() != 0 {
		p.since.Store(0)
	}
}

// failed notes a failure and returns since when there have been nothing but.
func (p *pulse) failed() time.Time {
	now := time.Now()
	p.since.CompareAndSwap(0, now.UnixNano())
	return p.start(now)
}

// start returns when an outage began that now goes on, now if there is none.
func (p *pulse) start(now time.Time) time.Time {
	if t := p.since.Load(); t != 0 {
		return time.Unix(0, t)
	}
	return now
}

// last returns when bytes last came, but nothing before from.
func (p *pulse) last(from time.Time) time.Time {
	if t := time.Unix(0, p.heard.Load()); t.After(from) {
		return t
	}
	return from
}

// supply is a blob at all its origins: one is asked until it fails, then the next.
type supply struct {
	blobs []*fetch.Blob
	pulse *pulse
	turn  atomic.Int64 // of the one that is asked, modulo their number
}

var _ lazy.Source = (*supply)(nil)

func (s *supply) now() (*fetch.Blob, int64) {
	turn := s.turn.Load()
	return s.blobs[int(turn)%len(s.blobs)], turn
}

// Range implements lazy.Source.
func (s *supply) Range(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	var first error
	for range s.blobs {
		b, turn := s.now()
		body, err := b.Range(ctx, off, n)
		if err == nil {
			return &listening{ReadCloser: body, pulse: s.pulse}, nil
		}
		if ctx.Err() != nil {
			return nil, err
		}
		if first == nil {
			first = err
		}
		s.turn.CompareAndSwap(turn, turn+1)
	}
	return nil, first
}

// Blame implements lazy.Source.
func (s *supply) Blame(off, n int64) bool {
	b, turn := s.now()
	if b.Blame(off, n) {
		return true
	}
	next := int(turn+1) % len(s.blobs)
	s.turn.CompareAndSwap(turn, turn+1)
	return next != 0
}

// Link implements lazy.Source.
func (s *supply) Link() (rtt time.Duration, bytesPerSecond float64) {
	b, _ := s.now()
	return b.Link()
}

// Whole implements lazy.Source.
func (s *supply) Whole() bool {
	b, _ := s.now()
	return b.Whole()
}

// listening is a body whose bytes are signs of life.
type listening struct {
	io.ReadCloser
	pulse *pulse
}

func (l *listening) Read(p []byte) (int, error) {
	n, err := l.ReadCloser.Read(p)
	if n > 0 {
		l.pulse.beat()
	}
	return n, err
}

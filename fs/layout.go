package fs

import (
	"context"
	"strings"
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/imgfs/imgfs/internal/erofs"
	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
	"github.com/imgfs/imgfs/internal/lower"
	"golang.org/x/sys/unix"
)

// LayoutSource is the store that a [Layout] shows.
type LayoutSource interface {
	// Chains lists the chains whose layers are all present, in any order.
	Chains(ctx context.Context) ([]id.ChainKey, error)
	// Ancestors lists the chains beneath c, nearest first; the lowest has none.
	Ancestors(ctx context.Context, c id.ChainKey) ([]id.ChainKey, error)
	// OpenLayer opens the uppermost layer of c, OpenChain all of it.
	OpenLayer(ctx context.Context, c id.ChainKey) (*Content, error)
	OpenChain(ctx context.Context, c id.ChainKey) (*Content, error)
	// Images lists the names that are known, in canonical form:
	// docker.io/library/ubuntu:14.04, or with @sha256:… .
	Images(ctx context.Context) ([]string, error)
	// Resolve tells whether a canonical name exists: at once if it is known,
	// otherwise by asking its registry. [fault.NotFound] is a definite no.
	Resolve(ctx context.Context, name string) error
	// OpenImage opens a name's image, and fetches it first where needed.
	OpenImage(ctx context.Context, name string) (*Content, error)
}

// Content is an open index with its data files.
type Content struct {
	Image   *erofs.Image
	Data    []lower.Data
	Release func() // called once, when nobody reads any more
}

// Layout is the read-only view of a whole store as aufs had it:
//
//	layers/ID         text: the chains beneath ID, nearest first, one per line
//	diff/ID/          ID's uppermost layer alone
//	mnt/ID/           the union up to ID
//	images/HOST/PATH/NAME:TAG/, .../NAME@DIGEST/
//
// ID is 64 hexadecimal digits. The upper directories change with the store
// and are not cached for longer than a second; what is below an ID or a name
// is for ever what it was when it was first opened, and stays open until
// Close. An image's name that is not known is resolved when it is looked up,
// and the image fetched when something below it is.
//
// Tree 2 holds the directories above; each opened content has the next tree.
// An upper node keeps its number while the view is mounted.
type Layout struct {
	readOnly
	src    LayoutSource
	faults *lower.Faults
	born   time.Time

	base context.Context // of shared work; ends with the mount
	end  context.CancelFunc
	work sync.WaitGroup // shared work

	mu     sync.Mutex
	nodes  []*place          // tree 2, by nid - firstNID
	paths  map[string]uint64 // node of a place, by path
	open   []*content        // by tree number - firstContent
	failed map[string]failure
}

const (
	layoutTree    = 2
	firstContent  = 3
	firstNID      = 2 // as in an index
	maxPlaces     = 1 << 16
	maxFailed     = 1 << 10
	resolveLimit  = 10 * time.Second
	negative      = time.Minute
	changing      = 1 // seconds for which the kernel keeps an upper directory's entries
	layoutRootDir = ""
)

// kind says what a place of tree 2 is.
type kind uint8

const (
	fixedDir kind = iota // the root and its four directories
	layersFile
	diffDir
	mntDir
	prefixDir // between images/ and a name
	imageDir
)

// place is a file or directory of tree 2. It is immutable but for what the
// Layout's mutex guards.
type place struct {
	kind kind
	path string // from the view's root
	node uint64
	text []byte // of a layersFile

	content *content      // guarded: what is open, nil before
	opening chan struct{} // guarded: closed when the attempt in progress ended
}

// content is an opened index.
type content struct {
	view
	tree    *lower.Tree // below view
	release func()
}

// view is a tree, or a layer.
type view interface {
	Attr(n erofs.NID, out *fuse.Attr) error
	Lookup(dir erofs.NID, name string, out *fuse.EntryOut) error
	ReadDir(dir erofs.NID, cookie uint64, plus bool, out *fuse.DirEntryList) error
	Xattr(n erofs.NID, name string, dest []byte) (uint32, error)
	Xattrs(n erofs.NID, root bool, dest []byte) (uint32, error)
}

// failure is the answer to a name that could not be resolved or opened.
type failure struct {
	err   error
	until time.Time
}

var _ fuse.RawFileSystem = (*Layout)(nil)

// NewLayout returns the view of src. After the Server is done the caller calls
// Close.
func NewLayout(src LayoutSource, o Options) *Layout {
	l := &Layout{
		readOnly: newReadOnly(),
		src:      src,
		faults:   lower.NewFaults(o.Logger),
		born:     time.Now(),
		paths:    map[string]uint64{},
		failed:   map[string]failure{},
	}
	l.base, l.end = context.WithCancel(context.Background())
	for _, path := range []string{layoutRootDir, "layers", "diff", "mnt", "images"} {
		l.placeAt(path, fixedDir, nil)
	}
	return l
}

// Close waits for the work in progress and releases all that is open.
func (l *Layout) Close() {
	l.end()
	l.work.Wait()
	l.mu.Lock()
	open := l.open
	l.open = nil
	l.mu.Unlock()
	for _, c := range open {
		c.release()
	}
}

// OnUnmount ends the requests that still wait.
func (l *Layout) OnUnmount() { l.end() }

// placeAt returns the place of a path, made when it is new; nil if there are
// too many.
func (l *Layout) placeAt(path string, k kind, text []byte) *place {
	l.mu.Lock()
	defer l.mu.Unlock()
	if node, ok := l.paths[path]; ok {
		return l.placeLocked(node)
	}
	if len(l.nodes) >= maxPlaces {
		return nil
	}
	p := &place{kind: k, path: path, text: text, node: layoutTree<<lower.TreeShift | uint64(len(l.nodes)+firstNID)}
	if path == layoutRootDir {
		p.node = lower.Root
	}
	l.nodes = append(l.nodes, p)
	l.paths[path] = p.node
	return p
}

// placeLocked returns the place of a node of tree 2. Preconditions: l.mu.
func (l *Layout) placeLocked(node uint64) *place {
	if node == lower.Root {
		return l.nodes[0]
	}
	if i := int(node&lower.NIDMask) - firstNID; node>>lower.TreeShift == layoutTree && i >= 0 && i < len(l.nodes) {
		return l.nodes[i]
	}
	return nil
}

// find returns what a node is: a place, or an inode of a content. A place
// whose content is open is both.
func (l *Layout) find(node uint64) (*place, *content, erofs.NID, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if p := l.placeLocked(node); p != nil {
		if p.content != nil {
			return p, p.content, p.content.tree.Image().Root(), nil
		}
		return p, nil, 0, nil
	}
	i := int(node>>lower.TreeShift) - firstContent
	if i < 0 || i >= len(l.open) {
		return nil, nil, 0, unix.ESTALE
	}
	return nil, l.open[i], erofs.NID(node & lower.NIDMask), nil
}

// enter is find for what needs the content: it opens it, and waits for that.
func (l *Layout) enter(ctx context.Context, node uint64) (*place, *content, erofs.NID, error) {
	for {
		p, c, n, err := l.find(node)
		if err != nil || c != nil || p.kind == fixedDir || p.kind == layersFile || p.kind == prefixDir {
			return p, c, n, err
		}
		if err := l.recall(p.path); err != nil {
			return nil, nil, 0, err
		}
		select {
		case <-l.start(p):
		case <-ctx.Done():
			return nil, nil, 0, ctx.Err()
		}
	}
}

// start begins to open p's content, unless somebody has, and returns a channel
// that is closed when the attempt has ended.
func (l *Layout) start(p *place) <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	if p.opening != nil {
		return p.opening
	}
	done := make(chan struct{})
	p.opening = done
	l.work.Go(func() {
		c, err := l.openPlace(p)
		if err != nil {
			l.remember(p.path, err)
		}
		l.mu.Lock()
		p.opening = nil
		if c != nil {
			l.adoptLocked(p, c)
		}
		l.mu.Unlock()
		close(done)
	})
	return done
}

func (l *Layout) openPlace(p *place) (*Content, error) {
	dir, rest, _ := strings.Cut(p.path, "/")
	switch dir {
	case "diff":
		return l.src.OpenLayer(l.base, chainOf(rest))
	case "mnt":
		return l.src.OpenChain(l.base, chainOf(rest))
	}
	return l.src.OpenImage(l.base, rest)
}

// adoptLocked gives c the next tree. Preconditions: l.mu.
func (l *Layout) adoptLocked(p *place, c *Content) {
	t := lower.New(c.Image, c.Data, uint64(len(l.open)+firstContent), p.node)
	p.content = &content{view: &t, tree: &t, release: c.Release}
	if p.kind == diffDir {
		p.content.view = &layer{&t}
	}
	l.open = append(l.open, p.content)
}

// remember keeps a failure for a while, so that a name that takes long to fail
// does so once; recall returns it.
func (l *Layout) remember(path string, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.base.Err() != nil {
		return
	}
	now := time.Now()
	if len(l.failed) >= maxFailed {
		for k, f := range l.failed {
			if now.After(f.until) || len(l.failed) >= maxFailed {
				delete(l.failed, k)
			}
		}
	}
	l.failed[path] = failure{err, now.Add(negative)}
}

func (l *Layout) recall(path string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.base.Err() != nil {
		return unix.ENODEV
	}
	f, ok := l.failed[path]
	if !ok {
		return nil
	}
	if time.Now().After(f.until) {
		delete(l.failed, path)
		return nil
	}
	return f.err
}

// status is Faults.Status for errors of the source: what is not there, or
// cannot be a name, is ENOENT.
func (l *Layout) status(op string, err error) fuse.Status {
	switch fault.KindOf(err) {
	case fault.NotFound, fault.Invalid:
		return fuse.ENOENT
	}
	return l.faults.Status(op, err)
}

func (l *Layout) Failures() (uint64, string) { return l.faults.Get() }

// chainOf returns the chain named by 64 hexadecimal digits, "" if they are not.
func chainOf(hex string) id.ChainKey {
	c, err := id.ParseChainKey("sha256:" + hex)
	if err != nil {
		return ""
	}
	return c
}

package daemon

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path"
	"regexp"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/fetch"
	"github.com/imgfs/imgfs/fs"
	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
	"github.com/imgfs/imgfs/internal/lower"
	"github.com/imgfs/imgfs/internal/upperdir"
	"github.com/imgfs/imgfs/layerdb"
)

// upperOwner is followed by the name of an upper: it retains the layers that
// the upper lies on, from before it exists until it has gone.
const upperOwner = "upper/"

// What becomes of an upper when its mount has ended:
//
//	                       changed   unchanged  --tmp
//	unmounted              kept      dropped    dropped
//	the mount failed       kept      dropped    dropped
//	the daemon left it     kept      kept       kept      (the next one mounts again)
//	found at start, no
//	mount on record        kept      dropped    -
//	its record cannot
//	be restored            kept      dropped    dropped
//
// Unchanged is also one with nothing but directories that are as in the image.
// A directory of the user's (--upper-dir) is made where it is not, and never
// dropped.

// usedUpper is one that somebody has, or is about to have.
type usedUpper struct {
	mount string // its ID, "" while it is removed or converted
	what  string // shown: "the mount on /mnt/x"
}

// upperName is the form of an upper's name, which is also a directory's.
var upperName = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,127}$`)

func checkUpperName(name string) error {
	if upperName.MatchString(name) {
		return nil
	}
	return fault.WithHint(fault.New(fault.NotFound, "no such upper: %s", name), "see imgfs upper ls")
}

// newUpperName makes a name that says what the upper lies on: ubuntu-3fa91c.
func newUpperName(image string) string {
	last := image
	if ref, err := fetch.ParseReference(image); err == nil && !ref.Local() {
		last = ref.Name()
	} else if _, rest, ok := strings.Cut(image, ":"); ok {
		last, _, _ = strings.Cut(rest, ":") // oci:DIR:TAG
	}
	last = strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '.' || r == '_' {
			return r
		}
		return '-'
	}, strings.ToLower(path.Base(last)))
	last = strings.Trim(last, "-._")
	if last = last[:min(len(last), 40)]; last == "" {
		last = "upper"
	}
	var b [3]byte
	rand.Read(b[:]) // never fails
	return last + "-" + hex.EncodeToString(b[:])
}

// upperPath returns where the upper of a writable mount is.
func (e *engine) upperPath(r *record) string {
	if r.UpperDir != "" {
		return r.UpperDir
	}
	return e.paths.Upper(r.Upper)
}

// knownUpper returns what the upper that req names says of itself, nil where
// it is yet to be made.
func (e *engine) knownUpper(req *engineapi.MountRequest) (*upperdir.Info, error) {
	var at string
	switch {
	case req.Upper != "":
		if err := checkUpperName(req.Upper); err != nil {
			return nil, err
		}
		at = e.paths.Upper(req.Upper)
	case req.UpperDir != "":
		at = req.UpperDir
		if err := e.checkUpperDir(req); err != nil {
			return nil, err
		}
		if isUpper, err := looksLikeUpper(at); err != nil {
			return nil, err
		} else if !isUpper && req.Image == "" {
			return nil, fault.WithHint(fault.New(fault.Invalid, "%s is no upper yet: it takes an image to make one", at), "imgfs mount --upper-dir %s IMAGE DIR", fault.Word(at))
		} else if !isUpper {
			return nil, nil
		}
	default:
		return nil, nil
	}
	info, err := upperdir.Load(at)
	switch {
	case fault.KindOf(err) == fault.NotFound && req.Upper != "":
		return nil, fault.WithHint(fault.New(fault.NotFound, "no such upper: %s", req.Upper), "see imgfs upper ls; a fresh one gets its name by itself")
	case err != nil:
		return nil, adviseUpper(err, req.Upper, at)
	case info.Xattrs == upperdir.Trusted && !Privileged():
		return nil, fault.WithHint(fault.New(fault.Denied, "upper %s was written by root", at), "mount it as root")
	}
	return &info, nil
}

// looksLikeUpper tells an upper from an empty directory; anything else is an
// error.
func looksLikeUpper(dir string) (bool, error) {
	list, err := os.ReadDir(dir)
	if err != nil {
		return false, fmt.Errorf("upper: %w", err)
	}
	for _, d := range list {
		if d.Name() == "upper.json" {
			return true, nil
		}
	}
	if len(list) > 0 {
		return false, fault.WithHint(fault.New(fault.Conflict, "%s is neither an upper nor an empty directory", dir), "--upper-dir takes one of these, or makes a new one")
	}
	return false, nil
}

// adviseUpper says what a user can do about an upper that cannot be opened or
// made.
func adviseUpper(err error, name, at string) error {
	switch {
	case errors.Is(err, upperdir.ErrDamaged):
		hint := "what can be read of it is below " + at + "/diff"
		if name != "" {
			hint += "; imgfs upper inspect " + name + " says what is damaged, imgfs upper rm " + name + " drops it"
		}
		return &fault.Error{Kind: fault.Integrity, Hint: hint, Err: err}
	case fault.HintOf(err) != "":
		return err
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return fault.WithHint(err, "make room (imgfs upper ls, imgfs gc), keep the changes elsewhere (--upper-dir DIR), or mount with --ro")
	case errors.Is(err, unix.EROFS), errors.Is(err, os.ErrPermission):
		return fault.WithHint(err, "keep the changes elsewhere (--upper-dir DIR), or mount with --ro")
	}
	return err
}

// checkUpperDir refuses a directory that means another one here, or that this
// very daemon would have to ask itself for.
func (e *engine) checkUpperDir(req *engineapi.MountRequest) error {
	var st unix.Stat_t
	if err := unix.Lstat(req.UpperDir, &st); err != nil {
		return fault.New(fault.NotFound, "upper %s: %w", req.UpperDir, err)
	}
	if req.UpperAt != "" && req.UpperAt != fmt.Sprintf("%d:%d", st.Dev, st.Ino) {
		return fault.New(fault.Invalid, "upper %s: the daemon, in another mount namespace, sees another directory there", req.UpperDir)
	}
	dev := fmt.Sprintf("%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev))
	all, err := fs.Mounts()
	if err != nil {
		return err
	}
	for _, m := range all {
		if m.Dev == dev && m.Imgfs() {
			return fault.New(fault.Invalid, "upper %s lies in what imgfs has mounted on %s", req.UpperDir, m.Target)
		}
	}
	return nil
}

// foreignUpper is the error for an upper that was made on another image.
func foreignUpper(info *upperdir.Info, rec *record) error {
	name, flag := rec.Upper, "--upper "+rec.Upper
	if name == "" {
		name, flag = rec.UpperDir, "--upper-dir "+fault.Word(rec.UpperDir)
	}
	return fault.WithHint(
		fault.New(fault.Conflict, "upper %s belongs to image %s (%s), not to %s (%s)", name, info.Image, info.ImageID.Short(), rec.Image, rec.ImageID.Short()),
		"imgfs mount %s %s takes its own image; --force lays it over the other", flag, fault.Word(rec.Target))
}

// holdUpper reserves the upper of a mount, so that nobody else of this store
// opens or removes it. Each success is followed by one freeUpper. A mount that
// has just been unmounted, as by umount(8), is waited for.
func (e *engine) holdUpper(ctx context.Context, at string, by usedUpper) error {
	ctx, cancel := context.WithTimeout(ctx, upperPatience)
	defer cancel()
	for {
		e.mu.Lock()
		u, used := e.uppers[at]
		m := e.mounts[u.mount]
		if !used {
			e.uppers[at] = by
		}
		e.mu.Unlock()
		if !used {
			return nil
		}
		err := fault.New(fault.Conflict, "upper %s is in use by %s", e.shownUpper(at), u.what)
		if m == nil {
			return err
		}
		if m.rec.MountNS != e.mountNS || m.stands() {
			return fault.WithHint(err, "imgfs umount %s", fault.Word(m.rec.Target))
		}
		select {
		case <-m.gone:
		case <-ctx.Done():
			return fault.WithHint(
				fault.New(fault.Conflict, "%w, which is unmounted, but goes on for a process or in another mount namespace", err),
				"it ends with its last user")
		}
	}
}

// upperPatience bounds the wait for the end of a mount that is not there any
// more.
const upperPatience = 3 * time.Second

func (e *engine) freeUpper(at string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.uppers, at)
}

// shownUpper returns an upper's name, or the path of one that has none.
func (e *engine) shownUpper(at string) string {
	if name, ok := strings.CutPrefix(at, e.paths.uppers()+"/"); ok {
		return name
	}
	return at
}

// openUpper opens the upper of a mount, or makes it where fresh is set, in
// which case rec gets its name. The caller ends with e.leaveUpper.
func (e *engine) openUpper(ctx context.Context, rec *record, fresh bool) (*upperdir.Dir, error) {
	if fresh && rec.UpperDir == "" {
		if err := os.MkdirAll(e.paths.uppers(), 0o700); err != nil {
			return nil, adviseUpper(fmt.Errorf("upper: %w", err), "", "")
		}
		rec.Upper = newUpperName(rec.Image)
	}
	at := e.upperPath(rec)
	if err := e.holdUpper(ctx, at, usedUpper{rec.ID, "the mount on " + rec.Target}); err != nil {
		return nil, err
	}
	d, err := e.openHeld(rec, at, fresh)
	if err != nil {
		e.freeUpper(at)
		return nil, adviseUpper(err, rec.Upper, at)
	}
	return d, nil
}

// openHeld opens or makes the upper at a path that is held.
func (e *engine) openHeld(rec *record, at string, fresh bool) (*upperdir.Dir, error) {
	if !fresh {
		return upperdir.Open(at)
	}
	// Before the upper: a name without one is dropped at the next start.
	if rec.Upper != "" {
		if err := e.layers.Retain(upperOwner+rec.Upper, rec.Layers); err != nil {
			return nil, err
		}
	}
	d, err := upperdir.Create(at, upperdir.Info{
		Name: rec.Upper, Image: rec.Image, ImageID: rec.ImageID, ChainID: rec.ChainID, Layers: rec.Layers,
	})
	if err != nil && rec.Upper != "" {
		_, rerr := e.layers.Release(upperOwner + rec.Upper)
		err = errors.Join(err, rerr)
	}
	return d, err
}

// leaveUpper ends a mount's use of its upper: it is closed, and dropped unless
// keep is set.
func (e *engine) leaveUpper(rec *record, d *upperdir.Dir, keep bool) {
	defer e.freeUpper(d.Path())
	defer d.Close()
	if keep || rec.Upper == "" {
		return
	}
	if err := e.dropUpper(rec.Upper); err != nil {
		e.problem("upper %s is not dropped: %v", rec.Upper, err)
	}
}

// worthKeeping reports whether the upper of a mount that has ended is to stay,
// by the table above. Without a chain it is dropped only if it is empty.
func (e *engine) worthKeeping(rec *record, d *upperdir.Dir, chain *layerdb.Chain) bool {
	if rec.Upper == "" || rec.Tmp {
		return rec.Upper == ""
	}
	changed, err := holdsChanges(context.WithoutCancel(e.ctx), d, chain)
	if err != nil {
		e.problem("upper %s: %v", rec.Upper, err)
	}
	return changed
}

// holdsChanges reports whether an upper changes anything of the chain that it
// was made on; with another one, or nil, whether there is anything in it. It
// does where that cannot be told.
func holdsChanges(ctx context.Context, d *upperdir.Dir, chain *layerdb.Chain) (bool, error) {
	if chain == nil || chain.ID() != d.Info().ChainID {
		empty, err := d.Empty()
		return !empty || err != nil, err
	}
	low := lower.New(chain.Image(), nil, 0, lower.Root) // attributes alone are looked at
	same, err := d.Unchanged(ctx, &low)
	return !same || err != nil, err
}

// dropUpper removes an upper of the store and ends what it retains.
//
// Preconditions: it is held.
func (e *engine) dropUpper(name string) error {
	grave := e.paths.Upper(grave + newID())
	// At once: half of an upper must not pass for one.
	err := os.Rename(e.paths.Upper(name), grave)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	_, err = e.layers.Release(upperOwner + name)
	return errors.Join(err, removeTree(grave))
}

// grave begins the name of what is being removed; no upper is called so.
const grave = ".dead-"

// removeTree removes a directory of ours, also where modes that a user has
// given to directories in it are in the way.
func removeTree(dir string) error {
	err := os.RemoveAll(dir)
	if !errors.Is(err, os.ErrPermission) {
		return err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	openUp(root)
	return os.RemoveAll(dir)
}

// upperOf returns the image that an upper lies on, from the upper alone.
func upperOf(info *upperdir.Info) image {
	return image{id: info.ImageID, name: info.Image, layers: info.Layers}
}

// imageOver returns the image for a mount with the upper info (nil: a fresh
// one). The upper's own image needs no name in the store: it is enough that
// its layers are there, which the upper retains.
func (e *engine) imageOver(ctx context.Context, req engineapi.MountRequest, info *upperdir.Info, report func(engineapi.Progress)) (image, error) {
	if info == nil {
		return e.imageFor(ctx, req, report)
	}
	here := e.hasAll(info.Layers)
	if req.Image == "" {
		if !here {
			return image{}, fault.WithHint(fault.New(fault.NotFound, "image %s of the upper is not in the store any more", info.Image),
				"imgfs pull %s", fault.Word(info.Image))
		}
		return upperOf(info), nil
	}
	if !here || req.Pull == "always" || req.Platform != "" {
		return e.imageFor(ctx, req, report)
	}
	known, ref, err := e.lookup(req.Image)
	switch {
	case err == nil && known.ID == info.ImageID:
		// Since the upper was made the image may have come anew, as other
		// layers of the same content.
		img := upperOf(info)
		img.name = shownName(&known, ref)
		return img, nil
	case fault.KindOf(err) == fault.NotFound && req.Image == info.Image:
		return upperOf(info), nil
	}
	return e.imageFor(ctx, req, report)
}

// setImage notes what a mount shows.
func (r *record) setImage(img image) {
	r.Image, r.ImageID, r.Source = img.name, img.id, img.name
	r.Layers, r.met = img.layers, img.met
	r.ChainID = id.Stack(r.Layers)
}

package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/lower"
	"github.com/imgfs/imgfs/internal/upperdir"
)

// upperNames returns the names of the store's uppers.
func (e *engine) upperNames() ([]string, error) {
	list, err := os.ReadDir(e.paths.uppers())
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("uppers: %w", err)
	}
	var names []string
	for _, d := range list {
		if upperName.MatchString(d.Name()) {
			names = append(names, d.Name())
		}
	}
	return names, nil
}

// Uppers implements engineapi.Uppers.
func (e *engine) Uppers(ctx context.Context) ([]engineapi.Upper, error) {
	names, err := e.upperNames()
	if err != nil {
		return nil, err
	}
	list := []engineapi.Upper{}
	for _, name := range names {
		u, err := e.Upper(ctx, name)
		if fault.KindOf(err) == fault.NotFound {
			continue // gone meanwhile
		}
		if err != nil {
			return nil, err
		}
		list = append(list, u)
	}
	slices.SortFunc(list, func(a, b engineapi.Upper) int {
		return cmp.Or(a.Created.Compare(b.Created), strings.Compare(a.Name, b.Name))
	})
	return list, nil
}

// Upper implements engineapi.Uppers. A damaged one is shown with its problem.
func (e *engine) Upper(ctx context.Context, name string) (engineapi.Upper, error) {
	if err := checkUpperName(name); err != nil {
		return engineapi.Upper{}, err
	}
	at := e.paths.Upper(name)
	u := engineapi.Upper{Name: name, Path: at}
	st, err := os.Lstat(at)
	if err != nil {
		return u, fault.WithHint(fault.New(fault.NotFound, "no such upper: %s", name), "see imgfs upper ls")
	}
	u.Created = st.ModTime()
	info, err := upperdir.Load(at)
	if err != nil {
		u.Problem = err.Error()
	} else {
		u.Image, u.ImageID, u.ChainID, u.Layers = info.Image, info.ImageID, info.ChainID, info.Layers
		u.Created, u.Xattrs, u.Override = info.Created, info.Xattrs, info.Override
	}
	if u.Size, err = diskUsage(ctx, at); err != nil && u.Problem == "" {
		u.Problem = err.Error()
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if m := e.mounts[e.uppers[at].mount]; m != nil {
		u.MountID, u.Target, u.Tmp = m.rec.ID, m.rec.Target, m.rec.Tmp
	}
	return u, nil
}

// CheckUpper implements engineapi.Uppers.
func (e *engine) CheckUpper(ctx context.Context, name string) ([]engineapi.UpperProblem, error) {
	s, err := e.source(ctx, engineapi.Source{Upper: name})
	if err != nil {
		return nil, err
	}
	defer s.close()
	found, err := s.upper.Check(ctx, s.low)
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err != nil { // it could not look any further
		found = append(found, upperdir.Problem{Path: "/", What: err.Error()})
	}
	list := []engineapi.UpperProblem{}
	for _, p := range found[:min(len(found), maxProblems)] {
		list = append(list, engineapi.UpperProblem{Path: p.Path, What: p.What})
	}
	return list, nil
}

// RemoveUpper implements engineapi.Uppers.
func (e *engine) RemoveUpper(ctx context.Context, name string) error {
	if err := checkUpperName(name); err != nil {
		return err
	}
	at := e.paths.Upper(name)
	if err := e.holdUpper(ctx, at, usedUpper{what: "imgfs upper rm"}); err != nil {
		return err
	}
	defer e.freeUpper(at)
	if _, err := os.Lstat(at); errors.Is(err, os.ErrNotExist) {
		return fault.WithHint(fault.New(fault.NotFound, "no such upper: %s", name), "see imgfs upper ls")
	}
	if err := e.dropUpper(name); err != nil {
		return fmt.Errorf("upper %s: %w", name, err)
	}
	e.log.Info("removed", "upper", name)
	return nil
}

// ConvertUpper implements engineapi.Uppers.
func (e *engine) ConvertUpper(ctx context.Context, name string, req engineapi.ConvertRequest) error {
	if err := checkUpperName(name); err != nil {
		return err
	}
	at := e.paths.Upper(name)
	if _, err := os.Lstat(at); errors.Is(err, os.ErrNotExist) {
		return fault.WithHint(fault.New(fault.NotFound, "no such upper: %s", name), "see imgfs upper ls")
	}
	if err := e.holdUpper(ctx, at, usedUpper{what: "imgfs upper convert"}); err != nil {
		return err
	}
	defer e.freeUpper(at)
	d, err := upperdir.Open(at)
	if err != nil {
		return adviseUpper(err, name, at)
	}
	defer d.Close()
	chain, err := e.layers.Chain(ctx, d.Info().Layers)
	if err != nil {
		return fmt.Errorf("upper %s: %w", name, err)
	}
	defer chain.Release()
	to := req.Xattrs
	if to == "" && !Privileged() {
		to = upperdir.User
	}
	low := lower.New(chain.Image(), e.dataOf(chain), 0, lower.Root)
	if err := d.Convert(ctx, &low, to); err != nil {
		return adviseUpper(err, name, at)
	}
	e.log.Info("converted", "upper", name, "xattrs", d.Info().Xattrs)
	return nil
}

// sweepUppers drops what a daemon that died has left half made, half removed
// or unchanged, and makes sure that what stays retains its layers.
//
// Preconditions: mounts have been restored, and no request is served yet.
func (e *engine) sweepUppers(ctx context.Context) {
	list, err := os.ReadDir(e.paths.uppers())
	if err != nil {
		if !errors.Is(err, os.ErrNotExist) {
			e.problem("uppers: %v", err)
		}
		return
	}
	for _, d := range list {
		switch {
		case strings.HasPrefix(d.Name(), grave):
			err = removeTree(e.paths.Upper(d.Name()))
		case !upperName.MatchString(d.Name()):
			continue
		default:
			err = e.sweepUpper(ctx, d.Name())
		}
		if err != nil {
			e.problem("upper %s: %v", d.Name(), err)
		}
	}
}

func (e *engine) sweepUpper(ctx context.Context, name string) error {
	at := e.paths.Upper(name)
	if e.holdUpper(ctx, at, usedUpper{what: "the daemon's start"}) != nil {
		return nil // its mount was restored
	}
	defer e.freeUpper(at)
	d, err := upperdir.Open(at)
	if err != nil {
		if unborn(at) {
			return e.dropUpper(name)
		}
		return err
	}
	defer d.Close()
	layers := d.Info().Layers
	chain, err := e.layers.Chain(ctx, layers)
	if err != nil {
		chain = nil // layers are missing, which who mounts it is told
	}
	changed, err := holdsChanges(ctx, d, chain)
	if chain != nil {
		chain.Release()
	}
	if changed {
		return errors.Join(err, e.layers.Retain(upperOwner+name, layers))
	}
	return e.dropUpper(name)
}

// unborn reports whether the upper at a path was not yet made when its maker
// died: what it says of itself is written last.
func unborn(at string) bool {
	if _, err := os.Lstat(filepath.Join(at, "upper.json")); !errors.Is(err, os.ErrNotExist) {
		return false
	}
	list, err := os.ReadDir(filepath.Join(at, "diff"))
	return len(list) == 0 && (err == nil || errors.Is(err, os.ErrNotExist))
}

// staleUppers returns the owners of uppers that are gone.
func (e *engine) staleUppers() []string {
	var stale []string
	for _, o := range e.layers.Owners(upperOwner) {
		if _, err := os.Lstat(e.paths.Upper(strings.TrimPrefix(o, upperOwner))); errors.Is(err, os.ErrNotExist) {
			stale = append(stale, o)
		}
	}
	return stale
}

// diskUsage returns the bytes allocated to what is below dir. It follows no
// symlink, and what vanishes meanwhile counts nothing.
func diskUsage(ctx context.Context, dir string) (int64, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return 0, err
	}
	defer root.Close()
	type inode struct{ dev, ino uint64 }
	seen := map[inode]bool{}
	var sum int64
	err = fs.WalkDir(root.FS(), ".", func(_ string, d fs.DirEntry, err error) error {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			return nil
		}
		i, err := d.Info()
		if err != nil {
			return nil
		}
		st, ok := i.Sys().(*syscall.Stat_t)
		if !ok {
			return nil
		}
		if st.Nlink > 1 && !d.IsDir() {
			if seen[inode{st.Dev, st.Ino}] {
				return nil
			}
			seen[inode{st.Dev, st.Ino}] = true
		}
		sum += st.Blocks * 512
		return nil
	})
	return sum, err
}

// openUp lets this user into all directories below root.
func openUp(root *os.Root) {
	// What stays closed is for who removes to say.
	_ = fs.WalkDir(root.FS(), ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return fs.SkipDir
		}
		if d.IsDir() {
			_ = root.Chmod(path, 0o700)
		}
		return nil
	})
}

var _ engineapi.Uppers = (*engine)(nil)

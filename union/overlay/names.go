package overlay

import (
	"fmt"
	"slices"
	"sort"
	"strings"

	"github.com/imgfs/imgfs/internal/erofs"
	"golang.org/x/sys/unix"
)

// reverse finds the names of the chain's inodes: an index knows the inode of a
// name only. It is made when first needed, from the whole index.
type reverse struct {
	names []lowerName // by nid
	made  bool
}

// lowerName is one name of an inode of the chain: it is the entry of directory
// dir that [erofs.Image.ReadDir] begins with at cookie at.
type lowerName struct {
	nid, dir erofs.NID
	at       uint64
}

// of returns the names of an inode.
//
// Preconditions: mu is held exclusively.
func (r *reverse) of(img *erofs.Image, n erofs.NID) ([]lowerName, error) {
	if !r.made {
		if err := r.make(img); err != nil {
			return nil, fmt.Errorf("chain index: %w", err)
		}
	}
	from := sort.Search(len(r.names), func(i int) bool { return r.names[i].nid >= n })
	to := from
	for to < len(r.names) && r.names[to].nid == n {
		to++
	}
	return r.names[from:to], nil
}

func (r *reverse) make(img *erofs.Image) error {
	names := make([]lowerName, 0, img.Inodes())
	todo := []erofs.NID{img.Root()}
	for dirs := uint64(0); len(todo) > 0; dirs++ {
		if dirs > img.Inodes() {
			return fmt.Errorf("%w: directories in a circle", erofs.ErrCorrupt)
		}
		dir := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		at := uint64(0)
		err := img.ReadDir(dir, 0, func(e *erofs.Dirent) bool {
			if string(e.Name) != "." && string(e.Name) != ".." {
				names = append(names, lowerName{nid: e.NID, dir: dir, at: at})
				if e.Type == unix.DT_DIR {
					todo = append(todo, e.NID)
				}
			}
			at = e.Next
			return true
		})
		if err != nil {
			return err
		}
	}
	slices.SortStableFunc(names, func(a, b lowerName) int {
		switch {
		case a.nid < b.nid:
			return -1
		case a.nid > b.nid:
			return 1
		}
		return 0
	})
	r.names, r.made = names, true
	return nil
}

// name returns the name itself.
func (l lowerName) name(img *erofs.Image) (string, error) {
	name := ""
	err := img.ReadDir(l.dir, l.at, func(e *erofs.Dirent) bool {
		name = string(e.Name)
		return false
	})
	if err == nil && name == "" {
		err = fmt.Errorf("%w: a name is gone", erofs.ErrCorrupt)
	}
	return name, err
}

// path returns an absolute path of an inode in the chain.
func (r *reverse) path(img *erofs.Image, n erofs.NID) (string, error) {
	var parts []string
	for n != img.Root() {
		names, err := r.of(img, n)
		if err != nil {
			return "", err
		}
		if len(names) == 0 {
			return "", fmt.Errorf("%w: inode %d has no name", erofs.ErrCorrupt, n)
		}
		name, err := names[0].name(img)
		if err != nil {
			return "", err
		}
		parts = append(parts, name)
		n = names[0].dir
	}
	slices.Reverse(parts)
	return "/" + strings.Join(parts, "/"), nil
}

// lowerAt returns the inode of the chain at a redirect: an absolute path, or a
// name in dir. Neither goes through a symlink, and nothing but the index is
// asked, so that an untrusted redirect can name only what the image has.
func (u *Union) lowerAt(dir erofs.NID, redirect string) (erofs.NID, error) {
	n := dir
	names := []string{redirect}
	if strings.HasPrefix(redirect, "/") {
		n, names = u.img.Root(), strings.Split(redirect[1:], "/")
	} else if dir == 0 {
		return 0, fmt.Errorf("%w: redirect %q of what has no lower", errDamaged, redirect)
	}
	for _, name := range names {
		next, _, err := u.img.Lookup(n, []byte(name))
		if err != nil {
			// Not erofs.ErrNotExist, which would be said of the upper's name.
			return 0, fmt.Errorf("%w: redirect %q: %v", errDamaged, redirect, err)
		}
		n = next
	}
	return n, nil
}

// lowerLookup returns the inode that the lower of a directory has at a name; 0
// is none.
func (u *Union) lowerLookup(p *node, name string) (erofs.NID, uint8, error) {
	if p.lower == 0 {
		return 0, 0, nil
	}
	n, kind, err := u.img.Lookup(p.lower, []byte(name))
	if err == erofs.ErrNotExist {
		return 0, 0, nil
	}
	return n, kind, err
}

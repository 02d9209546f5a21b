package union

import (
	"errors"
	"fmt"
	"strings"

	"github.com/imgfs/imgfs/internal/erofs"
)

// Bounds of walks along paths and symlinks, which only hostile layers reach: a
// chain of symlinks as containerd and umoci have it, and a layer altogether.
const (
	maxSymlinks  = 255
	baseSteps    = 1 << 20
	stepsPerName = 64
)

var (
	errLoop  = errors.New("too many symlinks")
	errSteps = fmt.Errorf("%w: the layer's paths lead through too many symlinks", erofs.ErrLimit)
)

// walkDir walks along a path from directory d, following symlinks, and never
// leaves the root: ".." of the root is the root, an absolute symlink begins
// there. It returns the last directory on the way, and in m.missing the names
// that would have to be made below it: what is not there, or is no directory.
// ".." takes such a name away again.
func (m *merger) walkDir(d dirID, path string) (dirID, error) {
	m.rest, m.missing = append(m.rest[:0], path), m.missing[:0]
	links := 0
	for len(m.rest) > 0 {
		top := &m.rest[len(m.rest)-1]
		name, rest, more := strings.Cut(*top, "/")
		if more {
			*top = rest
		} else {
			m.rest = m.rest[:len(m.rest)-1]
		}
		if m.steps--; m.steps < 0 {
			return 0, errSteps
		}
		switch name {
		case "", ".":
			continue
		case "..":
			if n := len(m.missing); n > 0 {
				m.missing = m.missing[:n-1]
			} else {
				d = m.dirs[d].parent
			}
			continue
		}
		if len(m.missing) > 0 {
			m.missing = append(m.missing, name)
			continue
		}
		e := m.lookup(d, name)
		switch m.kindOf(e) {
		case kindDir:
			d = m.dirOf(e)
		case kindSymlink:
			if links++; links > maxSymlinks {
				return 0, errLoop
			}
			n := &m.inodes[m.entries[e].inode]
			target, err := m.images[n.image].ReadLink(n.nid)
			if err != nil {
				return 0, err
			}
			if target[0] == '/' {
				d = m.root()
			}
			m.rest = append(m.rest, alias(target))
		default:
			m.missing = append(m.missing, name)
		}
	}
	return d, nil
}

// walk returns the inode that a path from the root leads to, or 0. A symlink at
// the end is not followed.
func (m *merger) walk(path string) (inodeID, error) {
	path = strings.TrimRight(path, "/")
	cut := strings.LastIndexByte(path, '/') + 1
	name := path[cut:]
	if name == "" || name == "." || name == ".." {
		return rootInode, nil // or another directory
	}
	d, err := m.walkDir(m.root(), path[:cut])
	if err == errLoop || err == nil && len(m.missing) > 0 {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	return m.entries[m.lookup(d, name)].inode, nil
}

// follow returns the directory that symlink e leads to, made if need be.
func (m *merger) follow(e entryID) (dirID, error) {
	d, err := m.walkDir(m.entries[e].dir, m.entries[e].name)
	if err != nil {
		return 0, err
	}
	for _, name := range m.missing {
		if len(name) > maxName || strings.IndexByte(name, 0) >= 0 {
			return 0, fmt.Errorf("%w: name %.40q... on the way of a symlink", erofs.ErrLimit, name)
		}
		d = m.inodes[m.mkdir(m.open(d, name))].dir
	}
	return d, nil
}

const maxName = 255 // bytes

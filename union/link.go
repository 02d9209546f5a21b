package union

import (
	"errors"
	"fmt"
	"strings"

	"github.com/imgfs/imgfs/internal/erofs"
	"github.com/imgfs/imgfs/internal/layertar"
)

var (
	errNoTarget = errors.New("no such file in this layer or those below")
	errDirLink  = errors.New("the target is a directory")
)

// linkSet is what a layer's links are until the layer is applied: inodes of
// kindLink, which are inodes first, first+1, ... of the tree.
type linkSet struct {
	first inodeID
	links []link
	names []entryID // given to one of the inodes
}

type link struct {
	item   uint32  // the first of its names
	target string  // a path from the root
	found  inodeID // before endLinks, the target in the lower; 0 none
	state  linkState
}

type linkState uint8

const (
	linkNew linkState = iota
	linkActive
	linkDone
)

// number returns the number of the link that inode n is, or -1.
func (s *linkSet) number(n inodeID) int {
	if n >= s.first && n-s.first < inodeID(len(s.links)) {
		return int(n - s.first)
	}
	return -1
}

// beginLinks makes the inodes of the layer's links, and looks for their targets
// in the state before the layer, which may remove or replace them.
func (m *merger) beginLinks(img *erofs.Image) error {
	s := &m.links
	s.first, s.links, s.names = inodeID(len(m.inodes)), s.links[:0], s.names[:0]
	for _, i := range m.src.links {
		nid := m.src.items[i].nid
		if m.src.inodes[nid] != 0 { // a further name of the same link
			continue
		}
		value, err := img.Xattr(nid, layertar.MarkLink)
		if err != nil {
			return err
		}
		l := link{item: i, target: alias(value)}
		if l.found, err = m.walk(l.target); err != nil {
			return m.linkError(&l, err)
		}
		m.src.inodes[nid] = m.newInode(inode{kind: kindLink})
		s.links = append(s.links, l)
	}
	return nil
}

// endLinks finds the links' targets and gives their names the inodes.
func (m *merger) endLinks() error {
	s := &m.links
	for i := range s.links {
		if err := m.resolve(i); err != nil {
			return err
		}
	}
	for _, e := range s.names {
		if i := s.number(m.entries[e].inode); i >= 0 {
			m.entries[e].inode = s.links[i].found
		}
	}
	for i := range s.links {
		l := &s.links[i]
		m.addAttrs(l.found, m.src.items[l.item].nid, m.layer-1)
	}
	return nil
}

// resolve sets found of link i and of those that it leads to.
func (m *merger) resolve(i int) error {
	s := &m.links
	var way []int
	var found inodeID
	for {
		l := &s.links[i]
		if l.state == linkDone {
			found = l.found
			break
		}
		if l.state == linkActive { // a circle: only the lower can help
			break
		}
		l.state = linkActive
		way = append(way, i)
		n, err := m.walk(l.target)
		if err != nil {
			return m.linkError(l, err)
		}
		if i = s.number(n); i < 0 {
			found = n
			break
		}
	}
	for k := len(way) - 1; k >= 0; k-- {
		l := &s.links[way[k]]
		if found == 0 || m.inodes[found].dir != 0 && l.found != 0 {
			found = l.found
		}
		switch {
		case found == 0:
			return m.linkError(l, errNoTarget)
		case m.inodes[found].dir != 0:
			return m.linkError(l, errDirLink)
		}
		l.found, l.state = found, linkDone
	}
	return nil
}

func (m *merger) linkError(l *link, err error) error {
	return fmt.Errorf("hard link %s to /%s: %w", m.src.path(l.item), strings.TrimPrefix(l.target, "/"), err)
}

package upperdir

import (
	"encoding/binary"
	"maps"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/internal/erofs"
)

// attr is what a layer records of an inode.
type attr struct {
	Mode         uint32
	UID, GID     uint32
	Major, Minor uint32 // of devices
	Size         int64  // of regular files
	Sec, Nsec    int64  // time of the last change
}

func (a attr) kind() uint32 { return a.Mode & unix.S_IFMT }

func attrOf(st *unix.Stat_t) attr {
	a := attr{Mode: st.Mode, UID: st.Uid, GID: st.Gid, Sec: st.Mtim.Sec, Nsec: st.Mtim.Nsec}
	switch a.kind() {
	case unix.S_IFREG:
		a.Size = st.Size
	case unix.S_IFCHR, unix.S_IFBLK:
		a.Major, a.Minor = unix.Major(st.Rdev), unix.Minor(st.Rdev)
	}
	return a
}

func lowerAttr(e *erofs.Attr) attr {
	a := attr{Mode: e.Mode, UID: e.UID, GID: e.GID, Sec: e.Mtime, Nsec: int64(e.MtimeNsec)}
	switch a.kind() {
	case unix.S_IFREG:
		a.Size = int64(e.Size)
	case unix.S_IFCHR, unix.S_IFBLK: // new_encode_dev
		a.Major, a.Minor = e.Rdev>>8&0xfff, e.Rdev&0xff|e.Rdev>>12&0xfff00
	}
	return a
}

// portable reports whether a layer carries the attribute: not what the host's
// security modules keep on a file.
func portable(name string) bool {
	return !strings.HasPrefix(name, "security.") || name == "security.capability"
}

// lowerXattrs returns an inode's attributes that a layer carries.
func lowerXattrs(img *erofs.Image, nid erofs.NID) (map[string]string, error) {
	m := map[string]string{}
	err := img.Xattrs(nid, func(name string, value []byte) bool {
		if portable(name) {
			m[name] = string(value)
		}
		return true
	})
	return m, err
}

// upperXattrs returns an inode's attributes that users see and a layer
// carries. fd may be open by O_PATH.
func (f Format) upperXattrs(fd int) (map[string]string, error) {
	names, err := listXattrs(fd)
	if err != nil {
		return nil, err
	}
	m := map[string]string{}
	for _, disk := range names {
		name, ok := f.Unescape(disk)
		if !ok || !portable(name) {
			continue
		}
		v, ok, err := fdXattr(fd, disk)
		if err != nil {
			return nil, err
		}
		if ok {
			m[name] = string(v)
		}
	}
	return m, nil
}

// xattrs returns an item's attributes that a layer carries.
func (w *walker) xattrs(it *item) (map[string]string, error) {
	if !it.upper() {
		return lowerXattrs(w.img, it.low)
	}
	fd, err := it.openPath()
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	m, err := w.format.upperXattrs(fd)
	if v, ok := m[accessACL]; ok && w.format.Override {
		m[accessACL] = setOwner(v, it.attr.Mode>>6&7)
	}
	return m, err
}

// accessACL is an attribute whose first entry, on disk, lets the daemon's user
// at what the override may forbid its owner.
const accessACL = "system.posix_acl_access"

// setOwner returns an ACL in which the owner may do what perm says.
func setOwner(acl string, perm uint32) string {
	const header, entry, owner = 4, 2 + 2 + 4, 1
	b := []byte(acl)
	for e := header; e+entry <= len(b); e += entry {
		if binary.LittleEndian.Uint16(b[e:]) == owner {
			binary.LittleEndian.PutUint16(b[e+2:], uint16(perm))
		}
	}
	return string(b)
}

// openPath opens the item of the upper, whatever it is, by O_PATH.
func (i *item) openPath() (int, error) {
	if i.name == "" {
		return unix.Openat(i.dirfd, ".", unix.O_PATH|unix.O_CLOEXEC, 0)
	}
	return unix.Openat(i.dirfd, i.name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
}

// sameAsImage reports whether an item has the attributes that the image has at
// its path. Regular files are not compared by what is in them.
func (w *walker) sameAsImage(it *item) (bool, error) {
	if it.base == 0 {
		return false, nil
	}
	var e erofs.Attr
	if err := w.img.Stat(it.base, &e); err != nil {
		return false, err
	}
	if lowerAttr(&e) != it.attr {
		return false, nil
	}
	ours, err := w.xattrs(it)
	if err != nil {
		return false, err
	}
	image, err := lowerXattrs(w.img, it.base)
	return maps.Equal(ours, image), err
}

// sortedKeys returns the names of attributes in order.
func sortedKeys(m map[string]string) []string { return slices.Sorted(maps.Keys(m)) }

package upperdir

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/internal/erofs"
)

// Seed gives the root of a new upper the attributes of the lower's root: of a
// union's root those of the upper are seen. It does nothing to an upper that
// was seeded before. Whoever mounts an upper, by whichever driver, seeds it.
func (d *Dir) Seed(low *erofs.Image) error {
	_, done, err := fdXattr(d.root, d.format.Prefix+seedName)
	if err != nil || done {
		return d.seedError(err)
	}
	nid := low.Root()
	var a erofs.Attr
	if err := low.Stat(nid, &a); err != nil {
		return d.seedError(err)
	}
	err = low.Xattrs(nid, func(name string, value []byte) bool {
		// What cannot be set, as trusted.* by a user, is left out.
		_ = unix.Fsetxattr(d.root, d.format.Escape(name), value, 0)
		return true
	})
	if err != nil {
		return d.seedError(err)
	}
	want := Attr{UID: a.UID, GID: a.GID, Mode: a.Mode}
	if err := d.format.SetStat(d.root, want); err != nil {
		return d.seedError(err)
	}
	t := unix.Timespec{Sec: a.Mtime, Nsec: int64(a.MtimeNsec)}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, procPath(d.root), []unix.Timespec{t, t}, 0); err != nil {
		return d.seedError(err)
	}
	return d.seedError(setFdXattr(d.root, d.format.Prefix+seedName, want.String()))
}

// seedName is the attribute, behind the prefix, of a seeded root: what it was
// given, as an override has it.
const seedName = "imgfs.root"

func (d *Dir) seedError(err error) error {
	if err != nil {
		return fmt.Errorf("upper %s: root: %w", d.name(), err)
	}
	return nil
}

// Empty reports whether the upper holds no change: nothing in it, and a root
// with the owner and mode that it was seeded with.
func (d *Dir) Empty() (bool, error) {
	names, err := readNames(d.root)
	if err != nil || len(names) > 0 {
		return false, d.seedError(err)
	}
	seed, ok, err := fdXattr(d.root, d.format.Prefix+seedName)
	if err != nil || !ok {
		return err == nil, d.seedError(err)
	}
	var st unix.Stat_t
	if err := d.format.Stat(d.root, "", &st); err != nil {
		return false, d.seedError(err)
	}
	return Attr{UID: st.Uid, GID: st.Gid, Mode: st.Mode}.String() == string(seed), nil
}

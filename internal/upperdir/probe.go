package upperdir

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/internal/fault"
)

// chooseXattrs returns which attributes this process may use, tried on a new
// upper's work/: the trusted ones if it may.
func chooseXattrs(top int) string {
	fd, err := openDir(top, "work")
	if err != nil {
		return User
	}
	defer unix.Close(fd)
	if unix.Fsetxattr(fd, trustedPrefix+"imgfs.probe", nil, 0) != nil {
		return User
	}
	// Left behind it hurts nobody: the kernel empties and replaces work/.
	unix.Fremovexattr(fd, trustedPrefix+"imgfs.probe")
	return Trusted
}

// probe tries what an upper needs of its file system, in the stage/ of a new one.
func probe(path string, top int, f Format) error {
	fd, err := openDir(top, "stage")
	if err != nil {
		return fmt.Errorf("upper %s: %w", path, err)
	}
	defer unix.Close(fd)
	for _, need := range []struct {
		what string
		try  func() error
	}{
		{"extended attributes (" + f.Prefix + "*)", func() error {
			if err := unix.Fsetxattr(fd, f.Prefix+"imgfs.probe", []byte("y"), 0); err != nil {
				return err
			}
			return unix.Fremovexattr(fd, f.Prefix+"imgfs.probe")
		}},
		{"extended attributes (user.*)", func() error {
			if !f.Override {
				return nil
			}
			if err := unix.Fsetxattr(fd, overrideName, []byte("0:0:0700:dir"), 0); err != nil {
				return err
			}
			return unix.Fremovexattr(fd, overrideName)
		}},
		{"whiteouts (character device 0/0)", func() error {
			if err := MkWhiteout(fd, "whiteout"); err != nil {
				return err
			}
			return unix.Unlinkat(fd, "whiteout", 0)
		}},
		{"symbolic links", func() error { return errors.Join(unix.Symlinkat("1", fd, "a"), unix.Symlinkat("2", fd, "b")) }},
		{"hard links", func() error { return unix.Linkat(fd, "a", fd, "c", 0) }},
		{"renameat2(RENAME_NOREPLACE)", func() error { return unix.Renameat2(fd, "c", fd, "d", unix.RENAME_NOREPLACE) }},
		{"renameat2(RENAME_EXCHANGE)", func() error { return unix.Renameat2(fd, "a", fd, "b", unix.RENAME_EXCHANGE) }},
		{"renameat2(RENAME_WHITEOUT)", func() error { return unix.Renameat2(fd, "a", fd, "e", unix.RENAME_WHITEOUT) }},
	} {
		if err := need.try(); err != nil {
			return unfit(path, fd, need.what, err)
		}
	}
	return emptyDir(fd)
}

// fileSystem names those that users meet and that lack something.
func fileSystem(magic int64) string {
	switch magic {
	case unix.TMPFS_MAGIC:
		return "tmpfs"
	case unix.RAMFS_MAGIC:
		return "ramfs"
	case unix.NFS_SUPER_MAGIC:
		return "nfs"
	case unix.OVERLAYFS_SUPER_MAGIC:
		return "overlayfs"
	case unix.FUSE_SUPER_MAGIC:
		return "fuse"
	case unix.MSDOS_SUPER_MAGIC:
		return "vfat"
	case unix.SMB2_SUPER_MAGIC:
		return "cifs"
	case unix.V9FS_MAGIC:
		return "9p"
	}
	return ""
}

// unfit says what a file system lacks.
func unfit(path string, fd int, what string, err error) error {
	for _, other := range []error{unix.ENOSPC, unix.EDQUOT, unix.EROFS, unix.EIO, unix.EACCES} {
		if errors.Is(err, other) { // says nothing of the file system's kind
			return fmt.Errorf("upper %s: %w", path, err)
		}
	}
	kind := ""
	var st unix.Statfs_t
	if unix.Fstatfs(fd, &st) == nil && fileSystem(int64(st.Type)) != "" {
		kind = " (" + fileSystem(int64(st.Type)) + ")"
	}
	return fault.WithHint(
		fault.New(fault.Invalid, "an upper cannot be at %s: its file system%s lacks %s: %w", path, kind, what, err),
		"give a directory on ext4, xfs or btrfs: --upper-dir DIR")
}

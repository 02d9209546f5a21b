// Package fs shows trees to the kernel.
//
// A [Chain] serves one chain index ([erofs.Image]) and the data files of its
// layers, read-only, over FUSE; a [Layout] serves the whole store. [Serve]
// runs either on the descriptor of a mounted /dev/fuse; [Mount] makes such a
// descriptor, in the caller's namespaces, and [MountErofs] has the kernel
// mount the index itself, and [MountOverlay] puts kernel overlayfs with an
// upper over either. [Unmount] undoes all three. A file system that can be
// changed is a [Writer]; there is none in this package.
//
// Terms. A node ID is FUSE's name of an inode and is also its st_ino:
//
//	tree << 40 | nid
//
// nid being the inode's number in its index. Tree 0 is the mount's chain, tree
// 1 its upper, if it has one, further trees belong to the layout view. FUSE wants
// the root to be node 1; no index uses nid 1, so that this is the only
// exception, and st_ino of the root is its nid all the same.
//
// Invariants of a Chain and a Layout:
//   - Nothing is kept per inode: a node ID means the same in every process, at
//     any time, and FORGET has no effect. There are no file handles.
//   - A tree never changes, so the kernel may keep what it was told for ever:
//     names, absent names, attributes, data, directories, symlinks. What it
//     knows it does not ask for again; OPEN and OPENDIR are answered ENOSYS,
//     after which it does not ask for those either.
//   - A READ gives all the bytes the index promises or EIO, never zeros for
//     bytes that are missing from a data file.
//   - Paths of an image are never resolved on the host.
//
// Errors become errno in one place ([lower.Faults]):
//
//	absent name                      ENOENT
//	absent attribute                 ENODATA
//	the caller was interrupted       EINTR
//	any attempt to change something  EROFS
//	anything else                    EIO, logged once per reason
//
// Of the server, whatever it serves: one worker reads requests, and none that
// may wait for long keeps it from the next; a request that is odd, or makes the
// file system panic, fails alone.
//
// Locks are leaves: none is held while another is taken or while anything waits.
package fs

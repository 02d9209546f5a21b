// Package overlay is a writable file system: one upper ([upperdir.Dir]) over
// one chain ([lower.Tree]), live, in FUSE's terms. The daemon is its only
// writer, and owns one inode, so one page cache, per file.
//
// Terms. An inode is pure lower while nothing of it is in the upper; it has no
// state then, its node ID is its nid, and FORGET means nothing. Copy-up puts its
// metadata into the upper and makes a node of it, which keeps the ID. What is
// born in the upper has node ID 1<<40 | st_ino of the upper's file system. A
// node is full once its data is in the upper as well ([Union.fill]). A node
// without a name that we know is reached by the descriptor it holds, an
// orphan; a lower inode that was unlinked and never copied up is bare: it has
// no part in the upper at all.
//
// A directory with a part in the upper is loaded when it is first used: from
// then on its names in memory are the truth and the disk follows, as the
// upper's lock is ours. Names are lower ones, upper ones, and whiteouts. Once
// the kernel has forgotten a directory and all in it so do we.
//
// Invariants:
//   - Whatever is in the upper has its parents there.
//   - Each change is one rename, link, unlink or setxattr on disk, or an order
//     of them that means the same to the next mount wherever it is cut off.
//     What needs more is made in stage/, which is emptied when an upper is opened.
//   - The names of a lower inode enter the upper together, as links of one inode.
//   - No path and no symlink of the upper or of an image is resolved by the
//     host: a descriptor of the directory and one name, never followed.
//
// What differs from a local file system: a directory that is merged has link
// count 1, as many a file system's have; a passed-through write takes set-uid
// away from a file whoever writes, if it became set-uid while it was open; where
// a rootless upper can keep no attributes, of symlinks, st_ino changes with the
// mount that follows the copy-up.
//
// Locks. Union.mu guards names and nodes, exclusively for whoever changes them
// or loads a directory. It is not held while file data is read, written, or
// copied. file.change is taken before it, fills.mu behind it; dirfds.mu and
// openFiles.mu are leaves.
package overlay

// Package upperdir knows the directory of an upper: its format on disk, who
// has it open, and all that is read from it without a mount.
//
// An upper is a directory with
//
//	diff/       the tree, in overlayfs' path-based format
//	work/       kernel overlayfs' workdir
//	stage/      where things are made before they are renamed into diff/
//	upper.json  an [Info]
//	lock        flocked by whoever has the upper open; holds its process ID
//
// The terms, which are overlayfs': a whiteout, a character device 0/0, hides a
// name of the lower; an opaque directory hides all the lower's names; a
// redirect is the lower path of a directory or metacopy file that was renamed;
// a metacopy is a regular file whose data still is in the lower. The last
// three are extended attributes under a prefix that [Format] knows. With an
// override, a rootless upper, what cannot be set on disk (owner, mode, being a
// device) stands in an attribute that podman and fuse-overlayfs share.
//
// Invariants:
//   - Nothing of an upper is trusted. Everything is reached by descriptors of
//     directories and single names, no symlink in it is ever followed, and
//     nothing but directories and regular files is ever opened for its data.
//   - The offline readers ([Dir.Changes], [Dir.WriteLayer], [Export]) may run
//     while the upper is mounted. They see each file as it is when they come to
//     it; what vanishes meanwhile is left out.
package upperdir

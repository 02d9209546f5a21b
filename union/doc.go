// Package union makes the index of a chain of layers from the layers' indexes.
//
// Terms. A layer index is the table of contents of one layer, as package
// layertar writes it: what the layer's tar contains, plus four marks (whiteout,
// opaque, implied, link; see layertar) that say what the layer does to those
// below. A chain index is the merged tree of layers applied in order; it holds
// no marks. Both are EROFS images (package erofs). An index's devices are the
// layers' data files; a chain has those of all its layers, in order.
//
// The merge is a pure function: the bytes of a chain index depend on the layer
// indexes and their order, and on nothing else. Extending a chain gives the
// bytes that merging all the layers at once gives.
//
// The rules, from top to bottom; "lower" is the state before the layer.
//
//   - A directory over a directory keeps the children and takes the layer's
//     attributes. Anything else replaces what was there with all below it.
//   - A whiteout removes the lower's name, never what its own layer put there.
//     An opaque directory hides the lower's children, likewise.
//   - An implied directory is one the tar names only as a parent. Over a
//     directory it changes no attributes. Over a symlink its content goes to
//     where the symlink points, in the tree including this layer; the way there
//     never leaves the root, and directories missing on it are made. Over
//     nothing or another kind of file it is a new directory, as are those
//     missing on the way: mode 0755, owner 0:0, mtime 0.
//   - A link names a file that is not in its layer. It becomes one more name of
//     that file's inode. The target is looked for in the tree including this
//     layer, then in the lower; symlinks on the way are followed inside the
//     root, a symlink at its end is linked to itself. The inode takes the
//     attributes of the link's entry, as with docker and containerd (umoci has
//     the target keep its own); tars written from a tree have the same in both.
//     No target, or a directory, is an error.
//   - The root has the attributes of the topmost layer whose tar has an entry
//     for it.
//
// Why replace, where an implied directory meets a file: containerd's applier
// for plain directories fails there, umoci and all overlay-backed stores
// replace; an image that some engine runs must mount. Why follow symlinks, as
// umoci and the plain appliers do and overlay-backed stores do not: layers made
// from package trees (/bin/tool without an entry for /bin) are meant for bases
// where /bin is a symlink, and replacing that takes the shell away.
//
// A merge costs time and memory in proportion to what the layers contain: a
// layer that touches one name of a directory of a million costs one look-up.
// The tree in memory is flat arrays whose names lie in the mapped images;
// nothing refers to the images once Merge or Extend has returned. Layer indexes
// are checked as foreign bytes are: one that breaks the format ends with
// erofs.ErrCorrupt.
package union

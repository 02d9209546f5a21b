// Package layertar turns a layer's tar stream into a layer index: an EROFS
// metadata image (package erofs) whose one device is the stream itself.
//
// An [Indexer] is pushed the uncompressed stream, in order, in pieces of any
// size. It keeps headers, names and attributes, never payload: a file's data
// stays where the tar has it, at a 512-byte border, and the index points there.
// Where there is no stream but a table of contents, its entries are added
// instead, by the same rules ([Indexer.Add]). What a stream has beside payload
// can be kept, and written again later without the payload ([Indexer.Record]).
//
// # Terms
//
// A layer index describes one layer alone, before it is put on others. What
// only a merge can decide is left to it by marker attributes, which no image
// can forge (attributes of these names arriving in a tar are dropped):
//
//   - [MarkWhiteout] on a character device 0/0: the lower entry of that name is
//     hidden. A device 0/0 without it is a device.
//   - [MarkOpaque] on a directory: the lower directory's entries are hidden.
//   - [MarkImplied] on a directory the tar did not contain but needs as a
//     parent: attributes are the lower directory's, or the ones it has here.
//   - [MarkLink] on an empty regular file: a hard link to the path in its value,
//     which this layer does not contain. Such an inode may have several names.
//
// # Invariants
//
// Entries are applied one after another as an unpacker would: the last of two
// equal names wins, parents are followed through symbolic links of this layer,
// scoped to the root, and a link's last component is never followed. Whiteouts
// hide lower layers only, wherever in the tar they stand. A hard link may stand
// before its target. Where the peers agree (containerd, docker, umoci, all on
// archive/tar) this package does as they do, including what they refuse; the
// reading of headers follows archive/tar, which the tests use as their model.
//
// The index depends on nothing but the stream: not on how it was cut.
//
// Sparse files: where every segment lies on 512-byte borders the chunks of the
// file point into the stream and its holes are holes. Otherwise its data is
// laid out anew in the annex, the part of the data file behind the stream,
// by the copies that [Summary.Annex] lists and the owner of the file performs.
//
// An Indexer serves one goroutine. Everything it refuses is a fault.Integrity
// that names the entry, and is returned by every later call.
package layertar

// Package layerdb keeps layers and the stacks made of them.
//
// A layer is known by its key and lies in layers/<hex key>/:
//
//	data     in form stream: the uncompressed tar stream, sparse (runs of zeros
//	         are holes), rounded up to 512 bytes, then the annex: what layertar
//	         found written in a form that a chunk reference cannot express,
//	         expanded. In form packed: the payloads alone (see package toc)
//	present  which spans of data are here; absent: all of it is (package lazy)
//	index    layertar's index of it: an EROFS image whose one device is data
//	spans    which bytes of the blob give which of data (package span)
//	skeleton the stream without its payload: our own table of contents; or
//	toc      a foreign one, while it is needed to compare the bytes with
//	record   a [LayerInfo] as JSON; its time is when the layer was last used
//
// A layer comes by a pass or by an import. A pass ([Store.Ensure]) brings in
// all of it: download, sha256 of the blob, inflate, sha256 of the stream, tar
// walk and write, pipelined over three goroutines, in tmp/. An import
// ([Store.Import]) brings in its table of contents; the bytes come when somebody
// reads them, verified span by span. A layer is sealed when blob, stream and
// index are proven; one that came by a pass is. Its key is the diffID if it was
// sealed from the start, and else one that no diffID can be. A packed layer
// takes files that another one has, by their digests, from there.
//
// A chain is a stack of layers known by its chain key; chains/<hex>/index is the
// merged tree, whose devices are the data files of the layers in order. It is
// derived, and made when first asked for. The empty stack lies in chains/empty.
// An owner is whoever needs layers to stay: "image:<id>", "pull:<id>",
// "pin:<name>" ([Store.Retain]); a mount keeps its [Chain] open.
//
// Invariants:
//   - A directory below layers/ or chains/ is complete and synced. It appears
//     there by one rename, so a kill leaves something in tmp/ at most, which
//     Open sweeps. Who calls Open holds the store's flock.
//   - Nothing is found by a diffID, and no other image gets it, that is not
//     sealed. What was found to lie is never served again.
//   - A file that was published is never written again, nor replaced, with
//     three exceptions: record, by a rename; data, which only gains bytes, and
//     which an eviction replaces by an empty one; present. Who holds a file
//     keeps its bytes.
//   - A layer whose index is damaged, or of another version, is absent, and a
//     new pass puts a new directory there. It reads the old data, if that is
//     whole.
//   - Files are the truth for layers and chains, Badger for owners; the layer
//     records there are a copy, mended at Open.
//   - Neither owners' layers nor those of an open [Chain] are ever removed. No
//     byte is evicted that could not be fetched again, is pinned, or is read by
//     the kernel past us ([Chain.Hold]).
//
// Goroutines: a pass, a chain build, an eviction for the limit and a seal after
// the last byte run on the store's context, not on a caller's; callers wait for
// it and may leave; with the last of them a pass stops. Close waits for all.
//
// Lock order: layer.opening, Store.amending, ledger.mu, Store.mu, flight.mu. No
// file is opened, read or written under Store.mu, only single names are looked
// at, made and renamed.
package layerdb

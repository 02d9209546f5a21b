// Package layerdb keeps layers and the stacks made of them.
//
// A layer is known by its diffID and lies in layers/<hex diffID>/:
//
//	data    the uncompressed tar stream, sparse (runs of zeros are holes),
//	        rounded up to 512 bytes, then the annex: what layertar found
//	        written in a form that a chunk reference cannot express, expanded
//	index   layertar's index of it: an EROFS image whose one device is data
//	record  a [LayerInfo] as JSON
//
// A chain is a stack of layers known by its chain ID; chains/<hex chainID>/index
// is the merged tree, whose devices are the data files of the layers in order.
// It is derived, and made when first asked for. The empty stack lies in
// chains/empty.
//
// A pass ([Store.Ensure]) brings one layer in: download, sha256 of the blob,
// inflate, sha256 of the stream, tar walk and write, pipelined over three
// goroutines, in tmp/. An owner is whoever needs layers to stay: "image:<id>",
// "pull:<id>" ([Store.Retain]); a mount keeps its [Chain] open.
//
// Invariants:
//   - A directory below layers/ or chains/ is complete, synced and was proven:
//     the blob against its digest and size, the stream against the diffID. It
//     appears there by one rename, so a kill leaves something in tmp/ at most,
//     which Open sweeps. Who calls Open holds the store's flock.
//   - Nothing is stored under a diffID that a config claims; only under the one
//     that the bytes have.
//   - A published file is never written again, nor replaced: a layer whose
//     index is damaged, or of another version, is absent, and a new pass puts a
//     new directory there. It reads the old data file, if that is whole.
//   - Files are the truth for layers and chains, Badger for owners; the layer
//     records there are a copy, mended at Open.
//   - Neither owners' layers nor those of an open [Chain] are ever removed.
//
// Goroutines: a pass and a chain build run on the store's context, not on a
// caller's; callers wait for it and may leave; with the last of them it stops.
// Close waits for all.
//
// Lock order: ledger.mu, Store.mu, flight.mu. No file is opened, read or
// written under Store.mu, only single names are made and renamed.
package layerdb

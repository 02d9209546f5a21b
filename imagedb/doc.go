// Package imagedb keeps images by ID and the names that point to them.
//
// Terms: an image is a config, known by its digest, the image ID; beside it
// stand the manifest it came by and its layers. A name is a canonical reference
// in docker's full form: a tag, "docker.io/library/ubuntu:14.04", which moves,
// or a digest, "docker.io/library/ubuntu@sha256:…", which never does. The
// familiar form, "ubuntu:14.04", is for people.
//
// blobs/sha256/<hex> holds configs and manifests, byte for byte; Badger holds
// one record per image and one per name.
//
// Invariants:
//   - What [Store.Get] returns as Config has the image ID as its digest. An
//     image whose file has not is broken: it is listed, with the reason, and
//     can be deleted or put again; all others are served. A listing looks only
//     whether a file is the one that was last read through.
//   - A name points to an image that is there. Names and records change in one
//     synced transaction; blobs are synced before the record that needs them.
//   - A digest reference never moves; a tag does.
//   - An image's parent is there, and no image is its own ancestor.
//
// Lock order: watch.mu, Store.change, Store.mu. Who changes something holds change
// while that is committed, and mu only to enter it: so who reads never waits
// for the disk, and what is read is what is on disk. A function that says no
// lock takes what it needs.
package imagedb

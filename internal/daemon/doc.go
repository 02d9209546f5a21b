// Package daemon owns a state directory and serves it: it wires fetch,
// layerdb, imagedb, union, union/overlay and fs to the routes of engineapi.
//
// Terms:
//
//   - A store is a state directory. At most one daemon runs per store: the
//     one that holds flock on STORE/lock. It alone touches Badger, and it
//     alone unlinks a stale socket.
//   - The runtime directory, mode 0700, holds the socket.
//   - The start lock, STORE/start.lock, is held by whoever is starting a daemon
//     until that one is ready. Others wait on it and find the daemon there.
//   - A record is what the store remembers of a live mount, a synced
//     record in Badger. It is written after the tree is served and
//     before the CLI is told so; it goes when the tree is unmounted. Records
//     that a daemon finds at its start are reconciled (reconcile.go).
//   - An upper (package upperdir) holds what a writable mount changes. One of
//     the store's is STORE/uppers/NAME; upper.go has the table of what becomes of
//     it. Whoever uses one holds it in engine.uppers, and its lock.
//   - An owner retains layers: "image:<id>" while the image exists, "pull:<id>"
//     while one is on its way, here or to another registry, "pin:<name>" until
//     the user unpins it, "layer:<chain>" of what was imported without an image,
//     "upper/<name>" from before that upper exists until it is gone. A mount holds its chain open, which does the same; after a
//     crash the chains of recorded mounts are opened again before anything can
//     be removed.
//   - A transfer is a pull or a push of one name, in package pool: all who ask
//     for the same have one, and pull and push of a name exclude each other.
//   - An arrival (arrive.go) is an image on its way in, which decides for each
//     layer how it comes. A pushing (push.go) is one on its way to a registry.
//     An origin (origin.go) is where a layer's blob is to be had from later. A
//     device (reads.go) is a layer's data as one mount reads it, with the
//     patience of that mount. A trace (trace.go) is what was read of a chain
//     first.
//   - A loading (load.go) and a saving (save.go) are archives on their way in and
//     out; a checkup (fsck.go) looks for damage, and mends it.
//   - A removal (remove.go) is docker's rmi, with mounts for containers. An event
//     (events.go) tells of what has happened, in order, once it is done.
//   - Kernel drivers (kernel.go) are mounts in which the daemon serves nothing,
//     or only what lies below a kernel overlayfs.
//
// What goes on beside the reads of a mount (background.go, foresee.go) ends with
// it, and no read waits for it.
//
// Invariants: no mount is announced before it is recorded; the daemon exits by
// itself only when it has no mount and no connection with a request (idle.go);
// nothing of a pull waits for the client that watches it; no secret is written
// anywhere.
//
// Lock order: engine.names, then engine.mu; those of origins, arrivals, traces,
// foresight and events are leaves. No call into another package is
// made under engine.mu; under engine.names only short ones on the database.
package daemon

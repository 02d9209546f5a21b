// Package daemon owns a state directory and serves it: it wires fetch,
// layerdb, imagedb, union and fs to the routes of engineapi.
//
// Terms:
//
//   - A store is a state directory. At most one daemon runs per store: the
//     one that holds flock on STORE/lock. It alone touches Badger, and it
//     alone unlinks a stale socket.
//   - The runtime directory, mode 0700, holds the socket and, beside it, the
//     start lock SOCKET.start, held by whoever is starting a daemon until
//     that one is ready. Others wait on it and find the daemon there.
//   - A record is what the store remembers of a live mount, one synced file
//     STORE/mounts/<id>.json. It is written after the tree is served and
//     before the CLI is told so; it goes when the tree is unmounted. Records
//     that a daemon finds at its start are reconciled (reconcile.go).
//   - An owner retains layers: "image:<id>" while the image exists,
//     "mount:<id>" while a mount does.
//
// Invariants: no mount is announced before it is recorded; layers of a
// recorded mount are retained; the daemon exits by itself only when it has no
// mount and no connection with a request (idle.go).
//
// Lock order: Engine.mu before nothing: no call into another package is made
// under it.
package daemon

// Package engineapi is the daemon's HTTP API: the types on the wire, the
// server's routes and the client.
//
// The image routes are the Docker Engine API's, so that the docker CLI drives
// imgfs; imgfs' own routes stand under /imgfs/v1/. A table lists them all
// (routes.go), and says how much of a body is read.
// Every route is served with and without a /v1.24 … /v1.52 prefix, which decides
// about the shape of the reply.
//
// Terms:
//
//   - An error is {"message": …} with the status of its fault kind. Two more
//     fields, kind and hint, let [Client] give back the very *fault.Error the
//     daemon had; docker's clients ignore them.
//   - A stream (pull, push, load, a job) is one JSON object per line. Once it has
//     started, its status is 200 and an error is the last line. A tar that has
//     started has its error in a trailer.
//   - A client is trusted or not (access.go): who is not gets docker's routes, and
//     of ours what reads, but nothing that touches the host. [Engine] is handed
//     to the routes through confined, which decides about every method.
//   - A mount is an upgrade: after 101 both sides write one JSON object per
//     line on the bare connection. The daemon prepares the tree and says
//     Ready; the CLI mounts in its own namespaces and answers with one
//     [MountReply], the FUSE descriptor beside it (SCM_RIGHTS); the daemon
//     serves it, records it and says Done.
//
// The package holds no state and knows neither the store nor FUSE: the server
// calls an [Engine], which package daemon implements.
package engineapi

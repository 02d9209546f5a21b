// Package fetch turns a reference into an image: what it names, the manifest
// and config behind it, and the raw bytes of its layers.
//
// Terms. A [Reference] names an image in a registry (docker.io/library/ubuntu:14.04)
// or in a local source (oci:DIR, oci-archive:FILE, docker-archive:FILE). An
// upstream is the registry a reference names; an endpoint is a server that
// answers for it: the upstream's own (the origin) or a mirror, in the order a
// hosts.toml gives. A blob is anything named by the digest of its bytes.
//
// Invariants:
//
//   - Manifests and configs never leave the package unless their bytes have
//     the digest that was asked for. Layer bytes leave as they come: they have
//     the length the manifest states, or that of the range asked for, or the
//     reader fails before io.EOF; what they are is checked by who knows the
//     digests of whole layers and of their parts. Opening the same layer again
//     starts at the next endpoint, and [Blob.Blame] names ranges that were
//     wrong, so a mirror with bad bytes does not stand in the way.
//   - Plain http is spoken to loopback addresses, to registries for which the
//     user said --insecure, and where a hosts.toml says http:// in so many
//     words; to the URLs of foreign layers on loopback or with --insecure.
//     Private addresses are not special. Where TLS has answered once, a client
//     never speaks plain, and no redirect leads from https to http.
//   - Credentials go to the host they were looked up for, and to the token
//     server it names; a redirect to another host carries neither
//     Authorization nor cookies nor configured headers. Tokens live in memory
//     only; what they are made from is looked up whenever one is refused.
//     Error texts carry no user info and no URL query.
//   - A mirror resolves a tag only if its hosts.toml gives it "resolve", and
//     is asked for referrers only if it gives "referrers". Nothing is pushed to
//     mirrors.
//   - What a server cannot do (ranges, the referrers API) is remembered for
//     minutes, as a mount lives for days and servers change; where it
//     redirected to, a secret, as long as that is good. All of it in memory.
//   - Nothing in an archive or layout is followed as a path on this host:
//     archives are read in place, at offsets; layouts beneath an os.Root.
//
// Everything that waits takes a context; nothing polls. One [Client] serves
// one set of [Options] and is safe for concurrent use. Locks are leaves, but
// for a Blob's, under which others are taken; none is held while the network
// is waited for. A host's token exchange is serialised by a one-slot channel.
//
// Sources: OCI distribution-spec and image-spec; docker's reference grammar,
// error texts and config.json; containers-auth.json(5); containerd's
// docs/hosts.md.
package fetch

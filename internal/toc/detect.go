package toc

import (
	"strings"

	"github.com/imgfs/imgfs/internal/id"
)

// Annotations of a layer's descriptor.
const (
	// The sha256 of the uncompressed TOC, of eStargz and of stargz-snapshotter's
	// dialect of zstd:chunked.
	noteTOCDigest = "containerd.io/snapshot/stargz/toc.digest"
	// The size of the tar stream, of eStargz only.
	noteTarSize = "io.containers.estargz.uncompressed-size"

	noteContainers = "io.github.containers.zstd-chunked." // of containers/storage
	noteStargz     = "io.containers.zstd-chunked."        // of stargz-snapshotter, and once of both
	notePosition   = "manifest-position"                  // offset:size:raw size:type
	noteChecksum   = "manifest-checksum"                  // sha256 of the compressed TOC
	noteTarSplit   = "tarsplit-position"                  // offset:size:raw size; containers/storage only
)

// Detect returns which table of contents d announces, by the rules of the
// package documentation; "" for none. Own and Soci are not announced here.
func Detect(d Descriptor) string {
	if !isLayer(d.MediaType) {
		return ""
	}
	a := d.Annotations
	switch {
	case strings.HasSuffix(d.MediaType, "gzip"):
		if a[noteTOCDigest] != "" || a[noteTarSize] != "" {
			return Estargz
		}
	case strings.HasSuffix(d.MediaType, "zstd"):
		if a[noteTOCDigest] != "" || position(a) != "" {
			return ZstdChunked
		}
	case strings.HasSuffix(d.MediaType, ".tar"):
		return Tar
	}
	return ""
}

// Announced returns the form that the Index of d will have, and its digest as
// far as annotations tell it: "" where it takes reading.
func Announced(d Descriptor) (Form, id.Blob) {
	switch Detect(d) {
	case Estargz:
		sum, _ := id.ParseBlob(d.Annotations[noteTOCDigest])
		return Packed, sum
	case ZstdChunked:
		key := noteTOCDigest
		if d.Annotations[key] == "" {
			key = position(d.Annotations) + noteChecksum
		}
		sum, _ := id.ParseBlob(d.Annotations[key])
		return Packed, sum
	case Tar:
		return Stream, ""
	}
	return "", ""
}

// position returns the prefix of the annotations that say where a zstd:chunked
// layer has its TOC; "" if none do.
func position(a map[string]string) string {
	for _, p := range [...]string{noteContainers, noteStargz} {
		if a[p+notePosition] != "" {
			return p
		}
	}
	return ""
}

// isLayer says that a media type is one of a tar archive, however compressed.
func isLayer(mediaType string) bool {
	for _, p := range [...]string{
		"application/vnd.oci.image.layer.v1.tar",
		"application/vnd.oci.image.layer.nondistributable.v1.tar",
		"application/vnd.docker.image.rootfs.diff.tar",
		"application/vnd.docker.image.rootfs.foreign.diff.tar",
	} {
		if rest, ok := strings.CutPrefix(mediaType, p); ok {
			return rest == "" || rest[1:] == "gzip" || rest[1:] == "zstd"
		}
	}
	return false
}

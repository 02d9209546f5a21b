package toc

import (
	"strings"
	"testing"

	"github.com/imgfs/imgfs/internal/id"
)

// TestDetect is the rule of precedence.
func TestDetect(t *testing.T) {
	const oci, docker = "application/vnd.oci.image.layer.v1.tar", "application/vnd.docker.image.rootfs.diff.tar"
	sum := string(id.BlobOf(nil))
	for _, tt := range []struct {
		mediaType string
		notes     string // space separated
		want      string
	}{
		{oci + "+gzip", "", ""},
		{oci + "+gzip", noteTOCDigest, Estargz},
		{docker + ".gzip", noteTOCDigest, Estargz},
		{oci + "+gzip", noteTarSize, Estargz},
		{oci + "+gzip", noteContainers + notePosition, ""},
		{oci + "+gzip", noteContainers + notePosition + " " + noteTOCDigest, Estargz},
		{oci + "+zstd", "", ""},
		{oci + "+zstd", noteTarSize, ""},
		{oci + "+zstd", noteContainers + notePosition, ZstdChunked},
		{oci + "+zstd", noteStargz + notePosition, ZstdChunked},
		{oci + "+zstd", noteTOCDigest, ZstdChunked},
		{docker + ".zstd", noteContainers + notePosition + " " + noteTOCDigest, ZstdChunked},
		{oci, "", Tar},
		{docker, noteTOCDigest, Tar},
		{"application/vnd.oci.image.layer.nondistributable.v1.tar", "", Tar},
		{"application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", noteTOCDigest, Estargz},
		{oci + "+gzip+encrypted", noteTOCDigest, ""},
		{oci + "+bzip2", noteTOCDigest, ""},
		{"application/vnd.in-toto+gzip", noteTOCDigest, ""},
		{"application/x-tar", "", ""},
		{"", noteTOCDigest, ""},
	} {
		d := Descriptor{MediaType: tt.mediaType, Annotations: map[string]string{}}
		for _, n := range strings.Fields(tt.notes) {
			d.Annotations[n] = sum
		}
		if got := Detect(d); got != tt.want {
			t.Errorf("%s with %q: %q, want %q", tt.mediaType, tt.notes, got, tt.want)
		}
		form, got := Announced(d)
		promised := strings.Contains(tt.notes, noteTOCDigest) && (tt.want == Estargz || tt.want == ZstdChunked)
		if (form == "") != (tt.want == "") || (form == Stream) != (tt.want == Tar) || (got != "") != promised {
			t.Errorf("%s with %q: announces %q %q", tt.mediaType, tt.notes, form, got)
		}
	}
}

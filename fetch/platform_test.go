package fetch

import (
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/imgfs/imgfs/internal/fault"
)

func TestParsePlatform(t *testing.T) {
	t.Parallel()
	host := HostPlatform()
	for in, want := range map[string]string{
		"": "", "linux/amd64": "linux/amd64", "linux/arm64/v8": "linux/arm64", "linux/aarch64": "linux/arm64",
		"linux/arm": "linux/arm/v7", "linux/armel": "linux/arm/v6", "linux/arm/6": "linux/arm/v6", "Linux/X86_64": "linux/amd64",
		"arm64": host.OS + "/arm64", "windows": "windows/" + host.Architecture, "macos/arm64": "darwin/arm64", "linux/amd64/v1": "linux/amd64",
	} {
		if p, err := ParsePlatform(in); err != nil || p.String() != want {
			t.Errorf("%q: got %v, %v, want %s", in, p, err, want)
		}
	}
	for _, in := range []string{"/", "linux/", "a/b/c/d", "linux/arm 64", "linux//v7"} {
		if p, err := ParsePlatform(in); fault.KindOf(err) != fault.Invalid || fault.HintOf(err) == "" {
			t.Errorf("%q: got %v, %v", in, p, err)
		}
	}
}

func TestSelectPlatform(t *testing.T) {
	t.Parallel()
	entry := func(s string) v1.Descriptor {
		if s == "none" {
			return v1.Descriptor{}
		}
		if s == "attestation" {
			return v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "amd64"},
				Annotations: map[string]string{"vnd.docker.reference.type": "attestation-manifest"}}
		}
		if s == "nydus" {
			return v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "amd64", OSFeatures: []string{"nydus.remoteimage.v1"}}}
		}
		p := Platform{}
		if s == "unknown/unknown" {
			p = Platform{OS: "unknown", Architecture: "unknown"}
		} else {
			p, _ = ParsePlatform(s)
		}
		return v1.Descriptor{Platform: &v1.Platform{OS: p.OS, Architecture: p.Architecture, Variant: p.Variant}}
	}
	for _, c := range []struct {
		want    string
		entries []string
		chosen  int
	}{
		{"linux/amd64", []string{"linux/arm64", "linux/amd64"}, 1},
		{"linux/amd64", []string{"linux/amd64", "linux/amd64"}, 0},
		{"linux/amd64", []string{"windows/amd64", "linux/386"}, -1},
		{"linux/amd64", []string{"attestation", "unknown/unknown", "nydus"}, -1},
		{"linux/amd64", []string{"nydus", "attestation", "linux/amd64"}, 2},
		{"linux/amd64", []string{"linux/amd64/v3", "linux/amd64"}, 1},
		{"linux/amd64", []string{"linux/amd64/v3"}, -1},
		{"linux/amd64/v3", []string{"linux/amd64", "linux/amd64/v2", "linux/amd64/v4"}, 1},
		{"linux/arm64", []string{"linux/arm/v7", "linux/arm64/v8"}, 1},
		{"linux/arm64", []string{"linux/arm/v7"}, -1},
		// arm: the newest that still runs
		{"linux/arm/v8", []string{"linux/arm/v5", "linux/arm/v7", "linux/arm/v6"}, 1},
		{"linux/arm/v7", []string{"linux/arm/v5", "linux/arm/v7", "linux/arm/v6", "linux/arm/v8"}, 1},
		{"linux/arm/v6", []string{"linux/arm/v5", "linux/arm/v7", "linux/arm/v6"}, 2},
		{"linux/arm/v6", []string{"linux/arm/v7", "linux/arm/v5"}, 1},
		{"linux/arm/v5", []string{"linux/arm/v7", "linux/arm/v6"}, -1},
		{"linux/arm", []string{"linux/arm/v6", "linux/arm"}, 1},
		// what says nothing fits, behind what fits by name
		{"linux/amd64", []string{"none", "linux/amd64"}, 1},
		{"linux/amd64", []string{"linux/arm64", "none"}, 1},
		{"linux/amd64", nil, -1},
	} {
		want, err := ParsePlatform(c.want)
		if err != nil {
			t.Fatal(err)
		}
		var descs []v1.Descriptor
		for _, e := range c.entries {
			descs = append(descs, entry(e))
		}
		if got := selectPlatform(descs, want); got != c.chosen {
			t.Errorf("%s of %v: got %d, want %d", c.want, c.entries, got, c.chosen)
		}
	}
}

package fetch

import (
	"strings"
	"testing"

	"github.com/distribution/reference"

	"github.com/imgfs/imgfs/internal/fault"
)

const someDigest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

func TestParseReference(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ in, canonical, familiar, domain, path, tag string }{
		{"ubuntu", "docker.io/library/ubuntu:latest", "ubuntu:latest", "docker.io", "library/ubuntu", "latest"},
		{"ubuntu:14.04", "docker.io/library/ubuntu:14.04", "ubuntu:14.04", "docker.io", "library/ubuntu", "14.04"},
		{"me/app", "docker.io/me/app:latest", "me/app:latest", "docker.io", "me/app", "latest"},
		{"index.docker.io/ubuntu", "docker.io/library/ubuntu:latest", "ubuntu:latest", "docker.io", "library/ubuntu", "latest"},
		{"docker.io/ubuntu", "docker.io/library/ubuntu:latest", "ubuntu:latest", "docker.io", "library/ubuntu", "latest"},
		{"docker://ubuntu:14.04", "docker.io/library/ubuntu:14.04", "ubuntu:14.04", "docker.io", "library/ubuntu", "14.04"},
		{"localhost/x", "localhost/x:latest", "localhost/x:latest", "localhost", "x", "latest"},
		{"localhost:5000/library/debian:12", "localhost:5000/library/debian:12", "localhost:5000/library/debian:12", "localhost:5000", "library/debian", "12"},
		{"[::1]:5000/x", "[::1]:5000/x:latest", "[::1]:5000/x:latest", "[::1]:5000", "x", "latest"},
		{"Host/x", "Host/x:latest", "Host/x:latest", "Host", "x", "latest"},
		{"a.b/c/d/e:T_1", "a.b/c/d/e:T_1", "a.b/c/d/e:T_1", "a.b", "c/d/e", "T_1"},
		{"ubuntu@" + someDigest, "docker.io/library/ubuntu@" + someDigest, "ubuntu@" + someDigest, "docker.io", "library/ubuntu", ""},
		{"ubuntu:14.04@" + someDigest, "docker.io/library/ubuntu@" + someDigest, "ubuntu@" + someDigest, "docker.io", "library/ubuntu", ""},
		{"oci:dir", "oci:dir", "oci:dir", "", "dir", ""},
		{"oci:/a/./b:12", "oci:/a/b:12", "oci:/a/b:12", "", "/a/b", "12"},
		{"oci-archive:a.tar:v1", "oci-archive:a.tar:v1", "oci-archive:a.tar:v1", "", "a.tar", "v1"},
		{"docker-archive:a.tar:debian:12", "docker-archive:a.tar:debian:12", "docker-archive:a.tar:debian:12", "", "a.tar", "debian:12"},
	} {
		r, err := ParseReference(c.in)
		if err != nil {
			t.Errorf("%s: %v", c.in, err)
			continue
		}
		if r.String() != c.canonical || r.Familiar() != c.familiar || r.Domain() != c.domain || r.Path() != c.path || r.Tag() != c.tag {
			t.Errorf("%s: got %s, %s, %q, %q, %q", c.in, r, r.Familiar(), r.Domain(), r.Path(), r.Tag())
		}
		if again, err := ParseReference(r.String()); err != nil || again != r {
			t.Errorf("%s: parsing %s gives %v, %v", c.in, r, again, err)
		}
	}
}

func TestParseReferenceRefuses(t *testing.T) {
	t.Parallel()
	for in, text := range map[string]string{
		"":                              "invalid reference format",
		"Ubuntu":                        "invalid reference format: repository name (library/Ubuntu) must be lowercase",
		"a:b:c":                         "invalid reference format",
		"ubuntu:":                       "invalid reference format",
		"ubuntu@sha256:12":              "invalid reference format",
		"ubuntu@sha512:1234":            "invalid reference format",
		"-x/y":                          "invalid reference format",
		strings.Repeat("a", 64):         "", // 64 hex digits: checked below
		strings.Repeat("b/", 200) + "c": "repository name must not be more than 255 characters",
		"oci:":                          "invalid reference format: oci: needs a path",
		"docker-archive::x":             "invalid reference format: docker-archive: needs a path",
		"oci:dir:":                      "invalid tag format: oci:dir:",
		"containers-storage:debian:12":  "containers-storage: the stores of other programs are not read",
		"docker-daemon:debian:12":       "docker-daemon: the stores of other programs are not read",
	} {
		_, err := ParseReference(in)
		if err == nil || fault.KindOf(err) != fault.Invalid || !strings.Contains(err.Error(), text) {
			t.Errorf("%q: got %v (%v), want %q", in, err, fault.KindOf(err), text)
		}
	}
	hex := strings.Repeat("a", 64)
	if _, err := ParseReference(hex); err == nil || err.Error() != "invalid repository name ("+hex+"), cannot specify 64-byte hexadecimal strings" {
		t.Errorf("64 hex digits: %v", err)
	}
}

func TestReferenceIn(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"oci:a/b:t": "oci:/w/a/b:t", "oci-archive:/x": "oci-archive:/x", "ubuntu": "docker.io/library/ubuntu:latest",
	} {
		r, err := ParseReference(in)
		if err != nil || r.In("/w").String() != want {
			t.Errorf("%s: got %s, %v", in, r.In("/w"), err)
		}
	}
}

// The oracle is Docker's own parser.
func FuzzParseReference(f *testing.F) {
	for _, s := range []string{"ubuntu:14.04", "localhost:5000/a/b@" + someDigest, "A/b", "oci:x:y", "docker://x", "a..b/c", "[::1]:1/x:y"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := ParseReference(s)
		if err != nil && fault.KindOf(err) != fault.Invalid {
			t.Fatalf("%q: kind %v", s, fault.KindOf(err))
		}
		if err == nil {
			if again, err := ParseReference(r.String()); err != nil || again != r {
				t.Fatalf("%q: %v is not stable: %v, %v", s, r, again, err)
			}
		}
		if r.Local() || strings.HasPrefix(s, "oci") || strings.HasPrefix(s, "docker") {
			return
		}
		named, want := reference.ParseDockerRef(s)
		if want != nil {
			if err == nil {
				t.Fatalf("%q: docker refuses it: %v", s, want)
			}
			return
		}
		if err != nil {
			if d, ok := named.(reference.Digested); !ok || d.Digest().Algorithm() == "sha256" {
				t.Fatalf("%q: docker takes it: %v", s, err)
			}
			return
		}
		if r.String() != named.String() || r.Familiar() != reference.FamiliarString(named) || strings.Contains(r.Domain(), "/") {
			t.Fatalf("%q: %s, docker: %s", s, r, named)
		}
	})
}

package fetch

import (
	"bufio"
	"os"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/imgfs/imgfs/internal/fault"
)

// Platform is what an image runs on. The zero value asks for the host's, and
// is content with an image that exists for another one only.
type Platform struct {
	OS           string `json:"os"`
	Architecture string `json:"architecture"`
	Variant      string `json:"variant,omitempty"`
}

var platformPart = regexp.MustCompile(`^[A-Za-z0-9_.-]+$`)

// knownOS decides what a platform of one word names.
var knownOS = []string{"linux", "windows", "darwin", "freebsd", "netbsd", "openbsd", "solaris", "illumos", "aix", "wasip1"}

// ParsePlatform reads os/arch[/variant], or os or arch alone, the rest being
// the host's. "" gives the zero Platform. Names are normalised as containerd
// does: x86_64 is amd64, aarch64 is arm64, armhf is arm/v7.
func ParsePlatform(s string) (Platform, error) {
	if s == "" {
		return Platform{}, nil
	}
	parts := strings.Split(s, "/")
	for _, p := range parts {
		if !platformPart.MatchString(p) {
			return Platform{}, badPlatform(s)
		}
	}
	host := HostPlatform()
	switch len(parts) {
	case 1:
		if low := strings.ToLower(parts[0]); slices.Contains(knownOS, low) || low == "macos" {
			return Platform{low, host.Architecture, host.Variant}.normal(), nil
		}
		return Platform{host.OS, parts[0], ""}.normal(), nil
	case 2:
		return Platform{parts[0], parts[1], ""}.normal(), nil
	case 3:
		return Platform{parts[0], parts[1], parts[2]}.normal(), nil
	}
	return Platform{}, badPlatform(s)
}

func badPlatform(s string) error {
	return fault.WithHint(fault.New(fault.Invalid, "invalid platform %q", s),
		"write it as os/arch[/variant], for example --platform linux/arm64")
}

// HostPlatform returns the platform of this machine.
func HostPlatform() Platform {
	p := Platform{OS: runtime.GOOS, Architecture: runtime.GOARCH}
	if p.Architecture == "arm" {
		p.Variant = "v" + strconv.Itoa(armVersion())
	}
	return p
}

// armVersion returns the ARM architecture version of the processor, 7 if the
// kernel does not say. A 32-bit program on a 64-bit kernel reads 8 there.
func armVersion() int {
	f, err := os.Open("/proc/cpuinfo")
	if err != nil {
		return 7
	}
	defer f.Close()
	for sc := bufio.NewScanner(f); sc.Scan(); {
		k, v, _ := strings.Cut(sc.Text(), ":")
		if strings.TrimSpace(k) != "CPU architecture" {
			continue
		}
		if n, err := strconv.Atoi(strings.TrimSpace(v)); err == nil && n >= 5 && n <= 8 {
			return n
		}
	}
	return 7
}

// String returns os/arch[/variant], "" for the zero value.
func (p Platform) String() string {
	if p == (Platform{}) {
		return ""
	}
	s := p.OS + "/" + p.Architecture
	if p.Variant != "" {
		s += "/" + p.Variant
	}
	return s
}

// normal returns p in lower case, with the usual aliases resolved. The
// variants that an architecture always has (amd64 v1, arm64 v8) are dropped,
// arm's default v7 is added.
func (p Platform) normal() Platform {
	p.OS, p.Architecture, p.Variant = strings.ToLower(p.OS), strings.ToLower(p.Architecture), strings.ToLower(p.Variant)
	if p.OS == "macos" {
		p.OS = "darwin"
	}
	switch p.Architecture {
	case "i386", "i486", "i586", "i686":
		p.Architecture, p.Variant = "386", ""
	case "x86_64", "x86-64":
		p.Architecture = "amd64"
	case "aarch64":
		p.Architecture = "arm64"
	case "armhf":
		p.Architecture, p.Variant = "arm", "v7"
	case "armel":
		p.Architecture, p.Variant = "arm", "v6"
	}
	switch p.Architecture {
	case "amd64":
		if p.Variant == "v1" {
			p.Variant = ""
		}
	case "arm64":
		if p.Variant == "8" || p.Variant == "v8" {
			p.Variant = ""
		}
	case "arm":
		switch p.Variant {
		case "":
			p.Variant = "v7"
		case "5", "6", "7", "8":
			p.Variant = "v" + p.Variant
		}
	}
	return p
}

// rank says how well an image for q runs on p: 0 not at all, else the higher
// the better. An arm processor runs its own and every older version (v8, v7,
// v6, v5); amd64 runs v1 to its own level; other variants must be equal, or
// absent from the image.
func (p Platform) rank(q Platform) int {
	q = q.normal()
	if p.OS != q.OS || p.Architecture != q.Architecture {
		return 0
	}
	if p.Variant == q.Variant {
		return 100
	}
	if p.Architecture == "arm" || p.Architecture == "amd64" {
		want, got := level(p.Variant), level(q.Variant)
		if got > 0 && got < want {
			return 10 + got
		}
		return 0
	}
	if q.Variant == "" {
		return 1
	}
	return 0
}

// level returns the number of a variant such as v7, 1 for "", 0 for others.
func level(variant string) int {
	if variant == "" {
		return 1
	}
	if n, err := strconv.Atoi(strings.TrimPrefix(variant, "v")); err == nil && n > 0 && n < 90 {
		return n
	}
	return 0
}

// selectPlatform returns the position of the descriptor that fits want best,
// the first of equals; -1 if none does. Entries that are no images (attestations,
// unknown platforms, nydus) are never chosen.
func selectPlatform(descs []v1.Descriptor, want Platform) int {
	best, rank := -1, 0
	for i, d := range descs {
		if !runnable(d) {
			continue
		}
		// An entry without a platform, as oci layouts made by hand have, fits
		// whatever is asked, behind everything that says what it is.
		r := 1
		if d.Platform != nil {
			r = 2 * want.rank(platformOf(d.Platform))
		}
		if r > rank {
			best, rank = i, r
		}
	}
	return best
}

func runnable(d v1.Descriptor) bool {
	if d.Annotations["vnd.docker.reference.type"] != "" {
		return false
	}
	if d.Platform == nil {
		return true
	}
	return d.Platform.OS != "unknown" && d.Platform.Architecture != "unknown" &&
		!slices.Contains(d.Platform.OSFeatures, "nydus.remoteimage.v1")
}

func platformOf(p *v1.Platform) Platform {
	return Platform{OS: p.OS, Architecture: p.Architecture, Variant: p.Variant}
}

// available lists the platforms of an index for a hint.
func available(descs []v1.Descriptor) string {
	var names []string
	for _, d := range descs {
		if !runnable(d) || d.Platform == nil {
			continue
		}
		if s := platformOf(d.Platform).String(); !slices.Contains(names, s) {
			names = append(names, s)
		}
	}
	const most = 20
	if len(names) > most {
		names = append(names[:most], "…")
	}
	return strings.Join(names, ", ")
}

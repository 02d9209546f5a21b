package sandbox

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/internal/fault"
)

// Spec says what to run and in what surroundings.
type Spec struct {
	Args     []string // the command; empty: a shell
	Env      []string // NAME=VALUE; PATH and HOME are added where missing
	User     string   // "" is root; name or uid, [:name or gid]
	WorkDir  string   // absolute; "" is /; made where missing
	Hostname string   // "" keeps the host's
	Files    []File   // put over those of the tree

	// Confined drops all but docker's default capabilities (not CAP_MKNOD), and
	// hides and write-protects the parts of /proc and /sys that docker does.
	Confined bool
}

// Bind shows a file or directory of the host in the tree.
type Bind struct {
	Source   string // on the host, absolute
	Target   string // in the tree, absolute; made where missing
	ReadOnly bool
}

// File is put at Path for the time of the command, over what may be there.
type File struct {
	Path string
	Data []byte
}

// ParseBind parses SRC:DST[:ro|rw]. A relative SRC must begin with a dot, as
// docker has it; making it absolute is the caller's.
func ParseBind(s string) (Bind, error) {
	bad := func(why string) (Bind, error) {
		return Bind{}, fault.WithHint(fault.New(fault.Invalid, "volume %q: %s", s, why), "SRC:DST or SRC:DST:ro, both paths")
	}
	f := strings.Split(s, ":")
	if len(f) < 2 || len(f) > 3 {
		return bad("not SRC:DST[:ro]")
	}
	b := Bind{Source: f[0], Target: f[1]}
	if len(f) == 3 {
		switch f[2] {
		case "ro":
			b.ReadOnly = true
		case "rw":
		default:
			return bad(fmt.Sprintf("%q is neither ro nor rw", f[2]))
		}
	}
	if !strings.HasPrefix(b.Source, "/") && !strings.HasPrefix(b.Source, ".") {
		return bad("there are no named volumes")
	}
	if !strings.HasPrefix(b.Target, "/") || strings.Trim(b.Target, "/") == "" {
		return bad("the target is not an absolute path below /")
	}
	return b, nil
}

// capabilities are docker's default set, by number, without CAP_MKNOD: docker
// has a device cgroup to keep a container's root from the disks it can name.
var capabilities = [...]int{
	unix.CAP_CHOWN, unix.CAP_DAC_OVERRIDE, unix.CAP_FSETID, unix.CAP_FOWNER, unix.CAP_NET_RAW,
	unix.CAP_SETGID, unix.CAP_SETUID, unix.CAP_SETFCAP, unix.CAP_SETPCAP,
	unix.CAP_NET_BIND_SERVICE, unix.CAP_SYS_CHROOT, unix.CAP_KILL, unix.CAP_AUDIT_WRITE,
}

// CapabilityNames returns the capabilities of a confined command as an OCI
// runtime names them.
func CapabilityNames() []string {
	return []string{
		"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_NET_RAW",
		"CAP_SETGID", "CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP",
		"CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
	}
}

// MaskedPaths returns what docker hides of /proc and /sys.
func MaskedPaths() []string {
	return []string{
		"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
		"/proc/scsi", "/proc/sched_debug", "/proc/timer_list", "/proc/timer_stats",
		"/sys/devices/virtual/powercap", "/sys/firmware",
	}
}

// ReadonlyPaths returns what docker write-protects of /proc.
func ReadonlyPaths() []string {
	return []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
}

// DefaultPath is the PATH of an image that names none, docker's.
const DefaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Exit codes of what went wrong before the command ran, docker's.
const (
	CodeFailed        = 125
	CodeNotExecutable = 126
	CodeNotFound      = 127
)

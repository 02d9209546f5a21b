package engineapi

import (
	"strings"
	"time"

	"github.com/imgfs/imgfs/internal/fault"
)

// What a mount fetches before it is asked, MountRequest.Prefetch; "" is
// PrefetchTrace.
const (
	PrefetchNone  = "none"
	PrefetchTrace = "trace" // what the image's maker marked, and what was read first the last times
	PrefetchAll   = "all"   // that, and then all the rest in the background
)

// VerifySealed is the MountRequest.Verify that shows proven layers alone.
const VerifySealed = "sealed"

// DefaultPatience is how long a read waits for a registry that has gone away,
// if the mount does not say.
const DefaultPatience = 30 * time.Second

// ParseOnError returns how long reads wait for a registry that has gone away,
// from a MountRequest.OnError.
func ParseOnError(s string) (time.Duration, error) {
	switch text, retry := strings.CutPrefix(s, "retry="); {
	case s == "":
		return DefaultPatience, nil
	case s == "eio":
		return 0, nil
	case retry:
		if d, err := time.ParseDuration(text); err == nil && d > 0 {
			return d, nil
		}
	}
	return 0, fault.WithHint(fault.New(fault.Invalid, "on-error %q: it is eio or retry=DURATION", s), "for example: retry=5m")
}

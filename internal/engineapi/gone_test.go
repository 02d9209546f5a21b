package engineapi

import (
	"context"
	"fmt"
	"net"
	"os"
	"syscall"
	"testing"

	"github.com/imgfs/imgfs/internal/fault"
)

// TestGone says in the user's words why no daemon could be asked.
func TestGone(t *testing.T) {
	t.Parallel()
	dial := func(why syscall.Errno) error {
		err := &net.OpError{Op: "dial", Net: "unix", Addr: &net.UnixAddr{Name: "/run/x.sock", Net: "unix"}, Err: os.NewSyscallError("connect", why)}
		return fmt.Errorf("Get %q: %w", "http://imgfs/_ping", err)
	}
	for _, test := range []struct {
		why  syscall.Errno
		kind fault.Kind
		text string
		hint bool
	}{
		{syscall.EACCES, fault.Denied, "daemon at /run/x.sock: permission denied", true},
		{syscall.ECONNREFUSED, fault.Unavailable, "no daemon answers", false},
		{syscall.ENOENT, fault.Unavailable, "no daemon answers", false},
	} {
		err := gone(context.Background(), dial(test.why))
		if fault.KindOf(err) != test.kind || err.Error() != test.text || (fault.HintOf(err) != "") != test.hint {
			t.Errorf("%v: %v (%v), hint %q", test.why, err, fault.KindOf(err), fault.HintOf(err))
		}
	}
}

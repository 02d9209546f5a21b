package overlay_test

import (
	"testing"

	"golang.org/x/sys/unix"
)

// TestCapabilityKept: the copy-up of data is no change of the file, which would
// take its capabilities.
func TestCapabilityKept(t *testing.T) {
	m := startCounted(t, chain{"file f size=10000 mode=755"}, nil)
	m.passthrough()
	const name = "security.capability"
	capability := string([]byte{1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}) // cap_net_bind_service+ep
	m.must(unix.Setxattr(m.path("f"), name, []byte(capability), 0))
	fd := m.open("f", unix.O_WRONLY|unix.O_APPEND)
	if !m.inUpper("f") {
		t.Error("not copied up")
	}
	var got [32]byte
	if n, err := unix.Getxattr(m.path("f"), name, got[:]); err != nil || string(got[:n]) != capability {
		t.Errorf("after open: %x, %v", got[:max(n, 0)], err)
	}
	m.pwrite(fd, "x", 0)
	if _, err := unix.Getxattr(m.path("f"), name, nil); err != unix.ENODATA {
		t.Errorf("after a write: %v", err)
	}
	m.close(fd)
}

package layertar

import (
	"testing"
	"unsafe"
)

// TestCosts holds the figures that the memory limit is counted with against the
// real ones.
func TestCosts(t *testing.T) {
	if n := unsafe.Sizeof(dentry{}) + 8; n > dentryCost {
		t.Errorf("a name costs %d bytes, counted as %d", n, dentryCost)
	}
	if n := unsafe.Sizeof(inode{}); n > inodeCost {
		t.Errorf("an inode costs %d bytes, counted as %d", n, inodeCost)
	}
}

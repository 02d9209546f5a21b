package daemon

import (
	"context"
	"fmt"
	"os"
	"testing"

	"github.com/imgfs/imgfs/internal/imgtest"
)

// TestMain makes the test binary stand in for imgfs: Start runs /proc/self/exe
// again with the arguments of a spawned daemon.
func TestMain(m *testing.M) {
	if len(os.Args) == 5 && os.Args[1] == "--root" && os.Args[3] == "daemon" {
		os.Exit(spawnedMain(os.Args[2]))
	}
	os.Exit(imgtest.Main(m))
}

func spawnedMain(root string) int {
	p, err := Locate(root)
	if err == nil {
		err = Run(context.Background(), Options{Paths: p, Spawned: true})
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "daemon:", err)
		return 1
	}
	return 0
}

package daemon

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/imgfs/imgfs/internal/imgtest"
)

// TestMain makes the test binary stand in for imgfs: Start runs its own file
// again with the arguments of a spawned daemon.
func TestMain(m *testing.M) {
	if len(os.Args) == 5 && os.Args[1] == "--root" && os.Args[3] == "daemon" {
		os.Exit(spawnedMain(os.Args[2], os.Args[4]))
	}
	os.Exit(imgtest.Main(m))
}

func spawnedMain(root, how string) int {
	o := Options{Paths: testPaths(root), Spawned: how == "--spawned"}
	if !o.Spawned { // by systemd
		o.Idle, o.Listening.Hosts, o.Logger = -1, []string{"fd://"}, NewLogger(os.Stderr, true, 0)
	}
	if err := Run(context.Background(), o); err != nil {
		fmt.Fprintln(os.Stderr, "daemon:", err)
		return 1
	}
	return 0
}

// testPaths keeps a test's socket away from those of the machine's daemons.
func testPaths(root string) Paths {
	run := filepath.Join(filepath.Dir(root), "run")
	return Paths{Root: root, Runtime: run, Socket: filepath.Join(run, "s")}
}

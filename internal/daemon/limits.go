package daemon

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// maxFiles is how many descriptors a daemon asks for: each file that is open
// for writing through a mount takes one.
const maxFiles = 1 << 20

// raiseFiles raises the limit of open files as far as this process may.
func raiseFiles() error {
	most := uint64(maxFiles)
	if b, err := os.ReadFile("/proc/sys/fs/nr_open"); err == nil {
		if n, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64); err == nil {
			most = min(most, n)
		}
	}
	var have unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &have); err != nil {
		return fmt.Errorf("getrlimit: %w", err)
	}
	if have.Cur >= most {
		return nil
	}
	// Beyond the hard limit goes root alone.
	if unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: most, Max: max(have.Max, most)}) == nil {
		return nil
	}
	have.Cur = have.Max
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &have); err != nil {
		return fmt.Errorf("setrlimit: %w", err)
	}
	return nil
}

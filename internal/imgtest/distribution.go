package imgtest

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// Distribution runs Debian's docker-registry, with lines for the http section
// of its configuration and what follows it, and returns its address. It picks
// the port and says when it listens, so nothing has to be guessed or waited for.
func Distribution(t testing.TB, http, more string) string {
	t.Helper()
	return DistributionStorage(t, "", http, more)
}

// DistributionStorage is [Distribution] with further lines for the storage
// section.
func DistributionStorage(t testing.TB, storage, http, more string) string {
	t.Helper()
	path := Program(t, "docker-registry")
	dir := t.TempDir()
	config := filepath.Join(dir, "config.yml")
	text := "version: 0.1\nlog:\n  level: info\n  formatter: json\nstorage:\n  filesystem:\n    rootdirectory: " + dir + "/data\n" + storage + "http:\n  addr: 127.0.0.1:0\n" + http + more
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, "serve", config)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	var log strings.Builder
	for sc := bufio.NewScanner(out); sc.Scan(); {
		log.WriteString(sc.Text() + "\n")
		if _, rest, ok := strings.Cut(sc.Text(), "listening on "); ok {
			end := strings.IndexAny(rest, `", `)
			go func() { // ends with the process
				for sc.Scan() {
				}
			}()
			return rest[:end]
		}
	}
	t.Fatalf("docker-registry does not listen:\n%s", log.String())
	return ""
}

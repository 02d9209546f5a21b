package main

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestUnits has systemd read the units that make install installs, and reads
// the command lines in them itself.
func TestUnits(t *testing.T) {
	t.Parallel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	var files []string
	for _, name := range []string{"imgfs.service", "imgfs.socket"} {
		b, err := os.ReadFile(filepath.Join("../../dist/systemd", name))
		if err != nil {
			t.Fatal(err)
		}
		commands := regexp.MustCompile(`(?m)^Exec\w+=-?/usr/local/bin/imgfs (.*)$`).FindAllStringSubmatch(string(b), -1)
		if strings.HasSuffix(name, ".service") && len(commands) == 0 {
			t.Errorf("%s: no command", name)
		}
		for _, c := range commands {
			if _, err := permute(newApp(io.Discard, io.Discard), strings.Fields(c[1])); err != nil {
				t.Errorf("%s: %s: %v", name, c[0], err)
			}
		}
		files = append(files, filepath.Join(dir, name))
		installed := strings.ReplaceAll(string(b), "/usr/local/bin/imgfs", self)
		if err := os.WriteFile(files[len(files)-1], []byte(installed), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("no systemd-analyze")
	}
	if out, err := exec.Command(analyze, append([]string{"verify", "--man=no"}, files...)...).CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
}

package overlay_test

import (
	"fmt"
	"testing"

	"golang.org/x/sys/unix"
)

// TestFewDescriptors: the descriptors that a server keeps for the next use are
// not missed elsewhere.
func TestFewDescriptors(t *testing.T) {
	layer := ""
	for i := range 40 {
		layer += fmt.Sprintf("dir d%d\nfile d%d/low size=10\n", i, i)
	}
	u := start(t, asRoot, chain{layer})
	limit := unix.Rlimit{Cur: 80, Max: 80}
	must(t, unix.Prlimit(u.cmd.Process.Pid, unix.RLIMIT_NOFILE, &limit, nil))
	for i := range 40 {
		for j := range 5 {
			name := fmt.Sprintf("d%d/f%d", i, j)
			if got := u.r.do("create " + name + " 644"); got != "ok" {
				t.Fatalf("create %s: %s", name, got)
			}
		}
		for _, op := range []string{"chmod d%d/low 600", "rename d%d/f0 d%[1]d/g", "append d%d/low 10 t", "mkdir d%d/sub 755"} {
			op = fmt.Sprintf(op, i)
			if got := u.r.do(op); got != "ok" {
				t.Fatalf("%s: %s", op, got)
			}
		}
	}
	for i := range 40 {
		for _, op := range []string{"read d%d/low", "unlink d%d/g", "unlink d%d/f1", "unlink d%d/low", "rmdir d%d/sub"} {
			op = fmt.Sprintf(op, i)
			if got := u.r.do(op); len(got) > 1 && got[0] == 'E' {
				t.Fatalf("%s: %s\n%s", op, got, &u.errs)
			}
		}
	}
}

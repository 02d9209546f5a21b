package overlay_test

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// killChain has something for every operation of killOps to be done to.
func killChain() chain {
	return chain{
		`dir . mode=0755 mtime=1000000001
dir d mtime=1000000000 xattr:user.dir=d
file d/f1 size=5000 mtime=1000000000.5 uid=1000 mode=4755 xattr:user.one=1
file d/f2 size=70000 mtime=1000000000
file d/f3 size=70000 mtime=1000000000
dir d/sub mode=0750 uid=1000 gid=1000 mtime=1000000000
dir d/sub/deep mtime=1000000000
file d/sub/deep/f size=4096 mtime=1000000000
file d/sub/x size=600 mtime=1000000000
file h1 size=5000 mtime=1000000000 xattr:user.h=1
link h2 h1 mtime=1000000000 xattr:user.h=1
link d/sub/h3 h1 mtime=1000000000 xattr:user.h=1
file big sparse=1.0 size=300000 map=0+512,131072+4096 mtime=1000000000
symlink s d/f1 mtime=1000000000
dir e mtime=1000000000
file gone size=9 mtime=1000000000
`, `dir m mtime=1000000000
file m/a size=10 mtime=1000000000
file m/b size=10 mtime=1000000000
dir n mtime=1000000000
dir n/old mtime=1000000000
file n/old/f size=5000 mtime=1000000000
fifo p mtime=1000000000
file x size=5000 mtime=1000000000
file y size=6000 mtime=1000000000
`}
}

func killOps() []string {
	return strings.Split(strings.TrimSpace(`append d/f1 100 t1
chmod d/f2 600
append d/f2 10 t2
chown big 1000 1000
truncate big 100
empty d/sub/x
setxattr d/sub/deep/f user.a v
rmxattr d/f1 user.one
acl d/sub default 750
mkdir d/sub/acl 777
times x 1111111111
link h1 h4
append h2 10 t3
unlink d/sub/h3
unlink gone
create gone 644
rmdir e
mkdir e 755
create e/new 600
write e/new 0 5000 t4
symlink e/s nowhere
mknod e/fifo fifo 644
tmpfile e e/tmp t5
rename d/sub moved
rename moved/deep d/deeper
rename moved moved2
append d/deeper/f 7 t6
rename e/new d/f3
rename x y
rename y e exchange
rename n/old y exchange
rename d/deeper d/f1 exchange
unlink m/a
unlink m/b
mkdir fresh 755
create fresh/f 644
rename fresh m
rename s t
link t t2
unlink p
mkdir p 700
rmdir p
fallocate n/old 3 0 4096
rename n n2
unlink n2/old
rename y n2/old
rmtree n2/old/f
rmdir n2/old
rmdir n2
unlink h1
unlink h2
unlink h4
rename d q
mkdir d 755
rename d q/d`), "\n")
}

// TestKill kills the server before each change on disk (without -long before
// each eleventh), opens the upper again, and finds the tree from before or
// after the operation. Only a time that is not yet set back, of a directory or
// of a file whose data was copied, may show that something was under way.
func TestKill(t *testing.T) {
	for _, k := range []kind{asRoot, rootless} {
		t.Run(k.name, func(t *testing.T) {
			stride := 11
			if *long {
				stride = 1
			}
			killEach(t, k, killChain(), killOps(), stride)
		})
	}
}

func killEach(t *testing.T, k kind, c chain, ops []string, stride int) {
	needRoot(t)
	dir := workDir(t)
	model, err := newModel(dir, c)
	if err != nil {
		t.Fatal(err)
	}
	defer model.close()
	m, killed := k.masks, k.masks
	killed.times = true
	u := start(t, k, c)
	points, kills := 0, 0
	for _, op := range ops {
		before, err := takeSnapshot(model.fd, killed)
		must(t, err)
		want := model.do(op)
		after, err := takeSnapshot(model.fd, killed)
		must(t, err)
		if err := u.close(); err != nil {
			t.Fatal(err)
		}
		copyUpper(t, u.Upper, u.Upper+".before")

		// Once in peace, to count its changes.
		u.Steps = filepath.Join(filepath.Dir(u.Upper), "steps")
		os.Remove(u.Steps)
		if err := u.mount(); err != nil {
			t.Fatalf("before %s: %v", op, err)
		}
		mounting := len(steps(t, u.Steps))
		if got := u.r.do(op); !m.same(want, got) {
			t.Fatalf("%s: model says %s, here %s", op, want, got)
		}
		taken := steps(t, u.Steps)
		if err := compare(model, u.r, m); err != nil {
			t.Fatalf("%s, undisturbed: %v", op, err)
		}
		if err := u.close(); err != nil {
			t.Fatal(err)
		}
		u.Steps = ""
		copyUpper(t, u.Upper, u.Upper+".after")

		for n := mounting + 1; n <= len(taken); n++ {
			if points++; points%stride != 0 {
				continue
			}
			kills++
			copyUpper(t, u.Upper+".before", u.Upper)
			what := fmt.Sprintf("%s, killed before change %d of %d, %s", op, n-mounting, len(taken)-mounting, taken[n-1])
			killOnce(t, u, n, op, what)
			sameAs(t, what, u, killed, before, after)
			if err := u.close(); err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			if t.Failed() {
				t.Logf("changes: %q", taken[mounting:])
				return
			}
		}
		copyUpper(t, u.Upper+".after", u.Upper)
		if err := u.mount(); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d changes on disk by %d operations, killed before %d of them", points, len(ops), kills)
	if points < 2*len(ops) {
		t.Errorf("%d operations in %d changes: are they all announced?", len(ops), points)
	}
}

// killOnce mounts, does op until the server dies, and mounts again.
func killOnce(t *testing.T, u *unionTarget, n int, op, what string) {
	t.Helper()
	u.Kill = int64(n)
	err := u.mount()
	u.Kill = 0
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	u.r.do(op)
	u.r.close()
	if err := unix.Unmount(u.at, unix.MNT_DETACH); err != nil {
		t.Errorf("%s: unmount: %v", what, err)
	}
	u.in.Close()
	if err := u.cmd.Wait(); err == nil {
		t.Errorf("%s: it was not killed", what)
	}
	if err := u.mount(); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	left, err := os.ReadDir(filepath.Join(u.Upper, "stage"))
	if err != nil || len(left) > 0 {
		t.Errorf("%s: stage/ holds %v, %v", what, left, err)
	}
}

// sameAs fails if the mount's tree is none of those.
func sameAs(t *testing.T, what string, u *unionTarget, m masks, trees ...*snapshot) {
	t.Helper()
	got, err := takeSnapshot(u.r.fd, m)
	if err != nil {
		t.Errorf("%s: %v\n%s", what, err, &u.errs)
		return
	}
	for _, s := range trees {
		if maps.Equal(s.lines, got.lines) {
			return
		}
	}
	for _, s := range trees {
		t.Errorf("%s:\n%s", what, differences(s.lines, got.lines))
	}
}

func steps(t *testing.T, file string) []string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return strings.FieldsFunc(string(b), func(r rune) bool { return r == '\n' })
}

func copyUpper(t *testing.T, from, to string) {
	t.Helper()
	if err := os.RemoveAll(to); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("cp", "-a", from, to).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v\n%s", err, out)
	}
}

// TestSyncedSurvives: what fsync(2) acknowledged is there when the server is
// killed, also where the kernel keeps back what was written.
func TestSyncedSurvives(t *testing.T) {
	for _, k := range []kind{asRoot, rootless} {
		t.Run(k.name, func(t *testing.T) {
			u := start(t, k, killChain())
			model, err := newModel(workDir(t), killChain())
			if err != nil {
				t.Fatal(err)
			}
			defer model.close()
			for _, op := range []string{
				"open 1 d/f2 rw", "put 1 100 40000 a", "sync 1",
				"open 2 d/new c", "put 2 4000 9000 b", "sync 2",
				"open 3 h2 a", "put 3 0 100 c", "sync 3",
				"rename d/f2 d/sub/r", "unlink x",
			} {
				if want, got := model.do(op), u.r.do(op); want != got {
					t.Fatalf("%s: model says %s, here %s", op, want, got)
				}
			}
			want, err := takeSnapshot(model.fd, k.masks)
			if err != nil {
				t.Fatal(err)
			}
			if err := u.cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			u.cmd.Wait()
			u.r.close()
			if err := unix.Unmount(u.at, unix.MNT_DETACH); err != nil {
				t.Error(err)
			}
			if err := u.mount(); err != nil {
				t.Fatal(err)
			}
			sameAs(t, "after the kill", u, k.masks, want)
		})
	}
}

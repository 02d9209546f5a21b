package overlay_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/imgfs/imgfs/internal/imgtest"
	"golang.org/x/sys/unix"
)

// crossTarget is the same upper, now under the union and now under kernel
// overlayfs: each remount changes the driver.
type crossTarget struct {
	*unionTarget
	kernel *kernelTarget
	inUse  bool // the kernel's
}

// mountCross mounts the union first, or the kernel on a fresh upper.
func mountCross(dir string, c chain, kernelFirst bool) (*crossTarget, error) {
	plain := filepath.Join(dir, "plain")
	if err := os.Mkdir(plain, 0o755); err != nil {
		return nil, err
	}
	if err := applyChain(plain, c); err != nil {
		return nil, err
	}
	u, err := mountUnion(dir, c, 0)
	if err != nil {
		return nil, err
	}
	x := &crossTarget{unionTarget: u}
	x.kernel = &kernelTarget{at: u.at, data: fmt.Sprintf("lowerdir=%s,upperdir=%s/diff,workdir=%s/work,index=off,redirect_dir=on,metacopy=on",
		plain, u.Upper, u.Upper)}
	if !kernelFirst {
		return x, nil
	}
	if err := u.close(); err != nil {
		return nil, err
	}
	x.inUse = true
	return x, x.kernel.mount()
}

func (x *crossTarget) root() *root {
	if x.inUse {
		return x.kernel.root()
	}
	return x.unionTarget.root()
}

func (x *crossTarget) close() error {
	if x.inUse {
		return x.kernel.close()
	}
	return x.unionTarget.close()
}

func (x *crossTarget) remount() error {
	if err := x.close(); err != nil {
		return err
	}
	x.inUse = !x.inUse
	if x.inUse {
		return x.kernel.mount()
	}
	return x.unionTarget.mount()
}

// TestCrossings writes an upper under both drivers in turn; both show what the
// model has. Kernel overlayfs gives files that it copies up, or fills, the
// time of that, and has inode numbers of its own.
func TestCrossings(t *testing.T) {
	imgtest.Need(t, os.Geteuid() == 0, "root, to mount an overlay")
	needRoot(t)
	for _, kernelFirst := range []bool{false, true} {
		k := kind{
			name:  fmt.Sprintf("crossings, kernel first: %v", kernelFirst),
			can:   abilities{special: true, drops: true, users: true, noLinks: true},
			masks: masks{links: true, inodes: true, times: true},
			every: 40,
			mount: func(dir string, c chain) (target, error) { return mountCross(dir, c, kernelFirst) },
		}
		t.Run(fmt.Sprintf("kernelFirst=%v", kernelFirst), func(t *testing.T) {
			last := uint64(3)
			if *long {
				last = 100
			}
			randomScenarios(t, k, 1, last, 300)
		})
	}
}

// TestKernelReadsUnionUpper: what the union wrote, hard links and all, kernel
// overlayfs shows the same, but for the numbers of links that an upper without
// an index cannot give it.
func TestKernelReadsUnionUpper(t *testing.T) {
	imgtest.Need(t, os.Geteuid() == 0, "root, to mount an overlay")
	dir := workDir(t)
	needRoot(t)
	x, err := mountCross(dir, killChain(), false)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := x.close(); err != nil {
			t.Error(err)
		}
	}()
	model, err := newModel(dir, killChain())
	if err != nil {
		t.Fatal(err)
	}
	defer model.close()
	m := masks{links: true, inodes: true}
	for i, op := range killOps() {
		if want, got := model.do(op), x.root().do(op); want != got {
			t.Fatalf("%s: model says %s, here %s", op, want, got)
		}
		if i%8 == 7 || i == len(killOps())-1 {
			if err := x.remount(); err != nil {
				t.Fatal(err)
			}
			if err := compare(model, x.root(), m); err != nil {
				t.Fatalf("the kernel's view after %s: %v", op, err)
			}
			if err := x.remount(); err != nil {
				t.Fatal(err)
			}
			if err := compare(model, x.root(), m); err != nil {
				t.Fatalf("the union's view after the kernel's mount, after %s: %v", op, err)
			}
		}
	}
}

// TestUpperIsPlain: an upper can be read with plain tools, and holds only what
// changed: no whiteout where nothing is below, no data of a file whose
// attributes alone changed, the blocks of its data only.
func TestUpperIsPlain(t *testing.T) {
	u := start(t, asRoot, killChain())
	for _, op := range []string{
		"create new 644", "unlink new", // leaves nothing
		"mkdir dir 755", "rmdir dir",
		"create a 644", "rename a b", "unlink b",
		"chmod d/f2 600", // a metacopy
		"append big 1 t", // copied up with its holes
		"unlink gone",
	} {
		if got := u.r.do(op); got != "ok" {
			t.Fatalf("%s: %s", op, got)
		}
	}
	if err := u.close(); err != nil {
		t.Fatal(err)
	}
	diff := filepath.Join(u.Upper, "diff")
	var names []string
	entries, err := os.ReadDir(diff)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if got := fmt.Sprint(names); got != "[big d gone]" {
		t.Errorf("the upper holds %s", got)
	}
	var st unix.Stat_t
	if err := unix.Lstat(filepath.Join(diff, "gone"), &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != 0 {
		t.Errorf("gone is no whiteout: %o %d %v", st.Mode, st.Rdev, err)
	}
	if err := unix.Lstat(filepath.Join(diff, "d/f2"), &st); err != nil || st.Size != 70000 || st.Blocks > 8 { // of attributes
		t.Errorf("d/f2 has %d bytes in %d blocks, %v: no metacopy", st.Size, st.Blocks, err)
	}
	if err := unix.Lstat(filepath.Join(diff, "big"), &st); err != nil || st.Size != 300001 || st.Blocks*512 > 6*4096 {
		t.Errorf("big has %d bytes in %d blocks, %v", st.Size, st.Blocks, err)
	}
}

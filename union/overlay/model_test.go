package overlay_test

import (
	"cmp"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/imgfs/imgfs/internal/imgtest"
	"github.com/rogpeppe/go-internal/txtar"
	"golang.org/x/sys/unix"
)

var (
	seed = flag.Uint64("seed", 0, "the one random case to run, 0 for several")
	long = flag.Bool("long", false, "run hundreds of random cases and all kill points")
)

// A scenario is a chain and what is done in it: operations (see [root]), and
//
//	check      compares the trees
//	remount    closes what is open and mounts again; inode numbers must stay
type scenario struct {
	about  string
	layers chain
	ops    []string
}

func (s *scenario) String() string {
	a := txtar.Archive{Comment: []byte(s.about + "\n")}
	for i, l := range s.layers {
		a.Files = append(a.Files, txtar.File{Name: fmt.Sprint("layer", i), Data: []byte(l)})
	}
	a.Files = append(a.Files, txtar.File{Name: "ops", Data: []byte(strings.Join(s.ops, "\n") + "\n")})
	return string(txtar.Format(&a))
}

func parseScenario(b []byte) *scenario {
	a := txtar.Parse(b)
	s := &scenario{about: strings.TrimSpace(string(a.Comment))}
	for _, f := range a.Files {
		if f.Name != "ops" {
			s.layers = append(s.layers, string(f.Data))
			continue
		}
		for line := range strings.Lines(string(f.Data)) {
			if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
				s.ops = append(s.ops, line)
			}
		}
	}
	return s
}

// A target is a mounted union.
type target interface {
	root() *root
	remount() error
	close() error
}

// A kind makes targets of one sort.
type kind struct {
	name  string
	can   abilities
	masks masks
	every int // operations between remounts; 0: 150
	// excuses are errnos of operations that are then not done to the model.
	excuses []string
	// after is done at the end, to a target that is the model's twin. It may
	// unmount it.
	after func(dir string, c chain, model *root, to target) error
	// mount mounts the chain below dir, an empty directory on the test's disk.
	mount func(dir string, c chain) (target, error)
}

// newModel is a directory with the chain's tree.
func newModel(dir string, c chain) (*root, error) {
	dir = filepath.Join(dir, "model")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, err
	}
	if err := applyChain(dir, c); err != nil {
		return nil, err
	}
	return openRoot(dir)
}

// run plays a scenario on a target and the model. With next it makes up the
// operations and adds them to s.
func (s *scenario) run(base string, k kind, next func(model *root) string) (err error) {
	dir, err := os.MkdirTemp(base, "run-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	model, err := newModel(dir, s.layers)
	if err != nil {
		return fmt.Errorf("layers: %w", err)
	}
	defer model.close()
	to, err := k.mount(dir, s.layers)
	if err != nil {
		return fmt.Errorf("mount: %w", err)
	}
	defer func() { err = errors.Join(err, to.close()) }()
	if err := compare(model, to.root(), k.masks); err != nil {
		return fmt.Errorf("before any operation: %w", err)
	}
	for i := 0; ; i++ {
		if i == len(s.ops) && next != nil {
			op := next(model)
			if op == "" {
				break
			}
			s.ops = append(s.ops, op)
		}
		if i == len(s.ops) {
			break
		}
		if err := step(s.ops[i], model, to, k); err != nil {
			return fmt.Errorf("operation %d, %s: %w", i+1, s.ops[i], err)
		}
	}
	for _, op := range []string{"check", "remount", "check"} {
		if err := step(op, model, to, k); err != nil {
			return fmt.Errorf("at the end, %s: %w", op, err)
		}
	}
	if k.after != nil {
		return k.after(dir, s.layers, model, to)
	}
	return nil
}

func step(op string, model *root, to target, k kind) error {
	m := k.masks
	switch op {
	case "check":
		return compare(model, to.root(), m)
	case "remount":
		model.closeSlots()
		before, err := takeSnapshot(to.root().fd, m)
		if err != nil {
			return err
		}
		if err := to.remount(); err != nil {
			return err
		}
		after, err := takeSnapshot(to.root().fd, m)
		if err != nil {
			return err
		}
		for p, ino := range before.inos {
			// Where no attribute can hold it a symlink has another.
			if after.inos[p] != ino && !m.inodes && !(m.owners && strings.HasPrefix(before.lines[p], "120")) {
				return fmt.Errorf("%s: inode %d, %d after the remount", p, ino, after.inos[p])
			}
		}
		return nil
	}
	got := to.root().do(op)
	if slices.Contains(k.excuses, got) {
		return nil
	}
	want := model.do(op)
	if !m.same(want, got) {
		return fmt.Errorf("model says %s, here %s", want, got)
	}
	return nil
}

// same tells whether two answers are the same but for what is masked.
func (m masks) same(want, got string) bool {
	if m.links {
		want, got = cutLinks(want), cutLinks(got)
	}
	if symlink := "120777 "; m.owners && strings.HasPrefix(want, symlink) && strings.HasPrefix(got, symlink) {
		return strings.Fields(want)[2] == strings.Fields(got)[2]
	}
	return want == got
}

func cutLinks(s string) string {
	before, after, ok := strings.Cut(s, " nlink=")
	if !ok {
		return s
	}
	return before + after[strings.Index(after, " "):]
}

func compare(model, to *root, m masks) error {
	want, err := takeSnapshot(model.fd, m)
	if err != nil {
		return fmt.Errorf("model: %w", err)
	}
	got, err := takeSnapshot(to.fd, m)
	if err != nil {
		return err
	}
	if d := differences(want.lines, got.lines); d != "" {
		return fmt.Errorf("trees differ:\n%s", d)
	}
	if len(got.odd) > 0 && !m.inodes {
		return fmt.Errorf("readdir and stat differ: %s", got.odd[0])
	}
	return nil
}

// shrink cuts a failing scenario while it still fails, and returns the last
// failure.
func (s *scenario) shrink(base string, k kind, failure error) error {
	budget := 400
	fails := func(c *scenario) bool {
		if budget--; budget < 0 {
			return false
		}
		err := c.run(base, k, nil)
		if err == nil || strings.HasPrefix(err.Error(), "layers: ") || strings.HasPrefix(err.Error(), "mount: ") {
			return false
		}
		failure = err
		return true
	}
	cut := func(lines []string, keep int, fails func([]string) bool) {
		for n := len(lines) / 2; n > 0; n /= 2 {
			for i := keep; i+n <= len(lines); {
				if less := slices.Delete(slices.Clone(lines), i, i+n); fails(less) {
					lines = less
				} else {
					i += n
				}
			}
		}
	}
	cut(s.ops, 0, func(less []string) bool {
		c := &scenario{layers: s.layers, ops: less}
		if !fails(c) {
			return false
		}
		s.ops = less
		return true
	})
	for l := range s.layers {
		cut(slices.Collect(strings.Lines(s.layers[l])), 1, func(less []string) bool {
			c := &scenario{layers: slices.Clone(s.layers), ops: s.ops}
			c.layers[l] = strings.Join(less, "")
			if !fails(c) {
				return false
			}
			s.layers = c.layers
			return true
		})
	}
	return failure
}

// randomScenarios runs seeds first to last, each of so many operations.
func randomScenarios(t *testing.T, k kind, first, last uint64, ops int) {
	t.Helper()
	base := workDir(t)
	if *seed != 0 {
		first, last = *seed, *seed
	}
	for n := first; n <= last; n++ {
		r := rand.New(rand.NewPCG(n, 0x6f76_6572))
		s := &scenario{about: fmt.Sprintf("%s, seed %d", k.name, n), layers: randomChain(r, k.can)}
		g := opGenerator{r: r, can: k.can}
		made := 0
		err := s.run(base, k, func(model *root) string {
			switch made++; {
			case made > ops:
				return ""
			case made%cmp.Or(k.every, 150) == 0:
				return "remount"
			case made%50 == 0:
				return "check"
			}
			return g.next(model)
		})
		if err != nil {
			err = s.shrink(base, k, err)
			t.Fatalf("%s: %v\nto be kept in testdata/overlay/seeds:\n%s", s.about, err, s)
		}
	}
}

// workDir is a directory for trees that other users can reach.
func workDir(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	for _, d := range []string{dir, filepath.Dir(dir)} {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// TestModelAgainstKernelOverlay proves the test itself: kernel overlayfs, told
// to keep hard links together and to copy whole files (it gives a metacopy the
// time at which its data came), and a plain directory agree on everything that
// it is asked for.
func TestModelAgainstKernelOverlay(t *testing.T) {
	imgtest.Need(t, os.Geteuid() == 0, "root, to mount an overlay")
	last := uint64(3)
	if *long {
		last = 200
	}
	randomScenarios(t, kernelOverlay, 1, last, 300)
}

// TestModel compares the union with a plain directory.
func TestModel(t *testing.T) {
	for _, k := range []kind{asRoot, rootless} {
		t.Run(k.name, func(t *testing.T) {
			needRoot(t)
			last := uint64(4)
			if *long {
				last = 300
			}
			randomScenarios(t, k, 1, last, 300)
		})
	}
}

// TestSeeds replays what once failed.
func TestSeeds(t *testing.T) {
	files, err := filepath.Glob("../../testdata/overlay/seeds/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no seeds: %v", err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		s := parseScenario(b)
		for _, k := range []kind{asRoot, rootless} {
			t.Run(strings.TrimSuffix(filepath.Base(f), ".txtar")+"/"+k.name, func(t *testing.T) {
				needRoot(t)
				if k.name == rootless.name && strings.Contains(s.about, "needs root") {
					t.Skip("devices or attributes that only root may have")
				}
				if err := s.run(workDir(t), k, nil); err != nil {
					t.Errorf("%s: %v", s.about, err)
				}
			})
		}
	}
}

var kernelOverlay = kind{
	name: "kernel overlayfs",
	can:  abilities{special: true, users: true},
	// Of symlinks and links its readdir gives the lower's inode; what a rename
	// that fails has copied up changed its directory.
	masks: masks{inodes: true, dirs: true},
	mount: func(dir string, c chain) (target, error) {
		return mountKernel(dir, c, "index=on,redirect_dir=on,metacopy=off")
	},
}

// kernelTarget is kernel overlayfs over plain directories.
type kernelTarget struct {
	at, data string
	r        *root
}

func mountKernel(dir string, c chain, how string) (*kernelTarget, error) {
	for _, n := range []string{"lower", "upper", "work", "merged"} {
		if err := os.Mkdir(filepath.Join(dir, n), 0o755); err != nil {
			return nil, err
		}
	}
	if err := applyChain(filepath.Join(dir, "lower"), c); err != nil {
		return nil, err
	}
	// The root's attributes are the upper's.
	if err := copyRoot(filepath.Join(dir, "lower"), filepath.Join(dir, "upper")); err != nil {
		return nil, err
	}
	k := &kernelTarget{at: filepath.Join(dir, "merged")}
	k.data = fmt.Sprintf("lowerdir=%s/lower,upperdir=%s/upper,workdir=%s/work,%s", dir, dir, dir, how)
	return k, k.mount()
}

func copyRoot(from, to string) error {
	var st unix.Stat_t
	if err := unix.Stat(from, &st); err != nil {
		return err
	}
	return errors.Join(unix.Chmod(to, st.Mode&0o7777), os.Chown(to, int(st.Uid), int(st.Gid)),
		unix.UtimesNano(to, []unix.Timespec{st.Mtim, st.Mtim}))
}

func (k *kernelTarget) mount() error {
	// The upper of the last mount is in use until the kernel has put it away.
	err := error(unix.EBUSY)
	for i := 0; err == unix.EBUSY && i < 1000; i++ {
		err = unix.Mount("imgtest", k.at, "overlay", 0, k.data)
	}
	if err != nil {
		return fmt.Errorf("overlay: %w", err)
	}
	k.r, err = openRoot(k.at)
	return err
}

func (k *kernelTarget) root() *root { return k.r }

func (k *kernelTarget) close() error {
	if k.r == nil {
		return nil
	}
	k.r.close()
	k.r = nil
	return unix.Unmount(k.at, 0)
}

func (k *kernelTarget) remount() error {
	if err := k.close(); err != nil {
		return err
	}
	return k.mount()
}

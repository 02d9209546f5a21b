package overlay_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/imgfs/imgfs/fs"
	"github.com/imgfs/imgfs/internal/erofs"
	"github.com/imgfs/imgfs/internal/imgtest"
	"github.com/imgfs/imgfs/internal/lower"
	"github.com/imgfs/imgfs/internal/upperdir"
	"github.com/imgfs/imgfs/union/overlay"
	"golang.org/x/sys/unix"
)

// The union is served by another process, this binary again: it can be killed
// and have another user, and the test may do to the mount what would deadlock
// its server.

const serverEnv = "IMGFS_OVERLAY_SERVER"

func TestMain(m *testing.M) {
	if how := os.Getenv(serverEnv); how != "" {
		if err := serverMain(how); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(imgtest.Main(m))
}

// server is what the serving process is told.
type server struct {
	Chain            string // directory, see buildTars
	Upper            string // made if absent
	Squash, Volatile bool
	Users            []overlay.IDRange // of Squash: subordinate ones
	Kill             int64             // before this change on disk the process kills itself; 0: never
	Steps            string            // file to which the name of each change is appended; "": none
}

// fullData is a layer's data file, all there.
type fullData struct{ f *os.File }

func (d fullData) Fill(context.Context, int64, int64, int64) (*os.File, error) { return d.f, nil }

// openLower opens what buildTars wrote.
func openLower(dir string) (*lower.Tree, func(), error) {
	img, err := erofs.Open(filepath.Join(dir, "index"))
	if err != nil {
		return nil, nil, err
	}
	var data []lower.Data
	for i := range img.Devices() {
		f, err := os.Open(filepath.Join(dir, fmt.Sprint("data", i)))
		if err != nil {
			return nil, nil, err
		}
		data = append(data, fullData{f})
	}
	low := lower.New(img, data, 0, lower.Root)
	return &low, func() {
		img.Close()
		for _, d := range data {
			d.(fullData).f.Close()
		}
	}, nil
}

func openUpper(path string) (*upperdir.Dir, error) {
	if _, err := os.Lstat(filepath.Join(path, "upper.json")); err == nil {
		return upperdir.Open(path)
	}
	return upperdir.Create(path, upperdir.Info{Image: "test"})
}

// serverMain serves the mount whose descriptor is 3, until it is unmounted.
func serverMain(how string) error {
	var s server
	if err := json.Unmarshal([]byte(how), &s); err != nil {
		return err
	}
	low, done, err := openLower(s.Chain)
	if err != nil {
		return err
	}
	defer done()
	up, err := openUpper(s.Upper)
	if err != nil {
		return err
	}
	defer up.Close()
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	var steps atomic.Int64
	var ids *overlay.IDs
	if s.Squash {
		ids = overlay.RootIs(uint32(os.Geteuid()), uint32(os.Getegid()), s.Users, s.Users)
	}
	u, err := overlay.New(low, up, overlay.Options{Logger: log, IDs: ids, Volatile: s.Volatile, Step: func(what string) {
		if s.Steps != "" {
			if f, err := os.OpenFile(s.Steps, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644); err == nil {
				f.WriteString(what + "\n")
				f.Close()
			}
		}
		if steps.Add(1) == s.Kill {
			unix.Kill(os.Getpid(), unix.SIGKILL)
			select {}
		}
	}})
	if err != nil {
		return err
	}
	srv, err := fs.Serve(context.Background(), u, 3, fs.Options{Logger: log})
	if err != nil {
		return err
	}
	fmt.Println("ready")
	// A mount namespace that was made meanwhile, by a test of another package,
	// has the mount as well: it would not end by the unmount here.
	go func() {
		io.Copy(io.Discard, os.Stdin)
		srv.Close()
	}()
	return srv.Wait()
}

// said is what a process has said, while it goes on.
type said struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (s *said) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.buf.Write(p)
}

func (s *said) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.buf.String()
}

// unionTarget is a mount and the process that serves it.
type unionTarget struct {
	server
	at   string
	uid  int // of the server
	r    *root
	cmd  *exec.Cmd
	errs said // what the server says
	out  *bufio.Reader
	in   io.Closer // ends the server
}

// mountUnion builds the chain and mounts it, with its upper, below dir.
func mountUnion(dir string, c chain, uid int) (*unionTarget, error) {
	u, err := newUnion(dir, c, uid)
	if err != nil {
		return nil, err
	}
	return u, u.mount()
}

// newUnion builds the chain.
func newUnion(dir string, c chain, uid int) (*unionTarget, error) {
	tars, err := c.tars()
	if err != nil {
		return nil, err
	}
	return unionOf(dir, tars, uid)
}

// unionOf is newUnion of layers. A server of another user than root finds its
// files all the same.
func unionOf(dir string, tars [][]byte, uid int) (*unionTarget, error) {
	u := &unionTarget{
		server: server{Chain: filepath.Join(dir, "chain"), Upper: filepath.Join(dir, "uppers", "u")},
		at:     filepath.Join(dir, "merged"), uid: uid,
	}
	for _, d := range []string{u.Chain, filepath.Dir(u.Upper), u.at} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return nil, err
		}
	}
	err := errors.Join(os.Chmod(dir, 0o755), os.Chown(filepath.Dir(u.Upper), uid, uid))
	if err != nil {
		return nil, err
	}
	return u, buildTars(u.Chain, tars)
}

func (u *unionTarget) mount() error {
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), "/dev/fuse")
	defer f.Close()
	data := fmt.Sprintf("fd=%d,rootmode=40000,user_id=%d,group_id=%d,default_permissions,allow_other,max_read=%d", fd, u.uid, u.uid, 1<<20)
	if err := unix.Mount("imgtest", u.at, "fuse.imgfs", 0, data); err != nil {
		return fmt.Errorf("mount: %w", err)
	}
	how, err := json.Marshal(u.server)
	if err != nil {
		return err
	}
	u.cmd = exec.Command("/proc/self/exe")
	u.cmd.Env = append(os.Environ(), serverEnv+"="+string(how))
	u.cmd.ExtraFiles = []*os.File{f}
	u.cmd.Stderr = &u.errs
	if u.uid != 0 {
		u.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(u.uid), Gid: uint32(u.uid)}}
	}
	out, err := u.cmd.StdoutPipe()
	if err == nil {
		u.in, err = u.cmd.StdinPipe()
	}
	if err == nil {
		err = u.cmd.Start()
	}
	if err != nil {
		return errors.Join(err, unix.Unmount(u.at, unix.MNT_DETACH))
	}
	f.Close()
	u.out = bufio.NewReader(out)
	if said, _ := u.out.ReadString('\n'); said != "ready\n" {
		err := u.cmd.Wait()
		unix.Unmount(u.at, unix.MNT_DETACH)
		u.cmd = nil
		return fmt.Errorf("server: %s (%v)\n%s", strings.TrimSpace(said), err, &u.errs)
	}
	u.r, err = openRoot(u.at)
	return err
}

func (u *unionTarget) root() *root { return u.r }

// close unmounts, and returns what the server ended with.
func (u *unionTarget) close() error {
	if u.cmd == nil {
		return nil
	}
	// What an unmount does, should it not be the last.
	if fd, err := openat(u.r.fd, ".", unix.O_RDONLY|unix.O_DIRECTORY); err == nil {
		unix.Syncfs(fd)
		unix.Close(fd)
	}
	u.r.close()
	err := unix.Unmount(u.at, 0)
	u.in.Close()
	if err != nil {
		err = errors.Join(fmt.Errorf("unmount: %w", err), unix.Unmount(u.at, unix.MNT_DETACH))
	}
	if werr := u.cmd.Wait(); werr != nil {
		err = errors.Join(err, fmt.Errorf("server: %w\n%s", werr, &u.errs))
	}
	u.cmd = nil
	if err == nil && strings.Contains(u.errs.String(), "panic") {
		err = fmt.Errorf("server: %s", &u.errs)
	}
	return err
}

func (u *unionTarget) remount() error {
	if err := u.close(); err != nil {
		return err
	}
	return u.mount()
}

var asRoot = kind{
	name:  "union",
	can:   abilities{coherent: true, special: true, drops: true, users: true, long: true},
	mount: func(dir string, c chain) (target, error) { return mountUnion(dir, c, 0) },
}

// rootless has an upper whose owners, modes and types are overridden.
var rootless = kind{
	name:  "rootless union",
	can:   abilities{coherent: true, users: true, long: true},
	masks: masks{owners: true},
	mount: func(dir string, c chain) (target, error) { return mountUnion(dir, c, 1000) },
}

func needRoot(t testing.TB) {
	t.Helper()
	imgtest.Need(t, os.Geteuid() == 0, "root")
	_, err := os.Stat("/dev/fuse")
	imgtest.Need(t, err == nil, "/dev/fuse")
}

// start mounts a chain until the test ends.
func start(t *testing.T, k kind, c chain) *unionTarget {
	t.Helper()
	needRoot(t)
	to, err := k.mount(workDir(t), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := to.close(); err != nil {
			t.Error(err)
		}
	})
	return to.(*unionTarget)
}

package sandbox

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/imgtest"
)

// The test binary is the program: init of a sandbox, or its parent, whose
// sandbox is of what is described in an environment variable.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "sandbox-init":
			os.Exit(Init(func(target string, data []byte) (int, error) {
				return -1, unix.Mount(string(data), target, "", unix.MS_BIND, "")
			}))
		case "sandbox-parent":
			os.Exit(parent())
		}
	}
	os.Exit(imgtest.Main(m))
}

// scene is what a test wants run.
type scene struct {
	Options Options
	Spec    Spec
	Mount   string // what to have mounted by init, instead of Options.Dir
}

func parent() int {
	var s scene
	if err := unmarshal(os.Getenv("SCENE"), &s); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	s.Options.Program = []string{os.Args[0], "sandbox-init"}
	box, err := Start(s.Options)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return CodeOf(err)
	}
	defer box.Close()
	if s.Mount != "" {
		if _, err := box.Mount([]byte(s.Mount)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return CodeOf(err)
		}
	}
	code, err := box.Run(s.Spec)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	return code
}

// host is a directory for the things of a test, reachable for everybody.
func host(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/var/tmp", "sandbox")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "staging/x"), "")
	write(t, filepath.Join(dir, "secret"), "secret\n")
	return dir
}

// root makes a small system of this machine's busybox.
func root(t *testing.T, dir string) string {
	t.Helper()
	box := imgtest.Program(t, "busybox")
	tree := filepath.Join(dir, "root")
	exe, err := os.ReadFile(box)
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(tree, "bin/busybox"), string(exe))
	if err := os.Chmod(filepath.Join(tree, "bin/busybox"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range strings.Fields("sh ls cat id mount grep kill pwd test mkdir touch env readlink stat sleep hostname tty true") {
		if err := os.Symlink("busybox", filepath.Join(tree, "bin", name)); err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range []string{"proc", "sys", "dev", "etc", "tmp"} {
		if err := os.MkdirAll(filepath.Join(tree, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write(t, filepath.Join(tree, "etc/passwd"), "root:x:0:0::/root:/bin/sh\nme:x:1000:1001::/home/me:/bin/sh\n")
	write(t, filepath.Join(tree, "etc/group"), "root:x:0:\nmine:x:1001:\nmore:x:1002:you,me\n")
	return tree
}

func write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// who runs the parent.
type caller uint32

const (
	asRoot   caller = 0
	asNobody caller = 65534
)

func command(t *testing.T, c caller, s scene) *exec.Cmd {
	t.Helper()
	text, err := marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe", "sandbox-parent")
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), "SCENE="+text)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	if c != asRoot {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(c), Gid: uint32(c)}
	}
	return cmd
}

// run returns the exit code and what the command and imgfs wrote.
func run(t *testing.T, c caller, s scene) (int, string) {
	t.Helper()
	cmd := command(t, c, s)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), out.String()
}

func needRoot(t *testing.T) {
	t.Helper()
	imgtest.Need(t, os.Geteuid() == 0, "root")
}

// TestRun runs commands as root and without, in a system of busybox.
func TestRun(t *testing.T) {
	t.Parallel()
	needRoot(t)
	dir := host(t)
	tree := root(t, dir)
	write(t, filepath.Join(dir, "volume/file"), "of the host\n")
	sh := func(script string) []string { return []string{"sh", "-c", script} }
	for _, tt := range []struct {
		name string
		spec Spec
		opt  Options
		code int
		want string // output; a line "..." stands for any
		only caller // asRoot: both
	}{
		{name: "code", spec: Spec{Args: sh("exit 7")}, code: 7},
		{name: "signal", spec: Spec{Args: sh("kill -TERM $$")}, code: 128 + 15},
		{name: "pid", spec: Spec{Args: sh("echo $PPID; readlink /proc/1/root; set -- /proc/[0-9]*; echo $#")}, want: "1\n/\n2\n"},
		{name: "root", spec: Spec{Args: sh("id -u; id -g; pwd; echo $HOME $PATH; umask")}, want: "0\n0\n/\n/root " + DefaultPath + "\n0022\n"},
		{name: "env", spec: Spec{Args: []string{"env"}, Env: []string{"A=1", "HOME=/h", "A=2", "bad", "PATH=/bin"}}, want: "PATH=/bin\nHOME=/h\nA=2\n"},
		{name: "user", spec: Spec{Args: sh("id -u; id -g; id -G; echo $HOME"), User: "me"}, want: "1000\n1001\n1001 1002\n/home/me\n", only: 1},
		{name: "number", spec: Spec{Args: sh("id -u; id -g; echo $HOME"), User: "77:more"}, want: "77\n1002\n/\n", only: 1},
		{name: "unmapped", spec: Spec{Args: sh("true"), User: "me"}, code: 125, want: "user 1000:1001 does not exist in this user namespace\n", only: asNobody},
		{name: "nobody of that name", spec: Spec{Args: sh("true"), User: "who"}, code: 125, want: "user \"who\": not in the tree's /etc/passwd\n"},
		{name: "not found", spec: Spec{Args: []string{"nosuch"}}, code: 127, want: "nosuch: not found in " + DefaultPath + "\n"},
		{name: "no such path", spec: Spec{Args: []string{"/no/such"}}, code: 127, want: "/no/such: no such file or directory\n"},
		{name: "not executable", spec: Spec{Args: []string{"/etc/passwd"}}, code: 126, want: "/etc/passwd: permission denied\n"},
		{name: "directory", spec: Spec{Args: []string{"/etc"}}, code: 126, want: "/etc: is a directory\n"},
		{name: "shell", spec: Spec{}, code: 0},
		{name: "hostname", spec: Spec{Args: []string{"hostname"}, Hostname: "inside"}, want: "inside\n"},
		{name: "work directory", spec: Spec{Args: []string{"pwd"}, WorkDir: "/etc/../tmp"}, want: "/tmp\n"},
		{name: "devices", spec: Spec{Args: sh("echo x >/dev/null; ls /dev; ls /dev/pts; test -c /dev/tty; cat /dev/zero | head -c 0; stat -c %a /dev/shm /dev/null")},
			want: "fd\nfull\nmqueue\nnull\nptmx\npts\nrandom\nshm\nstderr\nstdin\nstdout\ntty\nurandom\nzero\nptmx\n1777\n666\n"},
		{name: "sys", spec: Spec{Args: sh("mkdir /sys/x 2>&1; grep -c ' /sys ' /proc/mounts")}, code: 0, want: "...\n1\n"},
		{name: "files", spec: Spec{Args: sh("cat /etc/hosts /etc/passwd"), Files: []File{{"/etc/hosts", []byte("h\n")}, {"/etc/passwd", []byte("p\n")}}}, want: "h\np\n"},
		{name: "volumes", spec: Spec{Args: sh("cat /v/file /v/deep/er; touch /v/new || echo no")},
			opt:  Options{Binds: []Bind{{filepath.Join(dir, "secret"), "/v/deep/er", false}, {filepath.Join(dir, "volume"), "/v", true}}},
			code: 125, want: "volume /v/deep/er: read-only file system\n"},
		{name: "volume", spec: Spec{Args: sh("cat /v/file; touch /v/new || echo no")},
			opt: Options{Binds: []Bind{{filepath.Join(dir, "volume"), "/v", true}}}, want: "of the host\n...\nno\n"},
		{name: "file volume", spec: Spec{Args: sh("cat /a/b/c")},
			opt: Options{Binds: []Bind{{filepath.Join(dir, "volume/file"), "/a/b/c", false}}}, want: "of the host\n"},
		{name: "no volume", spec: Spec{Args: sh("true")},
			opt: Options{Binds: []Bind{{filepath.Join(dir, "nothing"), "/v", true}}}, code: 125, want: "volume " + dir + "/nothing: no such file or directory\n"},
		{name: "read-only", spec: Spec{Args: sh("touch /new || echo no")}, opt: Options{ReadOnly: true}, want: "...\nno\n"},
		{name: "host is gone", spec: Spec{Args: sh("ls " + dir + " || grep -v -e ' /dev' -e ' /proc ' -e ' /sys' /proc/mounts | cut -d' ' -f2")}, want: "...\n/\n"},
		{name: "environment of init", spec: Spec{Args: sh("cat /proc/1/environ")}},
	} {
		for _, c := range []caller{asRoot, asNobody} {
			if tt.only == 1 && c != asRoot || tt.only == asNobody && c == asRoot {
				continue
			}
			t.Run(fmt.Sprintf("%s as %d", tt.name, c), func(t *testing.T) {
				tt.opt.Dir, tt.opt.Staging = tree, filepath.Join(dir, "staging")
				chown(t, tree, int(c))
				code, out := run(t, c, scene{Options: tt.opt, Spec: tt.spec})
				if code != tt.code || !alike(out, tt.want) {
					t.Errorf("code %d, want %d; output:\n%s\nwant:\n%s", code, tt.code, out, tt.want)
				}
			})
		}
	}
	entries, err := os.ReadDir(tree)
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != 6 {
		t.Errorf("left in the tree: %v", entries)
	}
}

func chown(t *testing.T, dir string, uid int) {
	t.Helper()
	err := filepath.WalkDir(dir, func(p string, _ os.DirEntry, err error) error {
		return errors.Join(err, os.Lchown(p, uid, uid))
	})
	if err != nil {
		t.Fatal(err)
	}
}

// alike compares line by line; "..." matches any line.
func alike(got, want string) bool {
	g, w := strings.Split(got, "\n"), strings.Split(want, "\n")
	if len(g) != len(w) {
		return false
	}
	for i := range g {
		if w[i] != "..." && g[i] != w[i] {
			return false
		}
	}
	return true
}

// TestMounted has init mount the tree.
func TestMounted(t *testing.T) {
	t.Parallel()
	needRoot(t)
	dir := host(t)
	tree := root(t, dir)
	s := scene{Options: Options{Staging: filepath.Join(dir, "staging")}, Mount: tree, Spec: Spec{Args: []string{"cat", "/etc/group"}}}
	if code, out := run(t, asRoot, s); code != 0 || !strings.Contains(out, "mine") {
		t.Errorf("%d: %s", code, out)
	}
	s.Mount = filepath.Join(dir, "nothing")
	if code, out := run(t, asRoot, s); code != CodeFailed || out != "no such file or directory\n" {
		t.Errorf("%d: %s", code, out)
	}
}

// TestConfined looks at what docker takes away.
func TestConfined(t *testing.T) {
	t.Parallel()
	needRoot(t)
	dir := host(t)
	tree := root(t, dir)
	show := Spec{Args: []string{"sh", "-c", "grep -e CapBnd -e CapEff -e CapInh /proc/self/status; cat /proc/kcore | head -c 1; ls /sys/firmware; echo x >/proc/sys/kernel/domainname"}}
	for _, confined := range []bool{true, false} {
		show.Confined = confined
		_, out := run(t, asRoot, scene{Options: Options{Dir: tree, Staging: filepath.Join(dir, "staging")}, Spec: show})
		const few = "CapInh:\t0000000000000000\nCapEff:\t00000000a00425fb\nCapBnd:\t00000000a00425fb\n"
		if strings.HasPrefix(out, few) != confined || strings.Contains(out, "domainname: Read-only") != confined {
			t.Errorf("confined %v:\n%s", confined, out)
		}
	}
}

// TestKilled kills the parent: the command dies with it.
func TestKilled(t *testing.T) {
	t.Parallel()
	needRoot(t)
	dir := host(t)
	tree := root(t, dir)
	for _, c := range []caller{asRoot, asNobody} {
		chown(t, tree, int(c))
		// The command has a write end of the pipe; it is closed by its death.
		cmd := command(t, c, scene{Options: Options{Dir: tree, Staging: filepath.Join(dir, "staging")},
			Spec: Spec{Args: []string{"sh", "-c", "echo here; exec sleep 1000"}}})
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		line := make([]byte, 5)
		if _, err := out.Read(line); err != nil || string(line) != "here\n" {
			t.Fatalf("%q, %v", line, err)
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		if n, _ := out.Read(line); n != 0 {
			t.Fatalf("%q", line[:n])
		}
		cmd.Wait() // killed
	}
}

// TestSignals passes on what the parent is sent.
func TestSignals(t *testing.T) {
	t.Parallel()
	needRoot(t)
	dir := host(t)
	tree := root(t, dir)
	cmd := command(t, asRoot, scene{Options: Options{Dir: tree, Staging: filepath.Join(dir, "staging")},
		Spec: Spec{Args: []string{"sh", "-c", "trap 'echo usr1' USR1; trap 'echo int' INT; trap 'exit 9' TERM; echo here; while read x; do :; done </dev/ptmx; while :; do sleep 1000 & wait; done"}}})
	cmd.SysProcAttr.Setsid = true // no terminal
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line := make([]byte, 16)
	for _, step := range []struct {
		want string
		sig  unix.Signal
	}{{"here\n", unix.SIGUSR1}, {"usr1\n", unix.SIGINT}, {"int\n", unix.SIGTERM}} {
		n, err := out.Read(line)
		if err != nil || string(line[:n]) != step.want {
			t.Fatalf("%q, %v, want %q", line[:n], err, step.want)
		}
		if err := cmd.Process.Signal(step.sig); err != nil {
			t.Fatal(err)
		}
	}
	cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 9 {
		t.Errorf("exit code %d, want 9", code)
	}
}

func TestParseBind(t *testing.T) {
	t.Parallel()
	for s, want := range map[string]Bind{
		"/a:/b":    {"/a", "/b", false},
		"./a:/b":   {"./a", "/b", false},
		"/a:/b:ro": {"/a", "/b", true},
		"/a:/b:rw": {"/a", "/b", false},
	} {
		if got, err := ParseBind(s); err != nil || got != want {
			t.Errorf("%s: %v, %v", s, got, err)
		}
	}
	for _, s := range []string{"", "/a", "/a:b", "a:/b", "/a:/", "/a:/b:z", "/a:/b:ro:ro", ":/b", "/a:"} {
		if b, err := ParseBind(s); fault.KindOf(err) != fault.Invalid {
			t.Errorf("%s: %v, %v", s, b, err)
		}
	}
}

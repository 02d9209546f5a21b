package main

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/fs"
	"github.com/imgfs/imgfs/internal/id"
	"github.com/imgfs/imgfs/internal/imgtest"
)

func TestMain(m *testing.M) {
	testscript.Main(guarded{m}, map[string]func(){"imgfs": main})
}

// guarded makes a run fail that leaves a mount.
type guarded struct{ m *testing.M }

func (g guarded) Run() int { return imgtest.Main(g.m) }

// TestScripts runs testdata/script/*.txtar. Each script has a store, a
// registry ($REG) and an empty directory to mount on ($MNT) of its own. Beside
// testscript's commands there are those of scriptCommands.
func TestScripts(t *testing.T) {
	t.Parallel()
	runScripts(t, "testdata/script")
}

// TestNamespaceScripts runs testdata/namespace/*.txtar, and not beside the
// others: a mount namespace keeps copies of all the mounts that there are when
// it is made, so that unmounting one of those does not end it.
func TestNamespaceScripts(t *testing.T) {
	runScripts(t, "testdata/namespace")
}

func runScripts(t *testing.T, dir string) {
	needRoot(t)
	testscript.Run(t, testscript.Params{
		Dir:                 dir,
		RequireUniqueNames:  true,
		RequireExplicitExec: true,
		Setup:               setUp,
		Cmds:                scriptCommands,
	})
}

// needRoot skips where real mounts cannot be made.
func needRoot(t *testing.T) {
	t.Helper()
	_, err := os.Stat("/dev/fuse")
	imgtest.Need(t, err == nil && os.Geteuid() == 0, "root and /dev/fuse")
}

// running is what a script's commands share.
type running struct {
	testing.TB
	reg        *imgtest.Registry
	foreground *exec.Cmd     // nil unless one runs
	goesOn     func() string // returns what else that wrote to standard error, at its end
}

type runningKey struct{}

func of(ts *testscript.TestScript) *running { return ts.Value(runningKey{}).(*running) }

func setUp(env *testscript.Env) error {
	t := env.T().(testing.TB)
	reg := imgtest.NewRegistry(t, imgtest.RegistryOptions{})
	env.Values[runningKey{}] = &running{TB: t, reg: reg}
	env.Setenv("REG", reg.Host)
	env.Setenv("MNT", filepath.Join(env.WorkDir, "mnt"))
	env.Setenv("IMGFS_ROOT", filepath.Join(env.WorkDir, "store"))
	env.Setenv("IMGFS_CERTS_DIR", filepath.Join(env.WorkDir, "certs"))
	env.Setenv("DOCKER_CONFIG", filepath.Join(env.WorkDir, "docker"))
	env.Setenv("HOME", env.WorkDir)
	for _, dir := range []string{"mnt", "certs", "docker"} {
		if err := os.MkdirAll(filepath.Join(env.WorkDir, dir), 0o755); err != nil {
			return err
		}
	}
	exe, err := exec.LookPath("imgfs")
	if err != nil {
		return err
	}
	vars := slices.Clone(env.Vars)
	env.Defer(func() {
		cmd := exec.Command(exe, "daemon", "stop", "--force")
		cmd.Env = vars
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("daemon stop: %v: %s", err, out)
		}
		for _, m := range mountsBelow(t, env.WorkDir) {
			t.Errorf("left behind: %s at %s", m.Source, m.Target)
			unix.Unmount(m.Target, unix.MNT_DETACH)
		}
		if log, err := os.ReadFile(filepath.Join(env.WorkDir, "store", "daemon.log")); err == nil && t.Failed() {
			t.Logf("daemon.log:\n%s", log)
		}
	})
	return nil
}

func mountsBelow(t testing.TB, dir string) []fs.MountPoint {
	all, err := fs.Mounts()
	if err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(all, func(m fs.MountPoint) bool {
		return !strings.HasPrefix(m.Target, dir+"/") || !m.Imgfs() && m.Type != "erofs"
	})
}

var scriptCommands = map[string]func(*testscript.TestScript, bool, []string){
	"image":      cmdImage,
	"fault":      cmdFault,
	"heal":       func(ts *testscript.TestScript, _ bool, _ []string) { of(ts).reg.Heal() },
	"requests":   cmdRequests,
	"fetched":    cmdFetched,
	"fails":      cmdFails,
	"exec-code":  cmdExecCode,
	"configure":  cmdConfigure,
	"interrupt":  cmdInterrupt,
	"bereave":    cmdBereave,
	"parallel":   cmdParallel,
	"expand":     cmdExpand,
	"mounted":    cmdMounted,
	"empty":      cmdEmpty,
	"tmpfs":      cmdTmpfs,
	"ramfs":      cmdRamfs,
	"killdaemon": cmdKillDaemon,
	"busybox":    cmdBusybox,
	"nobody":     cmdNobody,
	"foreground": cmdForeground,
	"interrupted": func(ts *testscript.TestScript, _ bool, _ []string) {
		ts.Check(of(ts).foreground.Process.Signal(os.Interrupt))
	},
	"ended": cmdEnded,
	// said PATTERN: what the foreground command, which has ended, wrote to
	// standard error after it had mounted.
	"said": func(ts *testscript.TestScript, neg bool, args []string) {
		text := of(ts).goesOn()
		if regexp.MustCompile("(?m)"+args[0]).MatchString(text) == neg {
			ts.Fatalf("said %q", text)
		}
	},
	// distribution runs Debian's docker-registry and sets $DIST to its address.
	"distribution": func(ts *testscript.TestScript, _ bool, _ []string) {
		ts.Setenv("DIST", imgtest.DistributionStorage(of(ts).TB, "  delete:\n    enabled: true\n", "", ""))
	},
	// locked starts a registry that wants user u and password p, and sets $LOCKED
	// to its address.
	"locked": func(ts *testscript.TestScript, _ bool, _ []string) {
		reg := imgtest.NewRegistry(of(ts).TB, imgtest.RegistryOptions{Auth: "basic", Username: "u", Password: "p"})
		ts.Setenv("LOCKED", reg.Host)
	},
	// needs PROGRAM... skips or fails the script where one is missing.
	"needs": func(ts *testscript.TestScript, _ bool, args []string) {
		for _, name := range args {
			imgtest.Program(of(ts).TB, name)
		}
	},
}

// image [-platform OS/ARCH] [-lying] REPO:TAG FILE... puts an image into the
// script's registry whose layers, lowest first, are FILEs in the language of
// imgtest.Tar. With -platform it stands in an index, alone. With -lying its
// config claims another diffID for the first layer.
func cmdImage(ts *testscript.TestScript, _ bool, args []string) {
	platform := ""
	if len(args) > 1 && args[0] == "-platform" {
		platform, args = args[1], args[2:]
	}
	lying := len(args) > 0 && args[0] == "-lying"
	if lying {
		args = args[1:]
	}
	if len(args) < 2 {
		ts.Fatalf("usage: image [-platform OS/ARCH] [-lying] REPO:TAG FILE...")
	}
	t, reg := of(ts).TB, of(ts).reg
	repo, tag, _ := strings.Cut(args[0], ":")
	type descriptor struct {
		MediaType string            `json:"mediaType"`
		Digest    id.Blob           `json:"digest"`
		Size      int               `json:"size"`
		Platform  map[string]string `json:"platform,omitempty"`
	}
	var layers []descriptor
	var diffs []id.Blob
	var past []map[string]any
	for _, name := range args[1:] {
		past = append(past, map[string]any{"created_by": "COPY " + name + " /"})
		stream, err := imgtest.Tar(ts.ReadFile(name))
		ts.Check(err)
		var z bytes.Buffer
		zw := gzip.NewWriter(&z)
		_, err = zw.Write(stream)
		ts.Check(errors.Join(err, zw.Close()))
		diffs = append(diffs, id.BlobOf(stream))
		layers = append(layers, descriptor{MediaType: "application/vnd.oci.image.layer.v1.tar+gzip", Digest: reg.PutBlob(t, z.Bytes()), Size: z.Len()})
	}
	if lying {
		diffs[0] = id.BlobOf([]byte("another layer"))
	}
	osName, arch, _ := strings.Cut("linux/amd64", "/")
	if platform != "" {
		osName, arch, _ = strings.Cut(platform, "/")
	}
	marshal := func(v any) []byte {
		b, err := json.Marshal(v)
		ts.Check(err)
		return b
	}
	config := marshal(map[string]any{
		"os": osName, "architecture": arch, "created": "2014-04-17T00:00:00Z",
		"config": map[string]any{"Env": []string{"PATH=/bin"}, "Cmd": []string{"/bin/sh"}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": diffs}, "history": past,
	})
	const manifestType = "application/vnd.oci.image.manifest.v1+json"
	manifest := marshal(map[string]any{
		"schemaVersion": 2, "mediaType": manifestType,
		"config": descriptor{MediaType: "application/vnd.oci.image.config.v1+json", Digest: reg.PutBlob(t, config), Size: len(config)},
		"layers": layers,
	})
	if platform == "" {
		reg.PutManifest(t, repo, tag, manifestType, manifest)
		return
	}
	digest := reg.PutManifest(t, repo, "", manifestType, manifest)
	const indexType = "application/vnd.oci.image.index.v1+json"
	reg.PutManifest(t, repo, tag, indexType, marshal(map[string]any{
		"schemaVersion": 2, "mediaType": indexType,
		"manifests": []descriptor{{MediaType: manifestType, Digest: digest, Size: len(manifest), Platform: map[string]string{"os": osName, "architecture": arch}}},
	}))
}

// fault KIND [KEY=VALUE...] makes the registry's answers of a kind fail:
// skip, times, status, short, body, flip=1, stall=1.
func cmdFault(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) == 0 {
		ts.Fatalf("usage: fault KIND [KEY=VALUE...]")
	}
	f := imgtest.Fault{On: imgtest.Kind(args[0])}
	for _, a := range args[1:] {
		k, v, _ := strings.Cut(a, "=")
		n, _ := strconv.Atoi(v)
		switch k {
		case "times":
			f.Times = n
		case "skip":
			f.Skip = n
		case "status":
			f.Status = n
		case "short":
			f.Short = int64(n)
		case "body":
			f.Body = v
		case "flip":
			f.Flip = true
		case "stall":
			f.Stall = true
		default:
			ts.Fatalf("fault: %s?", k)
		}
	}
	of(ts).reg.Inject(f)
}

// requests N [KIND...] compares the number of requests since the last time.
func cmdRequests(ts *testscript.TestScript, _ bool, args []string) {
	reg := of(ts).reg
	var kinds []imgtest.Kind
	for _, k := range args[1:] {
		kinds = append(kinds, imgtest.Kind(k))
	}
	if n := reg.Count(kinds...); strconv.Itoa(n) != args[0] {
		ts.Fatalf("%d requests, want %s", n, args[0])
	}
	reg.Forget()
}

// fetched MAX compares the bytes of blobs that were asked for since the last
// time.
func cmdFetched(ts *testscript.TestScript, _ bool, args []string) {
	most, err := strconv.ParseInt(args[0], 10, 64)
	ts.Check(err)
	reg := of(ts).reg
	var sum int64
	for _, r := range reg.Requests(imgtest.KindBlob) {
		var first, last int64
		if _, err := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &first, &last); err != nil {
			res, err := http.Head(reg.URL + r.URL.Path)
			ts.Check(err)
			last = res.ContentLength - 1
		}
		sum += last - first + 1
	}
	reg.Forget()
	if sum > most {
		ts.Fatalf("%d bytes were fetched, want %d at most", sum, most)
	}
}

// fails CODE COMMAND ARGS... runs a command that must end with CODE. An error
// of imgfs is checked for its form: one line, and at most one hint.
func cmdFails(ts *testscript.TestScript, _ bool, args []string) {
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != want {
		ts.Fatalf("%v, want exit status %d", err, want)
	}
	if text := ts.ReadFile("stderr"); args[1] == "imgfs" && !errorForm.MatchString(text) {
		ts.Fatalf("not the form of an error: %q", text)
	}
}

var errorForm = regexp.MustCompile(`^([0-9a-zA-Z.]+: .*\n|Error: No such (?:image|object|mount|layer): .*\n)*imgfs: [^\n]*[^\n.]\n(hint: [^\n]+\n)?$|^(Error: No such (?:image|object|mount|layer): .*\n)+$`)

// interrupt TEXT COMMAND ARGS... runs a command and interrupts it when TEXT is
// in its standard error. It must end with 130.
func cmdInterrupt(ts *testscript.TestScript, _ bool, args []string) {
	code, text := runUntil(ts, args, func(p *os.Process) { ts.Check(p.Signal(os.Interrupt)) })
	if code != 130 || !strings.HasSuffix(text, "\nimgfs: interrupted\n") {
		ts.Fatalf("exit status %d, want 130\n%s", code, text)
	}
}

// bereave TEXT COMMAND ARGS... runs a command and kills the daemon when TEXT
// is in its standard error. It must succeed all the same.
func cmdBereave(ts *testscript.TestScript, _ bool, args []string) {
	code, text := runUntil(ts, args, func(*os.Process) { cmdKillDaemon(ts, false, nil) })
	if code != 0 {
		ts.Fatalf("exit status %d\n%s", code, text)
	}
}

// runUntil runs the command args[1:], and act once when args[0] is in its
// standard error, which it returns with the exit code.
func runUntil(ts *testscript.TestScript, args []string, act func(*os.Process)) (int, string) {
	cmd := exec.Command(args[1], args[2:]...)
	cmd.Dir = ts.MkAbs(".")
	cmd.Env = environment(ts)
	stderr, err := cmd.StderrPipe()
	ts.Check(err)
	ts.Check(cmd.Start())
	acted := false
	var text strings.Builder
	for sc := bufio.NewScanner(stderr); sc.Scan(); {
		fmt.Fprintln(&text, sc.Text())
		if !acted && strings.Contains(sc.Text(), args[0]) {
			acted = true
			act(cmd.Process)
		}
	}
	cmd.Wait()
	if !acted {
		ts.Fatalf("no %q in %q", args[0], text.String())
	}
	return cmd.ProcessState.ExitCode(), text.String()
}

func environment(ts *testscript.TestScript) []string {
	env := os.Environ()
	for _, name := range []string{"WORK", "REG", "MNT", "IMGFS_ROOT", "IMGFS_CERTS_DIR", "DOCKER_CONFIG", "HOME", "TMPDIR"} {
		env = append(env, name+"="+ts.Getenv(name))
	}
	return env
}

// parallel N COMMAND ARGS... runs N commands at once, %d being the number of
// each, and all must succeed.
func cmdParallel(ts *testscript.TestScript, _ bool, args []string) {
	n, err := strconv.Atoi(args[0])
	ts.Check(err)
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		cmd := exec.Command(args[1])
		for _, a := range args[2:] {
			cmd.Args = append(cmd.Args, strings.ReplaceAll(a, "%d", strconv.Itoa(i)))
		}
		cmd.Dir, cmd.Env = ts.MkAbs("."), environment(ts)
		wg.Go(func() {
			if out, err := cmd.CombinedOutput(); err != nil {
				errs[i] = fmt.Errorf("%v: %w: %s", cmd.Args, err, out)
			}
		})
	}
	wg.Wait()
	ts.Check(errors.Join(errs...))
}

// expand FILE... replaces $NAME in files by the script's variables.
func cmdExpand(ts *testscript.TestScript, _ bool, args []string) {
	for _, name := range args {
		text := os.Expand(ts.ReadFile(name), ts.Getenv)
		ts.Check(os.WriteFile(ts.MkAbs(name), []byte(text), 0o600))
	}
}

// [!] mounted DIR...
func cmdMounted(ts *testscript.TestScript, neg bool, args []string) {
	for _, dir := range args {
		at, err := fs.MountAt(ts.MkAbs(dir))
		ts.Check(err)
		if (at != nil) == neg {
			ts.Fatalf("%s: mounted: %v, want %v", dir, at != nil, !neg)
		}
	}
}

// empty DIR... : a directory without entries, or none at all.
func cmdEmpty(ts *testscript.TestScript, neg bool, args []string) {
	for _, dir := range args {
		entries, err := os.ReadDir(ts.MkAbs(dir))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			ts.Check(err)
		}
		if (len(entries) == 0) == neg {
			ts.Fatalf("%s: %v", dir, entries)
		}
	}
}

// tmpfs DIR SIZE mounts a small file system for the script.
func cmdTmpfs(ts *testscript.TestScript, _ bool, args []string) {
	dir := ts.MkAbs(args[0])
	ts.Check(os.MkdirAll(dir, 0o700))
	ts.Check(unix.Mount("imgtest", dir, "tmpfs", 0, "size="+args[1]))
	ts.Defer(func() { unix.Unmount(dir, unix.MNT_DETACH) })
}

// ramfs DIR mounts a file system without extended attributes for the script.
func cmdRamfs(ts *testscript.TestScript, _ bool, args []string) {
	dir := ts.MkAbs(args[0])
	ts.Check(os.MkdirAll(dir, 0o700))
	ts.Check(unix.Mount("imgtest", dir, "ramfs", 0, ""))
	ts.Defer(func() { unix.Unmount(dir, unix.MNT_DETACH) })
}

// killdaemon kills the store's daemon with SIGKILL and waits until it is gone.
func cmdKillDaemon(ts *testscript.TestScript, _ bool, _ []string) {
	ts.Check(ts.Exec("imgfs", "status", "--format", "{{.PID}}"))
	pid, err := strconv.Atoi(strings.TrimSpace(ts.ReadFile("stdout")))
	ts.Check(err)
	fd, err := unix.PidfdOpen(pid, 0)
	ts.Check(err)
	defer unix.Close(fd)
	ts.Check(unix.PidfdSendSignal(fd, syscall.SIGKILL, nil, 0))
	for {
		_, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, -1)
		if err != unix.EINTR {
			ts.Check(err)
			return
		}
	}
}

// busybox DIR makes an OCI layout of the machine's busybox, and sets $BUSYBOX
// to its path.
func cmdBusybox(ts *testscript.TestScript, _ bool, args []string) {
	layout, err := imgtest.Busybox(context.Background(), ts.MkAbs(args[0]))
	ts.Check(err)
	ts.Setenv("BUSYBOX", layout)
}

// nobody DIR makes DIR one that an unprivileged user owns and can reach, with
// a copy of the program in it, and sets $AS_NOBODY to a script that runs it
// as that user.
func cmdNobody(ts *testscript.TestScript, _ bool, args []string) {
	dir := ts.MkAbs(args[0])
	ts.Check(os.MkdirAll(dir, 0o700))
	exe, err := exec.LookPath("imgfs")
	ts.Check(err)
	b, err := os.ReadFile(exe)
	ts.Check(err)
	ts.Check(os.WriteFile(filepath.Join(dir, "imgfs"), b, 0o755))
	script := fmt.Sprintf("#!/bin/sh\nexec setpriv --reuid %d --regid %d --clear-groups env -i PATH=\"$PATH\" HOME=%s/home XDG_RUNTIME_DIR=%s/run %s/imgfs \"$@\"\n",
		nobodyID, nobodyID, dir, dir, dir)
	ts.Check(os.WriteFile(ts.MkAbs("as-nobody"), []byte(script), 0o755))
	ts.Setenv("AS_NOBODY", ts.MkAbs("as-nobody"))
	for _, sub := range []string{"home", "run", "mnt", "mnt2"} {
		ts.Check(os.MkdirAll(filepath.Join(dir, sub), 0o700))
	}
	ts.Check(filepath.WalkDir(dir, func(p string, _ os.DirEntry, err error) error {
		return errors.Join(err, os.Lchown(p, nobodyID, nobodyID))
	}))
	// The directories above are only to be passed through.
	for up := filepath.Dir(dir); strings.HasPrefix(up, os.TempDir()+"/"); up = filepath.Dir(up) {
		st, err := os.Stat(up)
		ts.Check(err)
		ts.Check(os.Chmod(up, st.Mode().Perm()|0o011))
	}
}

const nobodyID = 65534

// foreground COMMAND ARGS... starts a command and goes on when it says that
// it has mounted.
func cmdForeground(ts *testscript.TestScript, _ bool, args []string) {
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Dir, cmd.Env = ts.MkAbs("."), environment(ts)
	stderr, err := cmd.StderrPipe()
	ts.Check(err)
	ts.Check(cmd.Start())
	of(ts).foreground = cmd
	ts.Defer(func() { cmd.Process.Kill() }) // no effect on one that has ended
	var text strings.Builder
	for sc := bufio.NewScanner(stderr); sc.Scan(); {
		fmt.Fprintln(&text, sc.Text())
		if strings.HasPrefix(sc.Text(), "mounted on ") {
			rest := make(chan string, 1)
			go func() {
				var text strings.Builder
				for sc.Scan() {
					fmt.Fprintln(&text, sc.Text())
				}
				rest <- text.String()
			}()
			of(ts).goesOn = sync.OnceValue(func() string { return <-rest })
			return
		}
	}
	cmd.Wait()
	ts.Fatalf("%v: %v: %s", args, cmd.ProcessState, text.String())
}

// ended CODE waits for the foreground command to end with CODE.
func cmdEnded(ts *testscript.TestScript, _ bool, args []string) {
	cmd := of(ts).foreground
	of(ts).goesOn() // Wait would close the pipe
	cmd.Wait()
	if strconv.Itoa(cmd.ProcessState.ExitCode()) != args[0] {
		ts.Fatalf("%v: %v, want %s", cmd.Args, cmd.ProcessState, args[0])
	}
}

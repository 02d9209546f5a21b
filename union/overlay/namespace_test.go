package overlay_test

import (
	"os/exec"
	"strconv"
	"strings"
	"testing"
)

// A case is a behaviour: what a shell script, run in the mount, prints; again
// says what is printed after a remount. Kernel overlayfs prints the same
// unless except says why not.
type namespaceCase struct {
	name   string
	chain  chain
	script string
	want   string
	again  string
	then   string
	except string
}

// prelude has what the scripts use: err prints the errno's text of a command
// that fails, tree prints all names, diff those in the upper.
const prelude = `
err() { "$@" 2>&1 >/dev/null | sed 's/.*: //'; }
tree() { find "${1:-.}" | LC_ALL=C sort | tr '\n' ' '; echo; }
ino() { stat -c %i "$1"; }
nlink() { stat -c %h "$@" | tr '\n' ' '; echo; }
same() { test "$1" = "$2" && echo same || echo "differ: $1 $2"; }
`

func TestNamespace(t *testing.T) {
	for _, c := range namespaceCases {
		t.Run(c.name, func(t *testing.T) {
			u := start(t, asRoot, c.chain)
			c.run(t, u, u.at)
			if said := u.errs.String(); said != "" {
				t.Errorf("server: %s", said)
			}
			if c.except != "" {
				return
			}
			k, err := kernelOverlay.mount(workDir(t), c.chain)
			if err != nil {
				t.Fatal(err)
			}
			defer k.close()
			t.Run("overlayfs", func(t *testing.T) { c.run(t, k, k.(*kernelTarget).at) })
		})
	}
}

func (c namespaceCase) run(t *testing.T, to target, at string) {
	c.shell(t, at, c.script, c.want)
	if err := to.remount(); err != nil {
		t.Fatal(err)
	}
	if c.again != "" {
		c.shell(t, at, c.again, c.then)
	}
}

func (c namespaceCase) shell(t *testing.T, dir, script, want string) {
	t.Helper()
	cmd := exec.Command("bash", "-c", prelude+script)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("%s: %v", script, err)
	}
	if got := strings.ReplaceAll(string(out), " \n", "\n"); got != want {
		t.Errorf("%s\ngot:\n%s\nwant:\n%s", script, got, want)
	}
}

var someDir = chain{"dir d\nfile d/a alpha\nfile d/b beta\ndir d/sub\nfile d/sub/x xx\n"}

var namespaceCases = []namespaceCase{
	{
		name: "create beside and over the lower", chain: someDir,
		script: `echo n > d/new; echo o > d/a; cat d/new d/a; tree d`,
		want:   "n\no\nd d/a d/b d/new d/sub d/sub/x\n",
		again:  `cat d/a d/b; echo; tree d`, then: "o\nbeta\nd d/a d/b d/new d/sub d/sub/x\n",
	},
	{
		name: "exclusive create of what the lower has", chain: someDir,
		script: `set -C; err bash -c 'set -C; : > d/a'; err mkdir d/sub; err ln -s x d/b; err ln d/a d/b`,
		want:   "cannot overwrite existing file\nFile exists\nFile exists\nFile exists\n",
	},
	{
		name: "unlink of a lower file leaves a whiteout", chain: someDir,
		script: `rm d/a; tree d; err cat d/a; echo again > d/a; cat d/a`,
		want:   "d d/b d/sub d/sub/x\nNo such file or directory\nagain\n",
		again:  `cat d/a; rm d/a; tree d`, then: "again\nd d/b d/sub d/sub/x\n",
	},
	{
		name: "rmdir looks at the merged directory", chain: someDir,
		script: `err rmdir d/sub; rm d/sub/x; touch d/sub/y; err rmdir d/sub; rm d/sub/y; rmdir d/sub; tree d; mkdir d/sub; tree d`,
		want:   "Directory not empty\nDirectory not empty\nd d/a d/b\nd d/a d/b d/sub\n",
		again:  `tree d; rmdir d/sub; tree d`, then: "d d/a d/b d/sub\nd d/a d/b\n",
	},
	{
		name: "a directory over a whiteout is opaque", chain: someDir,
		script: `rm -r d; mkdir d; touch d/z; tree`,
		want:   ". ./d ./d/z\n",
		again:  `tree; mv d e; tree; mkdir d; tree`, then: ". ./d ./d/z\n. ./e ./e/z\n. ./d ./e ./e/z\n",
	},
	{
		name: "a file over a removed directory and back", chain: someDir,
		script: `rm -r d/sub; echo f > d/sub; cat d/sub; rm d/sub; mkdir d/sub; tree d`,
		want:   "f\nd d/a d/b d/sub\n",
		again:  `tree d`, then: "d d/a d/b d/sub\n",
	},
	{
		name: "rename of a lower file", chain: someDir,
		script: `i=$(ino d/a); mv d/a d/sub/moved; same $i $(ino d/sub/moved); tree d; cat d/sub/moved`,
		want:   "same\nd d/b d/sub d/sub/moved d/sub/x\nalpha",
		again:  `tree d; cat d/sub/moved; mv d/sub/moved a; mv d/b d/a; cat a d/a`, then: "d d/b d/sub d/sub/moved d/sub/x\nalphaalphabeta",
	},
	{
		name: "rename of a lower directory again and again", chain: someDir,
		script: `i=$(ino d/sub); mv d/sub s1; mv s1 s2; same $i $(ino s2); mkdir t; mv s2 t/s; mv t d/t; tree; cat d/t/s/x`,
		want:   "same\n. ./d ./d/a ./d/b ./d/t ./d/t/s ./d/t/s/x\nxx",
		again:  `tree; cat d/t/s/x; mv d e; tree; cat e/t/s/x e/a`, then: ". ./d ./d/a ./d/b ./d/t ./d/t/s ./d/t/s/x\nxx. ./e ./e/a ./e/b ./e/t ./e/t/s ./e/t/s/x\nxxalpha",
	},
	{
		name: "rename of a directory onto the place of a removed lower one", chain: chain{"dir p\nfile p/x x\ndir q\nfile q/y y\n"},
		script: `rm -r p; mv q p; tree; mkdir q; tree`,
		want:   ". ./p ./p/y\n. ./p ./p/y ./q\n",
		again:  `tree; cat p/y`, then: ". ./p ./p/y ./q\ny",
	},
	{
		name: "a new directory moved over a lower one that is empty", chain: chain{"dir p\ndir q\nfile q/y y\n"},
		script: `mkdir n; touch n/z; mv -T n p; tree; err mv -T p q; rm q/y; mv -T p q; tree`,
		want:   ". ./p ./p/z ./q ./q/y\nDirectory not empty\n. ./q ./q/z\n",
		again:  `tree`, then: ". ./q ./q/z\n",
	},
	{
		name: "a new directory with the name of a lower one", chain: someDir,
		script: `mv d old; mkdir fresh; touch fresh/f; mv fresh d; tree; rm -r old; tree`,
		want:   ". ./d ./d/f ./old ./old/a ./old/b ./old/sub ./old/sub/x\n. ./d ./d/f\n",
		again:  `tree; rm -r d; tree`, then: ". ./d ./d/f\n.\n",
	},
	{
		name: "exchange of any two", chain: someDir,
		script: `python3 - <<'E'
import ctypes
def x(a, b):
    assert ctypes.CDLL(None, use_errno=True).renameat2(-100, a.encode(), -100, b.encode(), 2) == 0, ctypes.get_errno()
x("d/a", "d/sub"); x("d/b", "d/a"); open("n", "w").write("new"); x("n", "d/b")
import os; os.mkdir("m"); x("m", "d")
E
tree; cat m/a m/b m/sub n/x`,
		want:  ". ./d ./m ./m/a ./m/b ./m/sub ./n ./n/x\nbetanewalphaxx",
		again: `tree; cat m/a m/b m/sub n/x`, then: ". ./d ./m ./m/a ./m/b ./m/sub ./n ./n/x\nbetanewalphaxx",
	},
	{
		name: "hard links of a lower inode stay together", chain: chain{"dir d\nfile d/a one\nlink d/b d/a\ndir e\nlink e/c d/a\n"},
		script: `nlink d/a e/c; chmod 600 d/b; nlink d/a d/b e/c; echo two > e/c; cat d/a; rm d/a; nlink d/b; ln d/b e/d; nlink e/c; stat -c %a e/d`,
		want:   "3 3\n3 3 3\ntwo\n2\n3\n600\n",
		again:  `nlink d/b e/c e/d; same $(ino d/b) $(ino e/d); cat d/b`, then: "3 3 3\nsame\ntwo\n",
	},
	{
		name: "hard links in a directory that was moved", chain: chain{"dir d\nfile d/a one\ndir e\nlink e/c d/a\n"},
		script: `mv e f; tree`,
		want:   ". ./d ./d/a ./f ./f/c\n",
		again:  `echo two > d/a; cat f/c; nlink d/a f/c`, then: "two\n2 2\n",
	},
	{
		name: "metadata alone is copied up", chain: someDir,
		script: `i=$(ino d/a); chmod 4755 d/a; touch -d @7 d/b; same $i $(ino d/a); stat -c '%a %Y %s %b' d/a d/b | cut -d' ' -f1,3; stat -c %Y d/b; cat d/a d/b`,
		want:   "same\n4755 5\n644 4\n7\nalphabeta",
		again:  `stat -c '%a %s' d/a; stat -c %Y d/b; cat d/a d/b`, then: "4755 5\n7\nalphabeta",
	},
	{
		name: "copy-up does not touch the directory's times", chain: chain{"dir d mtime=1000\ndir d/s mtime=2000\nfile d/s/f x mtime=3000\n"},
		script: `chmod 600 d/s/f; stat -c %Y d d/s d/s/f`,
		want:   "1000\n2000\n3000\n",
		again:  `stat -c %Y d d/s d/s/f`, then: "1000\n2000\n3000\n",
	},
	{
		name: "a change of names does", chain: chain{"dir d mtime=1000\nfile d/f x\ndir e mtime=1000\nfile e/g x\n"},
		script: `mv d/f e/f; rm e/g; test $(stat -c %Y d) -gt 1000 && test $(stat -c %Y e) -gt 1000 && echo yes`,
		want:   "yes\n",
	},
	{
		name: "set-group-ID directories", chain: chain{"dir d mode=02775 gid=42\n"},
		script: `mkdir d/m; touch d/f; mkfifo d/p; ln -s x d/l; stat -c '%a %g' d/m d/f d/p; stat -c %g d/l`,
		want:   "2755 42\n644 42\n644 42\n42\n",
	},
	{
		name: "callers own what they make", chain: chain{"dir d mode=01777\n"},
		script: `setpriv --reuid 7 --regid 8 --clear-groups sh -c 'umask 27; touch d/f; mkdir d/m; mkfifo d/p; ln -s x d/l'; stat -c '%a %u:%g' d/f d/m d/p; stat -c %u:%g d/l; rm d/f; setpriv --reuid 7 --regid 8 --clear-groups sh -c 'mkdir d/f'; stat -c '%a %u:%g' d/f`,
		want:   "640 7:8\n750 7:8\n640 7:8\n7:8\n755 7:8\n",
		again:  `stat -c '%a %u:%g' d/f d/m d/p; stat -c %u:%g d/l`, then: "755 7:8\n750 7:8\n640 7:8\n7:8\n",
	},
	{
		name: "devices and no whiteouts", chain: someDir,
		script: `mknod n c 1 3; mknod b b 7 200; mkfifo p; err mknod w c 0 0; tree; stat -c '%t,%T' n b; rm d/a; mknod d/a c 5 1; stat -c %t,%T d/a`,
		want:   "Operation not permitted\n. ./b ./d ./d/a ./d/b ./d/sub ./d/sub/x ./n ./p\n1,3\n7,c8\n5,1\n",
		again:  `stat -c '%t,%T' n b d/a`, then: "1,3\n7,c8\n5,1\n",
	},
	{
		name: "symlinks", chain: chain{"symlink l /nowhere\ndir d\n"},
		script: `ln -s $(printf %04000d 0) long; readlink long | wc -c; mv l d/l; readlink d/l; chown -h 5 d/l; readlink d/l; stat -c %u d/l; ln d/l m; nlink m`,
		want:   "4001\n/nowhere\n/nowhere\n5\n2\n",
		again:  `readlink d/l m; stat -c %u m; readlink long | wc -c`, then: "/nowhere\n/nowhere\n5\n4001\n",
	},
	{
		name: "names of any bytes up to 255 of them", chain: someDir,
		script: `n=$(printf 'x%.0s' $(seq 255)); touch d/$n; ls d | grep -c xxx; err touch d/${n}y; rm d/$n; touch d/.wh.a d/$'\xff\n'; ls d | grep -c wh; ls -b d; mv d/.wh.a d/.wh..wh..opq; ls -A d | head -1`,
		want:   "1\nFile name too long\n0\na\nb\nsub\n\\377\\n\n.wh..wh..opq\n",
	},
	{
		name: "an open file that was removed", chain: someDir,
		script: `exec 3<d/a 4<>d/b; rm d/a d/b; stat -L -c %h /proc/self/fd/3 /proc/self/fd/4; cat <&3; echo more >&4; stat -L -c %s /proc/self/fd/4; chmod 600 /proc/self/fd/3; stat -L -c '%a %h' /proc/self/fd/3`,
		want:   "0\n0\nalpha5\n600 0\n",
		except: "it says that a removed file of the lower has a link, and refuses to change its mode",
	},
	{
		name: "an open file that was replaced", chain: someDir,
		script: `exec 3<>d/a; echo n > n; mv n d/a; stat -L -c %h /proc/self/fd/3; cat <&3; cat d/a; exec 4<>d/a; echo m > m; mv m d/a; stat -L -c %h /proc/self/fd/4; cat <&4`,
		want:   "0\nalphan\n0\nn\n",
	},
	{
		name: "a working directory that was removed", chain: someDir,
		script: `cd d/sub; rm x; rmdir ../sub; stat -c %h .; ls; err touch y; err mkdir z`,
		want:   "0\nNo such file or directory\nNo such file or directory\n",
		except: "its directory has a link still",
	},
	{
		name: "files without a name", chain: someDir,
		script: `python3 - <<'E'
import os
fd = os.open("d", os.O_TMPFILE | os.O_RDWR, 0o640)
os.write(fd, b"tmp"); print(os.fstat(fd).st_nlink)
import ctypes
assert ctypes.CDLL(None).linkat(-100, b"/proc/self/fd/%d" % fd, -100, b"d/sub/named", 0x400) == 0; print(os.fstat(fd).st_nlink)
os.close(os.open("d", os.O_TMPFILE | os.O_RDWR, 0o640))
E
cat d/sub/named; stat -c ' %a' d/sub/named`,
		want:  "0\n1\ntmp 640\n",
		again: `cat d/sub/named`, then: "tmp",
	},
	{
		name: "rm -r while a directory is read", chain: chain{"dir d\n" + manyFiles(3000)},
		script: `touch d/new{1..500}; rm -r d; tree`,
		want:   ".\n",
		again:  `tree`, then: ".\n",
	},
	{
		name: "each name once with its type and inode", chain: chain{"dir d\n" + manyFiles(50), "dir d\nfile d/f7 other\nfile d/.wh.f8\n"},
		script: `chmod 600 d/f1; rm d/f2; mv d/f3 d/g3; touch d/f2 d/new; mkdir d/m; python3 - <<'E'
import os
names = [e.name for e in os.scandir("d")]
print(len(names), len(set(names)))
print([e.name for e in os.scandir("d") if e.inode() != os.lstat(e.path).st_ino or e.is_dir(follow_symlinks=False) != (e.name == "m")])
E`,
		want: "51 51\n[]\n",
	},
}

func manyFiles(n int) string {
	var b strings.Builder
	for i := range n {
		b.WriteString("file d/f" + strconv.Itoa(i) + " x\n")
	}
	return b.String()
}

package sandbox

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func marshal(s scene) (string, error) {
	b, err := json.Marshal(s)
	return string(b), err
}

func unmarshal(text string, s *scene) error { return json.Unmarshal([]byte(text), s) }

// TestHostile runs images that try to reach the host. Each ends the way it
// says, and the host's secret stays as it is.
func TestHostile(t *testing.T) {
	t.Parallel()
	needRoot(t)
	sh := func(script string) Spec { return Spec{Args: []string{"sh", "-c", script}} }
	for _, tt := range []struct {
		name  string
		links map[string]string // made in the tree in place of what is there; $H is the test's directory on the host
		spec  Spec
		code  int
		want  string
	}{
		{name: "proc is a symlink", links: map[string]string{"proc": "/tmp"}, code: 125, want: "/proc of the tree is not a directory\n"},
		{name: "dev leads out", links: map[string]string{"dev": "../../../$H"}, code: 125, want: "/dev of the tree is not a directory\n"},
		{name: "sys is dangling", links: map[string]string{"sys": "nowhere"}, code: 125, want: "/sys of the tree is not a directory\n"},
		{name: "a file leads out", links: map[string]string{"etc/hosts": "../../../../$H/secret"},
			spec: Spec{Args: []string{"cat", "/etc/hosts"}, Files: []File{{"/etc/hosts", []byte("ours\n")}}}, want: "ours\n"},
		{name: "a file leads into proc", links: map[string]string{"etc/hosts": "/proc/1/root/etc/passwd"},
			spec: Spec{Args: []string{"true"}, Files: []File{{"/etc/hosts", []byte("ours\n")}}}, code: 125, want: "/etc/hosts: too many levels of symbolic links\n"},
		{name: "a loop", links: map[string]string{"etc/hosts": "hosts"},
			spec: Spec{Args: []string{"true"}, Files: []File{{"/etc/hosts", nil}}}, code: 125, want: "/etc/hosts: too many levels of symbolic links\n"},
		{name: "a long chain of dangling links", links: map[string]string{"etc/hosts": "a/x", "etc/a": "b/../c", "etc/c": "../c/../d"},
			spec: Spec{Args: []string{"cat", "/etc/hosts"}, Files: []File{{"/etc/hosts", []byte("ours\n")}}}, want: "ours\n"},
		{name: "passwd leads out", links: map[string]string{"etc/passwd": "$H/passwd"}, spec: Spec{Args: []string{"true"}, User: "evil"},
			code: 125, want: "user \"evil\": not in the tree's /etc/passwd\n"},
		{name: "working directory of a descriptor", links: map[string]string{"w": "/proc/self/fd/3"}, spec: Spec{Args: []string{"pwd"}, WorkDir: "/w"},
			code: 125, want: "working directory /w: too many levels of symbolic links\n"},
		{name: "working directory leads out", links: map[string]string{"w": "../../../$H"}, spec: Spec{Args: []string{"sh", "-c", "ls"}, WorkDir: "/w"}},
		{name: "descriptors", spec: sh("for fd in /proc/self/fd/* /proc/1/fd/*; do ls $fd/secret $fd/../secret 2>/dev/null; done; true")},
		{name: "program of init", spec: Spec{Args: []string{"sh", "-c", "echo x >>/proc/1/exe"}, Confined: false}, code: 1, want: "..."},
		{name: "program is init's", links: map[string]string{"p": "/proc/1/exe"}, spec: Spec{Args: []string{"sh", "-c", "echo x >>/p"}}, code: 1, want: "..."},
		{name: "path without a command", spec: Spec{Args: []string{""}}, code: 127, want: "empty name of a command\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := host(t)
			tree := root(t, dir)
			write(t, filepath.Join(dir, "passwd"), "evil:x:0:0::/:/bin/sh\n")
			for name, to := range tt.links {
				name = filepath.Join(tree, name)
				if err := os.RemoveAll(name); err != nil {
					t.Fatal(err)
				}
				if err := os.Symlink(strings.ReplaceAll(to, "$H", dir), name); err != nil {
					t.Fatal(err)
				}
			}
			if len(tt.spec.Args) == 0 {
				tt.spec.Args = []string{"true"}
			}
			code, out := run(t, asRoot, scene{Options: Options{Dir: tree, Staging: filepath.Join(dir, "staging")}, Spec: tt.spec})
			if code != tt.code || !strings.HasSuffix(tt.want, "...") && out != tt.want {
				t.Errorf("code %d, want %d; output:\n%s\nwant:\n%s", code, tt.code, out, tt.want)
			}
			if b, err := os.ReadFile(filepath.Join(dir, "secret")); string(b) != "secret\n" {
				t.Errorf("secret: %q, %v", b, err)
			}
			if names, err := os.ReadDir(dir); len(names) != 4 {
				t.Errorf("on the host: %v, %v", names, err)
			}
		})
	}
}

// TestFifo has a tree whose databases are named pipes.
func TestFifo(t *testing.T) {
	t.Parallel()
	needRoot(t)
	dir := host(t)
	tree := root(t, dir)
	for _, name := range []string{"etc/passwd", "etc/group"} {
		name = filepath.Join(tree, name)
		if err := os.Remove(name); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mkfifo(name, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	code, out := run(t, asRoot, scene{Options: Options{Dir: tree, Staging: filepath.Join(dir, "staging")}, Spec: Spec{Args: []string{"true"}}})
	if code != 0 {
		t.Errorf("%d: %s", code, out)
	}
}

func TestIdentify(t *testing.T) {
	t.Parallel()
	passwd := []byte("root:x:0:0::/root:/bin/sh\n1000:x:5:6::/five:\nme:x:1000:1001::relative:\nbroken:x:-1:0::/:\nshort:x:1\n\n:::\n")
	group := []byte("a:x:7:me,you\nb:x:8:\nc:x:9:me\nd:x:no:me\n1001:x:10:\n")
	for user, want := range map[string]string{
		"":          "0:0 [] /root",
		"root":      "0:0 [] /root",
		"me":        "1000:1001 [7 9] /",
		"1000":      "5:6 [] /five", // a name goes before a number
		"5":         "5:6 [] /five",
		"me:b":      "1000:8 [] /",
		"me:1001":   "1000:10 [] /",
		"me:12":     "1000:12 [] /",
		"12:34":     "12:34 [] /",
		"12":        "12:0 [] /",
		":b":        "0:8 [] /root",
		"broken":    "malformed",
		"short":     "not in",
		"me:nobody": "not in",
		"-1":        "not in",
		"me:d":      "not in",

		"4294967295": "not in",
	} {
		who, err := identify(user, passwd, group)
		got := ""
		if err != nil {
			got = err.Error()
		} else {
			got = fmt.Sprintf("%d:%d %v %s", who.UID, who.GID, who.Groups, who.Home)
		}
		if err == nil && got != want || err != nil && !strings.Contains(got, want) {
			t.Errorf("%q: %s, want %s", user, got, want)
		}
	}
}

func FuzzIdentify(f *testing.F) {
	f.Add("me:b", []byte("me:x:1000:1001::/h:\n"), []byte("b:x:8:me\n"))
	f.Fuzz(func(t *testing.T, user string, passwd, group []byte) {
		who, err := identify(user, passwd, group)
		if err == nil && (!strings.HasPrefix(who.Home, "/") || len(who.Groups) > maxGroups || who.UID == 1<<32-1) {
			t.Errorf("%+v", who)
		}
	})
}

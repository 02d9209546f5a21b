package daemon

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestDocker has the docker CLI drive a daemon, command by command.
func TestDocker(t *testing.T) {
	docker, err := exec.LookPath("docker")
	if err != nil {
		t.Skip("needs the docker CLI")
	}
	reg := newRegistry(t)
	ref, imageID := reg.push(t, "lib/one:1", "file a one", "file b two")
	reg.push(t, "lib/one:2", "file a one", "file b three")
	d := runDaemon(t, Options{})
	config := t.TempDir()
	other := strings.TrimSuffix(ref, ":1") + ":2"
	digest := strings.TrimSuffix(ref, ":1") + "@sha256:[0-9a-f]{64}"

	for _, tt := range []struct {
		args string
		rc   int
		want string // regexp over stdout and stderr; REF, OTHER, ID, SHORT, DIGEST are replaced
	}{
		{"version", 0, `(?s)Client.*API version: +1\.50.*Server.*API version: +1\.50 \(minimum version 1\.24\)`},
		{"info", 0, `(?s)Images: 0.*Storage Driver: imgfs`},
		{"images -q", 0, `^$`},
		{"pull REF", 0, `(?s)1: Pulling from lib/one.*Pull complete.*Digest: sha256:[0-9a-f]{64}.*Status: Downloaded newer image for REF\nREF`},
		{"pull REF", 0, `Status: Image is up to date for REF`},
		{"pull -q REF", 0, `^REF$`},
		{"pull NAME:nosuch", 1, `manifest for NAME:nosuch not found`},
		{"pull -a NAME", 1, `imgfs does not pull all tags`},
		{"images", 0, `NAME +1 +SHORT`},
		{"images -q --no-trunc", 0, `^ID$`},
		{"images --digests", 0, `sha256:[0-9a-f]{64}`},
		{"images NAME", 0, `SHORT`},
		{"images -f dangling=true -q", 0, `^$`},
		{"images -f label=name=lib/one:1 -q", 0, `^SHORT$`},
		{"images -f nosuch=1", 1, `invalid filter 'nosuch'`},
		{"inspect REF", 0, `(?s)"Id": "ID".*"Labels": \{\s+"name": "lib/one:1"`},
		{"inspect --format {{.Os}}/{{.Architecture}} SHORT", 0, `^linux/amd64$`},
		{"image inspect --format {{.Id}} ID", 0, `^ID$`},
		{"image inspect nosuch", 1, `No such image: nosuch`},
		{"inspect nosuch", 1, `No such object: nosuch`},
		{"pull OTHER", 0, `(?s)Already exists.*Downloaded newer`},
		{"images -q -f before=OTHER", 0, `^$`}, // both are from 2014
		{"ps", 0, `CONTAINER ID`},
		{"run --rm REF true", 125, `imgfs serves images only`},
		{"create REF", 1, `imgfs serves images only`},
		{"volume ls", 1, `page not found`},
		{"rmi nosuch", 1, `No such image: nosuch`},
		{"rmi REF", 0, `(?s)^Untagged: REF\nUntagged: DIGEST\nDeleted: ID\nDeleted: sha256:[0-9a-f]{64}$`},
		{"rmi -f OTHER", 0, `Deleted: `},
		{"images -q", 0, `^$`},
	} {
		name := strings.TrimSuffix(ref, ":1")
		r := strings.NewReplacer("REF", ref, "OTHER", other, "NAME", name, "SHORT", imageID.Short(), "ID", string(imageID))
		cmd := exec.CommandContext(testContext(t), docker, append([]string{"--config", config, "-H", "unix://" + d.Socket}, strings.Fields(r.Replace(tt.args))...)...)
		cmd.Env = append(os.Environ(), "DOCKER_HOST=", "DOCKER_CONTEXT=")
		out, err := cmd.CombinedOutput()
		if cmd.ProcessState == nil {
			t.Fatal(err)
		}
		want := strings.NewReplacer("REF", regexp.QuoteMeta(ref), "OTHER", other, "DIGEST", digest, "NAME", name,
			"SHORT", imageID.Short(), "ID", string(imageID), "CONTAINER ID", "CONTAINER ID").Replace(tt.want)
		if rc := cmd.ProcessState.ExitCode(); rc != tt.rc || !regexp.MustCompile(want).MatchString(strings.TrimSpace(string(out))) {
			t.Errorf("docker %s: rc %d, want %d\n%swant match of %s", tt.args, rc, tt.rc, out, want)
		}
	}
	layers, err := filepath.Glob(filepath.Join(d.Root, "layers", "*"))
	if err != nil || len(layers) != 0 {
		t.Errorf("layers after the last rmi: %v %v", layers, err)
	}
}

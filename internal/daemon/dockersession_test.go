package daemon

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/imgfs/imgfs/internal/id"
	"github.com/imgfs/imgfs/internal/imgtest"
)

// dockerStep is one command of a session with the docker CLI.
type dockerStep struct {
	args  string // NAME, SHORT and so on are replaced; ~ is a space within an argument
	stdin string // a file in the session's directory
	rc    int    // of docker 28
	old   int    // of docker 20.10, which has fewer flags; same: as rc
	want  string // regexp over stdout and stderr of docker 28, and of 20.10 where that ends alike
}

// same says that docker 20.10 ends as 28 does.
const same = -1

// dockerCLI is a docker command that drives one daemon.
type dockerCLI struct {
	path    string
	version string // of the client
	old     bool   // before 28
	socket  string
	config  string
	dir     string
}

// needDocker returns the docker command of this machine for a daemon's socket.
func needDocker(t *testing.T, socket string) *dockerCLI {
	t.Helper()
	path, err := exec.LookPath("docker")
	imgtest.Need(t, err == nil, "the docker CLI")
	c := &dockerCLI{path: path, socket: socket, config: t.TempDir(), dir: t.TempDir()}
	out, err := exec.CommandContext(testContext(t), path, "--version").Output()
	m := regexp.MustCompile(`(\d+)\.\d+\.\d+`).FindStringSubmatch(string(out))
	if err != nil || m == nil {
		t.Fatalf("docker --version: %v: %s", err, out)
	}
	major, err := strconv.Atoi(m[1])
	if err != nil {
		t.Fatal(err)
	}
	c.version, c.old = m[0], major < 28
	t.Logf("the docker CLI is %s", c.version)
	return c
}

// run runs one command and returns all that it printed, and its exit code.
func (c *dockerCLI) run(t *testing.T, stdin string, args ...string) (string, int) {
	t.Helper()
	cmd := exec.CommandContext(testContext(t), c.path, append([]string{"--config", c.config, "-H", "unix://" + c.socket}, args...)...)
	cmd.Env = append(os.Environ(), "DOCKER_HOST=", "DOCKER_CONTEXT=", "DOCKER_BUILDKIT=0")
	cmd.Dir = c.dir
	if stdin != "" {
		f, err := os.Open(filepath.Join(c.dir, stdin))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		cmd.Stdin = f
	}
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out)), cmd.ProcessState.ExitCode()
}

// TestDockerSession has the docker CLI drive a daemon through all that images
// know, command by command: what it prints, and its return codes.
func TestDockerSession(t *testing.T) {
	reg := imgtest.NewRegistry(t, imgtest.RegistryOptions{})
	locked := imgtest.NewRegistry(t, imgtest.RegistryOptions{Auth: "basic", Username: "me", Password: "secret"})
	one := pushTest(t, reg, "lib/one", "1", "", "file a one", "file b two")
	pushTest(t, reg, "lib/one", "2", "", "file a one", "file b three")
	index := pushTestIndex(t, reg, "lib/both", "1", "amd64", "arm64")
	d := runDaemon(t, Options{})
	c := needDocker(t, d.Socket)
	writeRootfs(t, filepath.Join(c.dir, "rootfs.tar"))
	if err := os.WriteFile(filepath.Join(c.dir, "notanarchive"), bytes.Repeat([]byte("no tar "), 300), 0o600); err != nil {
		t.Fatal(err)
	}
	imageID := id.ImageID(one.Config.Digest)
	words := []string{
		"NAME", reg.Host + "/lib/one", "BOTH", reg.Host + "/lib/both", "HOST", reg.Host, "LOCKED", locked.Host,
		"INDEX", string(index), "SHORT", imageID.Short(), "IMAGEID", string(imageID), "DIGEST", one.Manifest.Digest,
	}
	quoted := make([]string, len(words))
	for i, w := range words {
		quoted[i] = w
		if i%2 == 1 {
			quoted[i] = regexp.QuoteMeta(w)
		}
	}
	typed, wanted := strings.NewReplacer(words...), strings.NewReplacer(quoted...)
	const usage, failed, refused = 125, 1, 125 // an unknown flag; an error; docker run
	for _, s := range []dockerStep{
		{"version", "", 0, same, `(?s)Client.*Server.*API version: +1\.52 \(minimum version 1\.24\)`},
		{"version --format {{.Server.Os}}", "", 0, same, `^linux$`},
		{"info", "", 0, same, `(?s)Images: 0.*Storage Driver: imgfs`},
		{"images -q", "", 0, same, `^$`},

		// pull
		{"pull NAME:1", "", 0, same, `(?s)1: Pulling from lib/one.*Pull complete.*Digest: DIGEST.*Status: Downloaded newer image for NAME:1\nNAME:1`},
		{"pull NAME:1", "", 0, same, `Status: Image is up to date for NAME:1`},
		{"pull -q NAME:1", "", 0, same, `^NAME:1$`},
		{"pull NAME@DIGEST", "", 0, same, `(?s)NAME@DIGEST: Pulling from lib/one|DIGEST: Pulling from lib/one|Image is up to date for NAME@DIGEST`},
		{"pull NAME:nosuch", "", failed, same, `manifest for NAME:nosuch not found: manifest unknown`},
		{"pull HOST/no/such:1", "", failed, same, `not found|pull access denied`},
		{"pull -a NAME:1", "", failed, same, `tag can't be used with --all-tags/-a`},
		{"pull -a NAME", "", 0, same, `(?s)1: Pulling from lib/one.*2: Pulling from lib/one.*NAME`},
		{"pull LOCKED/lib/one:1", "", failed, same, `(?i)denied|unauthorized|authentication|login`},
		{"pull --platform linux/arm64 BOTH:1", "", 0, same, `Status: Downloaded newer image for BOTH:1`},
		{"image inspect --format {{.Architecture}} BOTH:1", "", 0, same, `^arm64$`},
		{"pull --platform linux/amd64 BOTH:1", "", 0, same, `Digest: INDEX`},
		{"image inspect --format {{.Architecture}} BOTH:1", "", 0, same, `^amd64$`},
		{"pull --platform linux/s390x BOTH:1", "", failed, same, `no matching manifest for linux/s390x`},
		{"pull BAD//name", "", failed, same, `invalid reference format`},

		// images
		{"images", "", 0, same, `NAME +1 +SHORT`},
		{"images -a", "", 0, same, `NAME +1 +SHORT`},
		{"images -q --no-trunc NAME:1", "", 0, same, `^IMAGEID$`},
		{"images --digests --no-trunc", "", 0, same, `NAME +1 +DIGEST +IMAGEID`},
		{"images --tree", "", 0, usage, `NAME:1 +SHORT`},
		{"images NAME", "", 0, same, `SHORT`},
		{"images -f dangling=true -q NAME", "", 0, same, `^$`},
		{"images -f label=name=lib/one:1 -q", "", 0, same, `^SHORT$`},
		{"images -f reference=*/lib/one:2 --format {{.Tag}}", "", 0, same, `^2$`},
		{"images -f before=NAME:2 -q", "", 0, same, `^$`}, // all are of one day
		{"images -f since=nosuch:1 -q", "", failed, same, `No such image: nosuch:1`},
		{"images -f nosuch=1", "", failed, same, `(?i)invalid filter 'nosuch'`},
		{"images -f dangling=perhaps", "", failed, same, `(?i)invalid filter 'dangling=?`},
		{"images --format {{.Nosuch}}", "", failed, same, `can't evaluate field Nosuch`},

		// inspect, history
		{"inspect NAME:1", "", 0, same, `(?s)"Id": "IMAGEID".*"RepoTags": \[\s+"NAME:1"\s+\].*"Type": "layers"`},
		{"inspect --type image --format {{.Os}} SHORT", "", 0, same, `^linux$`},
		{"inspect --type image nosuch", "", failed, same, `(?i)no such image: nosuch`},
		{"inspect nosuch", "", failed, same, `(?i)no such object: nosuch`},
		{"inspect --type volume nosuch", "", failed, same, `.`},
		{"image inspect --format {{.Id}} IMAGEID", "", 0, same, `^IMAGEID$`},
		{"image inspect --platform linux/amd64 BOTH:1", "", 0, usage, `"Architecture": "amd64"`},
		{"image inspect nosuch", "", failed, same, `(?i)no such image: nosuch`},
		{"history NAME:1", "", 0, same, `^IMAGE +CREATED +CREATED BY +SIZE +COMMENT$`}, // it has none
		{"history --platform linux/amd64 NAME:1", "", 0, usage, `COMMENT`},
		{"history --platform linux/arm64 NAME:1", "", failed, usage, `linux/arm64`},
		{"history nosuch", "", failed, same, `(?i)no such image: nosuch`},

		// tag, push
		{"tag NAME:1 HOST/my/copy:1", "", 0, same, `^$`},
		{"tag SHORT HOST/my/copy:two", "", 0, same, `^$`},
		{"tag nosuch:1 a:1", "", failed, same, `No such image: nosuch:1`},
		{"tag NAME:1 A:1", "", failed, same, `repository name.* must be lowercase`},
		{"push HOST/my/copy:1", "", 0, same, `(?s)The push refers to repository \[HOST/my/copy\].*1: digest: DIGEST size: \d+`},
		{"push -a HOST/my/copy", "", 0, same, `(?s)1: digest: DIGEST.*two: digest: DIGEST|two: digest: DIGEST`},
		{"push --platform linux/amd64 HOST/my/copy:1", "", 0, usage, `digest: DIGEST`},
		{"push HOST/my/nosuch:1", "", failed, same, `An image does not exist locally with the tag: HOST/my/nosuch`},
		{"push LOCKED/my/copy:1", "", failed, same, `An image does not exist locally`},
		{"rmi HOST/my/copy:1", "", 0, same, `^Untagged: HOST/my/copy:1(\nUntagged: HOST/my/copy@DIGEST)?$`},
		{"pull HOST/my/copy:1", "", 0, same, `Digest: DIGEST`},

		// save, load, import
		{"save -o all.tar NAME:1 NAME:2", "", 0, same, `^$`},
		{"save --platform linux/amd64 -o one.tar BOTH:1", "", 0, usage, `^$`},
		{"save nosuch:1 -o no.tar", "", failed, same, `(?i)no such image: nosuch:1|reference does not exist`},
		{"rmi -f NAME:1 NAME:2 HOST/my/copy:1 HOST/my/copy:two", "", 0, same, `(?s)Untagged: NAME:1.*Deleted: IMAGEID`},
		{"load -i all.tar", "", 0, same, `(?s)Loaded image: NAME:1.*Loaded image: NAME:2`},
		{"load --platform linux/amd64 -i all.tar", "", 0, usage, `Loaded image: NAME:1`},
		{"load -q", "all.tar", 0, same, `Loaded image: NAME:1`},
		{"image inspect --format {{.Id}} NAME:1", "", 0, same, `^IMAGEID$`},
		{"load -i notanarchive", "", failed, same, `.`},
		{"load -i nosuch.tar", "", failed, same, `no such file or directory`},
		{"import rootfs.tar imp:1", "", 0, same, `^sha256:[0-9a-f]{64}$`},
		{"history imp:1", "", 0, same, `(?s)IMAGE +CREATED +CREATED BY +SIZE +COMMENT\s+[0-9a-f]{12} .*Imported from -`},
		{"history -q --no-trunc imp:1", "", 0, same, `^sha256:[0-9a-f]{64}$`},
		{"import -c CMD~/bin/x -m hello - imp:2", "rootfs.tar", 0, same, `^sha256:[0-9a-f]{64}$`},
		{"history --format {{.Comment}} imp:2", "", 0, same, `^hello$`},
		{"inspect --format {{.Config.Cmd}} imp:2", "", 0, same, `/bin/x`},
		{"import notanarchive imp:3", "", failed, same, `.`},

		// search, login
		{"search HOST/one", "", 0, same, `lib/one`},
		{"search --limit 5 HOST/lib", "", 0, same, `lib/both`},
		{"search --filter is-official=true --no-trunc HOST/lib", "", 0, same, `DESCRIPTION`},
		{"search --filter nosuch=1 HOST/lib", "", failed, same, `(?i)invalid filter 'nosuch'`},
		{"login -u me -p wrong LOCKED", "", failed, same, `(?i)unauthorized|denied|incorrect`},
		{"login -u me -p secret LOCKED", "", 0, same, `Login Succeeded`},
		{"tag NAME:1 LOCKED/my/copy:1", "", 0, same, `^$`},
		{"push LOCKED/my/copy:1", "", 0, same, `digest: sha256:[0-9a-f]{64}`},
		{"pull LOCKED/my/copy:1", "", 0, same, `up to date|Downloaded newer`},
		{"logout LOCKED", "", 0, same, `Removing login credentials`},
		{"manifest inspect --insecure NAME:1", "", 0, failed, `"schemaVersion": 2`},

		// rmi, prune, df, events
		{"rmi nosuch", "", failed, same, `No such image: nosuch`},
		{"rmi --no-prune imp:1", "", 0, same, `(?s)Untagged: imp:1.*Deleted: sha256:`},
		{"rmi SHORT", "", failed, same, `conflict: unable to delete SHORT \(must be forced\) - image is referenced in multiple repositories`},
		{"rmi --platform linux/amd64 BOTH:1", "", 0, usage, `Untagged: BOTH:1|Deleted`},
		{"rmi -f SHORT", "", 0, same, `Deleted: IMAGEID`},
		{"image prune -f", "", 0, same, `Total reclaimed space: `},
		{"image prune -f --filter until=1h --filter label=no", "", 0, same, `Total reclaimed space: `},
		{"image prune -f --filter nosuch=1", "", failed, same, `(?i)invalid filter 'nosuch'`},
		{"system df", "", 0, same, `(?s)TYPE +TOTAL +ACTIVE +SIZE +RECLAIMABLE.*Images +\d`},
		{"system df -v", "", 0, same, `Images space usage`},
		{"system df --format json", "", 0, 0, `"Type":"Images"`},
		{"events --since 0 --until 0s --filter type=image", "", 0, same, `(?s)image pull NAME:1.*image tag .*image push HOST/my/copy:1`},
		{"events --since 0 --until 0s --filter event=load --format {{.Action}}", "", 0, same, `(?s)^load\s+load`},
		{"events --since 0 --until 0s --filter nosuch=1", "", 0, same, `^$`},
		{"image prune -a -f", "", 0, same, `(?s)Deleted Images:.*Total reclaimed space: `},
		{"images -q", "", 0, same, `^$`},

		// what imgfs is not
		{"ps", "", 0, same, `CONTAINER ID`},
		{"pull NAME:1", "", 0, same, `Downloaded newer image`},
		{"run --rm NAME:1 true", "", refused, same, `imgfs serves images only`},
		{"create NAME:1", "", failed, same, `imgfs serves images only`},
		{"build .", "", failed, same, `.`},
		{"volume ls", "", failed, same, `page not found`},
		{"network ls", "", failed, same, `page not found`},
		{"system prune -f", "", 0, same, `Total reclaimed space: `},
	} {
		rc, alike := s.rc, !c.old || s.old == same
		if !alike {
			rc = s.old
		}
		args := strings.Fields(typed.Replace(s.args))
		for i := range args {
			args[i] = strings.ReplaceAll(args[i], "~", " ")
		}
		out, got := c.run(t, s.stdin, args...)
		matches := !alike || regexp.MustCompile(wanted.Replace(s.want)).MatchString(out)
		if got != rc || !matches {
			t.Errorf("docker %s: rc %d, want %d\n%s\nwant match of %s", typed.Replace(s.args), got, rc, out, s.want)
		}
	}
}

// pushTest pushes an image of layers given as texts for imgtest.Tar.
func pushTest(t *testing.T, reg *imgtest.Registry, repo, tag, arch string, layers ...string) *imgtest.Image {
	t.Helper()
	spec := imgtest.ImageSpec{Arch: arch, Cmd: []string{"/bin/sh"}, Labels: map[string]string{"name": repo + ":" + tag}}
	for _, text := range layers {
		b, err := imgtest.Tar(text)
		if err != nil {
			t.Fatal(err)
		}
		spec.Layers = append(spec.Layers, b)
	}
	img, err := imgtest.NewImage(spec)
	if err == nil {
		err = img.Push(testContext(t), reg.Host, repo, tag)
	}
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// pushTestIndex pushes an image for several architectures and returns the
// digest of its index. Each one's file "a" holds the architecture.
func pushTestIndex(t *testing.T, reg *imgtest.Registry, repo, tag string, architectures ...string) id.Blob {
	t.Helper()
	var list []any
	for _, arch := range architectures {
		img := pushTest(t, reg, repo, tag, arch, "file a "+arch)
		list = append(list, map[string]any{
			"mediaType": img.Manifest.MediaType, "digest": img.Manifest.Digest, "size": len(img.Manifest.Data),
			"platform": map[string]string{"os": "linux", "architecture": arch},
		})
	}
	b, err := json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": indexType, "manifests": list})
	if err != nil {
		t.Fatal(err)
	}
	return reg.PutManifest(t, repo, tag, indexType, b)
}

// writeRootfs writes a tar of a tiny root file system.
func writeRootfs(t *testing.T, path string) {
	t.Helper()
	b, err := imgtest.Tar("dir etc\nfile etc/hostname import")
	if err == nil {
		_, err = tar.NewReader(bytes.NewReader(b)).Next()
	}
	if err == nil {
		err = os.WriteFile(path, b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

package erofs

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// fsckErofs runs fsck.erofs (from $IMGFS_FSCK_EROFS or PATH) on an image. It
// returns what it said and whether that was no complaint.
func fsckErofs(t *testing.T, image []byte, devices []string) (said string, clean bool) {
	t.Helper()
	fsck := os.Getenv("IMGFS_FSCK_EROFS")
	if fsck == "" {
		var err error
		if fsck, err = exec.LookPath("fsck.erofs"); err != nil {
			t.Skip("no fsck.erofs in PATH; set IMGFS_FSCK_EROFS")
		}
	}
	out, _ := exec.Command(fsck, "-V").CombinedOutput()
	version := regexp.MustCompile(`(\d+)\.(\d+)`).FindStringSubmatch(string(out))
	if version == nil {
		t.Fatalf("%s -V says %q", fsck, out)
	}
	major, _ := strconv.Atoi(version[1])
	minor, _ := strconv.Atoi(version[2])
	if major == 1 && minor < 7 {
		t.Skipf("fsck.erofs %s is too old for 512-byte blocks (1.7 needed); set IMGFS_FSCK_EROFS", version[0])
	}
	index := filepath.Join(t.TempDir(), "index")
	if err := os.WriteFile(index, image, 0o600); err != nil {
		t.Fatal(err)
	}
	args := []string{"-d3"}
	for _, d := range devices {
		args = append(args, "--device="+d)
	}
	out, err := exec.Command(fsck, append(args, index)...).CombinedOutput()
	said = strings.ToLower(string(out))
	clean = err == nil && strings.Contains(said, "no errors found") && !strings.Contains(said, "<e>") && !strings.Contains(said, "<w>")
	t.Logf("fsck.erofs %s: %s", version[0], strings.TrimSpace(string(out)))
	return said, clean
}

func TestFsck(t *testing.T) {
	devices, tree := zoo()
	image := write(t, build(t, devices, "imgfs.chain.1", tree))
	data := zooData(t)
	if said, clean := fsckErofs(t, image, data); !clean {
		t.Errorf("zoo: %s", said)
	}
	for seed := range uint64(5) {
		if said, clean := fsckErofs(t, write(t, build(t, devices, "", randomTree(seed))), data); !clean {
			t.Errorf("random tree %d: %s", seed, said)
		}
	}
	// The oracle sees faults: two names out of order.
	bad := bytes.Replace(image, []byte("fifo"), []byte("xifo"), 1)
	if _, clean := fsckErofs(t, bad, data); clean {
		t.Error("fsck.erofs accepts a directory that is not sorted")
	}
	if said, clean := fsckErofs(t, write(t, build(t, nil, "", tree[:1])), nil); !clean {
		t.Errorf("empty tree: %s", said)
	}
}

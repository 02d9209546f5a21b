package erofs

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// TestGolden pins the bytes. Indexes are stored by digests of their layers:
// whoever changes what is written must also change the version in their keys.
func TestGolden(t *testing.T) {
	devices, tree := zoo()
	const want = "d78cc2e19c31b671ec0a821d726deccd97cf299f81412f18fdd386c207ff4bf3"
	if got := fmt.Sprintf("%x", sha256.Sum256(write(t, build(t, devices, "golden", tree)))); got != want {
		t.Errorf("the zoo's image is %s, was %s", got, want)
	}
}

func TestOpen(t *testing.T) {
	devices, tree := zoo()
	image := write(t, build(t, devices, "", tree))
	path := filepath.Join(t.TempDir(), "index")
	if err := os.WriteFile(path, image, 0o600); err != nil {
		t.Fatal(err)
	}
	m, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil { // an image outlives its name
		t.Fatal(err)
	}
	if got, want := text(describe(t, m)), text(describe(t, open(t, image))); got != want {
		t.Error("a mapped image differs from its bytes")
	}
	if m.Size() != int64(len(image)) {
		t.Errorf("size %d, want %d", m.Size(), len(image))
	}
	for range 2 {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	}

	if _, err := Open(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("absent file: %v", err)
	}
	for _, size := range []int{0, 100, len(image) - BlockSize} {
		if err := os.WriteFile(path, image[:size], 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(path); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
}

func TestConcurrentReaders(t *testing.T) {
	devices, tree := zoo()
	m := open(t, write(t, build(t, devices, "", tree)))
	want := text(describe(t, m))
	for i := range 4 {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			if text(describe(t, m)) != want {
				t.Error("readers disturb each other")
			}
		})
	}
}

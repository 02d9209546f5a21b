package lazy

import (
	"context"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

const killDir = "IMGFS_LAZY_KILL_DIR"

var killShape = shape{spans: 400, size: 20 << 10, ragged: true, gap: 100, unproven: true}

// TestKilledChild is the process that TestKill kills.
func TestKilledChild(t *testing.T) {
	dir := os.Getenv(killDir)
	if dir == "" {
		t.Skip("run by TestKill")
	}
	x := newFixture(t, killShape)
	f := open(t, dir, x.options(&script{rate: 30e6}))
	os.Stdout.WriteString("ready\n")
	rnd := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 1))
	for !f.Whole() || rnd.IntN(4) > 0 {
		off := rnd.Int64N(int64(len(x.data)) - 5000)
		x.check(t, f, off, 5000)
		if rnd.IntN(100) == 0 {
			if _, err := f.Evict(); err != nil {
				t.Fatal(err)
			}
		}
		if rnd.IntN(100) == 0 { // clean, and dirty again
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
			f = open(t, dir, x.options(&script{rate: 30e6}))
		}
	}
}

// Killed at any time, a File has nothing but the right bytes, and most of them.
func TestKill(t *testing.T) {
	t.Parallel()
	x := newFixture(t, killShape)
	dir := t.TempDir()
	if err := Create(dir, x.options(&script{})); err != nil {
		t.Fatal(err)
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	runs := 20
	if testing.Short() {
		runs = 3
	}
	for range runs {
		cmd := exec.Command(os.Args[0], "-test.run=^TestKilledChild$")
		cmd.Env = append(os.Environ(), killDir+"="+dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		line := make([]byte, 6)
		out.Read(line)
		if string(line) != "ready\n" {
			t.Fatalf("child said %q", line)
		}
		time.Sleep(time.Duration(rnd.IntN(60)) * time.Millisecond)
		cmd.Process.Kill()
		rest := make([]byte, 1000)
		n, _ := out.Read(rest)
		if cmd.Wait(); strings.Contains(string(rest[:n]), "FAIL") {
			t.Fatalf("child: %s", rest[:n])
		}
		s := &script{}
		f := open(t, dir, x.options(s))
		have, _ := f.Present()
		if err := f.recheckAll(context.Background()); err != nil {
			t.Fatal(err)
		}
		if kept, _ := f.Present(); kept != have {
			t.Errorf("of %d bytes present, %d were not right", have, have-kept)
		}
		x.check(t, f, 0, int64(len(x.data)))
		if err := f.Complete(context.Background(), nil); err != nil {
			t.Fatal(err)
		}
		// Not closed: the next child finds it as a kill leaves it, or evicted.
		if rnd.IntN(2) == 0 {
			if _, err := f.Evict(); err != nil {
				t.Fatal(err)
			}
		}
	}
}

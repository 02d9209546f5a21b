package layerdb

import (
	"bytes"
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"

	"github.com/imgfs/imgfs/internal/inflate"
	"github.com/imgfs/imgfs/internal/span"
)

// BenchmarkPass compares a whole pass with what it cannot do without: bare
// decompression of the same bytes in the same run, by our own decoder and by
// klauspost's. BENCH_LAYER names a tar to use instead of /usr/share.
//
//	go test -run - -bench Pass -benchtime 3x ./layerdb
func BenchmarkPass(b *testing.B) {
	dir := b.TempDir()
	file := os.Getenv("BENCH_LAYER")
	if file == "" {
		file = filepath.Join(dir, "layer.tar")
		if out, err := exec.Command("tar", "cf", file, "-C", "/", "usr/bin").CombinedOutput(); err != nil {
			b.Skipf("tar: %v: %s", err, out)
		}
	}
	stream, err := os.ReadFile(file)
	if err != nil {
		b.Skip(err)
	}
	for _, c := range [][]string{{"gzip", "-6"}, {"pigz", "-6"}, {"zstd", "-3"}, {"cat"}} {
		blob := pipe(b, stream, c...)
		spec := specOf(blob, stream)
		name := c[0]
		bench := func(what string, once func(), after ...func()) {
			b.Run(name+"/"+what, func(b *testing.B) {
				b.SetBytes(int64(len(stream)))
				var used time.Duration
				for b.Loop() {
					before := cpu(b)
					once()
					used += cpu(b) - before
					b.StopTimer()
					for _, f := range after {
						f()
					}
					b.StartTimer()
				}
				b.ReportMetric(used.Seconds()/float64(b.N), "cpu-s/op")
			})
		}
		if name == "gzip" || name == "pigz" {
			bench("klauspost", func() {
				z, err := gzip.NewReader(bytes.NewReader(blob))
				if err == nil {
					_, err = z.WriteTo(io.Discard)
				}
				if err != nil {
					b.Fatal(err)
				}
			})
			bench("inflate", func() {
				if _, err := inflate.NewReader(bytes.NewReader(blob)).WriteTo(io.Discard); err != nil {
					b.Fatal(err)
				}
			})
		} else {
			bench("bare", func() {
				if _, err := span.NewReader(bytes.NewReader(blob), span.Options{}).WriteTo(io.Discard); err != nil {
					b.Fatal(err)
				}
			})
		}
		p := newPlace(b)
		bench("pass", func() {
			if _, _, err := p.Ensure(context.Background(), spec, nil); err != nil {
				b.Fatal(err)
			}
		}, func() {
			if _, err := p.GC(context.Background()); err != nil {
				b.Fatal(err)
			}
		})
	}
}

func cpu(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkChain opens a stack of 127 known layers, as a mount of a known
// image does.
func BenchmarkChain(b *testing.B) {
	p := newPlace(b)
	diffs := p.putN(127)
	for _, restart := range []bool{false, true} {
		b.Run(map[bool]string{false: "again", true: "after a restart"}[restart], func(b *testing.B) {
			for b.Loop() {
				if restart {
					b.StopTimer()
					p.reopen()
					b.StartTimer()
				}
				c, err := p.Chain(context.Background(), diffs)
				if err != nil {
					b.Fatal(err)
				}
				c.Release()
			}
		})
	}
}

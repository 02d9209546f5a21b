package span

import (
	"bytes"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	kgzip "github.com/klauspost/compress/gzip"
	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/internal/inflate"
)

// benchLayer returns the data of the layer to measure with: the tar that
// BENCH_LAYER names, else one of /usr/bin.
func benchLayer(b *testing.B) []byte {
	b.Helper()
	file := os.Getenv("BENCH_LAYER")
	if file == "" {
		file = filepath.Join(b.TempDir(), "layer.tar")
		if out, err := exec.Command("tar", "cf", file, "-C", "/", "usr/bin").CombinedOutput(); err != nil {
			b.Skipf("tar: %v: %s", err, out)
		}
	}
	data, err := os.ReadFile(file)
	if err != nil {
		b.Skip(err)
	}
	return data
}

// BenchmarkGzip takes turns with four ways to decompress the same blob, and
// reports the others' time as a multiple of that of the first.
//
//	go test -run - -bench Gzip -benchtime 5x ./internal/span
func BenchmarkGzip(b *testing.B) {
	data := benchLayer(b)
	for _, c := range [][]string{{"gzip", "-6"}, {"pigz", "-6"}} {
		blob := run(b, data, c[0], append(c[1:], "-c")...)
		ways := []struct {
			name string
			once func() error
			wall time.Duration
			cpu  time.Duration
		}{
			{name: "klauspost", once: func() error {
				z, err := kgzip.NewReader(bytes.NewReader(blob))
				if err != nil {
					return err
				}
				_, err = z.WriteTo(io.Discard)
				return err
			}},
			{name: "inflate", once: func() error {
				_, err := inflate.NewReader(bytes.NewReader(blob)).WriteTo(io.Discard)
				return err
			}},
			{name: "borders", once: func() error {
				z := inflate.NewReader(bytes.NewReader(blob))
				var used inflate.Used
				last := int64(0)
				z.OnBorder(func(c inflate.Checkpoint) *inflate.Used {
					if c.Out-last < defaultSpacing {
						return nil
					}
					last = c.Out
					return &used
				})
				_, err := z.WriteTo(io.Discard)
				return err
			}},
			{name: "record", once: func() error {
				r := NewReader(bytes.NewReader(blob), Options{})
				if _, err := r.WriteTo(io.Discard); err != nil {
					return err
				}
				_, err := r.Table(int64(len(blob)))
				return err
			}},
		}
		b.Run(c[0], func(b *testing.B) {
			b.SetBytes(int64(len(data)))
			for b.Loop() {
				for i := range ways {
					w := &ways[i]
					start, used := time.Now(), usage(b, unix.CLOCK_PROCESS_CPUTIME_ID)
					if err := w.once(); err != nil {
						b.Fatal(err)
					}
					w.wall += time.Since(start)
					w.cpu += usage(b, unix.CLOCK_PROCESS_CPUTIME_ID) - used
				}
			}
			for _, w := range ways[1:] {
				b.ReportMetric(w.wall.Seconds()/ways[0].wall.Seconds(), w.name+"-wall/klauspost")
				b.ReportMetric(w.cpu.Seconds()/ways[0].cpu.Seconds(), w.name+"-cpu/klauspost")
			}
		})
	}
}

// BenchmarkDecode reads 4 KiB at random places from a blob in memory, as the
// first reader of a span does: it is decoded as a whole, and what it needs before
// it. Times are CPU time.
//
//	go test -run - -bench Decode -benchtime 1000x ./internal/span
func BenchmarkDecode(b *testing.B) {
	data := benchLayer(b)
	for _, c := range [][]string{{"gzip", "-6"}, {"pigz", "-6"}} {
		blob := run(b, data, c[0], append(c[1:], "-c")...)
		table, err := read(b, blob, data, Options{})
		if err != nil {
			b.Fatal(err)
		}
		code := table.Encode()
		b.Run(c[0]+"/span", func(b *testing.B) { benchDecode(b, table, blob, data) })
		b.Run(c[0]+"/parallel", func(b *testing.B) { // with -cpu 1,2
			var next atomic.Int64
			b.SetBytes(table.DataSize() / int64(table.Spans()))
			b.RunParallel(func(pb *testing.PB) {
				dst := make([]byte, MaxSpan)
				for pb.Next() {
					i := int(next.Add(1) % int64(table.Spans()))
					s := table.At(i)
					if err := table.Decode(i, blob[s.From:s.To], data[:s.Off], dst[:s.Len]); err != nil {
						b.Error(err)
					}
				}
			})
		})
		b.Run(c[0]+"/find", func(b *testing.B) {
			for i := 0; b.Loop(); i++ {
				table.Find(int64(i) * 1_000_003 % table.DataSize())
			}
		})
		b.Run(c[0]+"/parse", func(b *testing.B) {
			for b.Loop() {
				if _, err := Parse(code); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// benchDecode decodes spans at random.
func benchDecode(b *testing.B, table *Table, blob, data []byte) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	rnd := rand.New(rand.NewPCG(5, 6))
	dst := make([]byte, MaxSpan)
	var times []time.Duration
	fetched := int64(0)
	for b.Loop() {
		i := table.Find(rnd.Int64N(table.DataSize()))
		first := i
		for table.Needs(first) < first {
			first = table.Needs(first)
		}
		start := usage(b, unix.CLOCK_THREAD_CPUTIME_ID)
		for k := first; k <= i; k++ {
			s := table.At(k)
			if err := table.Decode(k, blob[s.From:s.To], data[:s.Off], dst[:s.Len]); err != nil {
				b.Fatal(err)
			}
			fetched += s.To - s.From
		}
		times = append(times, usage(b, unix.CLOCK_THREAD_CPUTIME_ID)-start)
	}
	slices.Sort(times)
	b.ReportMetric(float64(times[len(times)/2].Microseconds())/1000, "p50-ms")
	b.ReportMetric(float64(times[len(times)*99/100].Microseconds())/1000, "p99-ms")
	b.ReportMetric(float64(fetched)/float64(len(times))/1000, "kB-fetched")
	b.ReportMetric(float64(len(table.Encode()))/float64(table.DataSize())*1000, "index-MB/GB")
}

// usage returns the processor time used so far, by a clock of unix.ClockGettime.
func usage(b *testing.B, clock int32) time.Duration {
	b.Helper()
	var t unix.Timespec
	if err := unix.ClockGettime(clock, &t); err != nil {
		b.Fatal(err)
	}
	return time.Duration(t.Nano())
}

package span

import (
	"bytes"
	"io"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"
)

// BenchmarkZstd decodes a blob with the bare decoder and with a Reader in
// turns, and reports the time of the one as a multiple of the other's; then it
// decodes spans at random. Their data is 8 MiB at most, not 1 as gzip's.
//
//	go test -run - -bench Zstd -benchtime 20x ./internal/span
func BenchmarkZstd(b *testing.B) {
	data := benchLayer(b)
	for _, c := range []struct {
		name string
		blob func() []byte
	}{
		{"zstd -1", func() []byte { return run(b, data, "zstd", "-1", "-c") }},
		{"zstd -3", func() []byte { return run(b, data, "zstd", "-3", "-c") }},
		{"zstd --long=27", func() []byte { return run(b, data, "zstd", "-3", "--long=27", "-c") }},
		{"klauspost", func() []byte { return klauspost(b, data) }}, // as podman and buildkit push
	} {
		blob := c.blob()
		b.Run(c.name+"/pass", func(b *testing.B) {
			b.SetBytes(int64(len(data)))
			var wall, cpu [2]time.Duration
			for b.Loop() {
				for i, once := range []func() error{
					func() error {
						z, err := zstd.NewReader(bytes.NewReader(blob), zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxZstdWindow))
						if err != nil {
							return err
						}
						defer z.Close()
						_, err = z.WriteTo(io.Discard)
						return err
					},
					func() error {
						_, err := NewReader(bytes.NewReader(blob), Options{}).WriteTo(io.Discard)
						return err
					},
				} {
					start, used := time.Now(), usage(b, unix.CLOCK_PROCESS_CPUTIME_ID)
					if err := once(); err != nil {
						b.Fatal(err)
					}
					wall[i] += time.Since(start)
					cpu[i] += usage(b, unix.CLOCK_PROCESS_CPUTIME_ID) - used
				}
			}
			b.ReportMetric(wall[1].Seconds()/wall[0].Seconds(), "wall/klauspost")
			b.ReportMetric(cpu[1].Seconds()/cpu[0].Seconds(), "cpu/klauspost")
		})
		table, err := read(b, blob, data, Options{})
		if err != nil {
			b.Fatal(err)
		}
		b.Run(c.name+"/span", func(b *testing.B) { benchDecode(b, table, blob, data) })
	}
}

package span

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/imgfs/imgfs/internal/fault"
)

// TestUnindexed reads what bzip2(1) and xz(1) write.
func TestUnindexed(t *testing.T) {
	t.Parallel()
	data := sample(1_500_000)
	for _, tt := range []struct {
		name string
		kind Codec
		args string
		in   []byte
	}{
		{"bzip2", Bzip2, "bzip2 -1", data},
		{"bzip2, best", Bzip2, "bzip2 -9", data},
		{"bzip2 of nothing", Bzip2, "bzip2", nil},
		{"xz", Xz, "xz", data},
		{"xz, best", Xz, "xz -9e", data},
		{"xz of nothing", Xz, "xz", nil},
		{"xz, no check", Xz, "xz --check=none", data},
		{"xz, crc32", Xz, "xz --check=crc32", data},
		{"xz, sha256", Xz, "xz --check=sha256", data},
		{"xz, blocks whose sizes are in their headers", Xz, "xz -T2 --block-size=200000", data},
		{"xz, blocks whose sizes are not", Xz, "xz -T1 --block-size=200000", data},
		{"xz, one byte", Xz, "xz", []byte("x")},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			args := strings.Fields(tt.args)
			blob := run(t, tt.in, args[0], append(args[1:], "-c")...)
			unindexed(t, tt.kind, blob, tt.in)
			// The formats allow streams to follow each other.
			unindexed(t, tt.kind, slices.Concat(blob, blob), slices.Concat(tt.in, tt.in))
			if tt.kind == Xz {
				unindexed(t, tt.kind, slices.Concat(blob, make([]byte, 8), blob, make([]byte, 4)), slices.Concat(tt.in, tt.in))
			}
		})
	}
}

func unindexed(t *testing.T, kind Codec, blob, want []byte) {
	t.Helper()
	r := NewReader(bytes.NewReader(blob), Options{})
	var got bytes.Buffer
	n, err := r.WriteTo(&got)
	if err != nil || !bytes.Equal(got.Bytes(), want) || n != int64(len(want)) {
		t.Fatalf("%d bytes (said: %d) of %d, %v", got.Len(), n, len(want), err)
	}
	if r.Kind() != kind {
		t.Errorf("taken for %s", r.Kind())
	}
	if _, err := r.Table(int64(len(blob))); !errors.Is(err, errUnindexed) {
		t.Errorf("table: %v", err)
	}
}

// TestXzDamage changes every byte of a stream, and cuts it everywhere: that is
// noticed, or changes nothing. (Package lzma does not look how long a chunk
// says it is.)
func TestXzDamage(t *testing.T) {
	t.Parallel()
	data := sample(3000)
	for _, args := range []string{"--check=crc64", "--check=sha256 --block-size=1000 -T2", "--check=crc32 --block-size=1000 -T1"} {
		blob := run(t, data, "xz", append(strings.Fields(args), "--lzma2=dict=4KiB", "-c")...)
		for at := range blob {
			bad := bytes.Clone(blob)
			bad[at] ^= 1 << (at % 8)
			if out, err := decode(bad); err == nil && at >= len(xzMagic) && !bytes.Equal(out, data) {
				t.Errorf("%s: byte %d changed: no error, and other data", args, at)
			}
			if _, err := decode(blob[:at]); err == nil && at > len(xzMagic) {
				t.Errorf("%s: cut at byte %d: no error", args, at)
			}
		}
		for _, tail := range []string{"x", "\x00", "\x00\x00\x00\x00\x00", "garbage behind it"} {
			if _, err := decode(append(bytes.Clone(blob), tail...)); err == nil {
				t.Errorf("%s: %q behind it: no error", args, tail)
			}
		}
	}
}

func decode(blob []byte) ([]byte, error) {
	var out bytes.Buffer
	_, err := NewReader(bytes.NewReader(blob), Options{}).WriteTo(&out)
	return out.Bytes(), err
}

// TestXzLimits reads streams that ask for more than they are worth.
func TestXzLimits(t *testing.T) {
	t.Parallel()
	if exec.Command("xz", "--version").Run() != nil {
		t.Skip("xz is not installed")
	}
	data := sample(2000)
	for _, tt := range []struct {
		name, why string
		blob      []byte
	}{
		{"a dictionary of 96 MiB", "larger than 64 MiB", run(t, data, "xz", "--lzma2=dict=96MiB,mode=fast,mf=hc3", "-c")},
		{"a filter for machine code", "filters", run(t, data, "xz", "--x86", "--lzma2", "-c")},
		{"many dictionaries", "too many small blocks", manyBlocks(100)},
	} {
		_, err := decode(tt.blob)
		if fault.KindOf(err) != fault.Invalid || !strings.Contains(err.Error(), tt.why) {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
	if _, err := decode(manyBlocks(10)); err == nil || strings.Contains(err.Error(), "small blocks") {
		t.Errorf("a few small blocks: %v; want that there is no index", err)
	}
}

// manyBlocks is a stream of empty blocks, each with the largest dictionary, and
// without an index.
func manyBlocks(n int) []byte {
	b := append([]byte(xzMagic), 0, 0)
	b = binary.LittleEndian.AppendUint32(b, crc32.ChecksumIEEE(b[6:]))
	block := []byte{2, 0, xzLZMA2, 1, 28 /* 64 MiB */, 0, 0, 0}
	block = binary.LittleEndian.AppendUint32(block, crc32.ChecksumIEEE(block))
	block = append(block, 0, 0, 0, 0) // the end of LZMA2, and padding
	return append(b, bytes.Repeat(block, n)...)
}

// FuzzXz looks for input that makes the container's reader panic, or say that
// it wrote what it did not.
func FuzzXz(f *testing.F) {
	if exec.Command("xz", "--version").Run() == nil {
		for _, args := range []string{"--check=none", "--check=crc32", "--check=crc64", "--check=sha256", "-T2 --block-size=100", "-T1 --block-size=100"} {
			f.Add(run(f, sample(300), "xz", append(strings.Fields(args), "-c")...))
		}
	}
	f.Add(manyBlocks(3))
	f.Fuzz(func(t *testing.T, in []byte) {
		var out bytes.Buffer
		n, err := passXz(bytes.NewReader(in), &capped{w: &out, left: 1 << 20}, &recording{})
		if err == nil && n != int64(out.Len()) {
			t.Errorf("said %d bytes, wrote %d", n, out.Len())
		}
		if err == nil && len(in) < 32 {
			t.Errorf("%d bytes are no stream", len(in))
		}
	})
}

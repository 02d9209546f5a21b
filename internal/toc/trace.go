package toc

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"

	"github.com/imgfs/imgfs/internal/id"
)

// Touch is a range of a layer's stream that was read. A trace is a list of them,
// in the order of first use, without ranges that overlap: what to fetch when the
// image is mounted the next time, here or elsewhere. As a blob it is
//
//	"imgfs trace 1\n"
//	uvarint number of layers, for each the 32 bytes of its blob's digest
//	for each touch uvarint layer, varint Off - end of the touch before in this layer, uvarint Len
type Touch struct {
	Layer    id.Blob
	Off, Len int64
}

const (
	traceMagic = "imgfs trace 1\n"
	maxTrace   = 1 << 20 // bytes
)

// EncodeTrace returns a trace as a blob. What does not fit is left out, from the end.
func EncodeTrace(trace []Touch) []byte {
	layers := map[id.Blob]int{}
	var names, touches []byte
	var ends []int64
	for _, t := range trace {
		i, ok := layers[t.Layer]
		if !ok {
			i = len(ends)
			layers[t.Layer] = i
			ends = append(ends, 0)
			names, _ = hex.AppendDecode(names, []byte(t.Layer.Hex())) // a digest: hexadecimal
		}
		if len(names)+len(touches) > maxTrace-64 {
			break
		}
		touches = binary.AppendUvarint(touches, uint64(i))
		touches = binary.AppendVarint(touches, t.Off-ends[i])
		touches = binary.AppendUvarint(touches, uint64(t.Len))
		ends[i] = t.Off + t.Len
	}
	b := binary.AppendUvarint([]byte(traceMagic), uint64(len(ends)))
	return append(append(b, names...), touches...)
}

// DecodeTrace reads what EncodeTrace returned.
func DecodeTrace(b []byte) ([]Touch, error) {
	rest, ok := bytes.CutPrefix(b, []byte(traceMagic))
	if !ok || len(b) > maxTrace {
		return nil, fmt.Errorf("%w: not a trace", ErrCorrupt)
	}
	n, k := binary.Uvarint(rest)
	if k <= 0 || n > uint64(len(rest)-k)/32 {
		return nil, errTrace
	}
	rest = rest[k:]
	layers, ends := make([]id.Blob, n), make([]int64, n)
	for i := range layers {
		layers[i], rest = id.BlobFrom([32]byte(rest)), rest[32:]
	}
	var trace []Touch
	for len(rest) > 0 {
		i, err := takeUvarint(&rest)
		if err != nil || i >= n {
			return nil, errTrace
		}
		off, err := takeVarint(&rest)
		if err != nil {
			return nil, errTrace
		}
		size, err := takeUvarint(&rest)
		if off += ends[i]; err != nil || off < 0 || off > maxData || size > maxData {
			return nil, errTrace
		}
		ends[i] = off + int64(size)
		trace = append(trace, Touch{layers[i], off, int64(size)})
	}
	return trace, nil
}

var errTrace = fmt.Errorf("%w: malformed trace", ErrCorrupt)

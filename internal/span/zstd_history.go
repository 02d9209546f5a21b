package span

import "iter"

// zstdHistory holds the last bytes of the data, in chunks of zstdChunk bytes;
// the last one may be shorter.
type zstdHistory struct {
	off    int64 // of the first chunk
	chunks [][]byte
}

// end returns how much data there was.
func (h *zstdHistory) end() int64 {
	n := len(h.chunks)
	if n == 0 {
		return h.off
	}
	return h.off + int64(n-1)*zstdChunk + int64(len(h.chunks[n-1]))
}

// add adds a chunk.
func (h *zstdHistory) add(chunk []byte) { h.chunks = append(h.chunks, chunk) }

// drop lets go of chunks that end before off, to be used again.
func (h *zstdHistory) drop(off int64, free chan<- []byte) {
	n := 0
	for n < len(h.chunks) && h.off+zstdChunk <= off {
		select {
		case free <- h.chunks[n][:0]:
		default:
		}
		h.off += zstdChunk
		n++
	}
	h.chunks = append(h.chunks[:0], h.chunks[n:]...)
}

// pieces gives n bytes from off on, which are there.
func (h *zstdHistory) pieces(off, n int64) iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		for n > 0 {
			at := off - h.off
			chunk := h.chunks[at/zstdChunk][at%zstdChunk:]
			p := chunk[:min(n, int64(len(chunk)))]
			if !yield(p) {
				return
			}
			off, n = off+int64(len(p)), n-int64(len(p))
		}
	}
}

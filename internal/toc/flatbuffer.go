package toc

import "encoding/binary"

// Flatbuffers, as far as SOCI uses them: tables, vectors, strings, integers.
//
// A table begins with the distance back to its vtable, which has its own size,
// the table's, and for each field its offset in the table, 0 for absent ones.
// Strings, vectors and tables are referred to by a distance forward. All is
// little endian; sizes and distances have four bytes, those in vtables two.

// fbReader reads a flatbuffer, and is bad for ever once it would have read
// outside of it. What is absent or bad reads as zero.
type fbReader struct {
	b   []byte
	bad bool
}

// fbTable is the position of a table; 0: there is none.
type fbTable int

func (r *fbReader) at(pos, n int) []byte {
	if pos < 0 || n < 0 || pos > len(r.b)-n {
		r.bad = true
		return nil
	}
	return r.b[pos : pos+n]
}

func (r *fbReader) u16(pos int) int {
	if b := r.at(pos, 2); b != nil {
		return int(binary.LittleEndian.Uint16(b))
	}
	return 0
}

func (r *fbReader) u32(pos int) uint32 {
	if b := r.at(pos, 4); b != nil {
		return binary.LittleEndian.Uint32(b)
	}
	return 0
}

// follow returns what the distance at pos points to, 0 where that is outside.
func (r *fbReader) follow(pos int) int {
	to := int64(pos) + int64(r.u32(pos))
	if r.bad || to == int64(pos) || to >= int64(len(r.b)) {
		r.bad = true
		return 0
	}
	return int(to)
}

func (r *fbReader) root() fbTable { return fbTable(r.follow(0)) }

// field returns the position of a table's field of size bytes, 0 if it is absent.
func (r *fbReader) field(t fbTable, i, size int) int {
	if t == 0 {
		return 0
	}
	vtable := int64(t) - int64(int32(r.u32(int(t))))
	if r.bad || vtable < 0 || vtable >= int64(len(r.b)) {
		r.bad = true
		return 0
	}
	slot := 4 + 2*i
	if slot+2 > r.u16(int(vtable)) {
		return 0
	}
	off := r.u16(int(vtable) + slot)
	if off == 0 || r.at(int(t)+off, size) == nil {
		return 0
	}
	return int(t) + off
}

func (r *fbReader) i8(t fbTable, i int, def int8) int8 {
	if pos := r.field(t, i, 1); pos != 0 {
		return int8(r.b[pos])
	}
	return def
}

func (r *fbReader) i32(t fbTable, i int) int32 {
	if pos := r.field(t, i, 4); pos != 0 {
		return int32(r.u32(pos))
	}
	return 0
}

func (r *fbReader) i64(t fbTable, i int) int64 {
	if pos := r.field(t, i, 8); pos != 0 {
		return int64(binary.LittleEndian.Uint64(r.b[pos:]))
	}
	return 0
}

func (r *fbReader) table(t fbTable, i int) fbTable {
	if pos := r.field(t, i, 4); pos != 0 {
		return fbTable(r.follow(pos))
	}
	return 0
}

// bytes returns a string or a vector of bytes.
func (r *fbReader) bytes(t fbTable, i int) []byte {
	if pos := r.field(t, i, 4); pos != 0 {
		return r.run(r.follow(pos), 1)
	}
	return nil
}

// vector returns a vector of references.
func (r *fbReader) vector(t fbTable, i int) fbVector {
	pos := r.field(t, i, 4)
	if pos == 0 {
		return fbVector{}
	}
	at := r.follow(pos)
	return fbVector{at + 4, len(r.run(at, 4)) / 4}
}

// run returns the elements of a vector at pos.
func (r *fbReader) run(pos, size int) []byte {
	n := r.u32(pos)
	if r.bad || uint64(n)*uint64(size) > uint64(len(r.b)) {
		r.bad = true
		return nil
	}
	return r.at(pos+4, int(n)*size)
}

// fbVector is a vector of n references, the first at position at.
type fbVector struct{ at, n int }

func (r *fbReader) tableOf(v fbVector, i int) fbTable { return fbTable(r.follow(v.at + 4*i)) }
func (r *fbReader) bytesOf(v fbVector, i int) []byte  { return r.run(r.follow(v.at+4*i), 1) }

// fbWriter writes a flatbuffer from its end to its beginning: what is referred
// to comes first. It places and aligns as the builder of the flatbuffers
// library does, so the same calls give the same bytes. Offsets are counted from
// the end.
type fbWriter struct {
	buf     []byte // is filled from the back
	head    int    // where the filled part begins
	align   int    // the largest needed
	slots   []uint32
	start   uint32 // of the table being written
	vtables []uint32
}

func (w *fbWriter) offset() uint32 { return uint32(len(w.buf) - w.head) }

// place makes room for n bytes, zeros, in front.
func (w *fbWriter) place(n int) []byte {
	if n > w.head {
		grown := make([]byte, 2*len(w.buf)+n)
		head := len(grown) - (len(w.buf) - w.head)
		copy(grown[head:], w.buf[w.head:])
		w.buf, w.head = grown, head
	}
	w.head -= n
	return w.buf[w.head : w.head+n]
}

// prep pads so that what is placed next is aligned to size behind more bytes.
func (w *fbWriter) prep(size, more int) {
	w.align = max(w.align, size)
	w.place(-(int(w.offset()) + more) & (size - 1))
}

func (w *fbWriter) putU16(v uint16) {
	w.prep(2, 0)
	binary.LittleEndian.PutUint16(w.place(2), v)
}

func (w *fbWriter) putU32(v uint32) {
	w.prep(4, 0)
	binary.LittleEndian.PutUint32(w.place(4), v)
}

func (w *fbWriter) putRef(to uint32) {
	w.prep(4, 0)
	w.putU32(w.offset() - to + 4)
}

// str writes a string: as bytes, with a NUL behind.
func (w *fbWriter) str(s string) uint32 {
	w.prep(4, len(s)+1)
	w.place(1)
	copy(w.place(len(s)), s)
	w.putU32(uint32(len(s)))
	return w.offset()
}

func (w *fbWriter) bytes(b []byte) uint32 {
	w.prep(4, len(b))
	copy(w.place(len(b)), b)
	w.putU32(uint32(len(b)))
	return w.offset()
}

func (w *fbWriter) vector(refs []uint32) uint32 {
	w.prep(4, 4*len(refs))
	for i := len(refs) - 1; i >= 0; i-- {
		w.putRef(refs[i])
	}
	w.putU32(uint32(len(refs)))
	return w.offset()
}

// begin begins a table of n fields. Fields that equal their default are left out.
func (w *fbWriter) begin(n int) {
	w.slots = append(w.slots[:0], make([]uint32, n)...)
	w.start = w.offset()
}

func (w *fbWriter) i8(i int, v, def int8) {
	if v != def {
		w.place(1)[0] = byte(v)
		w.slots[i] = w.offset()
	}
}

func (w *fbWriter) i32(i int, v int32) {
	if v != 0 {
		w.putU32(uint32(v))
		w.slots[i] = w.offset()
	}
}

func (w *fbWriter) i64(i int, v int64) {
	if v != 0 {
		w.prep(8, 0)
		binary.LittleEndian.PutUint64(w.place(8), uint64(v))
		w.slots[i] = w.offset()
	}
}

func (w *fbWriter) ref(i int, to uint32) {
	w.putRef(to)
	w.slots[i] = w.offset()
}

// end ends the table. Tables of one shape share a vtable.
func (w *fbWriter) end() uint32 {
	w.putU32(0)
	table := w.offset()
	slots := w.slots
	for len(slots) > 0 && slots[len(slots)-1] == 0 {
		slots = slots[:len(slots)-1]
	}
	for i, s := range slots {
		if s != 0 {
			slots[i] = table - s
		}
	}
	vtable := w.shared(slots)
	if vtable == 0 {
		for i := len(slots) - 1; i >= 0; i-- {
			w.putU16(uint16(slots[i]))
		}
		w.putU16(uint16(table - w.start))
		w.putU16(uint16(4 + 2*len(slots)))
		vtable = w.offset()
		w.vtables = append(w.vtables, vtable)
	}
	binary.LittleEndian.PutUint32(w.buf[len(w.buf)-int(table):], vtable-table)
	return table
}

// shared returns a vtable of these slots, 0 if there is none yet.
func (w *fbWriter) shared(slots []uint32) uint32 {
next:
	for i := len(w.vtables) - 1; i >= 0; i-- {
		b := w.buf[len(w.buf)-int(w.vtables[i]):]
		if int(binary.LittleEndian.Uint16(b)) != 4+2*len(slots) {
			continue
		}
		for k, s := range slots {
			if uint32(binary.LittleEndian.Uint16(b[4+2*k:])) != s {
				continue next
			}
		}
		return w.vtables[i]
	}
	return 0
}

// finish returns the buffer of which root is the root.
func (w *fbWriter) finish(root uint32) []byte {
	w.prep(w.align, 4)
	w.putRef(root)
	return w.buf[w.head:]
}

package toc

import (
	"encoding/binary"
	"math/bits"
)

// The columns of a skeleton's block. The fields of tar records are columns too:
// field i is column colField+i.
const (
	colOp    = iota // a byte for each piece: the op bits
	colPlace        // varint: where a piece is, less where it was expected
	colSize         // uvarint: bytes of a body that has not the expected size
	colBody         // bytes of the pieces that are not records
	colMask         // two bytes for each record: fields that differ from the record before
	colField
	columns = colField + len(tarFields)
)

// Op bits.
const (
	opWithin = 1 << iota // of the entry of the piece before
	opBody               // in colBody; otherwise a tar record, in fields
	opPlaced             // with a number in colPlace
	opSized              // with a number in colSize
)

// tarFields cuts a record of 512 bytes. A field is written only when it differs
// from the one of the record before, without the NULs at its end.
var tarFields = [...]struct {
	off, size int
	kind      fieldKind
}{
	{0, 100, text},     // name
	{100, 8, plain},    // mode
	{108, 8, plain},    // uid
	{116, 8, plain},    // gid
	{124, 12, number},  // size
	{136, 12, number},  // mtime
	{148, 8, checksum}, //
	{156, 1, plain},    // type
	{157, 100, text},   // link
	{257, 8, plain},    // magic, version
	{265, 32, plain},   // uname
	{297, 32, plain},   // gname
	{329, 8, plain},    // major
	{337, 8, plain},    // minor
	{345, 167, text},   // prefix, and what formats put behind
}

// fieldKind says how a field is written.
type fieldKind uint8

const (
	plain    fieldKind = iota // uvarint length, bytes
	text                      // uvarint bytes shared with the record before, then as plain
	number                    // uvarint value + 1 of 11 octal digits; or 0, then as plain
	checksum                  // a byte, the sumForm; sumOther then as plain
)

// fields is a record, kept to compare the next one with.
type fields struct {
	record [blockSize]byte
	form   sumForm // of its checksum
}

func newFields() fields { return fields{form: sumOther} } // of zeros

// append writes record r, and keeps it.
func (f *fields) append(cols *[columns][]byte, r *[blockSize]byte) {
	var mask uint16
	form := sumFormOf(r)
	for i, t := range tarFields {
		now, before := r[t.off:t.off+t.size], f.record[t.off:t.off+t.size]
		col := &cols[colField+i]
		if t.kind == checksum {
			if form == f.form && form != sumOther {
				continue
			}
			*col = append(*col, byte(form))
			if form != sumOther {
				mask |= 1 << i
				continue
			}
		} else if string(now) == string(before) {
			continue
		}
		mask |= 1 << i
		if t.kind == number {
			v, ok := octal(now)
			if ok {
				*col = binary.AppendUvarint(*col, uint64(v)+1)
				continue
			}
			*col = append(*col, 0)
		}
		for len(now) > 0 && now[len(now)-1] == 0 {
			now = now[:len(now)-1]
		}
		if t.kind == text {
			n := 0
			for n < len(now) && now[n] == before[n] {
				n++
			}
			*col = binary.AppendUvarint(*col, uint64(n))
			now = now[n:]
		}
		*col = binary.AppendUvarint(*col, uint64(len(now)))
		*col = append(*col, now...)
	}
	cols[colMask] = append(cols[colMask], byte(mask), byte(mask>>8))
	f.record, f.form = *r, form
}

// take reads the next record over the one before.
func (f *fields) take(cols *[columns][]byte) error {
	m := cols[colMask]
	if len(m) < 2 {
		return errSkeleton
	}
	mask := uint16(m[0]) | uint16(m[1])<<8
	cols[colMask] = m[2:]
	for ; mask != 0; mask &= mask - 1 {
		i := bits.TrailingZeros16(mask)
		if i >= len(tarFields) {
			return errSkeleton
		}
		t := tarFields[i]
		field, col := f.record[t.off:t.off+t.size], &cols[colField+i]
		shared := 0
		switch t.kind {
		case checksum:
			if len(*col) == 0 {
				return errSkeleton
			}
			f.form, *col = sumForm((*col)[0]), (*col)[1:]
			if f.form < sumOther {
				continue
			}
		case number:
			v, err := takeUvarint(col)
			if err != nil || v > 1<<33 {
				return errSkeleton
			}
			if v > 0 {
				putOctal(field[:11], v-1)
				field[11] = 0
				continue
			}
		case text:
			v, err := takeUvarint(col)
			if err != nil || v > uint64(t.size) {
				return errSkeleton
			}
			shared = int(v)
		}
		n, err := takeUvarint(col)
		if err != nil || n > uint64(t.size-shared) || n > uint64(len(*col)) {
			return errSkeleton
		}
		k := copy(field[shared:], (*col)[:n])
		clear(field[shared+k:])
		*col = (*col)[n:]
	}
	if f.form < sumOther {
		f.form.put(&f.record)
	}
	return nil
}

// sumForm is how a checksum is written.
type sumForm byte

const (
	sumSix   sumForm = iota // six digits, NUL, space
	sumSeven                // seven digits, NUL
	sumOther                // neither, or wrong: written as it is
)

// sumFormOf says which form the checksum of r has.
func sumFormOf(r *[blockSize]byte) sumForm {
	want := *(*[8]byte)(r[148:156])
	form := sumSix
	if want[7] == 0 {
		form = sumSeven
	}
	if form.of(r) == want {
		return form
	}
	return sumOther
}

// put writes the checksum of r.
func (form sumForm) put(r *[blockSize]byte) {
	field := form.of(r)
	copy(r[148:156], field[:])
}

// of returns the checksum of r. The form is not sumOther.
func (form sumForm) of(r *[blockSize]byte) (field [8]byte) {
	const lanes = 0x00ff00ff00ff00ff
	var acc uint64 // four 16-bit lanes: 64 words * 2 * 255 < 1<<16
	for i := 0; i < blockSize; i += 8 {
		w := binary.LittleEndian.Uint64(r[i:])
		acc += w&lanes + w>>8&lanes
	}
	sum := acc&0xffff + acc>>16&0xffff + acc>>32&0xffff + acc>>48 + 8*' '
	for _, c := range r[148:156] {
		sum -= uint64(c)
	}
	if form == sumSix {
		putOctal(field[:6], sum)
		field[7] = ' '
	} else {
		putOctal(field[:7], sum)
	}
	return field
}

// putOctal fills b with the digits of v.
func putOctal(b []byte, v uint64) {
	for i := len(b) - 1; i >= 0; i-- {
		b[i] = '0' + byte(v&7)
		v >>= 3
	}
}

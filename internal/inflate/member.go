package inflate

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
)

// Flags of a member's header. RFC 1952, section 2.3.1.
const (
	flagHeaderCRC = 1 << 1
	flagExtra     = 1 << 2
	flagName      = 1 << 3
	flagComment   = 1 << 4
)

// header reads a member's header, or returns io.EOF where none follows.
func (z *Reader) header() error {
	if err := z.more(); err != nil {
		return err
	}
	if in := z.in[z.pos:z.end]; z.begun && (len(in) < 2 || in[0] != 0x1f || in[1] != 0x8b) {
		return io.EOF
	}
	b, err := z.take(10)
	if err != nil {
		return err
	}
	flags := b[3]
	if b[0] != 0x1f || b[1] != 0x8b || b[2] != 8 {
		return fmt.Errorf("%w: no gzip header", ErrCorrupt)
	}
	z.begun = true
	crc := crc32.ChecksumIEEE(b)
	if flags&flagExtra != 0 {
		if b, err = z.take(2); err != nil {
			return err
		}
		crc = crc32.Update(crc, crc32.IEEETable, b)
		for n := int(binary.LittleEndian.Uint16(b)); n > 0; n -= len(b) {
			if b, err = z.take(min(n, 16)); err != nil {
				return err
			}
			crc = crc32.Update(crc, crc32.IEEETable, b)
		}
	}
	for _, f := range []byte{flagName, flagComment} {
		for flags&f != 0 {
			if b, err = z.take(1); err != nil {
				return err
			}
			crc = crc32.Update(crc, crc32.IEEETable, b)
			if b[0] == 0 {
				break
			}
		}
	}
	if flags&flagHeaderCRC != 0 {
		if b, err = z.take(2); err != nil {
			return err
		}
		if binary.LittleEndian.Uint16(b) != uint16(crc) {
			return fmt.Errorf("%w: header checksum", ErrCorrupt)
		}
	}
	return nil
}

// trailer checks a member's CRC-32 and size.
func (z *Reader) trailer() error {
	b, err := z.take(8)
	if err != nil {
		return err
	}
	if !z.whole {
		return nil
	}
	if binary.LittleEndian.Uint32(b) != z.crc {
		return fmt.Errorf("%w: checksum", ErrCorrupt)
	}
	if binary.LittleEndian.Uint32(b[4:]) != z.size {
		return fmt.Errorf("%w: size", ErrCorrupt)
	}
	return nil
}

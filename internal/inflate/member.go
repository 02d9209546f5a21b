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
	flagReserved  = 0xe0
)

// header reads a member's header, or returns io.EOF behind the last member.
func (z *Reader) header() error {
	if err := z.more(); err != nil {
		return err
	}
	first := !z.begun
	if z.eof && z.pos == z.end && !first {
		return io.EOF
	}
	b, err := z.take(min(10, max(1, z.end-z.pos)))
	if err != nil {
		return err
	}
	if b[0] == 0 && !first {
		return z.padding(b)
	}
	if len(b) < 10 {
		return fmt.Errorf("gzip: %w", io.ErrUnexpectedEOF)
	}
	flags := b[3]
	if b[0] != 0x1f || b[1] != 0x8b || b[2] != 8 || flags&flagReserved != 0 {
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

// padding accepts zeros up to the end of the input, of which b is the first part.
func (z *Reader) padding(b []byte) error {
	for {
		for _, c := range b {
			if c != 0 {
				return fmt.Errorf("%w: garbage behind the last member", ErrCorrupt)
			}
		}
		if err := z.more(); err != nil {
			return err
		}
		if z.pos == z.end {
			return io.EOF
		}
		b = z.in[z.pos:z.end]
		z.pos = z.end
	}
}

// trailer checks a member's CRC-32 and size.
func (z *Reader) trailer() error {
	b, err := z.take(8)
	if err != nil {
		return err
	}
	if binary.LittleEndian.Uint32(b) != z.crc {
		return fmt.Errorf("%w: checksum", ErrCorrupt)
	}
	if binary.LittleEndian.Uint32(b[4:]) != z.size {
		return fmt.Errorf("%w: size", ErrCorrupt)
	}
	return nil
}

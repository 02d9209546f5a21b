package span

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"hash/crc64"
	"io"

	"github.com/ulikunitz/xz/lzma"

	"github.com/imgfs/imgfs/internal/fault"
)

// The container is read here and not by package xz: that makes a dictionary of
// as much as a header says, up to 4 GiB, and keeps a record of every block.

const (
	xzMagic  = "\xfd7zXZ\x00"
	xzFooter = "YZ"
	// maxXzDict is the largest dictionary accepted, that of xz -9.
	maxXzDict = 64 << 20
	// Dictionaries are cleared memory: small input must not ask for many.
	xzDicts      = 1 << 30 // bytes of them that any stream may ask for in all
	xzDictsWorth = 64      // and for each byte of data
	// xzLZMA2 is the ID of the only filter that archives are made with.
	xzLZMA2 = 0x21
)

// errXz is in the chain of every error about a stream that is damaged.
var errXz = errors.New("damaged stream")

func xzBad(what string) error { return fmt.Errorf("%w: %s", errXz, what) }

// passXz decodes src, every stream of it, to w.
func passXz(src io.Reader, w io.Writer, rec *recording) (int64, error) {
	rec.giveUp(errUnindexed)
	x := &xzPass{src: bufio.NewReader(src), w: w}
	err := x.streams()
	return x.out, err
}

// xzPass reads what is behind src in the order of the format's specification
// (tukaani.org/xz/xz-file-format.txt).
type xzPass struct {
	src   *bufio.Reader
	w     io.Writer
	at    int64 // bytes read
	out   int64 // bytes written
	dicts int64 // bytes of dictionaries made
}

// Read counts what is read.
func (x *xzPass) Read(p []byte) (int, error) {
	n, err := x.src.Read(p)
	x.at += int64(n)
	return n, err
}

// take returns the next n bytes.
func (x *xzPass) take(n int) ([]byte, error) {
	b := make([]byte, n)
	_, err := io.ReadFull(x, b)
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return b, err
}

// ReadByte is what binary.ReadUvarint reads with.
func (x *xzPass) ReadByte() (byte, error) {
	b, err := x.take(1)
	return b[0], err
}

// streams decodes all streams, between and behind which there may be padding.
func (x *xzPass) streams() error {
	for {
		if err := x.stream(); err != nil {
			return err
		}
		for {
			next, err := x.src.Peek(4)
			if len(next) == 0 && err == io.EOF {
				return nil
			}
			if !bytes.Equal(next, zeros4) {
				break
			}
			if _, err := x.take(4); err != nil {
				return err
			}
		}
	}
}

var zeros4 = make([]byte, 4)

// stream decodes one stream: header, blocks, index, footer.
func (x *xzPass) stream() error {
	head, err := x.take(12)
	if err != nil {
		return err
	}
	flags := head[6:8]
	switch {
	case string(head[:6]) != xzMagic || flags[0] != 0 || flags[1] > 15:
		return xzBad("header")
	case crc32.ChecksumIEEE(flags) != binary.LittleEndian.Uint32(head[8:]):
		return xzBad("header's checksum")
	}
	var check func() hash.Hash
	switch flags[1] {
	case 0:
	case 1:
		check = func() hash.Hash { return crc32.NewIEEE() }
	case 4:
		check = func() hash.Hash { return crc64.New(crc64ECMA) }
	case 10:
		check = sha256.New
	default:
		return fault.New(fault.Invalid, "its check of type %d is not supported", flags[1])
	}
	blocks, count := sha256.New(), uint64(0) // what the index must say
	for {
		start := x.at
		size, err := x.ReadByte()
		if err != nil {
			return err
		}
		if size == 0 {
			break
		}
		from := x.out
		unpadded, err := x.block(size, check)
		if err != nil {
			return err
		}
		noteBlock(blocks, uint64(unpadded-start), uint64(x.out-from))
		count++
	}
	size, err := x.index(blocks.Sum(nil), count)
	if err != nil {
		return err
	}
	foot, err := x.take(12)
	switch {
	case err != nil:
		return err
	case string(foot[10:]) != xzFooter || !bytes.Equal(foot[8:10], flags) || crc32.ChecksumIEEE(foot[4:10]) != binary.LittleEndian.Uint32(foot):
		return xzBad("footer")
	case (int64(binary.LittleEndian.Uint32(foot[4:]))+1)*4 != size:
		return xzBad("size of its index")
	}
	return nil
}

var crc64ECMA = crc64.MakeTable(crc64.ECMA)

// noteBlock is how a block's sizes are remembered: they need not be.
func noteBlock(h hash.Hash, unpadded, data uint64) {
	var b [16]byte
	binary.LittleEndian.PutUint64(b[:], unpadded)
	binary.LittleEndian.PutUint64(b[8:], data)
	h.Write(b[:])
}

// block decodes a block, whose header's first byte is size. It returns where
// the block ends, padding apart: the check belongs to it, and lies behind that.
func (x *xzPass) block(size byte, check func() hash.Hash) (unpadded int64, err error) {
	rest, err := x.take(int(size)*4 + 3) // the first byte counts
	if err != nil {
		return 0, err
	}
	dict, data, packed, err := parseXzBlock(append([]byte{size}, rest...))
	if err != nil {
		return 0, err
	}
	if data >= 0 {
		dict = min(dict, max(data, lzma.MinDictCap))
	}
	if x.dicts += dict; x.dicts > xzDicts+xzDictsWorth*x.out {
		return 0, fault.New(fault.Invalid, "it has too many small blocks")
	}
	from, start := x.at, x.out
	z, err := lzma.Reader2Config{DictCap: int(dict)}.NewReader2(struct{ io.Reader }{x})
	if err != nil {
		return 0, fmt.Errorf("%w: %w", errXz, err)
	}
	var sum hash.Hash
	to := x.w
	if check != nil {
		sum = check()
		to = io.MultiWriter(x.w, sum)
	}
	n, err := io.Copy(to, z)
	x.out += n
	if err != nil {
		return 0, err
	}
	if data >= 0 && x.out-start != data || packed >= 0 && x.at-from != packed {
		return 0, xzBad("a block has another size than its header says")
	}
	end := x.at
	pad, err := x.take(int(-(x.at - from) & 3))
	if err != nil {
		return 0, err
	}
	if !bytes.Equal(pad, zeros4[:len(pad)]) {
		return 0, xzBad("padding of a block")
	}
	if sum == nil {
		return end, nil
	}
	want, err := x.take(sum.Size())
	if err != nil {
		return 0, err
	}
	got := sum.Sum(nil)
	if sum.Size() < sha256.Size { // CRCs are stored the other way around
		for i, j := 0, len(got)-1; i < j; i, j = i+1, j-1 {
			got[i], got[j] = got[j], got[i]
		}
	}
	if !bytes.Equal(got, want) {
		return 0, xzBad("checksum of a block")
	}
	return end + int64(sum.Size()), nil
}

// parseXzBlock parses a block's header, all of it: how large its dictionary is,
// and how many bytes of data it gives out of how many; -1 if it does not say.
func parseXzBlock(b []byte) (dict, data, packed int64, err error) {
	body, sum := b[:len(b)-4], b[len(b)-4:]
	if crc32.ChecksumIEEE(body) != binary.LittleEndian.Uint32(sum) {
		return 0, 0, 0, xzBad("checksum of a block's header")
	}
	flags, r := body[1], bytes.NewReader(body[2:])
	number := func(there bool) int64 {
		if !there || err != nil {
			return -1
		}
		var n uint64
		if n, err = binary.ReadUvarint(r); err != nil || n > maxOffset {
			err = xzBad("number in a block's header")
		}
		return int64(n)
	}
	packed, data = number(flags&0x40 != 0), number(flags&0x80 != 0)
	filter, props := number(true), number(true)
	switch {
	case err != nil:
		return 0, 0, 0, err
	case flags&3 != 0 || filter != xzLZMA2:
		return 0, 0, 0, fault.New(fault.Invalid, "its filters are not supported (LZMA2 alone is)")
	case flags&0x3c != 0 || props != 1:
		return 0, 0, 0, xzBad("block's header")
	}
	code, err := r.ReadByte()
	if err != nil {
		return 0, 0, 0, xzBad("block's header")
	}
	if dict, err = lzma.DecodeDictCap(code); err != nil {
		return 0, 0, 0, fmt.Errorf("%w: %w", errXz, err)
	}
	if dict > maxXzDict {
		return 0, 0, 0, fault.New(fault.Invalid, "its dictionary of %d bytes is larger than %d MiB", dict, maxXzDict>>20)
	}
	for r.Len() > 0 {
		if pad, _ := r.ReadByte(); pad != 0 {
			return 0, 0, 0, xzBad("padding of a block's header")
		}
	}
	return max(dict, lzma.MinDictCap), data, packed, nil
}

// index reads the index, whose first byte is read already, and returns its size.
// It must have count blocks, of which blocks is the digest.
func (x *xzPass) index(blocks []byte, count uint64) (size int64, err error) {
	start := x.at - 1
	sum := crc32.NewIEEE()
	sum.Write([]byte{0})
	r := &summed{x: x, sum: sum}
	n, err := binary.ReadUvarint(r)
	if err != nil {
		return 0, err
	}
	if n != count {
		return 0, xzBad("number of blocks in its index")
	}
	said := sha256.New()
	for range n {
		unpadded, err := binary.ReadUvarint(r)
		if err != nil {
			return 0, err
		}
		data, err := binary.ReadUvarint(r)
		if err != nil {
			return 0, err
		}
		noteBlock(said, unpadded, data)
	}
	if !bytes.Equal(said.Sum(nil), blocks) {
		return 0, xzBad("index")
	}
	for (x.at-start)%4 != 0 {
		if pad, err := r.ReadByte(); err != nil {
			return 0, err
		} else if pad != 0 {
			return 0, xzBad("padding of its index")
		}
	}
	want, err := x.take(4)
	if err != nil {
		return 0, err
	}
	if binary.LittleEndian.Uint32(want) != sum.Sum32() {
		return 0, xzBad("checksum of its index")
	}
	return x.at - start, nil
}

// summed reads bytes and sums them.
type summed struct {
	x   *xzPass
	sum hash.Hash
}

func (s *summed) ReadByte() (byte, error) {
	b, err := s.x.ReadByte()
	if err == nil {
		s.sum.Write([]byte{b})
	}
	return b, err
}

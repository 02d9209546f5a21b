package daemon

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"path"
	"strings"

	"github.com/imgfs/imgfs/internal/toc"
)

// program is what the dynamic linker will want of an ELF file, and for it.
type program struct {
	interp  string      // path of the linker, "" of a library
	needed  []string    // names of libraries, or paths
	runpath []string    // absolute directories to look for them first
	parts   []toc.Range // of the file: what is read before the program's own code is
}

const (
	elfHead    = 64       // bytes of an ELF header, 64 bits
	elfSegment = 56       // bytes of a program header
	maxSegment = 64       // of a file
	maxDynamic = 32 << 10 // bytes of a dynamic section
	maxNeeded  = 128      // of a file
	maxName    = 4096     // bytes of a path, 0 included
	smallFile  = 2 << 20  // bytes: such a one is wanted whole
	segmentTop = 1 << 20  // bytes of each segment of another that are wanted
)

// errNoProgram says that a file is no ELF of this machine's width and order, or
// that it is damaged.
var errNoProgram = errors.New("no program")

// elfMagic begins an ELF file of 64 bits, least byte first.
var elfMagic = []byte("\x7fELF\x02\x01")

// segment is a program header.
type segment struct {
	kind, off, addr, size uint64
}

// Types of segments, and tags of the dynamic section.
const (
	segLoad    = 1
	segDynamic = 2
	segInterp  = 3

	dynNeeded  = 1
	dynStrings = 5
	dynRpath   = 15
	dynRunpath = 29
)

// readProgram reads an ELF file of size bytes. Nothing in it is believed: it
// may be anything.
func readProgram(r io.ReaderAt, size int64) (*program, error) {
	head, err := readPart(r, 0, elfHead, size)
	if err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	at, width, n := le.Uint64(head[32:]), int(le.Uint16(head[54:])), int(le.Uint16(head[56:]))
	if !bytes.HasPrefix(head, elfMagic) || width != elfSegment || n > maxSegment {
		return nil, errNoProgram
	}
	table, err := readPart(r, at, uint64(n*elfSegment), size)
	if err != nil {
		return nil, err
	}
	p := &program{}
	var loads []segment
	var dynamic segment
	for ; len(table) > 0; table = table[elfSegment:] {
		s := segment{uint64(le.Uint32(table)), le.Uint64(table[8:]), le.Uint64(table[16:]), le.Uint64(table[32:])}
		if s.off > uint64(size) || s.size > uint64(size)-s.off {
			return nil, errNoProgram
		}
		switch s.kind {
		case segLoad:
			loads = append(loads, s)
			p.parts = append(p.parts, toc.Range{Off: int64(s.off), Len: int64(min(s.size, segmentTop))})
		case segDynamic:
			dynamic = s
		case segInterp:
			if p.interp, err = readString(r, s.off, size); err != nil {
				return nil, err
			}
		}
	}
	if size <= smallFile {
		p.parts = []toc.Range{{Len: size}}
	}
	return p, p.readDynamic(r, size, dynamic, loads)
}

// readDynamic reads what is linked to.
func (p *program) readDynamic(r io.ReaderAt, size int64, dynamic segment, loads []segment) error {
	b, err := readPart(r, dynamic.off, min(dynamic.size, maxDynamic), size)
	if err != nil {
		return err
	}
	le := binary.LittleEndian
	var names []uint64 // offsets among the strings, of what is needed
	var paths []uint64
	strings := uint64(0)
	for ; len(b) >= 16; b = b[16:] {
		switch tag, v := le.Uint64(b), le.Uint64(b[8:]); tag {
		case dynNeeded:
			if len(names) < maxNeeded {
				names = append(names, v)
			}
		case dynStrings:
			strings = v
		case dynRpath, dynRunpath:
			paths = append(paths, v)
		}
	}
	for _, s := range loads {
		if strings < s.addr || strings-s.addr >= s.size {
			continue
		}
		from := s.off + (strings - s.addr)
		for _, off := range names {
			name, err := readString(r, from+off, size)
			if err != nil {
				return err
			}
			p.needed = append(p.needed, name)
		}
		for _, off := range paths[:min(len(paths), 2)] {
			list, err := readString(r, from+off, size)
			if err != nil {
				return err
			}
			p.addRunpath(list)
		}
		break
	}
	return nil
}

func (p *program) addRunpath(list string) {
	for dir := range strings.SplitSeq(list, ":") {
		if path.IsAbs(dir) && len(p.runpath) < 16 {
			p.runpath = append(p.runpath, dir)
		}
	}
}

// readPart reads n bytes at off of a file of size bytes.
func readPart(r io.ReaderAt, off, n uint64, size int64) ([]byte, error) {
	if off > uint64(size) || n > uint64(size)-off {
		return nil, errNoProgram
	}
	b := make([]byte, n)
	if _, err := r.ReadAt(b, int64(off)); err != nil && err != io.EOF {
		return nil, err
	}
	return b, nil
}

// readString reads the string at off.
func readString(r io.ReaderAt, off uint64, size int64) (string, error) {
	if off >= uint64(size) {
		return "", errNoProgram
	}
	b, err := readPart(r, off, min(maxName, uint64(size)-off), size)
	if err != nil {
		return "", err
	}
	s, _, ok := bytes.Cut(b, []byte{0})
	if !ok {
		return "", errNoProgram
	}
	return string(s), nil
}

package daemon

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"github.com/imgfs/imgfs/internal/imgtest"
)

// TestReadProgram reads this machine's own programs and libraries; debug/elf is
// the oracle.
func TestReadProgram(t *testing.T) {
	t.Parallel()
	var files []string
	for _, name := range []string{"sh", "tar", "python3", "podman"} {
		if at, err := exec.LookPath(name); err == nil {
			files = append(files, at)
		}
	}
	libs, err := filepath.Glob("/usr/lib/*-linux-gnu/lib[cmsz]*.so.*")
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for _, name := range append(files, libs...) {
		b, err := os.ReadFile(name)
		if err != nil || !bytes.HasPrefix(b, elfMagic) {
			continue
		}
		seen++
		p, err := readProgram(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		want, err := elf.NewFile(bytes.NewReader(b))
		if err != nil {
			t.Fatal(err)
		}
		needed, err := want.ImportedLibraries()
		if err != nil || !slices.Equal(p.needed, needed) {
			t.Errorf("%s: needs %v, want %v %v", name, p.needed, needed, err)
		}
		for _, s := range want.Progs {
			if s.Type == elf.PT_INTERP {
				text := make([]byte, s.Filesz)
				if _, err := s.ReadAt(text, 0); err != nil || p.interp+"\x00" != string(text) {
					t.Errorf("%s: interpreter %q, want %q", name, p.interp, text)
				}
			}
		}
		if len(b) <= smallFile && (len(p.parts) != 1 || p.parts[0].Len != int64(len(b))) {
			t.Errorf("%s, of %d bytes: parts %v", name, len(b), p.parts)
		}
	}
	imgtest.Need(t, seen > 0, "ELF files of 64 bits")
}

// FuzzReadProgram gives any bytes for an ELF file: what it wants is within it.
func FuzzReadProgram(f *testing.F) {
	head := make([]byte, 400)
	copy(head, elfMagic)
	le := binary.LittleEndian
	le.PutUint64(head[32:], elfHead)
	le.PutUint16(head[54:], elfSegment)
	le.PutUint16(head[56:], 3)
	for i, s := range []segment{{segLoad, 0, 0x1000, 400}, {segInterp, 380, 0, 8}, {segDynamic, 300, 0, 64}} {
		at := head[elfHead+i*elfSegment:]
		le.PutUint32(at, uint32(s.kind))
		le.PutUint64(at[8:], s.off)
		le.PutUint64(at[16:], s.addr)
		le.PutUint64(at[32:], s.size)
	}
	for i, v := range []uint64{dynStrings, 0x1000 + 380, dynNeeded, 1, dynRunpath, 0} {
		le.PutUint64(head[300+8*i:], v)
	}
	copy(head[380:], "/lib/ld\x00")
	f.Add(head)
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := readProgram(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			return
		}
		for _, r := range p.parts {
			if r.Off < 0 || r.Len < 0 || r.Off+r.Len > int64(len(b)) {
				t.Errorf("part %+v of %d bytes", r, len(b))
			}
		}
		for _, s := range append(append(p.needed, p.runpath...), p.interp) {
			if len(s) >= maxName {
				t.Errorf("a name of %d bytes", len(s))
			}
		}
	})
}

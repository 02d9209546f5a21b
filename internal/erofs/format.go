// Package erofs writes and reads imgfs' index format: EROFS metadata images in
// the "tar index" form, which the Linux kernel mounts as they are.
//
// Terms. An image holds the inodes and directories of one tree; regular file
// data lies outside, in devices (a layer's data file each), and is named by
// chunk references. A block is 512 bytes, a tar record, so payloads of a tar
// need no copy to be block-aligned. A NID is an inode's byte offset / 32.
//
// Layout of an image:
//
//	0     boot area, which EROFS leaves to others: our mark and flags (bootMark)
//	1024  superblock (128 bytes)
//	1152  device table (128 bytes a device), zeros up to a block border
//	...   metadata: the root's inode first, then inodes in tree order; an inode
//	      is 64 bytes, its inline xattrs, then chunk indexes (8 bytes each),
//	      or a symlink's target, or the tail of a directory
//	...   blocks of what does not fit behind its inode: directories, long targets
//
// Invariants. Inodes are of the extended form and do not cross a block. An
// inline tail does not cross a block. Directory entries are sorted by bytes,
// "." and ".." among them. Regular files of a size above 0 are chunk-based.
// The bytes of an image are a function of the tree, its devices and its label.
//
// An Image is immutable and safe for concurrent use; there are no locks. Image
// bytes are foreign: every access is checked, and what breaks the format is
// ErrCorrupt, never a panic and never unbounded work. A Builder is for one
// goroutine.
//
// The kernel's erofs_fs.h is the reference for the numbers below.
package erofs

import (
	"encoding/binary"
	"hash/crc32"
	"strings"
)

const (
	blockBits = 9

	superOffset = 1024
	superSize   = 128
	superMagic  = 0xE0F5E1E2
	deviceTable = superOffset + superSize // the first slot
	deviceSize  = 128
	maxTag      = 64
	maxLabel    = 16

	featureChecksum    = 0x1 // compatible
	featureMtime       = 0x2 // compatible: the inodes' times are mtimes
	featureChunked     = 0x4 // incompatible
	featureDeviceTable = 0x8 // incompatible

	inodeSize = 64
	slotBits  = 5 // a NID counts 32-byte slots
	slotSize  = 1 << slotBits

	formatExtended = 1 // i_format bit 0
	layoutPlain    = 0 // i_format bits 1-3: data in blocks of the image
	layoutInline   = 2 // the same, the last partial block behind the inode
	layoutChunks   = 4 // chunk indexes behind the inode

	chunkBitsMask  = 0x1f
	chunkIndexes   = 0x20 // 8-byte chunk indexes, not 4-byte block numbers
	chunkIndexSize = 8

	direntSize = 12
	maxName    = 255
	maxTarget  = 4095

	xattrHeader   = 12 // of the inline xattrs: filter 4 + shared count 1 + reserved 7
	xattrEntry    = 4  // name length 1 + name index 1 + value size 2
	maxXattrValue = 1<<16 - 1
	maxXattrArea  = xattrHeader + 4*(1<<16-2) // i_xattr_icount is 16 bits
)

// Superblock fields, as offsets from superOffset.
const (
	sbMagic       = 0
	sbChecksum    = 4
	sbCompat      = 8
	sbBlockBits   = 12
	sbExtSlots    = 13
	sbRoot        = 14 // 16 bits
	sbInodes      = 16 // 64 bits
	sbBlocks      = 36
	sbMetaBlock   = 40
	sbUUID        = 48
	sbLabel       = 64
	sbIncompat    = 80
	sbDevices     = 86 // 16 bits
	sbDeviceSlot  = 88 // 16 bits: offset of the device table / 128
	sbDirBits     = 90 // 8 bits
	sbPrefixCount = 91 // 8 bits
)

// Inode fields.
const (
	inFormat = 0  // 16 bits
	inXattrs = 2  // 16 bits: (size of the inline xattrs - 12) / 4 + 1, 0 none
	inMode   = 4  // 16 bits
	inSize   = 8  // 64 bits
	inUnion  = 16 // first block, rdev or chunk format
	inSerial = 20 // i_ino: 1 + place in the image, for 32-bit stat only
	inUID    = 24
	inGID    = 28
	inMtime  = 32 // 64 bits
	inNsec   = 40
	inNlink  = 44
)

// The boot area's beginning: mark 8, flags 4, crc32c of those 12 bytes 4. What
// lies here upsets neither the kernel nor fsck.erofs. An image without it is
// taken to have every flag set.
const (
	bootMark   = "imgfs\x00\x00\x01"
	bootFlags  = 8
	bootCRC    = 12
	bootSize   = 16
	flagXattrs = 0x1 // some inode has an xattr that is no marker
)

// MarkerPrefix begins the names of the attributes that imgfs itself puts into
// layer indexes. HasXattrs does not count them.
const MarkerPrefix = "trusted.imgfs."

// EROFS_FT_* is file type 1 + index; the values are DT_* of readdir(3).
const direntTypes = "\x08\x04\x02\x06\x01\x0c\x0a"

// Types of st_mode.
const (
	modeType    = 0o170000
	modeFIFO    = 0o010000
	modeChar    = 0o020000
	modeDir     = 0o040000
	modeBlock   = 0o060000
	modeRegular = 0o100000
	modeSymlink = 0o120000
	modeSocket  = 0o140000
)

// fileType returns the EROFS_FT_* of a mode, 0 for none.
func fileType(mode uint32) uint8 {
	switch mode & modeType {
	case modeRegular:
		return 1
	case modeDir:
		return 2
	case modeChar:
		return 3
	case modeBlock:
		return 4
	case modeFIFO:
		return 5
	case modeSocket:
		return 6
	case modeSymlink:
		return 7
	}
	return 0
}

// xattrPrefixes are the name prefixes that EROFS can express, with the index
// that stands for each. whole means that the prefix is the name.
var xattrPrefixes = [...]struct {
	prefix string
	index  uint8
	whole  bool
}{
	{"user.", 1, false},
	{"system.posix_acl_access", 2, true},
	{"system.posix_acl_default", 3, true},
	{"trusted.", 4, false},
	{"security.", 6, false},
}

// splitXattr returns the prefix index and the rest of an attribute's name, and
// whether EROFS can express it.
func splitXattr(name string) (index uint8, rest string, ok bool) {
	for i := range xattrPrefixes {
		p := &xattrPrefixes[i]
		if rest, found := strings.CutPrefix(name, p.prefix); found && (rest == "") == p.whole {
			return p.index, rest, true
		}
	}
	return 0, "", false
}

// superChecksum returns the checksum of the superblock's block, whose checksum
// field must be zero. The kernel's crc32c is not inverted at the end.
func superChecksum(block []byte) uint32 {
	return ^crc32.Checksum(block, crc32.MakeTable(crc32.Castagnoli))
}

func bootChecksum(boot []byte) uint32 {
	return crc32.Checksum(boot[:bootCRC], crc32.MakeTable(crc32.Castagnoli))
}

func alignUp(n, to uint64) uint64 { return (n + to - 1) &^ (to - 1) }

var le = binary.LittleEndian

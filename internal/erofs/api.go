package erofs

import "errors"

// BlockSize is the only block size written and read: a tar record.
const BlockSize = 512

// NID is an inode's place in the image: byte offset / 32. 0 and 1 are never inodes.
type NID uint64

// Device is one device of the image: a layer's data file.
type Device struct {
	Tag    string // at most 64 bytes; the layer's hexadecimal diffID
	Blocks uint32 // size in blocks, rounded up
}

// Attr is what stat(2) tells of an inode.
type Attr struct {
	Mode      uint32 // st_mode: type and permission bits
	UID, GID  uint32
	Nlink     uint32
	Rdev      uint32 // new_encode_dev form (what FUSE and EROFS both use); 0 unless a device
	Size      uint64 // bytes; of a directory, of its dirents
	Blocks    uint64 // 512-byte units that hold data (holes excluded)
	Mtime     int64  // seconds since 1970, may be negative
	MtimeNsec uint32
	Xattrs    bool // the inode has extended attributes
}

// Dirent is one directory entry. Name aliases the image and dies with it.
type Dirent struct {
	Name []byte
	NID  NID
	Type uint8  // DT_* of readdir(3)
	Next uint64 // cookie to resume after this entry
}

// Extent is a run of file data: Len bytes at Off of device Device (index into
// Image.Devices, from 0). A hole has Hole set and no place: Device and Off 0.
type Extent struct {
	Device int
	Off    uint64
	Len    uint64
	Hole   bool
}

// Xattr is one extended attribute; Name is complete ("user.x", "security.capability").
type Xattr struct {
	Name  string
	Value []byte
}

// Chunk places one chunk of a regular file. Block == HoleBlock is a hole.
type Chunk struct {
	Device int    // index into the builder's devices
	Block  uint32 // first block on the device
}

// HoleBlock as Chunk.Block means the chunk has no data.
const HoleBlock = ^uint32(0)

// Inode is an inode to be written. Link counts are derived by the Builder.
type Inode struct {
	Mode      uint32
	UID, GID  uint32
	Rdev      uint32
	Size      uint64 // regular files only
	Mtime     int64
	MtimeNsec uint32
	Target    string  // symlinks only
	Xattrs    []Xattr // any order; written sorted
	// Chunks of a regular file with Size > 0: each but the last covers
	// BlockSize<<ChunkBits bytes. One chunk with ChunkBits large enough to
	// cover Size is the normal form.
	ChunkBits uint8
	Chunks    []Chunk
}

// Ref names an inode added to a Builder. The first one added is the root.
type Ref uint32

var (
	// ErrCorrupt is returned (wrapped) when an image breaks the format.
	ErrCorrupt = errors.New("erofs: corrupt image")
	// ErrNotExist is returned by Lookup for an absent name, by Xattr for an absent attribute.
	ErrNotExist = errors.New("erofs: no such entry")
	// ErrLimit is returned (wrapped) when something does not fit the format.
	ErrLimit = errors.New("erofs: beyond the format's limits")
)

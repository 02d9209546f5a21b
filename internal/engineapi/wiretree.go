package engineapi

import (
	"context"
	"io"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// Trees is what the routes need that read files of a tree without a mount.
// Symbolic links on the way to a path are followed within the tree. Where the
// image has to be pulled first, report is called as for Puller, before the
// first entry or byte.
type Trees interface {
	// ListTree returns what is at a path: the entries of a directory in the
	// order of their names, or the one that is none. With Recursive set,
	// everything below as well.
	ListTree(ctx context.Context, req TreeRequest, report func(Progress), emit func(TreeEntry) error) error
	// ReadTree writes what is at a path as tar, its name being the path's last
	// element; of one file, with Raw set, its bytes alone.
	ReadTree(ctx context.Context, req TreeRequest, report func(Progress), w io.Writer) error
}

// TreeRequest names a path of a tree.
type TreeRequest struct {
	Source    Source          `json:"source"`
	Path      string          `json:"path"`
	Bytes     []byte          `json:"bytes,omitempty"`    // of a path that is not UTF-8; the client's and the server's business
	NoFollow  bool            `json:"noFollow,omitempty"` // the last element, if it is a symbolic link, is meant itself
	Self      bool            `json:"self,omitempty"`     // list a directory itself, not its entries
	Recursive bool            `json:"recursive,omitempty"`
	Raw       bool            `json:"raw,omitempty"`
	Platform  string          `json:"platform,omitempty"`
	Pull      string          `json:"pull,omitempty"` // missing (default), always, never
	Registry  RegistryOptions `json:"registry,omitzero"`
}

// TreeEntry is a file of a tree. On the wire, Bytes and TargetBytes hold what
// Path and Target cannot, as they are not UTF-8.
type TreeEntry struct {
	Path        string    `json:"path"` // relative to the request's; "" itself
	Bytes       []byte    `json:"bytes,omitempty"`
	Mode        uint32    `json:"mode"` // as stat(2) has it
	UID         uint32    `json:"uid"`
	GID         uint32    `json:"gid"`
	Nlink       uint64    `json:"nlink"`
	Inode       uint64    `json:"inode"`
	Size        int64     `json:"size"`            // of a regular file or a symbolic link
	Major       uint32    `json:"major,omitempty"` // of a device
	Minor       uint32    `json:"minor,omitempty"`
	Mtime       time.Time `json:"mtime"`
	Target      string    `json:"target,omitempty"` // of a symbolic link
	TargetBytes []byte    `json:"targetBytes,omitempty"`
}

// pack puts strings that JSON cannot hold beside themselves; unpack takes them
// from there.
func (e *TreeEntry) pack() {
	e.Bytes, e.TargetBytes = odd(e.Path), odd(e.Target)
}

func (e *TreeEntry) unpack() {
	for _, s := range []struct {
		text  *string
		bytes *[]byte
	}{{&e.Path, &e.Bytes}, {&e.Target, &e.TargetBytes}} {
		if *s.bytes != nil {
			*s.text, *s.bytes = string(*s.bytes), nil
		}
	}
}

// odd returns s if it is not UTF-8.
func odd(s string) []byte {
	if utf8.ValidString(s) {
		return nil
	}
	return []byte(s)
}

// FileType returns the type in a file's mode as a word.
func FileType(mode uint32) string {
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		return "file"
	case unix.S_IFDIR:
		return "directory"
	case unix.S_IFLNK:
		return "symlink"
	case unix.S_IFIFO:
		return "fifo"
	case unix.S_IFSOCK:
		return "socket"
	}
	return "device"
}

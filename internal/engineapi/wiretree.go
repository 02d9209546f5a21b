package engineapi

import (
	"context"
	"io"
	"time"
)

// Trees is what the routes need that read files of a tree without a mount.
// Symbolic links on the way to a path are followed within the tree.
type Trees interface {
	// ListTree returns what is at a path: the entries of a directory in the
	// order of their names, or the one that is none. With Recursive set,
	// everything below as well.
	ListTree(ctx context.Context, req TreeRequest, emit func(TreeEntry) error) error
	// ReadTree writes what is at a path as tar, its name being the path's last
	// element; of one file, with Raw set, its bytes alone.
	ReadTree(ctx context.Context, req TreeRequest, w io.Writer) error
}

// TreeRequest names a path of a tree.
type TreeRequest struct {
	Source    Source          `json:"source"`
	Path      string          `json:"path"`
	NoFollow  bool            `json:"noFollow,omitempty"` // the last element, if it is a symbolic link, is meant itself
	Self      bool            `json:"self,omitempty"`     // list a directory itself, not its entries
	Recursive bool            `json:"recursive,omitempty"`
	Raw       bool            `json:"raw,omitempty"`
	Platform  string          `json:"platform,omitempty"`
	Pull      string          `json:"pull,omitempty"` // missing (default), always, never
	Registry  RegistryOptions `json:"registry,omitzero"`
}

// TreeEntry is a file of a tree.
type TreeEntry struct {
	Path   string    `json:"path"`            // relative to the request's; "" itself
	Bytes  []byte    `json:"bytes,omitempty"` // of a path that is not UTF-8
	Mode   uint32    `json:"mode"`            // as stat(2) has it
	UID    uint32    `json:"uid"`
	GID    uint32    `json:"gid"`
	Nlink  uint32    `json:"nlink"`
	Inode  uint64    `json:"inode"`
	Size   int64     `json:"size"`
	Rdev   uint32    `json:"rdev,omitempty"` // as the kernel encodes it
	Mtime  time.Time `json:"mtime"`
	Target string    `json:"target,omitempty"` // of a symbolic link
}

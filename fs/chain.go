package fs

import (
	"sync"
	"sync/atomic"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/imgfs/imgfs/internal/erofs"
	"github.com/imgfs/imgfs/internal/lower"
)

// Chain is a read-only file system over a chain index.
type Chain struct {
	readOnly
	tree   lower.Tree
	faults *lower.Faults
	blocks uint64 // of statfs, in lower.BlockSize
	blind  atomic.Bool

	once sync.Once
	gone chan struct{} // closed by OnUnmount
}

var _ fuse.RawFileSystem = (*Chain)(nil)
var _ QuickReader = (*Chain)(nil)

// NewChain returns the file system of img, whose devices are data, in order.
// Both must stay open until the Server is done.
func NewChain(img *erofs.Image, data []lower.Data, o Options) *Chain {
	c := &Chain{
		readOnly: newReadOnly(),
		tree:     lower.New(img, data, 0, lower.Root).WithNotes(o.Notes),
		faults:   lower.NewFaults(o.Logger),
		gone:     make(chan struct{}),
	}
	for _, d := range img.Devices() {
		c.blocks += uint64(d.Blocks) * erofs.BlockSize
	}
	c.blocks = (c.blocks + lower.BlockSize - 1) / lower.BlockSize
	return c
}

// Lookup resolves a name. "." of any node and ".." of a directory, which only
// file handles (open_by_handle_at) ask for, are names like others.
func (c *Chain) Lookup(_ <-chan struct{}, in *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	if name == "." {
		return c.faults.Status("lookup", c.tree.Entry(c.tree.NID(in.NodeId), out))
	}
	return c.faults.Status("lookup", c.tree.Lookup(c.tree.NID(in.NodeId), name, out))
}

// GetAttr is stat(2).
func (c *Chain) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	out.AttrValid = lower.Forever
	return c.faults.Status("getattr", c.tree.Attr(c.tree.NID(in.NodeId), &out.Attr))
}

// Readlink returns a symlink's target, as recorded.
func (c *Chain) Readlink(_ <-chan struct{}, in *fuse.InHeader) ([]byte, fuse.Status) {
	target, err := c.tree.Image().ReadLink(c.tree.NID(in.NodeId))
	return target, c.faults.Status("readlink", err)
}

// ReadDir lists names alone; the kernel uses ReadDirPlus.
func (c *Chain) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return c.faults.Status("readdir", c.tree.ReadDir(c.tree.NID(in.NodeId), in.Offset, false, out))
}

// ReadDirPlus lists entries with their attributes.
func (c *Chain) ReadDirPlus(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return c.faults.Status("readdir", c.tree.ReadDir(c.tree.NID(in.NodeId), in.Offset, true, out))
}

// Read fills buf; see lower.Tree.
func (c *Chain) Read(cancel <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	ctx := lower.NewRequest(cancel, c.gone)
	defer ctx.End()
	n, err := c.tree.Read(ctx, c.tree.NID(in.NodeId), in.Offset, buf)
	if err != nil {
		return nil, c.faults.Status("read", err)
	}
	return fuse.ReadResultData(buf[:n]), fuse.OK
}

// QuickRead reads what is in the page cache.
func (c *Chain) QuickRead(node, off uint64, buf []byte) (int, bool) {
	return c.tree.TryRead(&c.blind, c.tree.NID(node), off, buf)
}

// Lseek finds data and holes.
func (c *Chain) Lseek(_ <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	off, err := c.tree.Seek(c.tree.NID(in.NodeId), in.Offset, in.Whence)
	out.Offset = off
	return c.faults.Status("lseek", err)
}

// GetXAttr reads an attribute; ENOSYS ends such questions for an image
// without any.
func (c *Chain) GetXAttr(_ <-chan struct{}, in *fuse.InHeader, name string, dest []byte) (uint32, fuse.Status) {
	if !c.tree.HasXattrs() {
		return 0, fuse.ENOSYS
	}
	n, err := c.tree.Xattr(c.tree.NID(in.NodeId), name, dest)
	return n, c.faults.Status("getxattr", err)
}

// ListXAttr lists the names of attributes.
func (c *Chain) ListXAttr(_ <-chan struct{}, in *fuse.InHeader, dest []byte) (uint32, fuse.Status) {
	if !c.tree.HasXattrs() {
		return 0, fuse.ENOSYS
	}
	n, err := c.tree.Xattrs(c.tree.NID(in.NodeId), in.Uid == 0, dest)
	return n, c.faults.Status("listxattr", err)
}

// StatFs says that all is used: the sum of the layers, nothing free.
func (c *Chain) StatFs(_ <-chan struct{}, _ *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	*out = fuse.StatfsOut{
		Blocks:  c.blocks,
		Files:   c.tree.Image().Inodes(),
		Bsize:   lower.BlockSize,
		Frsize:  lower.BlockSize,
		NameLen: 255,
	}
	return fuse.OK
}

// OnUnmount ends the requests that still wait.
func (c *Chain) OnUnmount() { c.once.Do(func() { close(c.gone) }) }

func (c *Chain) Failures() (uint64, string) { return c.faults.Get() }

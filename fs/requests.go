package fs

import (
	"time"

	"golang.org/x/sys/unix"
)

// Requests that the server knows apart.
const (
	opLookup, opForget, opGetattr, opSetattr                   = 1, 2, 3, 4
	opSymlink, opMknod, opMkdir, opUnlink, opRmdir             = 6, 8, 9, 10, 11
	opRename, opLink, opOpen, opRead, opWrite                  = 12, 13, 14, 15, 16
	opStatfs, opRelease, opFsync                               = 17, 18, 20
	opSetxattr, opGetxattr, opListxattr, opRemovexattr         = 21, 22, 23, 24
	opFlush, opInit, opOpendir, opReaddir, opReleasedir        = 25, 26, 27, 28, 29
	opFsyncdir, opCreate, opInterrupt, opDestroy               = 30, 35, 36, 38
	opIoctl, opBatchForget, opFallocate, opReaddirplus         = 39, 42, 43, 44
	opRename2, opLseek, opCopyFileRange, opTmpfile             = 45, 46, 47, 51
	opCount                                                    = 64
	fattrSize                                           uint32 = 1 << 3 // of fuse_setattr_in.valid
)

// smallWrite is up to which size, in bytes, a WRITE is not worth handing over:
// go test -bench Write/write256M4k ./fs has 10 us with against 14 us without.
const smallWrite = 64 << 10

// slowRequest is when a request counts as a slow one: much more than to make
// another worker the reader takes, and little enough for all others to wait.
const slowRequest = time.Millisecond

// waits tells whether the request may wait: for bytes of a layer, for a file
// to be copied, or for a disk. What takes some 10 us, as the changes of names
// and attributes do and small writes, as much as it takes to hand over, does
// so only while it proves slow.
func (s *Server) waits(op uint32, in []byte) bool {
	switch op {
	case opForget, opBatchForget, opInterrupt, opDestroy:
		return false
	case opRead:
		return true
	}
	if s.quick == nil {
		return true
	}
	if s.slow[min(op, opCount-1)].Load() {
		return true
	}
	if !s.writable {
		return false
	}
	body := in[inHeaderSize:]
	switch op {
	case opFsync, opFsyncdir, opFallocate, opCopyFileRange, opLseek, opIoctl:
		return true
	case opWrite:
		const flags = 32 // of fuse_write_in
		sync := len(body) >= flags+4 && native.Uint32(body[flags:])&unix.O_DSYNC != 0
		return len(in) > smallWrite || sync || s.incomplete(in)
	case opOpen:
		return len(body) >= 4 && native.Uint32(body)&unix.O_ACCMODE != unix.O_RDONLY && s.incomplete(in)
	case opSetattr:
		// What is cut off may be much, to copy or to free.
		return len(body) >= 4 && native.Uint32(body)&fattrSize != 0
	}
	return false
}

// asksKernel tells whether a request may have the kernel write back what it
// keeps (Invalidate), by WRITEs that the reader has to read.
func (s *Server) asksKernel(op uint32) bool { return s.writable && op == opLseek }

// incomplete tells whether a change of a file's data may have to copy it first.
func (s *Server) incomplete(in []byte) bool {
	c, ok := s.rfs.(Completer)
	return !ok || !c.Complete(native.Uint64(in[16:]))
}

// took notes whether requests of this kind are slow at present.
func (s *Server) took(kind uint32, d time.Duration) {
	if slow := d >= slowRequest; slow != s.slow[kind].Load() {
		s.slow[kind].Store(slow)
	}
}

// room returns the size of the largest reply to a request: of the fixed part,
// and of what the request says it has room for.
func room(op uint32, in []byte) int {
	need := outHeaderSize + maxOutSize
	switch body := in[inHeaderSize:]; op {
	case opRead, opReaddir, opReaddirplus:
		if len(in) >= readInSize {
			need += int(native.Uint32(body[16:]))
		}
	case opGetxattr, opListxattr:
		if len(body) >= 8 {
			need += int(native.Uint32(body))
		}
	case opIoctl:
		if len(body) >= 32 {
			need += int(native.Uint32(body[28:]))
		}
	}
	return need
}

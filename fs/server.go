package fs

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/imgfs/imgfs/internal/lower"
	"golang.org/x/sys/unix"
)

// Options are what a file system and its server may be told. The zero value works.
type Options struct {
	Logger *slog.Logger // nil discards
	Notes  lower.Notes  // of a Chain; nil: none
}

const (
	subtype = "imgfs" // the mount's type is fuse.imgfs

	maxRead    = 1 << 20  // bytes of the largest READ: 256 pages, the kernel's limit
	maxWrite   = 1 << 20  // bytes of the largest WRITE
	smallReply = 16 << 10 // replies up to this size use the worker's own buffer
	largeReply = 1<<20 + 4096
	inputSize  = 16 << 10 // of a read-only file system: > 8192, the least; one BATCH_FORGET then takes 1000 inodes
	smallInput = 4 << 10  // requests up to this size leave the input buffer to the next reader
	maxWorkers = 128      // requests in progress; beyond, the one reader works itself
	maxLarge   = 16       // of them with an input buffer of their own
	maxIdle    = 4        // workers kept for the next request that waits
	background = 64       // readahead requests in flight

	inHeaderSize  = 4 + 4 + 8 + 8 + 4*3 + 4 // FUSE's fuse_in_header
	outHeaderSize = 4 + 4 + 8
	readInSize    = inHeaderSize + 8 + 8 + 4*2 + 8 + 4*2
	writeInSize   = inHeaderSize + 8 + 8 + 4*2 + 8 + 4*2
	maxOutSize    = 512 // more than the fixed part of any reply
)

// Server answers the kernel's requests for one mount.
//
// One worker at a time, the reader, reads requests from the descriptor and
// answers them itself, which costs one wake-up per round trip. Before a
// request that may wait (see waits) it makes another worker the reader and
// gives it the input buffer, which for a writable file system is large: there
// are as many as readers and large requests in progress. Go-fuse's own
// server hands over for each request and takes nearly twice as long per round
// trip (BenchmarkRoundTrip).
type Server struct {
	rfs      fuse.RawFileSystem
	quick    QuickReader // rfs, or nil
	writable bool        // rfs is a Writer
	ps       *fuse.ProtocolServer
	fd       int // of /dev/fuse, non-blocking
	stop     int // eventfd: readable once Close was called
	looks    int // of the reader before it sleeps
	log      *slog.Logger

	workers  sync.WaitGroup
	running  atomic.Int32
	idle     atomic.Int32
	large    atomic.Int32 // workers that keep an input buffer without being the reader
	baton    chan []byte  // received by the idle worker that becomes the reader: the input buffer
	once     sync.Once
	down     chan struct{} // closed when the reader found the file system gone
	finished chan struct{} // closed when all workers have returned
	err      error         // why, nil after an unmount; set before down is closed

	// flushing is held for reading by who has the kernel write back, and by
	// Close, for good: the WRITEs must be answered, or a thread of this process
	// waits for ever, not to be killed, and keeps the connection.
	flushing  sync.RWMutex
	closeOnce sync.Once

	closing  sync.RWMutex // for whoever uses a descriptor outside of the workers
	released bool

	passthrough bool // settled before the first request is read
	writeback   bool
	noOpen      atomic.Bool // OPEN has been answered ENOSYS

	inputs     sync.Pool            // *[]byte of inputSize, or of a header and maxWrite
	replies    sync.Pool            // *[]byte of largeReply
	slow       [opCount]atomic.Bool // the last request of this kind took long
	counts     [opCount]atomic.Uint64
	readBytes  atomic.Uint64
	writeBytes atomic.Uint64
	failed     atomic.Uint64 // replies with EIO
}

// worker is a goroutine with its buffers.
type worker struct {
	in       []byte // the input buffer, of the reader and of whom a large request keeps busy; or nil
	own, out []byte // own: room for a request of smallInput
	inv      [1][]byte
	outv     [1][]byte
	notFirst bool // another worker has become the reader
}

// Serve serves rfs on fd, the descriptor of a mounted /dev/fuse, which it owns
// from then on, whatever it returns. It returns when the kernel's INIT was
// answered, so that the mount works, or with ctx's error.
func Serve(ctx context.Context, rfs fuse.RawFileSystem, fd int, o Options) (*Server, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	stop, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("fuse server: %w", err)
	}
	s := &Server{
		rfs: rfs, fd: fd, stop: stop, log: o.Logger,
		baton: make(chan []byte), down: make(chan struct{}), finished: make(chan struct{}),
	}
	s.quick, _ = rfs.(QuickReader)
	_, s.writable = rfs.(Writer)
	s.passthrough = s.writable && privileged()
	s.writeback = s.writable && !s.passthrough
	if runtime.NumCPU() > 1 {
		s.looks = 32
	}
	s.inputs.New = func() any { b := s.newInput(); return &b }
	s.replies.New = func() any { b := make([]byte, largeReply); return &b }
	s.ps = fuse.NewProtocolServer(rfs, s.mountOptions())
	if err := s.init(ctx); err != nil {
		s.release()
		return nil, fmt.Errorf("fuse server: %w", err)
	}
	s.running.Store(1)
	s.workers.Go(func() { s.work(newWorker(*s.inputs.Get().(*[]byte))) })
	go func() {
		s.workers.Wait()
		s.release()
		close(s.finished)
	}()
	return s, nil
}

func newWorker(in []byte) *worker {
	return &worker{in: in, own: make([]byte, smallInput), out: make([]byte, smallReply)}
}

// newInput returns a buffer to read a request into. The data of a WRITE comes
// to lie on a page.
func (s *Server) newInput() []byte {
	if !s.writable {
		return make([]byte, inputSize)
	}
	page := unix.Getpagesize()
	return make([]byte, page+maxWrite)[page-writeInSize:]
}

// init waits for INIT and answers it.
func (s *Server) init(ctx context.Context) error {
	if err := unix.SetNonblock(s.fd, true); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, s.wake)
	defer stop()
	w := newWorker(make([]byte, inputSize))
	n, err := s.next(w.in)
	if errors.Is(err, errStopped) {
		return context.Cause(ctx)
	}
	if err != nil {
		return err
	}
	if n < inHeaderSize || native.Uint32(w.in[4:]) != opInit {
		return errors.New("the kernel's first request is not INIT: is the descriptor in use?")
	}
	s.counts[opInit].Add(1)
	w.inv[0], w.outv[0] = w.in[:n], w.out
	n, _ = s.ps.HandleRequest(w.inv[:], w.outv[:])
	if n < outHeaderSize+24 {
		return fmt.Errorf("INIT: %w", unix.Errno(-int32(native.Uint32(w.out[4:]))))
	}
	s.settle(w.out[outHeaderSize:n])
	if _, err := unix.Write(s.fd, w.out[:n]); err != nil {
		return fmt.Errorf("INIT: %w", err)
	}
	s.probeBacking() // the kernel refuses before INIT
	if a, ok := s.rfs.(Attacher); ok {
		a.Attach(s)
	}
	if !stop() { // wake has run or will: the server would end at once
		return context.Cause(ctx)
	}
	return nil
}

var native = binary.NativeEndian

// errStopped is returned by next after wake.
var errStopped = errors.New("stopped")

// wake ends the server, or init.
func (s *Server) wake() {
	one := [8]byte{}
	native.PutUint64(one[:], 1)
	s.closing.RLock()
	defer s.closing.RUnlock()
	if !s.released {
		unix.Write(s.stop, one[:])
	}
}

// release closes the descriptors. The last one of the mount's makes the
// kernel abort all requests.
func (s *Server) release() {
	s.closing.Lock()
	defer s.closing.Unlock()
	s.released = true
	unix.Close(s.fd)
	unix.Close(s.stop)
}

// next reads one request. As the asker of the last one often asks again within
// microseconds, it looks a few times before it sleeps in poll(2): with a second
// processor that halves the time of a round trip, for at most some 10 us of
// time per request. Sleeping in read(2) would be as quick, but nothing wakes it
// for Close: neither a signal, as Go's handlers restart system calls, nor any
// notification that the kernel must answer.
func (s *Server) next(buf []byte) (int, error) {
	for i := 0; ; i++ {
		n, err := unix.Read(s.fd, buf)
		switch err {
		case nil:
			return n, nil
		case unix.EINTR, unix.ENOENT: // ENOENT: the request was withdrawn
			continue
		case unix.EAGAIN:
			if i < s.looks {
				continue
			}
		default:
			return 0, err
		}
		p := [2]unix.PollFd{{Fd: int32(s.fd), Events: unix.POLLIN}, {Fd: int32(s.stop), Events: unix.POLLIN}}
		if _, err := unix.Poll(p[:], -1); err != nil && err != unix.EINTR {
			return 0, err
		}
		if p[1].Revents != 0 {
			return 0, errStopped
		}
	}
}

// work is the reader until the file system is gone or another worker is.
func (s *Server) work(w *worker) {
	defer s.running.Add(-1)
	for {
		n, err := s.next(w.in)
		if err != nil {
			s.end(err)
			return
		}
		s.handle(w, w.in[:n])
		if !w.notFirst {
			continue
		}
		if in := w.in; in != nil { // the request was a large one
			w.in = nil
			s.inputs.Put(&in)
			s.large.Add(-1)
		}
		if !s.park(w) {
			return
		}
	}
}

// end tells everybody that the file system is gone.
func (s *Server) end(err error) {
	s.once.Do(func() {
		if err != unix.ENODEV && err != errStopped {
			s.err = fmt.Errorf("fuse server: %w", err)
			s.log.Error("file system: reading requests", "err", err)
		}
		close(s.down)
		s.rfs.OnUnmount()
	})
}

// handOver makes another worker the reader, before w does something that may
// wait; it returns where the request in is from then on. Where there are too
// many workers already w remains the reader, unless it must not.
func (s *Server) handOver(w *worker, in []byte, must bool) []byte {
	if w.notFirst {
		return in
	}
	next, keep := w.in, len(in) > len(w.own)
	if keep {
		if s.large.Add(1) > maxLarge {
			s.large.Add(-1)
			return in
		}
		next = *s.inputs.Get().(*[]byte)
	} else {
		in = w.own[:copy(w.own, in)]
	}
	select {
	case s.baton <- next:
	default:
		if s.running.Add(1) > maxWorkers && !must {
			s.running.Add(-1)
			if keep {
				s.large.Add(-1)
				s.inputs.Put(&next)
			}
			return in
		}
		s.workers.Go(func() { s.work(newWorker(next)) })
	}
	w.notFirst = true
	if !keep {
		w.in = nil
	}
	return in
}

// park waits until w becomes the reader; it returns false if w is not needed.
func (s *Server) park(w *worker) bool {
	defer s.idle.Add(-1)
	if s.idle.Add(1) > maxIdle {
		return false
	}
	select {
	case w.in = <-s.baton:
		w.notFirst = false
		return true
	case <-s.down:
		return false
	}
}

// handle answers one request.
func (s *Server) handle(w *worker, in []byte) {
	if len(in) < inHeaderSize {
		s.log.Warn("file system: short request", "bytes", len(in))
		return
	}
	op, unique := native.Uint32(in[4:]), native.Uint64(in[8:])
	kind := min(op, opCount-1)
	s.counts[kind].Add(1)
	if size := native.Uint32(in); int(size) != len(in) {
		s.log.Warn("file system: incomplete request", "op", op, "bytes", len(in), "of", size)
		s.reply(w, nil, unique, unix.EIO)
		return
	}

	out := w.out
	if need := room(op, in); need > len(out) {
		if need > largeReply {
			s.reply(w, nil, unique, unix.EIO) // larger than what INIT agreed on
			return
		}
		large := s.replies.Get().(*[]byte)
		defer s.replies.Put(large)
		out = *large
	}

	if op == opRead && len(in) >= readInSize && s.quick != nil {
		node, off, size := native.Uint64(in[16:]), native.Uint64(in[inHeaderSize+8:]), native.Uint32(in[inHeaderSize+16:])
		if n, ok := s.quickRead(node, off, out[outHeaderSize:outHeaderSize+size]); ok {
			s.reply(w, out[:outHeaderSize+n], unique, 0)
			return
		}
	}
	if s.waits(op, in) {
		in = s.handOver(w, in, s.asksKernel(op))
	}
	w.inv[0], w.outv[0] = in, out
	start := time.Now()
	n, status := s.ps.HandleRequest(w.inv[:], w.outv[:])
	s.took(kind, time.Since(start))
	switch {
	case n >= outHeaderSize:
		s.write(out[:n], op)
	case !status.Ok() && op != opForget && op != opBatchForget:
		s.reply(w, nil, unique, unix.Errno(status))
	}
}

// quickRead is the file system's, of which a panic must not end the server.
func (s *Server) quickRead(node, off uint64, buf []byte) (n int, ok bool) {
	defer func() {
		if v := recover(); v != nil {
			s.log.Error("file system: panic", "value", v)
			ok = false
		}
	}()
	return s.quick.QuickRead(node, off, buf)
}

// reply sends a reply whose payload is in place behind the header.
func (s *Server) reply(w *worker, out []byte, unique uint64, errno unix.Errno) {
	if out == nil {
		out = w.out[:outHeaderSize]
	}
	native.PutUint32(out, uint32(len(out)))
	native.PutUint32(out[4:], uint32(-int32(errno)))
	native.PutUint64(out[8:], unique)
	s.write(out, opRead)
}

func (s *Server) write(out []byte, op uint32) {
	switch errno := unix.Errno(-int32(native.Uint32(out[4:]))); {
	case errno == unix.EIO:
		s.failed.Add(1)
	case errno == unix.ENOSYS && op == opOpen:
		s.noOpen.Store(true)
	case op == opRead:
		s.readBytes.Add(uint64(len(out) - outHeaderSize))
	case op == opWrite && len(out) >= outHeaderSize+4:
		s.writeBytes.Add(uint64(native.Uint32(out[outHeaderSize:])))
	}
	for {
		_, err := unix.Write(s.fd, out)
		switch err {
		case unix.EINTR:
			continue
		case nil, unix.ENOENT, unix.ENODEV: // the asker has left, or all have
		default:
			s.log.Warn("file system: reply", "op", op, "err", err)
		}
		return
	}
}

// Wait returns when the file system was unmounted, by whomever, or closed; the
// error is nil then.
func (s *Server) Wait() error {
	<-s.finished
	return s.err
}

// Done is closed when Wait would return.
func (s *Server) Done() <-chan struct{} { return s.finished }

// Close stops serving and waits for the requests in progress. A mount that
// still exists answers ENOTCONN from then on, until it is unmounted.
func (s *Server) Close() error {
	s.closeOnce.Do(s.flushing.Lock)
	s.wake()
	s.end(errStopped) // the reader may be one of those who wait
	return s.Wait()
}

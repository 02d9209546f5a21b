package imgtest

import (
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// A Link is a way to a server that has a length and a width. What it does not
// have is loss.
type Link struct {
	RTT       time.Duration
	Bandwidth int64 // bits per second, each way, of all connections together
}

// Shaper is a TCP proxy that stands for a Link. Connecting costs one round
// trip. As in Linux, a connection starts with a window of ten segments, which
// grows by what is acknowledged and shrinks again when the connection was idle
// for longer than a retransmission timeout.
type Shaper struct {
	link   Link
	target string
	l      net.Listener
	up     lane // towards the server
	down   lane
	wg     sync.WaitGroup

	mu     sync.Mutex
	conns  map[net.Conn]bool
	closed bool
}

const (
	segment       = 1460         // bytes
	initialWindow = 10 * segment // RFC 6928
	leastWindow   = 64 << 10     // that a window may grow to, however short the link
	idleReset     = 250 * time.Millisecond
	maxPiece      = 32 << 10 // bytes that travel together
)

// NewShaper listens on loopback and forwards to target. The caller closes it.
func NewShaper(target string, link Link) (*Shaper, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s := &Shaper{link: link, target: target, l: l, conns: map[net.Conn]bool{}}
	s.wg.Go(s.accept)
	return s, nil
}

// Addr returns the address that stands for the target at the end of the link.
func (s *Shaper) Addr() string { return s.l.Addr().String() }

// Bytes returns how many bytes have come from the server.
func (s *Shaper) Bytes() int64 { return s.down.bytes.Load() }

// Close ends all connections.
func (s *Shaper) Close() error {
	s.mu.Lock()
	s.closed = true
	for c := range s.conns {
		c.Close()
	}
	s.mu.Unlock()
	err := s.l.Close()
	s.wg.Wait()
	return err
}

// keep notes a connection to be closed by Close; false if that was called.
func (s *Shaper) keep(c net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		c.Close()
		return false
	}
	s.conns[c] = true
	return true
}

func (s *Shaper) drop(c net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
	c.Close()
}

func (s *Shaper) accept() {
	for {
		c, err := s.l.Accept()
		if err != nil {
			return
		}
		s.wg.Go(func() { s.forward(c) })
	}
}

func (s *Shaper) forward(client net.Conn) {
	if !s.keep(client) {
		return
	}
	defer s.drop(client)
	server, err := net.Dial("tcp", s.target)
	if err != nil || !s.keep(server) {
		return
	}
	defer s.drop(server)
	// The client believes to be connected at once; the handshake it did not
	// wait for delays what it sends.
	connected := time.Now().Add(s.link.RTT)
	var both sync.WaitGroup
	both.Go(func() { s.carry(server, client, &s.up, connected) })
	both.Go(func() { s.carry(client, server, &s.down, time.Time{}) })
	both.Wait()
}

// lane is one direction of a link, shared by all connections.
type lane struct {
	bytes atomic.Int64

	mu   sync.Mutex
	free time.Time // when what was sent so far has left
}

// send returns when n bytes that are ready at a time have left.
func (l *lane) send(ready time.Time, n int, bandwidth int64) time.Time {
	l.bytes.Add(int64(n))
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.free.Before(ready) {
		l.free = ready
	}
	if bandwidth > 0 {
		l.free = l.free.Add(time.Duration(int64(n) * 8 * int64(time.Second) / bandwidth))
	}
	return l.free
}

// window is how much one direction of a connection may have in flight.
type window struct {
	mu    sync.Mutex
	moved *sync.Cond
	size  int
	used  int
	last  time.Time // when something was last acknowledged
}

// take waits for room and returns how many bytes of it may be sent.
func (w *window) take() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	for w.used >= w.size {
		w.moved.Wait()
	}
	return min(w.size-w.used, maxPiece)
}

// sent notes n bytes on their way.
func (w *window) sent(n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.used == 0 && time.Since(w.last) > idleReset {
		w.size = initialWindow
	}
	w.used += n
}

// acked notes n bytes that have arrived.
func (w *window) acked(n, most int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.used -= n
	w.size = min(w.size+n, most)
	w.last = time.Now()
	w.moved.Signal()
}

// piece is bytes under way.
type piece struct {
	b  []byte
	at time.Time // of arrival
}

// carry copies src to dst over l until one of them ends.
func (s *Shaper) carry(dst, src net.Conn, l *lane, connected time.Time) {
	w := &window{size: initialWindow, last: time.Now()}
	w.moved = sync.NewCond(&w.mu)
	most := max(leastWindow, int(2*s.link.RTT.Seconds()*float64(s.link.Bandwidth)/8))
	under := make(chan piece, 4096)
	var arriving sync.WaitGroup
	arriving.Go(func() { deliver(dst, under) })
	defer arriving.Wait()
	defer close(under)
	for {
		b := make([]byte, w.take())
		n, err := src.Read(b)
		if n > 0 {
			ready := time.Now()
			if ready.Before(connected) {
				ready = connected
			}
			w.sent(n)
			left := l.send(ready, n, s.link.Bandwidth)
			time.AfterFunc(time.Until(left.Add(s.link.RTT)), func() { w.acked(n, most) })
			under <- piece{b[:n], left.Add(s.link.RTT / 2)}
		}
		if err != nil {
			return
		}
	}
}

// deliver writes pieces when they arrive, and passes on the end of the stream.
func deliver(dst net.Conn, under <-chan piece) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	var failed error
	for p := range under {
		if failed != nil {
			continue
		}
		timer.Reset(time.Until(p.at))
		<-timer.C
		_, failed = dst.Write(p.b)
	}
	if c, ok := dst.(*net.TCPConn); ok && failed == nil {
		failed = c.CloseWrite()
	}
	if failed != nil && !errors.Is(failed, io.ErrClosedPipe) {
		dst.Close()
	}
}

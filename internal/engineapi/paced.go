package engineapi

import (
	"errors"
	"io"
	"net/http"
	"os"
	"time"
)

// A client that is not trusted may not hold a connection, and with it memory
// and a goroutine, by doing nothing:
//
//	the header of its request     headerTimeout
//	the body                      bodyPatience in all, and more as it comes
//	the next request              idleTimeout
//	what it is sent               the listener's affair (package daemon)
//
// What is quiet because there is nothing to say (events) is not cut: only what
// the client owes counts, and only while it is waited for.
const (
	bodyPatience = time.Minute
	// bodyRate is how many bytes of a body buy a second more of patience.
	bodyRate = 1 << 10
	// restPatience is for the rest of a body that nobody wants, which is read
	// to be able to go on with the connection.
	restPatience = 5 * time.Second
)

// errSlowBody is the cause when a client's body does not come.
var errSlowBody = errors.New("the request's body does not come")

// paced has h read the bodies of untrusted clients with patience that ends:
// with so much at most, and as much to begin with.
func paced(h http.Handler, patience time.Duration) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if Trusted(r.Context()) || r.Body == nil || r.Body == http.NoBody {
			h.ServeHTTP(w, r)
			return
		}
		b := &pacedBody{body: r.Body, conn: http.NewResponseController(w), left: patience, most: patience}
		// The server itself reads the rest of a body when the reply begins.
		b.conn.SetReadDeadline(time.Now().Add(patience))
		defer b.leave()
		r.Body = b
		h.ServeHTTP(w, r)
	})
}

// pacedBody is a body that is waited for as long as it has patience left.
type pacedBody struct {
	body  io.ReadCloser
	conn  *http.ResponseController
	left  time.Duration // of the patience
	most  time.Duration // that it may be
	ended bool          // nothing more is to come
}

// Read implements io.Reader.
func (b *pacedBody) Read(p []byte) (int, error) {
	start := time.Now()
	// A connection that was taken over has no deadlines; reading says so.
	b.conn.SetReadDeadline(start.Add(b.left))
	n, err := b.body.Read(p)
	b.left = min(b.left-time.Since(start)+time.Duration(n)*time.Second/bodyRate, b.most)
	switch {
	case err == nil:
		// What the handler does meanwhile is not the client's fault.
		b.conn.SetReadDeadline(time.Now().Add(b.most))
	case errors.Is(err, os.ErrDeadlineExceeded):
		b.ended = true
		return n, errSlowBody
	default:
		b.ended = true
		b.conn.SetReadDeadline(time.Time{}) // the server watches for the client's end from now on
	}
	return n, err
}

// Close implements io.Closer.
func (b *pacedBody) Close() error { return b.body.Close() }

// leave bounds what the server reads of a body that was not read to its end.
func (b *pacedBody) leave() {
	if !b.ended {
		b.conn.SetReadDeadline(time.Now().Add(min(b.most, restPatience)))
	}
}

package span

import (
	"errors"
	"io"
)

// errUnindexed says that a codec is read from its start only.
var errUnindexed = errors.New("blobs of this compression are not read at random")

// passUnindexed copies what z decodes to w.
func passUnindexed(z io.Reader, w io.Writer, rec *recording) (int64, error) {
	rec.giveUp(errUnindexed)
	return io.Copy(w, z)
}

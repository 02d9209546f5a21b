package fetch

import (
	"context"
	"errors"
	"io"

	"github.com/imgfs/imgfs/internal/id"
)

// PushBlob stores a blob in ref's repository, unless it is there. open returns
// its bytes from the start and may be asked again; what is behind size bytes
// is not read. mountFrom names a repository of the same registry that has the
// blob, "" for none.
func (c *Client) PushBlob(ctx context.Context, ref Reference, digest id.Blob, size int64, open func() (io.ReadCloser, error), mountFrom string) error {
	return errNotYet
}

// PushManifest stores a manifest under ref's tag, or by its digest if ref has
// no tag. If it states a subject, and the registry keeps no account of
// referrers itself, the index that stands in for that is brought up to date;
// kept says whether the registry did it.
func (c *Client) PushManifest(ctx context.Context, ref Reference, mediaType string, body []byte) (kept bool, err error) {
	return false, errNotYet
}

// DeleteManifest removes a manifest by its digest, and from the index of its
// subject's referrers where that is ours to keep.
func (c *Client) DeleteManifest(ctx context.Context, ref Reference, digest id.Blob) error {
	return errNotYet
}

var errNotYet = errors.New("not there yet")

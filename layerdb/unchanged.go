package layerdb

import (
	"bufio"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/internal/erofs"
	"github.com/imgfs/imgfs/internal/id"
)

// written is what is known of a file when it is published. Nothing of ours
// writes to it afterwards, so a file of another size or time is one that
// somebody else has touched, and is read through before it is believed again.
type written struct {
	Size int64   `json:"size"`
	Time int64   `json:"time"`          // of the last change, in nanoseconds since 1970
	Sum  id.Blob `json:"sum,omitempty"` // "" of a layer's data, which the diffID proves
}

// writeFile makes a file of what fill writes, synced.
func writeFile(path string, fill func(io.Writer) error) (written, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return written{}, err
	}
	defer f.Close()
	sum := sha256.New()
	w := bufio.NewWriterSize(io.MultiWriter(f, sum), 256<<10)
	if err := fill(w); err != nil {
		return written{}, err
	}
	if err := w.Flush(); err != nil {
		return written{}, err
	}
	if err := f.Sync(); err != nil {
		return written{}, err
	}
	st, err := f.Stat()
	if err != nil {
		return written{}, err
	}
	return written{st.Size(), st.ModTime().UnixNano(), id.BlobFrom([sha256.Size]byte(sum.Sum(nil)))}, f.Close()
}

// writeBytes makes a file of b, synced.
func writeBytes(path string, b []byte) (written, error) {
	return writeFile(path, func(out io.Writer) error {
		_, err := out.Write(b)
		return err
	})
}

// writeJSON makes a file that holds v, synced.
func writeJSON(path string, v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = writeBytes(path, append(text, '\n'))
	return err
}

// unchanged returns an error unless the file at path is the one described. If
// only its time is another, as in a copy of the store, prove reads it and says
// whether it is the same, and its time is set right.
func (w written) unchanged(path string, prove func(*os.File) error) error {
	name := filepath.Base(path)
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	switch {
	case err != nil:
		return err
	case !st.Mode().IsRegular() || st.Size() != w.Size:
		return fmt.Errorf("%s is %d bytes long, not %d", name, st.Size(), w.Size)
	case st.ModTime().UnixNano() == w.Time:
		return nil
	}
	if err := prove(f); err != nil {
		return fmt.Errorf("%s was changed: %w", name, err)
	}
	// Where that is not allowed the file is read again next time.
	_ = os.Chtimes(path, time.Time{}, time.Unix(0, w.Time))
	return nil
}

// proveSum compares a file with its recorded sum.
func (w written) proveSum(f *os.File) error {
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return err
	}
	if got := id.BlobFrom([sha256.Size]byte(sum.Sum(nil))); got != w.Sum {
		return fmt.Errorf("it is %s now", got)
	}
	return nil
}

// proveData compares a layer's data file with its diffID. An annex is not
// covered by that: a layer with one is made anew, from its stream.
func (s *Store) proveData(i *LayerInfo, f *os.File) error {
	if i.DataSize != roundUp(i.StreamSize) {
		return fmt.Errorf("its annex cannot be proven")
	}
	got, err := digestOf(s.ctx, io.NewSectionReader(f, 0, i.StreamSize))
	if err == nil && got != i.DiffID {
		err = fmt.Errorf("it is that of %s now", got)
	}
	return err
}

// chainRecord is the file record beside a chain index: what was written.
const chainRecord = "record"

// openChainIndex opens the index of a chain, if it is what was written.
func (s *Store) openChainIndex(layers []id.LayerKey) (*erofs.Image, error) {
	path := s.chainIndex(id.Stack(layers))
	text, err := os.ReadFile(filepath.Join(filepath.Dir(path), chainRecord))
	if err != nil {
		return nil, err
	}
	var w written
	if err := json.Unmarshal(text, &w); err != nil {
		return nil, fmt.Errorf("%w: its record: %v", erofs.ErrCorrupt, err)
	}
	if err := w.unchanged(path, w.proveSum); err != nil {
		if os.IsNotExist(err) {
			return nil, err
		}
		return nil, fmt.Errorf("%w: %v", erofs.ErrCorrupt, err)
	}
	return openIndex(path, chainLabel, layers)
}

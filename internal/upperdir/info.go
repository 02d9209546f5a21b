package upperdir

import (
	"bytes"
	"encoding/json"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/internal/id"
)

// Info is what an upper says of itself: upper.json.
type Info struct {
	Version  int           `json:"version"`        // of the format: 1
	Name     string        `json:"name,omitempty"` // in the store; "" of a directory elsewhere
	Image    string        `json:"image"`          // reference or ID that it was first mounted with
	ImageID  id.ImageID    `json:"imageID,omitempty"`
	ChainID  id.ChainKey   `json:"chainID,omitempty"` // what it lies on; "" is the empty stack
	Layers   []id.LayerKey `json:"layers"`            // of the chain, lowest first
	Created  time.Time     `json:"created"`
	Xattrs   string        `json:"xattrs"` // Trusted or User
	Override bool          `json:"override"`
}

const (
	infoName    = "upper.json"
	infoVersion = 1
	maxInfo     = 1 << 20 // bytes
)

// parseInfo reads an upper.json.
func parseInfo(b []byte) (Info, error) {
	var i Info
	if err := json.Unmarshal(b, &i); err != nil {
		return Info{}, damaged("%s: %v", infoName, err)
	}
	switch {
	case i.Version != infoVersion:
		return Info{}, damaged("%s: version %d, and this imgfs knows %d", infoName, i.Version, infoVersion)
	case i.Xattrs != Trusted && i.Xattrs != User:
		return Info{}, damaged("%s: attributes %q", infoName, i.Xattrs)
	}
	if _, err := id.ParseImageID(string(i.ImageID)); i.ImageID != "" && err != nil {
		return Info{}, damaged("%s: image ID %q", infoName, i.ImageID)
	}
	for _, d := range i.Layers {
		if _, err := id.ParseLayerKey(string(d)); err != nil {
			return Info{}, damaged("%s: layer %q", infoName, d)
		}
	}
	if i.ChainID != id.Stack(i.Layers) {
		return Info{}, damaged("%s: chain ID %q is not that of its layers", infoName, i.ChainID)
	}
	return i, nil
}

// readInfo reads the upper.json of the upper open as fd.
func readInfo(fd int) (Info, error) {
	n, err := openRegular(fd, infoName, unix.O_RDONLY)
	if err == unix.ENOENT || err == unix.ENOTDIR {
		return Info{}, damaged("no %s", infoName)
	}
	if err != nil {
		return Info{}, &os.PathError{Op: "open", Path: infoName, Err: err}
	}
	f := os.NewFile(uintptr(n), infoName)
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxInfo))
	if err != nil {
		return Info{}, err
	}
	return parseInfo(b)
}

// writeInfo replaces the upper.json of the upper open as fd, durably.
func writeInfo(fd int, i Info) error {
	b, err := json.MarshalIndent(i, "", "  ")
	if err != nil {
		return err
	}
	const tmp = infoName + ".new"
	n, err := unix.Openat(fd, tmp, unix.O_WRONLY|unix.O_CREAT|unix.O_TRUNC|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return &os.PathError{Op: "create", Path: tmp, Err: err}
	}
	f := os.NewFile(uintptr(n), tmp)
	_, err = io.Copy(f, bytes.NewReader(append(b, '\n')))
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	if err := unix.Renameat(fd, tmp, fd, infoName); err != nil {
		return &os.PathError{Op: "rename", Path: tmp, Err: err}
	}
	return unix.Fsync(fd)
}

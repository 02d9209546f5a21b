package fs

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strings"

	"github.com/imgfs/imgfs/internal/fault"
	"golang.org/x/sys/unix"
)

// findFusermount returns the path of libfuse's set-uid program.
func findFusermount() (string, error) {
	for _, name := range []string{"fusermount3", "fusermount"} {
		for _, p := range []string{name, "/bin/" + name, "/usr/bin/" + name} {
			if path, err := exec.LookPath(p); err == nil {
				return path, nil
			}
		}
	}
	return "", fault.WithHint(fault.New(fault.Unavailable, "fusermount3 is missing, without which only root can mount"),
		"apt-get install fuse3")
}

// fusermount mounts through fusermount3, which passes the descriptor of
// /dev/fuse over a socket.
func fusermount(dir *mountpoint, source string, writable bool) (int, error) {
	bin, err := findFusermount()
	if err != nil {
		return -1, err
	}
	if _, err := os.Stat(fuseDevice); errors.Is(err, fs.ErrNotExist) {
		return -1, noFuse(unix.ENOENT)
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("fusermount: %w", err)
	}
	defer unix.Close(pair[0])
	remote := os.NewFile(uintptr(pair[1]), "fusermount")
	escape := strings.NewReplacer(`\`, `\\`, `,`, `\,`)
	opts := fmt.Sprintf("nosuid,nodev,fsname=%s,subtype=%s,max_read=%d", escape.Replace(source), subtype, maxRead)
	if writable {
		opts += ",default_permissions"
	} else {
		opts = "ro," + opts
	}
	cmd := exec.Command(bin, "-o", opts, "--", dir.path)
	cmd.Env = append(os.Environ(), "_FUSE_COMMFD=3")
	cmd.ExtraFiles = []*os.File{remote}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	err = cmd.Run()
	remote.Close()
	if err != nil {
		return -1, fusermountError("mount", dir.path, stderr.String(), err)
	}
	fd, err := receiveDescriptor(pair[0])
	if err != nil {
		return -1, fmt.Errorf("fusermount: %w", err)
	}
	return fd, nil
}

// fusermountError makes one line of what fusermount3 said.
func fusermountError(verb, path, said string, err error) error {
	said = strings.TrimSpace(said)
	if i := strings.IndexByte(said, '\n'); i >= 0 {
		said = said[:i]
	}
	if said == "" {
		said = err.Error()
	}
	kind := fault.Failed
	switch {
	case strings.Contains(said, "busy"):
		kind = fault.Conflict
	case strings.Contains(said, "not permitted"), strings.Contains(said, "ermission denied"), strings.Contains(said, "no write access"):
		kind = fault.Denied
	case strings.Contains(said, "not found in"):
		kind = fault.NotFound
	}
	out := fault.New(kind, "%s %s: %s", verb, path, said)
	switch {
	case strings.Contains(said, "no write access"):
		out = fault.WithHint(out, "mount on a directory of your own")
	case strings.Contains(said, fuseDevice) && kind == fault.Denied:
		out = fault.WithHint(out, "as root: chmod 666 %s", fuseDevice)
	}
	return out
}

func receiveDescriptor(socket int) (int, error) {
	data := make([]byte, 8)
	oob := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(socket, data, oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return -1, err
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil {
		return -1, err
	}
	if len(messages) != 1 {
		return -1, errors.New("no descriptor received")
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		return -1, err
	}
	if len(fds) != 1 {
		return -1, errors.New("no descriptor received")
	}
	return fds[0], nil
}

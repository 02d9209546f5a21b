package sandbox

import (
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ioctlCall is how a program of one architecture calls ioctl(2).
type ioctlCall struct{ arch, number uint32 }

// ioctlCalls returns the ways of this machine; none where it is not known.
func ioctlCalls() []ioctlCall {
	switch runtime.GOARCH {
	case "amd64":
		const x32 = 0x40000000
		return []ioctlCall{
			{unix.AUDIT_ARCH_X86_64, 16}, {unix.AUDIT_ARCH_X86_64, 16 | x32}, {unix.AUDIT_ARCH_X86_64, 514 | x32},
			{unix.AUDIT_ARCH_I386, 54},
		}
	case "arm64":
		return []ioctlCall{{unix.AUDIT_ARCH_AARCH64, 29}, {unix.AUDIT_ARCH_ARM, 54}}
	}
	return nil
}

// Offsets into struct seccomp_data.
const (
	dataNumber = 0
	dataArch   = 4
	dataArg1   = 24 // low half, of a little-endian machine
)

// refuseTyping has the calling thread and its children get EPERM when they
// push input to a terminal: it would be the caller's shell that reads it.
// It needs CAP_SYS_ADMIN, as no_new_privs would disarm set-uid programs.
func refuseTyping() error {
	stmt := func(code uint16, k uint32) unix.SockFilter { return unix.SockFilter{Code: code, K: k} }
	skipUnless := func(k uint32, skip uint8) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: k, Jf: skip}
	}
	const load = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
	var prog []unix.SockFilter
	for _, c := range ioctlCalls() {
		prog = append(prog,
			stmt(load, dataArch), skipUnless(c.arch, 7),
			stmt(load, dataNumber), skipUnless(c.number, 5),
			stmt(load, dataArg1),
			unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.TIOCSTI, Jt: 2},
			unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.TIOCLINUX, Jt: 1},
			stmt(unix.BPF_RET|unix.BPF_K, unix.SECCOMP_RET_ALLOW),
			stmt(unix.BPF_RET|unix.BPF_K, unix.SECCOMP_RET_ERRNO|uint32(unix.EPERM)),
		)
	}
	if len(prog) == 0 {
		return nil
	}
	prog = append(prog, stmt(unix.BPF_RET|unix.BPF_K, unix.SECCOMP_RET_ALLOW))
	f := unix.SockFprog{Len: uint16(len(prog)), Filter: &prog[0]}
	err := unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&f)), 0, 0)
	runtime.KeepAlive(prog)
	if err != nil && err != unix.EINVAL { // a kernel without seccomp
		return fmt.Errorf("seccomp: %w", err)
	}
	return nil
}

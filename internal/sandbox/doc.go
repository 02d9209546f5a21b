// Package sandbox runs a command in a tree of files as if it were the root of
// a machine: what `imgfs run` and `imgfs chroot` need of the kernel.
//
// # Processes
//
//	imgfs run (the parent)          the caller's namespaces; talks to the daemon
//	└─ init, pid 1                  new mount, pid, uts, ipc (and user) namespaces
//	   └─ the command               and whatever it starts
//
// [Start] re-executes the program with a hidden command that calls [Init].
// Init waits until the parent has written the id maps, executes itself once
// more (to have root's capabilities, and from a sealed copy: see below), and
// then does as told over a socket: [Sandbox.Mount] has it mount in its own
// namespaces and hand the descriptor back, [Sandbox.Run] has it build the tree,
// enter it and run the command. Init reaps orphans, and ends with the command;
// the kernel then ends whatever is left and drops the mounts. It also ends when
// the socket does, and by PDEATHSIG: killing the parent with SIGKILL leaves
// neither a process nor a mount.
//
// # The terminal
//
// The terminal is shared, and so is the session. In a pipeline the command is
// also in the caller's process group, like any program there. Where it has the
// terminal for itself, its group is init's and has the foreground, as shells
// want to name the group they give it back to; a command that Ctrl-Z stops then
// stops the caller, and goes on with it. Pushing input to the terminal (TIOCSTI,
// TIOCLINUX) is refused by a seccomp filter.
//
// # The image is hostile
//
// Nothing of the tree is looked at by path from outside of it. Until the root
// is changed, places in it are found by openat2(2) with RESOLVE_IN_ROOT and
// without magic links, and mounted upon by descriptor; /proc, /dev and /sys
// must be directories, not symlinks. What is mounted is attached as a detached
// mount, so no source is looked up within. After the root has changed, init
// holds no descriptor from outside but the socket, so a working directory like
// /proc/self/fd/7 leads nowhere; and it runs from a sealed copy of its program in
// memory, so that whoever reopens /proc/1/exe cannot write to the host's.
// /etc/passwd and /etc/group are read if they are regular files, as far as
// they are of a sane size.
package sandbox

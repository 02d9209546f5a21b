package main

import (
	"os"
	"path"

	"github.com/imgfs/imgfs/internal/sandbox"
)

// The part of the OCI runtime specification (config.md, config-linux.md) that
// a bundle has.
type (
	ociSpec struct {
		Version  string     `json:"ociVersion"`
		Process  ociProcess `json:"process"`
		Root     ociRoot    `json:"root"`
		Hostname string     `json:"hostname"`
		Mounts   []ociMount `json:"mounts"`
		Linux    ociLinux   `json:"linux"`
	}
	ociProcess struct {
		Terminal     bool            `json:"terminal,omitempty"`
		User         ociUser         `json:"user"`
		Args         []string        `json:"args"`
		Env          []string        `json:"env"`
		Cwd          string          `json:"cwd"`
		Capabilities ociCapabilities `json:"capabilities"`
	}
	ociUser struct {
		UID            uint32   `json:"uid"`
		GID            uint32   `json:"gid"`
		AdditionalGids []uint32 `json:"additionalGids,omitempty"`
	}
	ociCapabilities struct {
		Bounding  []string `json:"bounding"`
		Effective []string `json:"effective,omitempty"`
		Permitted []string `json:"permitted,omitempty"`
	}
	ociRoot struct {
		Path     string `json:"path"`
		Readonly bool   `json:"readonly,omitempty"`
	}
	ociMount struct {
		Destination string   `json:"destination"`
		Type        string   `json:"type"`
		Source      string   `json:"source"`
		Options     []string `json:"options"`
	}
	ociLinux struct {
		Resources     *ociResources  `json:"resources,omitempty"`
		UIDMappings   []ociMapping   `json:"uidMappings,omitempty"`
		GIDMappings   []ociMapping   `json:"gidMappings,omitempty"`
		Namespaces    []ociNamespace `json:"namespaces"`
		MaskedPaths   []string       `json:"maskedPaths"`
		ReadonlyPaths []string       `json:"readonlyPaths"`
	}
	ociResources struct {
		Devices []ociDevice `json:"devices"`
	}
	ociDevice struct {
		Allow  bool   `json:"allow"`
		Access string `json:"access"`
	}
	ociMapping struct {
		ContainerID int `json:"containerID"`
		HostID      int `json:"hostID"`
		Size        int `json:"size"`
	}
	ociNamespace struct {
		Type string `json:"type"`
	}
)

// runtimeSpec returns the config.json of an image that is mounted at rootfs.
func runtimeSpec(config imageConfig, rootfs string, readOnly, terminal bool) (*ociSpec, error) {
	who, err := sandbox.Identify(rootfs, config.User)
	if err != nil {
		return nil, err
	}
	hostname, err := os.Hostname()
	if err != nil {
		return nil, err
	}
	args := commandLine(config, false, "", nil)
	if len(args) == 0 {
		args = []string{"/bin/sh"}
	}
	env := variables(config.Env, nil, hostname)
	if terminal && os.Getenv("TERM") == "" {
		env = append([]string{"TERM=xterm"}, env...)
	}
	s := &ociSpec{
		Version: "1.0.2",
		Process: ociProcess{
			Terminal: terminal,
			User:     ociUser{UID: who.UID, GID: who.GID, AdditionalGids: who.Groups},
			Args:     args, Env: sandbox.Environment(env, who.Home), Cwd: path.Join("/", config.WorkingDir),
			Capabilities: ociCapabilities{Bounding: sandbox.CapabilityNames()},
		},
		Root:     ociRoot{Path: "rootfs", Readonly: readOnly},
		Hostname: hostname,
		Linux: ociLinux{
			Namespaces:  []ociNamespace{{"pid"}, {"ipc"}, {"uts"}, {"mount"}, {"cgroup"}},
			MaskedPaths: sandbox.MaskedPaths(), ReadonlyPaths: sandbox.ReadonlyPaths(),
		},
	}
	if who.UID == 0 {
		s.Process.Capabilities.Effective = sandbox.CapabilityNames()
		s.Process.Capabilities.Permitted = sandbox.CapabilityNames()
	}
	rootless := os.Geteuid() != 0
	if !rootless {
		s.Linux.Resources = &ociResources{Devices: []ociDevice{{false, "rwm"}}}
	} else {
		s.Linux.Namespaces = append(s.Linux.Namespaces, ociNamespace{"user"})
		s.Linux.UIDMappings = []ociMapping{{0, os.Geteuid(), 1}}
		s.Linux.GIDMappings = []ociMapping{{0, os.Getegid(), 1}}
	}
	s.Mounts = runtimeMounts(rootfs, readOnly, rootless)
	return s, nil
}

// runtimeMounts returns what runc spec does, and the files of the network,
// which is the host's: where the tree has them, or can get them.
func runtimeMounts(rootfs string, readOnly, rootless bool) []ociMount {
	pts := []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"}
	if !rootless {
		pts = append(pts, "gid=5") // tty
	}
	all := []ociMount{
		{"/proc", "proc", "proc", []string{"nosuid", "noexec", "nodev"}},
		{"/dev", "tmpfs", "tmpfs", []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{"/dev/pts", "devpts", "devpts", pts},
		{"/dev/shm", "tmpfs", "shm", []string{"nosuid", "noexec", "nodev", "mode=1777", "size=65536k"}},
		{"/dev/mqueue", "mqueue", "mqueue", []string{"nosuid", "noexec", "nodev"}},
	}
	if rootless { // sysfs belongs to the network namespace
		all = append(all, ociMount{"/sys", "none", "/sys", []string{"rbind", "nosuid", "noexec", "nodev", "ro"}})
	} else {
		all = append(all,
			ociMount{"/sys", "sysfs", "sysfs", []string{"nosuid", "noexec", "nodev", "ro"}},
			ociMount{"/sys/fs/cgroup", "cgroup", "cgroup", []string{"nosuid", "noexec", "nodev", "relatime", "ro"}})
	}
	for _, name := range [...]string{"/etc/resolv.conf", "/etc/hosts"} {
		if _, err := os.Stat(name); err == nil && (!readOnly || sandbox.Has(rootfs, name)) {
			all = append(all, ociMount{name, "none", name, []string{"bind", "nosuid", "noexec", "nodev", "ro"}})
		}
	}
	return all
}

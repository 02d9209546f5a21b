package imgtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// DebianSpec describes a real image made from Debian packages. A layer is what
// its script changes in the tree of the layers below, as overlayfs records it.
type DebianSpec struct {
	Name   string // of the directory made
	Layers []DebianLayer
}

// DebianLayer is a layer above the base system.
type DebianLayer struct {
	// Script is run by sh -e as root on the host, in the root of the tree.
	Script string
	// Links are hard links to files of layers below, name and target: overlayfs
	// never records those, other tools' layers have them.
	Links [][2]string
}

// apt returns the layer that installs packages.
func apt(packages string) DebianLayer {
	return DebianLayer{Script: `
		export DEBIAN_FRONTEND=noninteractive
		printf '#!/bin/sh\nexit 101\n' >usr/sbin/policy-rc.d
		chmod +x usr/sbin/policy-rc.d
		chroot . apt-get -qq -o APT::Sandbox::User=root update
		chroot . apt-get -qq -o APT::Sandbox::User=root -o Dpkg::Use-Pty=0 install -y --no-install-recommends ` + packages + `
		chroot . apt-get clean
		rm usr/sbin/policy-rc.d`}
}

// DebianSmall returns the base system below three layers with what real layers
// seldom have.
func DebianSmall() DebianSpec {
	return DebianSpec{Name: "debian-small", Layers: []DebianLayer{oddFiles(), changes(), linked()}}
}

// DebianBig returns an image of more than 10 layers and 20,000 files. It has no
// links to layers below, which overlayfs-backed stores cannot unpack.
func DebianBig() DebianSpec {
	return DebianSpec{Name: "debian-big", Layers: []DebianLayer{
		apt("ca-certificates curl"),
		apt("python3 python3-pip python3-setuptools python3-wheel"),
		apt("git perl"),
		apt("gcc libc6-dev make"),
		apt("iputils-ping libcap2-bin vim"),
		apt("linux-headers-amd64"),
		oddFiles(),
		{Script: `
			DEBIAN_FRONTEND=noninteractive chroot . apt-get -qq -o Dpkg::Use-Pty=0 purge -y vim
			rm -rf var/lib/apt/lists usr/share/doc/git`},
		changes(),
		{Script: `
			chmod 0700 root; chown 7:8 srv; touch -d '2001-02-03 04:05:06.070809010' opt
			find usr/share/man -type f -delete
			mkdir -p srv/www; echo hello >srv/www/index.html`},
	}}
}

func oddFiles() DebianLayer {
	return DebianLayer{Script: `
		mkdir -p odd/dir odd/opaque/sub odd/gone/sub odd/to-file odd/links
		echo 1 >odd/plain; echo 2 >odd/to-dir; echo 3 >odd/opaque/old; echo 4 >odd/opaque/sub/old
		echo 5 >odd/gone/sub/x; echo 6 >odd/to-file/x; : >odd/empty
		cp bin/true odd/capable; setcap cap_net_raw+ep odd/capable
		echo x >odd/xattrs; setfattr -n user.one -v 1 odd/xattrs
		setfattr -n user.binary -v 0x00ff00 odd/xattrs; setfattr -n user.empty odd/xattrs
		setfattr -n user.dir -v d odd/dir; setfattr -n trusted.of-root -v t odd/xattrs
		setfacl -m u:65534:r odd/xattrs; setfacl -d -m g:12:rx odd/dir
		mknod odd/null c 1 3; mknod odd/loop b 7 300; mknod odd/big c 4000 1000000; mkfifo -m 0622 odd/fifo
		echo s >odd/setuid; chown 1000:50000 odd/setuid; chmod 6755 odd/setuid
		mkdir -m 1777 odd/sticky; mkdir -m 2770 odd/setgid; echo n >odd/no-mode; chmod 0 odd/no-mode
		chown 4000000000:4000000001 odd/empty
		for n in 1 123456789 999999999; do echo $n >odd/ns-$n; touch -d "2024-06-07 08:09:10.$(printf %09d $n)" odd/ns-$n; done
		touch -d '1960-01-02 03:04:05.5' odd/before-1970; touch -d '2200-01-01' odd/late
		ln -s plain odd/link; ln -s /odd/dir odd/absolute; ln -s ../../../../etc odd/up; ln -s nowhere odd/dangling
		chown -h 12:34 odd/link
		ln -s "$(printf '%0500d' 0)" odd/long-target
		echo h >odd/links/a; ln odd/links/a odd/links/b; ln odd/links/a odd/links/c
		ln odd/link odd/links/symlink; ln odd/null odd/links/null
		echo z >"odd/$(printf 'n%0254d' 0)"; echo u >"odd/$(printf 'not\377utf8')"; echo w >"odd/new
line"; echo q >'odd/ name '
		truncate -s 3000000 odd/sparse; printf end >>odd/sparse
		head -c 1500000 /dev/zero | tr '\0' x >odd/large
		d=odd/deep; for i in $(seq 40); do d=$d/deeper; done; mkdir -p $d; echo bottom >$d/file
		mkdir odd/many; (cd odd/many; seq 3000 | xargs touch)`}
}

// changes removes and replaces. The link whose other name goes is not copied up
// by overlayfs: its inode stays in the layer below.
func changes() DebianLayer {
	return DebianLayer{Script: `
		rm odd/plain odd/links/b; rm -r odd/gone odd/opaque
		mkdir odd/opaque; echo new >odd/opaque/new
		rm odd/to-dir; mkdir odd/to-dir; echo y >odd/to-dir/y
		rm -r odd/to-file; echo f >odd/to-file
		rm odd/absolute; mkdir odd/absolute; echo d >odd/absolute/d
		rm -r odd/sticky; ln -s dir odd/sticky
		chmod 0711 odd/dir; setfattr -x user.dir odd/dir
		rm odd/many/7*; echo changed >odd/many/1
		echo appended >>odd/capable; mv odd/fifo odd/pipe
		rm -rf usr/share/doc/apt; mkdir usr/share/doc/apt; echo short >usr/share/doc/apt/README`}
}

// linked links to layers below, once to a name that the same layer removes.
func linked() DebianLayer {
	return DebianLayer{
		Script: `rm odd/xattrs; echo l >odd/last`,
		Links: [][2]string{
			{"odd/linked-large", "odd/large"}, {"odd/dir/linked", "odd/links/a"},
			{"odd/linked-symlink", "odd/link"}, {"odd/linked-ns", "odd/ns-123456789"},
			{"odd/linked-ns-2", "odd/linked-ns"}, {"odd/kept", "odd/xattrs"},
		},
	}
}

// Debian returns the path of the OCI layout of a spec's image in dir, with one
// tag, "latest". It is made if it is not there, which takes root, debootstrap
// and the machine's package mirror, from half a minute up; it is not made twice,
// nor left half.
func Debian(ctx context.Context, dir string, spec DebianSpec) (string, error) {
	if os.Geteuid() != 0 {
		return "", errors.New("making a Debian image takes root")
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	lock, err := os.OpenFile(filepath.Join(dir, spec.Name+".lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return "", err
	}
	layout := filepath.Join(dir, spec.Name)
	if _, err := os.Stat(filepath.Join(layout, "index.json")); err == nil {
		return layout, nil
	}
	work, err := os.MkdirTemp(dir, spec.Name+".making-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(work) // nothing is mounted there any more
	d := debian{ctx: ctx, work: work, base: filepath.Join(dir, "debian-base")}
	if err := d.build(spec); err != nil {
		return "", fmt.Errorf("debian image %s: %w", spec.Name, err)
	}
	if err := os.Rename(filepath.Join(work, "layout"), layout); err != nil {
		return "", err
	}
	return layout, nil
}

// debian makes one image.
type debian struct {
	ctx  context.Context
	work string
	base string // the unpacked base system, kept
}

func (d *debian) build(spec DebianSpec) error {
	w, err := newLayoutWriter(filepath.Join(d.work, "layout"))
	if err != nil {
		return err
	}
	if err := d.bootstrap(); err != nil {
		return fmt.Errorf("base: %w", err)
	}
	if err := w.layer(d.base, nil); err != nil {
		return fmt.Errorf("base: %w", err)
	}
	lowers := []string{d.base}
	for i, l := range spec.Layers {
		upper := filepath.Join(d.work, fmt.Sprintf("upper-%d", i))
		links, err := d.change(lowers, upper, l)
		if err != nil {
			return fmt.Errorf("layer %d: %w", i+2, err)
		}
		if err := w.layer(upper, links); err != nil {
			return fmt.Errorf("layer %d: %w", i+2, err)
		}
		lowers = append([]string{upper}, lowers...)
	}
	return w.close()
}

// bootstrap makes the base system, once for all specs.
func (d *debian) bootstrap() error {
	lock, err := os.OpenFile(d.base+".lock", os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return err
	}
	if _, err := os.Stat(d.base); err == nil {
		return nil
	}
	tmp := filepath.Join(d.work, "base")
	suite, mirror := debianSource()
	args := []string{"--variant=minbase", suite, tmp}
	if mirror != "" {
		args = append(args, mirror)
	}
	if err := d.run("debootstrap", args...); err != nil {
		return err
	}
	return os.Rename(tmp, d.base)
}

// debianSource returns the suite and mirror that this machine's apt uses, or a
// suite alone, which leaves the mirror to debootstrap.
func debianSource() (suite, mirror string) {
	suite = "bookworm"
	files, _ := filepath.Glob("/etc/apt/sources.list.d/debian*.sources")
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(b)) {
			f := strings.Fields(line)
			switch {
			case len(f) < 2:
			case f[0] == "URIs:":
				mirror = f[1]
			case f[0] == "Suites:":
				return f[1], mirror
			}
		}
	}
	return suite, mirror
}

// change runs a layer's script on the union of lowers, the uppermost first;
// upper gets what it changed. The links get the attributes that their targets
// have before.
func (d *debian) change(lowers []string, upper string, l DebianLayer) (links []lowerLink, err error) {
	merged, scratch := filepath.Join(d.work, "merged"), upper+".work"
	for _, dir := range []string{upper, merged, scratch} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, err
		}
	}
	o := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s,redirect_dir=off,index=off,metacopy=off", strings.Join(lowers, ":"), upper, scratch)
	if err := unix.Mount("overlay", merged, "overlay", 0, o); err != nil {
		return nil, fmt.Errorf("overlay: %w", err)
	}
	defer func() { err = errors.Join(err, unix.Unmount(merged, 0)) }()
	proc := filepath.Join(merged, "proc")
	if err := unix.Mount("proc", proc, "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return nil, fmt.Errorf("proc: %w", err)
	}
	defer func() { err = errors.Join(err, unix.Unmount(proc, 0)) }()
	stats := map[string]unix.Stat_t{}
	for _, pair := range l.Links {
		link := lowerLink{name: pair[0], target: pair[1]}
		var ok bool
		if link.stat, ok = stats[link.target]; !ok {
			if err := unix.Lstat(filepath.Join(merged, link.target), &link.stat); err != nil {
				return nil, fmt.Errorf("%s: %w", link.target, err)
			}
		}
		stats[link.name] = link.stat
		links = append(links, link)
	}
	return links, d.runIn(merged, "sh", "-ec", l.Script)
}

func (d *debian) run(name string, args ...string) error { return d.runIn(d.work, name, args...) }

func (d *debian) runIn(dir, name string, args ...string) error {
	c := exec.CommandContext(d.ctx, name, args...)
	c.Dir = dir
	c.Env = append(os.Environ(), "LC_ALL=C", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
	if out, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", name, err, out[max(0, len(out)-2000):])
	}
	return nil
}

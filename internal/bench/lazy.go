package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/imgfs/imgfs/internal/imgtest"
)

// links are the ways to the registry that lazy mounts are measured over.
var links = []struct {
	name string
	imgtest.Link
}{
	{"20 ms, 1 Gbit/s", imgtest.Link{RTT: 20 * time.Millisecond, Bandwidth: 1e9}},
	{"50 ms, 200 Mbit/s", imgtest.Link{RTT: 50 * time.Millisecond, Bandwidth: 200e6}},
}

// workload is an image and what is started in it.
type workload struct {
	name    string
	spec    imgtest.DebianSpec
	command []string
}

func workloads() []workload {
	return []workload{
		{"Debian, sh", imgtest.DebianBase(), []string{"sh", "-c", "echo ok"}},
		{"Debian + python", imgtest.DebianPython(), []string{"python3", "-c", "import json; print('ok')"}},
		{"Debian + node, 47,000 small files", imgtest.DebianNode(), []string{"node", "-e", "console.log('ok')"}},
		{"compilers, more than 1 GB", imgtest.DebianToolchain(), []string{"gcc", "--version"}},
	}
}

// runner starts a command in an image out of nothing: its store is empty, its
// daemons run (those of imgfs do not: it has none until it is called).
type runner struct {
	name string
	// form is which of the registry's images it takes: as it is, eStargz, or
	// with an index beside it.
	form string
	// start makes the store and the daemons. What it returns runs a command,
	// reads the whole tree, and takes all of it down.
	start func(ctx context.Context, ref string) (session, error)
}

// session is an image being used.
type session interface {
	first(ctx context.Context, command []string) error // pull or mount, and run
	readAll(ctx context.Context) error                 // of the tree, after first
	memory() (int64, error)                            // of the daemons, anonymous
	close() error
}

// Forms of an image in the registry.
const (
	asIs    = "gzip"
	estargz = "estargz"
	indexed = "indexed"
	sociIdx = "soci"
)

// lazyFirst measures, from an empty store over a link, how long it takes until a
// program in an image has said its first word, and until all of it was read.
func (b *bench) lazyFirst(ctx context.Context) error {
	return b.eachWorkload(ctx, func(w workload, refs map[string]string) error {
		for _, l := range links {
			if err := b.lazyOver(ctx, w, l.name, l.Link, refs); err != nil {
				return fmt.Errorf("%s: %w", l.name, err)
			}
		}
		return nil
	})
}

// eachWorkload calls f with the images that were asked for and where the
// registry has their forms.
func (b *bench) eachWorkload(ctx context.Context, f func(workload, map[string]string) error) error {
	for _, w := range workloads() {
		if b.only != nil && !slices.Contains(b.only, w.spec.Name) {
			continue
		}
		refs, err := b.publish(ctx, w)
		if err == nil {
			err = f(w, refs)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", w.name, err)
		}
	}
	return nil
}

// firstUse is what it took to use an image for the first time: until the
// first output, and until all was read.
type firstUse struct{ first, firstBytes, requests, trips, all, allBytes, memory sample }

func (b *bench) lazyOver(ctx context.Context, w workload, name string, link imgtest.Link, refs map[string]string) (err error) {
	counter, err := imgtest.NewCounter(b.reg.host)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, counter.Close()) }()
	shaper, err := imgtest.NewShaper(counter.Addr(), link)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, shaper.Close()) }()
	use := func(r runner, g *firstUse) (err error) {
		if err := dropCaches(); err != nil {
			return err
		}
		u, err := r.start(ctx, shaper.Addr()+strings.TrimPrefix(refs[r.form], b.reg.host))
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, u.close()) }()
		counter.Forget()
		before := shaper.Bytes()
		took, err := timed(func() error { return u.first(ctx, w.command) })
		if err != nil {
			return err
		}
		g.first.add(took.Seconds())
		g.firstBytes.add(float64(shaper.Bytes() - before))
		g.requests.add(float64(counter.Count()))
		g.trips.add(float64(counter.Trips(link.RTT)))
		rest, err := timed(func() error { return u.readAll(ctx) })
		if err != nil {
			return err
		}
		g.all.add((took + rest).Seconds())
		g.allBytes.add(float64(shaper.Bytes() - before))
		m, err := u.memory()
		g.memory.add(float64(m))
		return err
	}
	runners := b.runners()
	results := make([]firstUse, len(runners))
	for range b.rounds {
		for i, r := range runners {
			if err := use(r, &results[i]); err != nil {
				return fmt.Errorf("%s: %w", r.name, err)
			}
		}
	}
	var rows [][]string
	for i, r := range runners {
		g := results[i]
		rows = append(rows, []string{r.name,
			fmt.Sprintf("%.2f s", g.first.median()), fmt.Sprintf("%.2f MB", g.firstBytes.median()/1e6),
			fmt.Sprintf("%.0f in %.0f", g.requests.median(), g.trips.median()),
			fmt.Sprintf("%.2f s", g.all.median()), fmt.Sprintf("%.1f MB", g.allBytes.median()/1e6),
			fmt.Sprintf("%.0f MiB", g.memory.median()/(1<<20))})
	}
	table(fmt.Sprintf("%s, %s: from an empty store to the output of `%s`, and until every file was read (medians of %d)",
		w.name, name, strings.Join(w.command, " "), b.rounds),
		[]string{"", "first output", "fetched", "requests in round trips", "all read", "fetched", "memory"}, rows)
	return nil
}

// lazyLocal measures reads of a whole tree that came in by reading all of it
// before, against overlayfs on unpacked layers. Cold means dropped caches.
func (b *bench) lazyLocal(ctx context.Context) error {
	return b.eachWorkload(ctx, func(w workload, refs map[string]string) error {
		reads := func(r runner, cold, hot *sample) (err error) {
			u, err := r.start(ctx, refs[r.form])
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, u.close()) }()
			if err := errors.Join(u.first(ctx, w.command), u.readAll(ctx), dropCaches()); err != nil {
				return err
			}
			for _, s := range []*sample{cold, hot} {
				took, err := timed(func() error { return u.readAll(ctx) })
				if err != nil {
					return err
				}
				s.add(took.Seconds())
			}
			return nil
		}
		runners := append([]runner{{"overlayfs (podman)", asIs, b.startPodman}}, b.imgfsRunners()...)
		cold, hot := make([]sample, len(runners)), make([]sample, len(runners))
		for range b.rounds {
			for i, r := range runners {
				if err := reads(r, &cold[i], &hot[i]); err != nil {
					return fmt.Errorf("%s: %w", r.name, err)
				}
			}
		}
		var rows [][]string
		for i, r := range runners {
			rows = append(rows, []string{r.name,
				fmt.Sprintf("%.2f s (%.2f)", cold[i].median(), cold[i].median()/cold[0].median()),
				fmt.Sprintf("%.2f s (%.2f)", hot[i].median(), hot[i].median()/hot[0].median())})
		}
		table(fmt.Sprintf("%s: the whole tree read again after it came in (in brackets: to overlayfs; medians of %d)", w.name, b.rounds),
			[]string{"", "cold", "hot"}, rows)
		return nil
	})
}

// publish puts an image into the registry in all its forms.
func (b *bench) publish(ctx context.Context, w workload) (map[string]string, error) {
	layout, err := imgtest.Debian(ctx, "/var/tmp/imgfs-test", w.spec)
	if err != nil {
		return nil, err
	}
	ref, err := b.serve(ctx, layout)
	if err != nil {
		return nil, err
	}
	refs := map[string]string{asIs: ref}
	name := strings.TrimSuffix(ref, ":1")
	dir := b.path("mnt", "publish")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	for form, push := range map[string][]string{indexed: {"index", "push"}, sociIdx: {"index", "push", "--format", "soci"}} {
		to := name + "-" + form + ":1"
		if _, err := output(ctx, "skopeo", "copy", "-q", "--dest-tls-verify=false", "oci:"+layout, "docker://"+to); err != nil {
			return nil, err
		}
		// The first contact makes the index, and the trace of what it needs.
		if _, err := b.run(ctx, "mount", "--ro", "-q", to, dir); err != nil {
			return nil, err
		}
		if _, err := output(ctx, "chroot", append([]string{dir}, w.command...)...); err != nil {
			return nil, err
		}
		if _, err := b.run(ctx, "umount", dir); err != nil {
			return nil, err
		}
		if _, err := b.run(ctx, append(push, to)...); err != nil {
			return nil, err
		}
		refs[form] = to
	}
	refs[estargz] = name + "-esgz:1"
	_, err = b.run(ctx, "convert", "--to", "estargz", ref, refs[estargz])
	return refs, err
}

func (b *bench) runners() []runner {
	list := []runner{
		{"podman", asIs, b.startPodman},
		{"containerd", asIs, func(ctx context.Context, ref string) (session, error) { return b.startContainerd(ctx, ref, overlayfs) }},
	}
	if _, err := exec.LookPath("containerd-stargz-grpc"); err == nil {
		list = append(list, runner{"containerd + stargz-snapshotter, eStargz", estargz,
			func(ctx context.Context, ref string) (session, error) { return b.startContainerd(ctx, ref, stargz) }})
	}
	if _, err := exec.LookPath("soci-snapshotter-grpc"); err == nil {
		list = append(list, runner{"containerd + soci-snapshotter, gzip + SOCI index", sociIdx,
			func(ctx context.Context, ref string) (session, error) { return b.startContainerd(ctx, ref, soci) }})
	}
	return append(list, b.imgfsRunners()...)
}

func (b *bench) imgfsRunners() []runner {
	return []runner{
		{"imgfs, gzip", asIs, b.startImgfs},
		{"imgfs, eStargz", estargz, b.startImgfs},
		{"imgfs, gzip + SOCI index", sociIdx, b.startImgfs},
		{"imgfs, gzip + its own index", indexed, b.startImgfs},
	}
}

// imgfsSession is imgfs on a store of its own.
type imgfsSession struct {
	b               *bench
	ref, store, dir string
}

func (b *bench) startImgfs(_ context.Context, ref string) (session, error) {
	s := &imgfsSession{b, ref, b.path("lazy-store"), b.path("mnt", "lazy")}
	return s, os.MkdirAll(s.dir, 0o755)
}

func (s *imgfsSession) imgfs(ctx context.Context, args ...string) error {
	_, err := output(ctx, s.b.imgfs, append([]string{"--root", s.store}, args...)...)
	return err
}

func (s *imgfsSession) first(ctx context.Context, command []string) error {
	if err := s.imgfs(ctx, "mount", "--ro", "-q", s.ref, s.dir); err != nil {
		return err
	}
	_, err := output(ctx, "chroot", append([]string{s.dir}, command...)...)
	return err
}

func (s *imgfsSession) readAll(ctx context.Context) error { return readTree(ctx, s.dir) }

func (s *imgfsSession) memory() (int64, error) {
	pid, err := s.b.daemonPID(context.Background(), s.store)
	if err != nil {
		return 0, err
	}
	return rssAnon(pid)
}

func (s *imgfsSession) close() error {
	ctx := context.Background()
	return errors.Join(s.imgfs(ctx, "umount", s.dir), s.imgfs(ctx, "daemon", "stop"), os.RemoveAll(s.store))
}

// podmanSession is podman on a store of its own.
type podmanSession struct {
	ref   string
	store []string
	dirs  []string
	mnt   string // of the image, once it was read
}

func (b *bench) startPodman(_ context.Context, ref string) (session, error) {
	root := b.path("lazy-podman")
	return &podmanSession{ref: ref, dirs: []string{root, root + "-run"},
		store: []string{"--root", root, "--runroot", root + "-run", "--storage-driver", "overlay", "--cgroup-manager", "cgroupfs"}}, nil
}

func (s *podmanSession) podman(ctx context.Context, args ...string) (string, error) {
	out, err := output(ctx, "podman", append(s.store[:len(s.store):len(s.store)], args...)...)
	return strings.TrimSpace(out), err
}

func (s *podmanSession) first(ctx context.Context, command []string) error {
	if _, err := s.podman(ctx, "pull", "-q", "--tls-verify=false", s.ref); err != nil {
		return err
	}
	_, err := s.podman(ctx, append([]string{"run", "--rm", "--network=none", "--ulimit=nofile=1024:1024", "--ulimit=nproc=4096:4096", "--log-driver=none", s.ref}, command...)...)
	return err
}

func (s *podmanSession) readAll(ctx context.Context) (err error) {
	if s.mnt == "" {
		if s.mnt, err = s.podman(ctx, "image", "mount", s.ref); err != nil {
			return err
		}
	}
	return readTree(ctx, s.mnt)
}

// memory is none: podman has no daemon.
func (s *podmanSession) memory() (int64, error) { return 0, nil }

func (s *podmanSession) close() error {
	var errs []error
	if s.mnt != "" {
		_, err := s.podman(context.Background(), "image", "umount", s.ref)
		errs = append(errs, err)
	}
	for _, d := range s.dirs {
		_ = unix.Unmount(filepath.Join(d, "overlay"), unix.MNT_DETACH) // podman binds it to itself
		errs = append(errs, os.RemoveAll(d))
	}
	return errors.Join(errs...)
}

// readTree reads every file of a directory. The pipe is for tar, which does
// not read what it knows to be thrown away.
func readTree(ctx context.Context, dir string) error {
	if strings.Contains(filepath.Clean(dir), "'") {
		return fmt.Errorf("%s: a quote in the name", dir)
	}
	_, err := output(ctx, "sh", "-c", "tar --one-file-system -C '"+dir+"' -cf - . | cat >/dev/null")
	return err
}

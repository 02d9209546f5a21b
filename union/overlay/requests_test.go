package overlay_test

import (
	"maps"
	"testing"

	"golang.org/x/sys/unix"
)

// TestRequestsOfNames counts what a change of names costs. A name that was
// never asked for is looked up first, by the kernel's VFS; what was made is
// known without another question. After a change the kernel asks once for the
// directory's own attributes, when it next goes there: that is not counted here.
func TestRequestsOfNames(t *testing.T) {
	m := startCounted(t, chain{"dir d\nfile d/low x\nfile d/gone x\nfile d/moved x\ndir d/sub\nfile d/sub/x x\n"}, nil)
	m.write("d/first", "x")
	for _, name := range []string{"d/low", "d/gone", "d/moved", "d/sub", "d/sub/x"} {
		m.stat(name)
	}
	known := func(names ...string) {
		for _, n := range names {
			m.stat(n)
		}
	}
	missing := func() {
		for _, n := range []string{"d/k", "d/gone", "d/sub", "d/moved"} {
			var st unix.Stat_t
			if err := unix.Stat(m.path(n), &st); err != unix.ENOENT {
				t.Errorf("%s: %v", n, err)
			}
		}
	}
	for _, c := range []struct {
		what string
		do   func()
		want map[string]uint64
	}{
		{"create and close", func() { m.close(m.open("d/new", unix.O_CREAT|unix.O_WRONLY)) }, map[string]uint64{"lookup": 1, "change": 1}},
		{"stat of it", func() { known("d/new") }, nil},
		{"mkdir", func() { m.must(unix.Mkdir(m.path("d/m"), 0o755)) }, map[string]uint64{"lookup": 1, "change": 1}},
		{"stat of it", func() { known("d/m") }, nil},
		{"create in a new directory", func() { m.close(m.open("d/m/f", unix.O_CREAT|unix.O_WRONLY)) }, map[string]uint64{"lookup": 1, "change": 1}},
		{"symlink", func() { m.must(unix.Symlink("x", m.path("d/s"))) }, map[string]uint64{"lookup": 1, "change": 1}},
		{"link", func() { m.must(unix.Link(m.path("d/new"), m.path("d/l"))) }, map[string]uint64{"lookup": 1, "change": 1}},
		{"stat of it", func() { known("d/l") }, nil},
		{"rename", func() { m.must(unix.Rename(m.path("d/l"), m.path("d/k"))) }, map[string]uint64{"lookup": 1, "change": 1}},
		{"rename of a lower file", func() { m.must(unix.Rename(m.path("d/moved"), m.path("d/m/moved"))) }, map[string]uint64{"lookup": 1, "change": 1}},
		{"rename of a lower directory", func() { m.must(unix.Rename(m.path("d/sub"), m.path("d/m/sub"))) }, map[string]uint64{"lookup": 1, "change": 1}},
		{"stat in it", func() { known("d/m/sub/x") }, nil},
		{"unlink", func() { m.must(unix.Unlink(m.path("d/k"))) }, map[string]uint64{"change": 1}},
		{"unlink of a lower file", func() { m.must(unix.Unlink(m.path("d/gone"))) }, map[string]uint64{"change": 1}},
		{"what is gone is known to be", func() { missing() }, nil},
		{"create where something was", func() { m.close(m.open("d/gone", unix.O_CREAT|unix.O_WRONLY)) }, map[string]uint64{"change": 1}},
	} {
		for _, dir := range []string{"", "d", "d/m", "d/sub", "d/m/sub"} {
			var st unix.Stat_t
			unix.Stat(m.path(dir), &st)
		}
		if c.what == "what is gone is known to be" {
			missing() // the kernel asks once more about a name that it has removed
		}
		got := m.requests(c.do)
		delete(got, "close") // RELEASE is sent when the kernel comes to it
		if !maps.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", c.what, got, c.want)
		}
	}
}

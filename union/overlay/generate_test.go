package overlay_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// abilities are what a target can be asked for beyond what all can.
type abilities struct {
	coherent bool // what is open sees copy-up: kernel overlayfs' readers do not
	special  bool // devices, and attributes that only root may set
	users    bool // operations with a user's permissions
	noSocks  bool // no sockets, which no layer has
	names    bool // nothing but changes of names
	single   bool // only what is one operation of the file system
	// drops: of a file that is open when it becomes set-uid, by passthrough,
	// whoever writes clears it, root too.
	drops   bool
	noLinks bool // no hard links in the chain: kernel overlayfs breaks them
	long    bool // names of 255 bytes: kernel overlayfs' redirects have 256
}

// names are few, so that operations meet. LONG stands for one that is as long
// as a name can be, see [expand].
func names(can abilities) []string {
	if !can.long {
		return []string{"a", "b", "c", "d", "e"}
	}
	return []string{"a", "b", "c", "d", "LONG"}
}

// randomChain makes up to 5 layers that hide, replace and link what is below.
func randomChain(r *rand.Rand, can abilities) chain {
	g := chainGenerator{r: r, can: can, attrs: map[string]string{}}
	c := make(chain, 1+r.IntN(5))
	for i := range c {
		g.lines, g.layer, g.links = nil, i, nil
		g.lines = append(g.lines, "dir . mode=0755 mtime=1000000001")
		g.directory("", 0)
		for _, p := range slices.Clone(g.links) {
			g.link(p)
		}
		c[i] = strings.Join(g.lines, "\n") + "\n"
	}
	return c
}

// chainGenerator knows the tree so far: attrs has an entry for each name, for
// files what follows a link's target.
type chainGenerator struct {
	r     *rand.Rand
	can   abilities
	layer int
	lines []string
	attrs map[string]string // "dir", or the verb and the attributes of another
	links []string          // names that become links at the end of the layer
}

func (g *chainGenerator) pick(s ...string) string { return s[g.r.IntN(len(s))] }

func (g *chainGenerator) remove(p string) {
	maps.DeleteFunc(g.attrs, func(k, _ string) bool { return k == p || strings.HasPrefix(k, p+"/") })
}

func (g *chainGenerator) directory(prefix string, depth int) {
	for _, name := range names(g.can) {
		p := prefix + name
		switch k := g.r.IntN(20); {
		case k < 6-depth && depth < 4:
			if a := g.attrs[p]; a != "" && a != "dir" {
				g.remove(p)
			}
			g.attrs[p] = "dir"
			g.lines = append(g.lines, fmt.Sprintf("dir %s mode=%s uid=%s gid=%s mtime=%s%s", p,
				g.pick("0755", "0755", "0700", "1777", "2775", "0500"), g.pick("0", "1000"), g.pick("0", "1000"), g.time(), g.xattr()))
			if g.layer > 0 && g.r.IntN(6) == 0 {
				g.remove(p)
				g.attrs[p] = "dir"
				g.lines = append(g.lines, "file "+p+"/.wh..wh..opq")
			}
			g.directory(p+"/", depth+1)
		case k < 9 && g.layer > 0 && g.attrs[p] != "":
			g.remove(p)
			g.lines = append(g.lines, "file "+prefix+".wh."+name)
		case k == 9:
			g.put(p, "symlink", g.pick("a", "b", "../c", "../b/a", "d/e", "nowhere", "/a/b"), " mtime="+g.time())
		case k == 10 && len(g.attrs) > 0 && !g.can.noLinks:
			g.links = append(g.links, p)
		case k == 11 && g.can.special:
			g.put(p, g.pick("fifo", "char"), "", " mode=0644 mtime="+g.time())
		case k < 15:
			g.put(p, "file", "", fmt.Sprintf(" %s mode=%s uid=%s gid=%s mtime=%s%s",
				g.pick("size=0", "size=1", "size=511", "size=4096", "size=5000", "size=70000", "sparse=1.0 size=300000 map=0+512,131072+4096"),
				g.pick("0644", "0644", "0600", "0755", "4755", "2755", "0444"), g.pick("0", "0", "1000"), g.pick("0", "0", "1000"), g.time(), g.xattr()))
		}
	}
}

// put writes an entry other than a directory. An extractor that writes into
// what is there would change all of an inode's names, so it goes first.
func (g *chainGenerator) put(p, verb, arg, attrs string) {
	g.remove(p)
	switch verb {
	case "char":
		arg = "1:3"
	case "fifo", "file":
		arg = ""
	}
	if arg != "" {
		arg = " " + arg
	}
	g.lines = append(g.lines, verb+" "+p+arg+attrs)
	g.attrs[p] = verb + attrs
}

// link makes a link to a file that no link of this layer replaces: a tar's link
// means what is there at its end.
func (g *chainGenerator) link(p string) {
	var targets []string
	for t, a := range g.attrs {
		if strings.HasPrefix(a, "file") && !slices.ContainsFunc(g.links, func(l string) bool { return t == l || strings.HasPrefix(t, l+"/") }) {
			targets = append(targets, t)
		}
	}
	if len(targets) == 0 {
		return
	}
	slices.Sort(targets)
	to := targets[g.r.IntN(len(targets))]
	a := g.attrs[to]
	g.remove(p)
	// Of the attributes a link's entry has all but those of the data.
	rest := a[strings.Index(a, " mode="):]
	g.lines = append(g.lines, "link "+p+" "+to+rest)
	g.attrs[p] = a
}

func (g *chainGenerator) time() string {
	return g.pick("1", "1000000000.123456789", "1234567890", "1500000000.5", "4102444800")
}

func (g *chainGenerator) xattr() string {
	switch g.r.IntN(8) {
	case 0:
		return " xattr:user.one=1"
	case 1:
		return " xattr:user.one=1 xattr:user.two=" + strings.Repeat("x", 200)
	case 2:
		if g.can.special {
			return " xattr:trusted.t=root xattr:user.one=2"
		}
	}
	return ""
}

// opGenerator makes up operations on a tree as it stands.
type opGenerator struct {
	r   *rand.Rand
	can abilities
	tag int
}

// next makes up one operation, looking at the model's tree for names.
func (g *opGenerator) next(model *root) string {
	for {
		op := g.one(model)
		words := strings.Fields(op)
		if words[0] == "as" {
			words = words[2:]
		}
		// These are several, of which some may fail.
		if g.can.single && slices.Contains([]string{"rmtree", "tmpfile", "copy"}, words[0]) {
			continue
		}
		if g.can.names && !slices.Contains([]string{"create", "mkdir", "rmdir", "unlink", "rename", "link", "rmtree", "list", "append"}, words[0]) {
			continue
		}
		// Without privilege a symlink has no owner but the server, and who may
		// remove or link it depends on that.
		if !g.can.special && (words[0] == "symlink" && op[:2] == "as" ||
			words[0] == "chown" && strings.HasPrefix(model.do("stat "+words[1]), "120")) {
			continue
		}
		return op
	}
}

func (g *opGenerator) one(model *root) string {
	dirs, files := listNames(model.fd)
	pick := func(s []string) string { return s[g.r.IntN(len(s))] }
	name := func() string { return path.Join(pick(dirs), pick(names(g.can))) } // often new
	file := func() string {
		if len(files) == 0 || g.r.IntN(8) == 0 {
			return name()
		}
		return pick(files)
	}
	dir := func() string {
		if g.r.IntN(8) == 0 {
			return name()
		}
		return pick(dirs)
	}
	any := func() string {
		if g.r.IntN(2) == 0 {
			return dir()
		}
		return file()
	}
	mode := func() string {
		if g.can.drops && len(model.slots) > 0 {
			return pick([]string{"644", "600", "755", "0", "1777", "444"})
		}
		return pick([]string{"644", "600", "755", "4755", "2755", "0", "1777", "2770", "444"})
	}
	off := func() int { return pick2(g.r, 0, 1, 511, 4095, 4096, 9000, 65536, 100001) }
	size := func() int { return pick2(g.r, 1, 5, 511, 4096, 5000, 40000) }
	g.tag++
	tag := fmt.Sprint("t", g.tag)
	slot := fmt.Sprint(g.r.IntN(4))
	user := func() string { return pick([]string{"0", "1000", "1001"}) }
	op := func() string {
		switch g.r.IntN(44) {
		case 0, 1:
			return fmt.Sprintf("create %s %s", name(), mode())
		case 2, 3:
			return fmt.Sprintf("write %s %d %d %s", file(), off(), size(), tag)
		case 4, 5:
			return fmt.Sprintf("append %s %d %s", file(), size(), tag)
		case 6:
			return fmt.Sprintf("truncate %s %d", file(), off())
		case 7:
			return "empty " + file()
		case 8, 9:
			return fmt.Sprintf("mkdir %s %s", name(), pick([]string{"755", "700", "2775", "1777"}))
		case 10, 11:
			return "rmdir " + dir()
		case 12, 13, 14:
			return "unlink " + file()
		case 15, 16, 17, 18:
			return fmt.Sprintf("rename %s %s %s", any(), pick([]string{name(), any()}), pick([]string{"", "", "noreplace", "exchange"}))
		case 19, 20:
			return fmt.Sprintf("%s %s %s", pick([]string{"link", "link", "linkfd"}), file(), name())
		case 21:
			return fmt.Sprintf("symlink %s %s", name(), pick([]string{"a", "../b", "b/c", "nowhere", strings.Repeat("long/", 40)}))
		case 22, 23:
			return fmt.Sprintf("chmod %s %s", any(), mode())
		case 24:
			return fmt.Sprintf("chown %s %s %s", any(), user(), user())
		case 25:
			return fmt.Sprintf("times %s %s", any(), pick([]string{"0", "-5", "1111111111", "4102444800"}))
		case 26, 27:
			return fmt.Sprintf("setxattr %s %s %s", any(), g.xattr(), tag)
		case 28:
			return fmt.Sprintf("rmxattr %s %s", any(), g.xattr())
		case 29:
			return fmt.Sprintf("mknod %s %s 644", name(), pick([]string{"fifo", map[bool]string{true: "file", false: "sock"}[g.can.noSocks], "file", map[bool]string{true: "char", false: "fifo"}[g.can.special]}))
		case 30:
			return fmt.Sprintf("fallocate %s %d %d %d", file(), pick2(g.r, 0, unix.FALLOC_FL_KEEP_SIZE,
				unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_ZERO_RANGE), off(), size())
		case 31:
			return fmt.Sprintf("tmpfile %s %s %s", dir(), name(), tag)
		case 32:
			return "list " + dir()
		case 33:
			return "stat " + any()
		case 34:
			return fmt.Sprintf("copy %s %s %d %d", file(), file(), off(), size())
		case 35:
			if g.r.IntN(4) == 0 {
				return "rmtree " + any()
			}
			return "cat " + file()
		case 36:
			return fmt.Sprintf("acl %s %s %s", any(), pick([]string{"access", "default"}), pick([]string{"755", "750", "640"}))
		case 37, 38:
			flags := []string{"w", "rw", "a", "c"}
			if g.can.coherent {
				flags = append(flags, "r", "r", "r")
			}
			return fmt.Sprintf("open %s %s %s", slot, file(), pick(flags))
		case 39:
			return fmt.Sprintf("put %s %d %d %s", slot, off(), size(), tag)
		case 40, 41:
			return fmt.Sprintf("get %s %d %d", slot, off(), size())
		case 42:
			return fmt.Sprintf("%s %s %d %d", pick([]string{"size", "punch", "sync"}), slot, off(), size())
		}
		return "fstat " + slot
	}()
	if g.can.users && g.r.IntN(5) == 0 {
		op = "as " + pick([]string{"1000", "1001"}) + " " + op
	}
	return op
}

func (g *opGenerator) xattr() string {
	if g.can.special && g.r.IntN(4) == 0 {
		return "trusted.x"
	}
	return []string{"user.one", "user.two", "user.new"}[g.r.IntN(3)]
}

func pick2(r *rand.Rand, n ...int) int { return n[r.IntN(len(n))] }

// listNames lists what is below a directory, relative to it.
func listNames(fd int) (dirs, files []string) {
	dirs = []string{"."}
	for i := 0; i < len(dirs); i++ {
		d, err := openat(fd, dirs[i], unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW)
		if err != nil {
			continue
		}
		entries, _ := listDir(d)
		unix.Close(d)
		slices.SortFunc(entries, func(a, b dirent) int { return strings.Compare(a.name, b.name) })
		for _, e := range entries {
			switch {
			case e.name == "." || e.name == "..":
			case e.typ == unix.DT_DIR:
				dirs = append(dirs, path.Join(dirs[i], e.name))
			default:
				files = append(files, path.Join(dirs[i], e.name))
			}
		}
	}
	for _, s := range [][]string{dirs, files} {
		for i := range s {
			s[i] = strings.ReplaceAll(s[i], longName(), "LONG")
		}
	}
	return dirs, files
}

func longName() string { return strings.Repeat("n", 255) }

// expand writes LONG out.
func expand(s string) string { return strings.ReplaceAll(s, "LONG", longName()) }

package main

import (
	"fmt"
	"io"
	"os"
	"path"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
)

func lsCommand() *cli.Command {
	return command(cli.Command{
		Name: "ls", ArgsUsage: "IMAGE[:PATH]...",
		Usage: "list files of an image",
		Description: treeText + `
Without a PATH it is the root. No bytes of files are fetched for it: a lazily
held image is listed from its index. Owners are shown as numbers, as the host's
names are not the image's.

Template fields: .Path .Name .Type .Mode .Links .UID .GID .Size .Mtime .Device
.Target

Examples:
  imgfs ls ubuntu:14.04
  imgfs ls -la debian:12:/root
  imgfs ls -R --format '{{.Size}} {{.Path}}' debian:12:/usr/lib | sort -n | tail
  imgfs ls -R --format json alpine | jq -r 'select(.Type=="symlink").Path'

` + exitsText(fault.Failed, fault.Invalid, fault.NotFound, fault.Denied, fault.Integrity,
			fault.Network, fault.Unavailable, fault.Canceled),
		Flags: treeFlags(
			&cli.BoolFlag{Name: "all", Aliases: []string{"a"}, Usage: "list names that begin with a dot as well"},
			&cli.BoolFlag{Name: "directory", Aliases: []string{"d"}, Usage: "list a directory itself, not what is in it"},
			formatFlag(),
			&cli.BoolFlag{Name: "long", Aliases: []string{"l"}, Usage: "show type, mode, links, owner, size, time and a link's target"},
			&cli.BoolFlag{Name: "recursive", Aliases: []string{"R"}, Usage: "list everything below"},
		),
		Action: listTrees,
	})
}

// fileRow is what a template of `imgfs ls` sees; of the heading, all are text.
type fileRow struct {
	Path, Name, Type, Mode any
	Links, UID, GID, Size  any
	Mtime                  any
	Device                 string `json:",omitempty"` // of a device: MAJOR:MINOR
	Target                 string `json:",omitempty"` // of a symbolic link
}

var fileHead = fileRow{"PATH", "NAME", "TYPE", "MODE", "LINKS", "UID", "GID", "SIZE", "MODIFIED", "DEVICE", "TARGET"}

const fileTable = `{{.Mode}}\t{{.UID}}\t{{.GID}}\t{{.Size}}\t{{.Mtime}}\t{{.Path}}`

func listTrees(c *cli.Context) error {
	if c.NArg() == 0 {
		return fault.WithHint(fault.New(fault.Invalid, "missing argument"), "imgfs ls IMAGE[:PATH] lists files; imgfs images lists images")
	}
	if err := checkFormat(c); err != nil {
		return err
	}
	t, err := openTrees(c)
	if err != nil {
		return err
	}
	defer t.show.end()
	l := &lister{w: c.App.Writer, long: c.Bool("long"), recursive: c.Bool("recursive"), several: c.NArg() > 1}
	if f, ok := l.w.(*os.File); ok {
		l.safe = term.IsTerminal(int(f.Fd()))
	}
	var rows []fileRow
	var first error
	for _, arg := range c.Args().Slice() {
		list, at, err := t.list(arg)
		switch {
		case err != nil && (c.Context.Err() != nil || c.NArg() == 1):
			return err
		case err != nil:
			printError(c.App.ErrWriter, err)
			first = firstOf(first, reported{err})
		case c.String("format") != "":
			for i := range list {
				rows = append(rows, rowOfFile(&list[i], at))
			}
		default:
			l.print(list, at, arg)
		}
	}
	if c.String("format") != "" {
		if err := printRows(c.App.Writer, c.String("format"), fileTable, fileHead, rows); err != nil {
			return err
		}
	}
	if l.err != nil {
		return l.err
	}
	return first
}

// list returns what an argument names, and the path of that.
func (t *treeReader) list(arg string) (list []engineapi.TreeEntry, at string, err error) {
	tree, at, ok := splitPath(arg)
	if !ok {
		at = "/"
	}
	req, err := t.request(tree, at)
	if err != nil {
		return nil, "", err
	}
	req.Self, req.Recursive = t.Bool("directory"), t.Bool("recursive")
	req.NoFollow = req.Self || t.Bool("long")
	hidden := "" // a directory that is not listed, with a slash
	err = t.client.ListTree(t.Context.Context, req, t.show.step, func(e engineapi.TreeEntry) error {
		if !t.Bool("all") && e.Path != "" {
			if hidden != "" && strings.HasPrefix(e.Path, hidden) {
				return nil
			}
			if strings.HasPrefix(path.Base(e.Path), ".") {
				hidden = e.Path + "/"
				return nil
			}
		}
		list = append(list, e)
		return nil
	})
	return list, at, err
}

func rowOfFile(e *engineapi.TreeEntry, at string) fileRow {
	full := path.Join(at, e.Path)
	row := fileRow{
		Path: full, Name: path.Base(full), Type: engineapi.FileType(e.Mode), Mode: modeText(e.Mode), Links: e.Nlink,
		UID: e.UID, GID: e.GID, Size: e.Size, Mtime: e.Mtime.Format("2006-01-02T15:04:05.999999999Z07:00"),
	}
	if isDevice(e.Mode) {
		row.Device = fmt.Sprintf("%d:%d", e.Major, e.Minor)
	}
	if e.Target != "" {
		row.Target = e.Target
	}
	return row
}

// lister writes listings as ls(1) does.
type lister struct {
	w         io.Writer
	long      bool
	recursive bool
	several   bool  // arguments
	safe      bool  // names that could do something to a terminal are changed
	begun     bool  // something was written
	err       error // the first of writing
}

func (l *lister) printf(format string, args ...any) {
	if _, err := fmt.Fprintf(l.w, format, args...); l.err == nil {
		l.err = err
	}
}

// print writes what an argument names: what is in each directory together.
func (l *lister) print(list []engineapi.TreeEntry, at, arg string) {
	if len(list) == 1 && list[0].Path == "" {
		l.group(list, at)
		return
	}
	tree := strings.TrimSuffix(arg, ":"+at)
	in := map[string][]engineapi.TreeEntry{}
	dirs := []string{"."}
	for _, e := range list {
		dir := path.Dir(e.Path)
		in[dir] = append(in[dir], e)
		if l.recursive && e.Mode&unix.S_IFMT == unix.S_IFDIR {
			dirs = append(dirs, e.Path)
		}
	}
	for i, dir := range dirs {
		if l.begun {
			l.printf("\n")
		}
		if l.recursive || l.several {
			shown := at
			if i > 0 {
				shown = path.Join(at, dir)
			}
			l.printf("%s:%s:\n", tree, l.name(shown))
		}
		l.group(in[dir], "")
	}
}

// name returns a name as it is shown.
func (l *lister) name(s string) string {
	if l.safe {
		return oneLine(s)
	}
	return s
}

// group writes entries below each other, their columns aligned; at is what an
// entry without a path is called.
func (l *lister) group(list []engineapi.TreeEntry, at string) {
	l.begun = true
	var cells [][5]string
	var wide [5]int
	if l.long {
		for _, e := range list {
			size := strconv.FormatInt(e.Size, 10)
			if isDevice(e.Mode) {
				size = fmt.Sprintf("%d, %d", e.Major, e.Minor)
			}
			row := [5]string{modeText(e.Mode), strconv.FormatUint(e.Nlink, 10), strconv.Itoa(int(e.UID)), strconv.Itoa(int(e.GID)), size}
			for i, s := range row {
				wide[i] = max(wide[i], len(s))
			}
			cells = append(cells, row)
		}
	}
	for i, e := range list {
		name := path.Base(e.Path)
		if e.Path == "" {
			name = at
		}
		if !l.long {
			l.printf("%s\n", l.name(name))
			continue
		}
		for j, s := range cells[i] {
			l.printf("%*s ", wide[j], s)
		}
		l.printf("%s %s", e.Mtime.Local().Format("2006-01-02 15:04"), l.name(name))
		if e.Mode&unix.S_IFMT == unix.S_IFLNK {
			l.printf(" -> %s", l.name(e.Target))
		}
		l.printf("\n")
	}
}

func isDevice(mode uint32) bool {
	return mode&unix.S_IFMT == unix.S_IFCHR || mode&unix.S_IFMT == unix.S_IFBLK
}

// modeText returns a mode as ls(1) shows it: drwxr-xr-x.
func modeText(mode uint32) string {
	b := []byte("?rwxrwxrwx")
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		b[0] = '-'
	case unix.S_IFDIR:
		b[0] = 'd'
	case unix.S_IFLNK:
		b[0] = 'l'
	case unix.S_IFIFO:
		b[0] = 'p'
	case unix.S_IFSOCK:
		b[0] = 's'
	case unix.S_IFCHR:
		b[0] = 'c'
	case unix.S_IFBLK:
		b[0] = 'b'
	}
	for i := range 9 {
		if mode&(1<<(8-i)) == 0 {
			b[1+i] = '-'
		}
	}
	for _, s := range []struct {
		bit    uint32
		at     int
		letter byte
	}{{unix.S_ISUID, 3, 's'}, {unix.S_ISGID, 6, 's'}, {unix.S_ISVTX, 9, 't'}} {
		switch {
		case mode&s.bit == 0:
		case b[s.at] == '-':
			b[s.at] = s.letter - 'a' + 'A'
		default:
			b[s.at] = s.letter
		}
	}
	return string(b)
}

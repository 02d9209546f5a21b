package union

import (
	"strings"
	"testing"

	"github.com/imgfs/imgfs/internal/erofs"
	"github.com/imgfs/imgfs/internal/fault"
)

func TestMerge(t *testing.T) {
	for _, tt := range []struct {
		name   string
		layers string // lines, the layers separated by "--"
		want   string // tree without its root, or the end of an error
	}{
		{"no layer", "", ""},
		{"one layer", "d etc; f etc/a; s l -> etc/a; c x", "d etc @1; f etc/a @1; s l -> etc/a @1; c x @1"},
		{"empty layer", "f a -- -- f b", "f a @1; f b @3"},

		// Over what was there.
		{"file over file", "f a -- f a", "f a @2"},
		{"directory over directory: union of names, top's attributes", "d d; f d/a; f d/b -- d d; f d/b; f d/c", "d d @2; f d/a @1; f d/b @2; f d/c @2"},
		{"file over directory", "d d; d d/e; f d/e/a -- f d", "f d @2"},
		{"directory over file", "f d -- d d; f d/a", "d d @2; f d/a @2"},
		{"directory over symlink to a directory", "d t; f t/a; s d -> t -- d d; f d/b", "d d @2; f d/b @2; d t @1; f t/a @1"},
		{"symlink over directory", "d t; d d; f d/a -- s d -> t", "s d -> t @2; d t @1"},
		{"file over directory, directory again: nothing comes back", "d d; f d/a -- f d -- d d; f d/b", "d d @3; f d/b @3"},
		{"device over file", "f a -- c a", "c a @2"},

		// Whiteouts.
		{"whiteout of a file", "d d; f d/a; f d/b -- w d/a", "d d @1; f d/b @1"},
		{"whiteout of a directory", "d d; d d/e; f d/e/a; f b -- w d", "f b @1"},
		{"whiteout of a symlink leaves its target", "d t; f t/a; s l -> t -- w l", "d t @1; f t/a @1"},
		{"whiteout of nothing", "f a -- w b; w a/x", "d a @0"},
		{"whiteout in the lowest layer", "w a; f b", "f b @1"},
		{"name back after a whiteout", "d d; f d/a -- w d -- d d; f d/b", "d d @3; f d/b @3"},
		{"file back after a whiteout", "f a -- w a -- f a", "f a @3"},
		{"whiteout reaches through all lowers", "f a -- f b -- w a; w b", ""},
		{"device 0/0 is no whiteout", "d d; f d/a -- c d/a; c d/b", "d d @1; c d/a @2; c d/b @2"},

		// Opaque directories.
		{"opaque", "d d; f d/a; d d/e; f d/e/x -- o d; f d/b", "d d @2; f d/b @2"},
		{"opaque hides all descendants", "d d; d d/e; f d/e/x -- o d; d d/e; f d/e/y", "d d @2; d d/e @2; f d/e/y @2"},
		{"opaque over nothing", "f a -- o d; f d/b", "f a @1; d d @2; f d/b @2"},
		{"opaque over a file", "f d -- o d; f d/b", "d d @2; f d/b @2"},
		{"opaque over a symlink", "d t; f t/a; s d -> t -- o d; f d/b", "d d @2; f d/b @2; d t @1; f t/a @1"},
		{"opaque is of its layer only", "d d; f d/a -- o d; f d/b -- d d; f d/c", "d d @3; f d/b @2; f d/c @3"},
		{"opaque root", "r; f a; d d -- o .; f b", "f b @2"},
		{"opaque, the tar has no entry for it", "d d; f d/a -- O d; f d/b", "d d @1; f d/b @2"},
		{"opaque twice", "d d; f d/a -- o d; f d/b -- o d; f d/c", "d d @3; f d/c @3"},

		// Implied directories.
		{"implied over nothing", "f a/b/c", "d a @0; d a/b @0; f a/b/c @1"},
		{"implied keeps attributes", "d a; d a/b -- f a/b/c", "d a @1; d a/b @1; f a/b/c @2"},
		{"implied, then real", "f a/b -- d a", "d a @2; f a/b @1"},
		{"implied over a file replaces", "f a -- f a/b", "d a @0; f a/b @2"},
		{"implied over a device replaces", "c a -- f a/b", "d a @0; f a/b @2"},
		{"implied over a symlink follows", "d usr; d usr/bin; s bin -> usr/bin -- f bin/sh", "s bin -> usr/bin @1; d usr @1; d usr/bin @1; f usr/bin/sh @2"},
		{"absolute target", "d usr; d usr/bin; s bin -> /usr/bin -- f bin/sh", "s bin -> /usr/bin @1; d usr @1; d usr/bin @1; f usr/bin/sh @2"},
		{"absolute target, not at the root", "d x; s x/l -> /y; d y; d x/y -- f x/l/a", "d x @1; s x/l -> /y @1; d x/y @1; d y @1; f y/a @2"},
		{"relative target, not at the root", "d x; s x/l -> y; d y; d x/y -- f x/l/a", "d x @1; s x/l -> y @1; d x/y @1; f x/y/a @2; d y @1"},
		{"never out of the root", "s l -> ../../../x; d x -- f l/a", "s l -> ../../../x @1; d x @1; f x/a @2"},
		{"target /", "s l -> / -- f l/a", "f a @2; s l -> / @1"},
		{"symlink to symlink", "d d; s b -> c; s c -> d -- f b/a", "s b -> c @1; s c -> d @1; d d @1; f d/a @2"},
		{"symlink in the middle of the target", "d x; d x/y; s m -> x; s l -> m/y/../y -- f l/a", "s l -> m/y/../y @1; s m -> x @1; d x @1; d x/y @1; f x/y/a @2"},
		{"target missing is made", "s l -> x/y -- f l/a", "s l -> x/y @1; d x @0; d x/y @0; f x/y/a @2"},
		{"what .. takes back is not made", "s l -> x/../y -- f l/a", "s l -> x/../y @1; d y @0; f y/a @2"},
		{"target a file is replaced", "f t; s l -> t -- f l/a", "s l -> t @1; d t @0; f t/a @2"},
		{"target through a file", "f t; s l -> t/x -- f l/a", "s l -> t/x @1; d t @0; d t/x @0; f t/x/a @2"},
		{"symlink to itself", "s l -> l -- f l/a", "layer 2 (000000000000): /l: too many symlinks"},
		{"circle of symlinks", "s a -> b/x; s b -> a -- f a/f", "too many symlinks"},
		{"target in this layer", "s l -> d -- d d; f l/a", "d d @2; f d/a @2; s l -> d @1"},
		{"symlinks and real way meet", "d usr; d usr/bin; f usr/bin/b; s bin -> usr/bin -- f bin/a; f usr/bin/c; w bin/b", "s bin -> usr/bin @1; d usr @1; d usr/bin @1; f usr/bin/a @2; f usr/bin/c @2"},
		{"whiteout through a symlink", "d etc; f etc/x; f etc/y; s l -> /etc -- w l/x", "d etc @1; f etc/y @1; s l -> /etc @1"},
		{"whiteout through a dead symlink", "d etc; s l -> /dne -- w l/etc", "d dne @0; d etc @1; s l -> /dne @1"},
		{"whiteout through a symlink spares its own layer", "d d; f d/a; s l -> d -- f d/a; w l/a", "d d @1; f d/a @2; s l -> d @1"},
		{"also in directories", "d d; d d/e; f d/e/a; f d/e/b; s l -> d -- f d/e/b; w l/e", "d d @1; d d/e @1; f d/e/b @2; s l -> d @1"},
		{"opaque through a symlink", "d d; f d/a; s l -> d -- O l; f l/b", "d d @1; f d/b @2; s l -> d @1"},
		{"opaque through a symlink spares its own layer", "d d; f d/a; d d/e; f d/e/x; f d/e/y; s l -> d -- f d/e/y; O l; f l/b", "d d @1; f d/b @2; d d/e @1; f d/e/y @2; s l -> d @1"},
		{"whiteout through a symlink of what another put there", "d a; d a/b; f a/b/old; s l -> a/b; s m -> . -- f l/new; w m/a", "d a @1; d a/b @1; f a/b/new @2; s l -> a/b @1; s m -> . @1"},
		{"of what another made", "d a; f a/old; s l -> a/b; s m -> . -- f l/new; w m/a", "d a @1; d a/b @0; f a/b/new @2; s l -> a/b @1; s m -> . @1"},
		{"symlink below a symlink", "d x; d y; s l -> x; s x/m -> ../y -- f l/m/a", "s l -> x @1; d x @1; s x/m -> ../y @1; d y @1; f y/a @2"},
		{"whiteout before a symlink is followed", "d t; f t/a; s l -> t -- w t; f l/b", "s l -> t @1; d t @0; f t/b @2"},
		{"symlink replaced below another", "d x; s l -> x; s x/m -> /; s n -> x -- f l/m/a; w n/m", "s l -> x @1; s n -> x @1; d x @1; d x/m @0; f x/m/a @2"},

		// Hard links.
		{"in a layer", "f a; n b = a; n d/c = a", "f a @1; n b = a; d d @0; n d/c = a"},
		{"in a layer, below another", "f a; n b = a -- f c", "f a @1; n b = a; f c @2"},
		{"one name removed", "f a; n b = a; n c = a -- w a", "f b @1; n c = b"},
		{"one name replaced", "f a; n b = a -- f a", "f a @2; f b @1"},
		{"to a lower", "f a -- h b => a", "f a @2 of 1; n b = a"},
		{"to a lower, further up", "d d; f d/a -- f x -- h b => d/a -- h c => b", "f b @4 of 1; n c = b; d d @1; n d/a = b; f x @2"},
		{"two names of one link", "f a -- h b => a; n c = b", "f a @2 of 1; n b = a; n c = a"},
		{"target removed later", "f a -- h b => a -- w a", "f b @2 of 1"},
		{"target removed in the layer", "f a -- h b => a; w a", "f b @2 of 1"},
		{"target replaced later", "f a -- h b => a -- f a", "f a @3; f b @2 of 1"},
		{"target's directory removed in the layer", "d d; f d/a -- w d; h b => d/a", "f b @2 of 1"},
		{"target's directory opaque in the layer", "d d; f d/a -- o d; h d/b => d/a", "d d @2; f d/b @2 of 1"},
		{"target behind symlinked parents", "d d; f d/a; s l -> d -- h b => l/a", "f b @2 of 1; d d @1; n d/a = b; s l -> d @1"},
		{"parents never leave the root", "d d; f d/a; s l -> ../../d -- h b => l/a", "f b @2 of 1; d d @1; n d/a = b; s l -> ../../d @1"},
		{"to a symlink is to the symlink", "f a; s l -> a -- h b => l", "f a @1; s b -> a @2; n l = b"},
		{"to a device", "c x -- h b => x", "c b @2; n x = b"},
		{"target of this layer, through a lower symlink", "d d; f d/a; s l -> d -- f d/a; h b => l/a", "f b @2; d d @1; n d/a = b; s l -> d @1"},
		{"target is a link itself", "f a; s l -> d; d d -- h d/x => a; h y => l/x", "f a @2 of 1; d d @1; n d/x = a; s l -> d @1; n y = a"},
		{"target a directory now, a file before", "d d; f d/a; s l -> d -- d d/a; h b => l/a", "f b @2 of 1; d d @1; d d/a @2; s l -> d @1"},
		{"links in a circle, broken by the lower", "d d; f d/a; s l -> d -- h d/a => l/b; h d/b => l/a", "d d @1; f d/a @2 of 1; n d/b = d/a; s l -> d @1"},
		{"linked by several layers: the newest attributes", "f a -- h b => a -- h c => a -- h d => b", "f a @4 of 1; n b = a; n c = a; n d = a"},
		{"over a directory", "f a; d b; f b/x -- h b => a", "f a @2 of 1; n b = a"},
		{"missing target", "f a -- h d/b => x/y", "layer 2 (000000000000): hard link /d/b to /x/y: no such file in this layer or those below"},
		{"missing parent", "f a -- h b => a/x", "no such file in this layer or those below"},
		{"removed target", "f a -- w a -- h b => a", "no such file in this layer or those below"},
		{"links in a circle", "d d; s l -> d -- h d/a => l/b; h d/b => l/a", "no such file in this layer or those below"},
		{"to itself", "d d; s l -> d -- h d/a => l/a", "no such file in this layer or those below"},
		{"behind a circle of symlinks", "s l -> l -- h b => l/a", "no such file in this layer or those below"},
		{"to a directory", "d d -- h b => d", "hard link /b to /d: the target is a directory"},
		{"to the root", "d d -- h b => .", "the target is a directory"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			img, err := mergeEveryWay(t, parse(t, tt.layers))
			if err != nil {
				if tt.want == "" || !strings.HasSuffix(err.Error(), tt.want) || fault.KindOf(err) != fault.Integrity {
					t.Fatalf("error %v (%v), want %q", err, fault.KindOf(err), tt.want)
				}
				return
			}
			_, got, _ := strings.Cut(list(t, img), "\n")
			if want := strings.Join(split(tt.want, ";"), "\n"); got != want {
				t.Errorf("got:\n%s\nwant:\n%s", got, want)
			}
		})
	}
}

func TestRootAttributes(t *testing.T) {
	for layers, want := range map[string]string{
		"":                       "d . @0",
		"f a":                    "d . @0",
		"r":                      "d . @1",
		"r -- f a":               "d . @1",
		"r -- f a -- r; f b":     "d . @3",
		"f a -- r -- o .; f b":   "d . @2",
		"r -- f a -- r; o . -- ": "d . @3",
	} {
		img, err := mergeEveryWay(t, parse(t, layers))
		if err != nil {
			t.Fatal(err)
		}
		if got, _, _ := strings.Cut(list(t, img), "\n"); got != want {
			t.Errorf("%q: %s, want %s", layers, got, want)
		}
	}
}

// parse builds layers from their lines.
func parse(t testing.TB, s string) []*erofs.Image {
	t.Helper()
	if s == "" {
		return nil
	}
	var layers []*erofs.Image
	for i, text := range strings.Split(s+" ", "-- ") {
		layers = append(layers, buildLayer(t, i+1, split(text, ";")...))
	}
	return layers
}

func split(s, sep string) []string {
	var parts []string
	for p := range strings.SplitSeq(s, sep) {
		if p = strings.TrimSpace(p); p != "" {
			parts = append(parts, p)
		}
	}
	return parts
}

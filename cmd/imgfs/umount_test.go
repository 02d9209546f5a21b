package main

import (
	"testing"

	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
)

func TestMountCalled(t *testing.T) {
	t.Parallel()
	known := []engineapi.Mount{{ID: "aaaa11111111"}, {ID: "aaaa22222222"}, {ID: "bbbb11111111"}}
	for _, tt := range []struct{ name, want, err string }{
		{"aaaa11111111", "aaaa11111111", ""},
		{"aaaa2", "aaaa22222222", ""},
		{"bbbb", "bbbb11111111", ""},
		{"aaaa", "", `ambiguous id prefix "aaaa": matches aaaa11111111, aaaa22222222 (2)`},
		{"cccc", "", ""},
		{"bbb", "", ""}, // as good a name of a directory
		{"bbbbx", "", ""},
		{"", "", ""},
	} {
		m, err := mountCalled(known, tt.name)
		got := ""
		if m != nil {
			got = m.ID
		}
		if got != tt.want || (err == nil) != (tt.err == "") || err != nil && (err.Error() != tt.err || fault.KindOf(err) != fault.Conflict) {
			t.Errorf("%q: %q, %v", tt.name, got, err)
		}
	}
}

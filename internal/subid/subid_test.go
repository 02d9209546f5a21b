package subid

import (
	"slices"
	"testing"
)

func TestParse(t *testing.T) {
	got := parse([]byte("# x\nyou:1:2\nme:100000:65536\n1000:300000:10\nme:x:1\nme:5:0\nme:-1:7\n"), "me", 1000)
	want := []Range{{1, 100000, 65536}, {65537, 300000, 10}}
	if !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

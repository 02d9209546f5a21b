package main

import (
	"bytes"
	"strings"
	"testing"

	"github.com/imgfs/imgfs/internal/engineapi"
)

var steps = []engineapi.Progress{
	{ID: "14.04", Status: "Pulling from library/ubuntu"},
	{ID: "515ae707f091", Status: "Pulling fs layer"},
	{ID: "515ae707f091", Status: "Downloading", Current: 10, Total: 100},
	{ID: "515ae707f091", Status: "Downloading", Current: 20, Total: 100},
	{ID: "0123456789ab", Status: "Already exists"},
	{ID: "515ae707f091", Status: "Pull complete"},
	{Status: "Digest: sha256:1234"},
}

func TestPlainProgress(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	show := &lines{w: &b, last: map[string]string{}}
	for _, s := range steps {
		show.step(s)
	}
	show.end()
	const want = `14.04: Pulling from library/ubuntu
515ae707f091: Pulling fs layer
515ae707f091: Downloading
0123456789ab: Already exists
515ae707f091: Pull complete
Digest: sha256:1234
`
	if b.String() != want {
		t.Errorf("%s\nwant\n%s", b.String(), want)
	}
}

func TestNothingToShow(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	show := &ifNeeded{display: &lines{w: &b, last: map[string]string{}}}
	show.step(steps[0])
	show.step(steps[4])
	show.step(steps[6])
	if b.Len() != 0 {
		t.Errorf("shown although nothing was fetched: %q", b.String())
	}
	show.step(steps[1])
	const want = "14.04: Pulling from library/ubuntu\n0123456789ab: Already exists\nDigest: sha256:1234\n515ae707f091: Pulling fs layer\n"
	if b.String() != want {
		t.Errorf("%q, want %q", b.String(), want)
	}
}

// The bars end, complete or not, and show each layer's last state.
func TestBars(t *testing.T) {
	t.Parallel()
	for _, whole := range []bool{true, false} {
		var b bytes.Buffer
		show := &bars{w: &b, byID: map[string]*bar{}}
		for _, s := range steps {
			if whole || s.Status != "Pull complete" {
				show.step(s)
			}
		}
		show.end()
		for _, want := range []string{"515ae707f091: ", "0123456789ab: Already exists"} {
			if !strings.Contains(b.String(), want) {
				t.Errorf("whole %v: no %q in %q", whole, want, b.String())
			}
		}
	}
}

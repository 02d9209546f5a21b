package engineapi

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/imgfs/imgfs/internal/fault"
)

// keeper is an engine whose layers are looked after.
type keeper struct {
	engine
	pins []Pin
	fail error // of Warm, after its first step
}

func (k *keeper) Warm(_ context.Context, req WarmRequest, report func(Progress)) (WarmResult, error) {
	if req.Image == "" {
		return WarmResult{}, fault.New(fault.NotFound, "no image")
	}
	report(Progress{ID: "layer", Status: "Downloading", Current: 1, Total: 2})
	return WarmResult{Files: len(req.Paths), Bytes: 2}, k.fail
}

func (k *keeper) Pins(context.Context) ([]Pin, error) { return k.pins, nil }

func (k *keeper) Pin(_ context.Context, image string) (Pin, error) {
	k.pins = append(k.pins, Pin{Image: image})
	return k.pins[len(k.pins)-1], nil
}

func (k *keeper) Unpin(_ context.Context, image string) error {
	k.pins = slices.DeleteFunc(k.pins, func(p Pin) bool { return p.Image == image })
	return nil
}

func (k *keeper) Why(_ context.Context, s Source, path string) (Why, error) {
	return Why{Image: s.Image, Path: strings.ToUpper(path), Size: int64(len(path))}, nil
}

// A job tells how far it is, ends with its result or with an error, and an
// error before its first step is a reply of its own.
func TestJob(t *testing.T) {
	t.Parallel()
	k := &keeper{}
	c := serve(t, k)
	var steps []Progress
	note := func(p Progress) { steps = append(steps, p) }
	res, err := c.Warm(t.Context(), WarmRequest{Image: "x", Paths: []string{"/a", "/b"}}, note)
	if err != nil || res != (WarmResult{Files: 2, Bytes: 2}) {
		t.Errorf("%+v, %v", res, err)
	}
	if want := []Progress{{ID: "layer", Status: "Downloading", Current: 1, Total: 2}}; !slices.Equal(steps, want) {
		t.Errorf("steps %+v, want %+v", steps, want)
	}
	if _, err := c.Warm(t.Context(), WarmRequest{}, nil); fault.KindOf(err) != fault.NotFound {
		t.Errorf("before a step: %v", err)
	}
	k.fail = fault.WithHint(fault.New(fault.Network, "gone"), "wait")
	if _, err := c.Warm(t.Context(), WarmRequest{Image: "x"}, nil); fault.KindOf(err) != fault.Network || fault.HintOf(err) != "wait" {
		t.Errorf("after a step: %v", err)
	}
	k.fail = errors.New("broken")
	if _, err := c.Warm(t.Context(), WarmRequest{Image: "x"}, nil); fault.KindOf(err) != fault.Failed || err.Error() != "broken" {
		t.Errorf("after a step: %v", err)
	}
}

// Names and paths hold whatever they like.
func TestPinsAndWhy(t *testing.T) {
	t.Parallel()
	c := serve(t, &keeper{})
	const name = "reg:5000/a b/c?d&e=f:1"
	if p, err := c.Pin(t.Context(), name); err != nil || p.Image != name {
		t.Errorf("%+v, %v", p, err)
	}
	if list, err := c.Pins(t.Context()); err != nil || len(list) != 1 {
		t.Errorf("%+v, %v", list, err)
	}
	if err := c.Unpin(t.Context(), name); err != nil {
		t.Error(err)
	}
	if list, err := c.Pins(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("%+v, %v", list, err)
	}
	y, err := c.Why(t.Context(), Source{Image: name}, "/a b&\xff")
	if err != nil || y.Image != name || y.Size != 6 {
		t.Errorf("%+v, %v", y, err)
	}
}

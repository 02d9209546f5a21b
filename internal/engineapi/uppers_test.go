package engineapi

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/imgfs/imgfs/internal/fault"
)

func TestUppers(t *testing.T) {
	e := &engine{}
	c := serve(t, e)
	ctx := context.Background()
	list, err := c.Uppers(ctx)
	if err != nil || len(list) != 1 || list[0].Name != "ubuntu-1" || list[0].Size != 5 {
		t.Errorf("list: %+v %v", list, err)
	}
	if u, err := c.Upper(ctx, "ubuntu-1"); err != nil || u.Name != "ubuntu-1" {
		t.Errorf("one: %+v %v", u, err)
	}
	if list, err := c.CheckUpper(ctx, "ubuntu-1"); err != nil || len(list) != 1 || list[0] != (UpperProblem{"/ubuntu-1", "damaged"}) {
		t.Errorf("check: %v %v", list, err)
	}
	for _, name := range []string{"other", "../../etc", "a/b"} {
		if _, err := c.Upper(ctx, name); fault.KindOf(err) != fault.NotFound {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := c.RemoveUpper(ctx, "ubuntu-1"); err != nil {
		t.Error(err)
	}
	if err := c.ConvertUpper(ctx, "ubuntu-1", ConvertRequest{Xattrs: "user"}); err != nil {
		t.Error(err)
	}
	e.err = fault.WithHint(fault.New(fault.Conflict, "in use"), "imgfs umount /mnt")
	if err := c.RemoveUpper(ctx, "ubuntu-1"); fault.KindOf(err) != fault.Conflict || fault.HintOf(err) != "imgfs umount /mnt" {
		t.Errorf("in use: %v", err)
	}
	if want := []string{"ubuntu-1", "ubuntu-1 to user", "ubuntu-1"}; !slices.Equal(e.removed, want) {
		t.Errorf("the engine was asked %q, want %q", e.removed, want)
	}
}

// TestMountTwice has the daemon ask twice, as for driver overlay: the first
// answer brings a descriptor, the second none.
func TestMountTwice(t *testing.T) {
	var got string
	e := &engine{mount: func(_ context.Context, req MountRequest, _ func(Progress), x Exchange) (Mount, error) {
		_, f, err := x(MountReady{Source: "src", Lower: true})
		if err != nil {
			return Mount{}, err
		}
		defer f.Close()
		b := make([]byte, 16)
		n, _ := f.ReadAt(b, 0)
		rep, none, err := x(MountReady{Overlay: &Overlay{Upper: "/u", User: true}})
		if err != nil {
			return Mount{}, err
		}
		got = fmt.Sprint(string(b[:n]), " ", rep.Dev, " ", none == nil)
		return Mount{ID: "id"}, nil
	}}
	c := serve(t, e)
	var asked []string
	req := testMount
	req.Driver, req.Mode = "overlay", "rw"
	_, err := c.Mount(context.Background(), req, nil, func(r MountReady) (int, MountReply, error) {
		if r.Overlay == nil {
			asked = append(asked, fmt.Sprint(r.Source, " ", r.Lower))
			return tempFD(t, "content"), MountReply{}, nil
		}
		asked = append(asked, fmt.Sprint(*r.Overlay))
		return -1, MountReply{Dev: "0:7"}, nil
	})
	if err != nil || got != "content 0:7 true" || strings.Join(asked, ";") != "src true;{/u true}" {
		t.Errorf("got %q, asked %q, %v", got, asked, err)
	}
}

// TestMountTwiceFails has the second step fail: the daemon is told.
func TestMountTwiceFails(t *testing.T) {
	seen := make(chan error, 1)
	e := &engine{mount: func(_ context.Context, _ MountRequest, _ func(Progress), x Exchange) (Mount, error) {
		_, f, err := x(MountReady{})
		if err == nil {
			f.Close()
			_, _, err = x(MountReady{Overlay: &Overlay{}})
		}
		seen <- err
		return Mount{}, err
	}}
	c := serve(t, e)
	_, err := c.Mount(context.Background(), testMount, nil, func(r MountReady) (int, MountReply, error) {
		if r.Overlay == nil {
			return tempFD(t, ""), MountReply{}, nil
		}
		return -1, MountReply{}, os.ErrInvalid
	})
	if err != os.ErrInvalid {
		t.Errorf("client: %v", err)
	}
	if err := <-seen; err == nil || err.Error() != os.ErrInvalid.Error() {
		t.Errorf("daemon: %v", err)
	}
}

func TestCheckUpper(t *testing.T) {
	base := MountRequest{Image: "x", Target: "/mnt", Driver: "fuse", Mode: "rw"}
	for _, tt := range []struct {
		name string
		edit func(*MountRequest)
		ok   bool
	}{
		{"fresh", func(r *MountRequest) {}, true},
		{"read-only", func(r *MountRequest) { r.Mode = "ro" }, true},
		{"of an old client", func(r *MountRequest) { r.Mode = "" }, true},
		{"by name", func(r *MountRequest) { r.Upper = "u" }, true},
		{"by name, image left out", func(r *MountRequest) { r.Upper, r.Image = "u", "" }, true},
		{"by directory", func(r *MountRequest) { r.UpperDir = "/u" }, true},
		{"by directory, image left out", func(r *MountRequest) { r.UpperDir, r.Image = "/u", "" }, true},
		{"dropped", func(r *MountRequest) { r.Tmp = true }, true},
		{"overlay", func(r *MountRequest) { r.Driver = "overlay" }, true},
		{"nothing to mount", func(r *MountRequest) { r.Image = "" }, false},
		{"mode", func(r *MountRequest) { r.Mode = "wo" }, false},
		{"read-only with an upper", func(r *MountRequest) { r.Mode, r.Upper = "ro", "u" }, false},
		{"read-only, forced", func(r *MountRequest) { r.Mode, r.Force = "ro", true }, false},
		{"read-only overlay", func(r *MountRequest) { r.Mode, r.Driver = "ro", "overlay" }, false},
		{"writable layout", func(r *MountRequest) { r.Image, r.Layout = "", true }, false},
		{"two uppers", func(r *MountRequest) { r.Upper, r.UpperDir = "u", "/u" }, false},
		{"a named one to drop", func(r *MountRequest) { r.Upper, r.Tmp = "u", true }, false},
		{"relative directory", func(r *MountRequest) { r.UpperDir = "u" }, false},
		{"directory not clean", func(r *MountRequest) { r.UpperDir = "/u/../v" }, false},
	} {
		r := base
		tt.edit(&r)
		if err := r.check(); (err == nil) != tt.ok {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
}

package overlay_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/imgfs/imgfs/internal/lower"
	"github.com/imgfs/imgfs/internal/upperdir"
)

// offline opens the upper of a target, which it unmounts.
func offline(u *unionTarget, f func(ctx context.Context, d *upperdir.Dir, low *lower.Tree) error) error {
	if err := u.close(); err != nil {
		return err
	}
	low, done, err := openLower(u.Chain)
	if err != nil {
		return err
	}
	defer done()
	d, err := upperdir.Open(u.Upper)
	if err != nil {
		return err
	}
	return errors.Join(f(context.Background(), d, low), d.Close())
}

// sound fails if the upper is not in order.
func sound(u *unionTarget) error {
	return offline(u, func(ctx context.Context, d *upperdir.Dir, low *lower.Tree) error {
		problems, err := d.Check(ctx, low)
		if len(problems) > 0 {
			err = errors.Join(err, fmt.Errorf("the upper's check says: %v", problems))
		}
		return err
	})
}

// asLayer makes a layer of the upper and mounts the chain with it on top, under
// a fresh upper: the tree is the model's.
func asLayer(dir string, c chain, model *root, to target, m masks) error {
	u := to.(*unionTarget)
	var layer, again bytes.Buffer
	err := errors.Join(sound(u), offline(u, func(ctx context.Context, d *upperdir.Dir, low *lower.Tree) error {
		return errors.Join(d.WriteLayer(ctx, &layer, low), d.WriteLayer(ctx, &again, low))
	}))
	if err != nil {
		return err
	}
	if !bytes.Equal(layer.Bytes(), again.Bytes()) {
		return errors.New("the layer's bytes differ from time to time")
	}
	tars, err := c.tars()
	if err != nil {
		return err
	}
	twin := filepath.Join(dir, "twin")
	if err := os.Mkdir(twin, 0o755); err != nil {
		return err
	}
	n, err := unionOf(twin, append(tars, layer.Bytes()), 0)
	if err != nil {
		return fmt.Errorf("the upper as a layer: %w", err)
	}
	if err := n.mount(); err != nil {
		return fmt.Errorf("the upper as a layer: %w", err)
	}
	if err := errors.Join(compare(model, n.r, m), n.close()); err != nil {
		return fmt.Errorf("the upper as a layer: %w", err)
	}
	return nil
}

// converted gives the upper to kernel overlayfs in the form that it reads in a
// user namespace, and to the union again.
func converted(dir string, c chain, model *root, to target, m masks) error {
	u := to.(*unionTarget)
	if err := offline(u, func(ctx context.Context, d *upperdir.Dir, low *lower.Tree) error {
		return errors.Join(d.Convert(ctx, low, upperdir.User), d.KernelReads(ctx))
	}); err != nil {
		return fmt.Errorf("convert: %w", err)
	}
	if err := u.mount(); err != nil {
		return fmt.Errorf("after the conversion: %w", err)
	}
	if err := errors.Join(compare(model, u.r, m), u.close()); err != nil {
		return fmt.Errorf("after the conversion: %w", err)
	}
	plain := filepath.Join(dir, "plain")
	if err := os.Mkdir(plain, 0o755); err != nil {
		return err
	}
	if err := applyChain(plain, c); err != nil {
		return err
	}
	k := &kernelTarget{at: u.at, data: fmt.Sprintf("lowerdir=%s,upperdir=%s/diff,workdir=%s/work,userxattr,index=off", plain, u.Upper, u.Upper)}
	if err := k.mount(); err != nil {
		return err
	}
	m.links, m.inodes = true, true
	if err := errors.Join(compare(model, k.r, m), k.close()); err != nil {
		return fmt.Errorf("kernel overlayfs after the conversion: %w", err)
	}
	return nil
}

// TestUpperAsLayer: whatever was done, the layer made of the upper gives the
// same tree, and the upper is in order.
func TestUpperAsLayer(t *testing.T) {
	for _, k := range []kind{asRoot, rootless} {
		k.can.noSocks = true
		k.after = func(dir string, c chain, model *root, to target) error { return asLayer(dir, c, model, to, k.masks) }
		t.Run(k.name, func(t *testing.T) {
			needRoot(t)
			last := uint64(2)
			if *long {
				last = 100
			}
			randomScenarios(t, k, 1001, 1000+last, 150)
		})
	}
}

// TestConverted: an upper that was converted shows the same tree, under both
// drivers.
func TestConverted(t *testing.T) {
	needRoot(t)
	k := asRoot
	// What a renamed directory has of a hard link into another is copied.
	k.can.noLinks = true
	k.after = func(dir string, c chain, model *root, to target) error { return converted(dir, c, model, to, k.masks) }
	last := uint64(2)
	if *long {
		last = 100
	}
	randomScenarios(t, k, 2001, 2000+last, 150)
}

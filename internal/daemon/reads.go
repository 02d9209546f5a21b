package daemon

import (
	"bytes"
	"context"
	"errors"
	"os"
	"sync/atomic"
	"time"

	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
	"github.com/imgfs/imgfs/internal/lower"
	"github.com/imgfs/imgfs/layerdb"
)

// What a read of bytes that are not here does when they do not come:
//
//	--on-error      the registry fails        nothing arrives
//	eio             EIO                       EIO after silence
//	retry=DURATION  tried again, then EIO     EIO after DURATION
//
// DURATION counts from the first failure that no byte has followed, not from
// the read: what is read in the middle of an outage waits for its rest, and
// after that every read tries once and fails. It is for a registry that went
// away: a mount of a known image, made without asking anybody, has no patience
// until a registry has answered it.
//
// What is wrong for good (the bytes are not the promised ones, the blob is
// gone, access is denied) is not tried again by the read that met it.

const (
	// silence is how long nothing may arrive where there is no patience.
	silence = 10 * time.Second
	// firstPause is between the first two tries of a read, doubled up to
	// lastPause for each further one.
	firstPause = 200 * time.Millisecond
	lastPause  = 5 * time.Second
)

// reads is how one mount, or one command, reads layers that may not be here.
type reads struct {
	patience time.Duration
	born     time.Time
	met      atomic.Bool     // a registry has answered; until then there is no patience
	ended    context.Context // has ended: who is given it waits for nothing
	trace    *recorder       // of the first accesses; nil: none is kept
	ahead    *foresight      // nil: nothing is foreseen
	failed   func(id.LayerKey, error)

	waits   atomic.Uint64 // reads that waited
	waited  atomic.Int64  // nanoseconds, in all
	fetched atomic.Uint64 // bytes of theirs that were not here
}

func newReads(patience time.Duration, failed func(id.LayerKey, error)) *reads {
	r := &reads{patience: patience, failed: failed, born: time.Now()}
	var cancel context.CancelFunc
	r.ended, cancel = context.WithCancel(context.Background())
	cancel()
	return r
}

// dataOf returns a chain's data files for a command, which is as patient as a
// mount of which nobody has said anything.
func (e *engine) dataOf(chain *layerdb.Chain) []lower.Data {
	r := newReads(engineapi.DefaultPatience, func(id.LayerKey, error) {})
	r.met.Store(true)
	return e.devices(chain, r)
}

// devices returns a chain's data files as r reads them.
func (e *engine) devices(chain *layerdb.Chain, r *reads) []lower.Data {
	var list []lower.Data
	for i, d := range chain.Data() {
		l, _ := e.layers.Info(d.Key()) // that of an open layer is there
		list = append(list, &device{data: d, reads: r, blob: l.Blob, pulse: e.origins.pulse(l.Blob), index: i})
	}
	return list
}

// device is a layer's data file as one mount reads it.
type device struct {
	data  *layerdb.Data
	reads *reads
	blob  id.Blob
	pulse *pulse
	index int // among the chain's devices
}

// Fill implements lower.Data.
func (d *device) Fill(ctx context.Context, off, n, end int64) (*os.File, error) {
	if t := d.reads.trace; t != nil {
		t.note(d.index, off, n)
	}
	f, err := d.data.Fill(d.reads.ended, off, n, end)
	if err == nil {
		return f, nil
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return d.await(ctx, off, n, end)
}

// await is Fill for what is not here.
func (d *device) await(ctx context.Context, off, n, end int64) (f *os.File, err error) {
	begun, missing := time.Now(), n-d.data.PresentIn(off, n)
	d.reads.waits.Add(1)
	defer func() {
		d.reads.waited.Add(int64(time.Since(begun)))
		if err == nil {
			d.reads.fetched.Add(uint64(missing))
		}
	}()
	for pause := firstPause; ; pause = min(2*pause, lastPause) {
		f, err := d.try(ctx, off, n, end)
		if d.pulse.last(d.reads.born).After(d.reads.born) {
			d.reads.met.Store(true)
		}
		if err == nil {
			if d.reads.ahead != nil && beginsProgram(f, off) {
				d.reads.ahead.began(d.index, off, end)
			}
			return f, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		rest := time.Duration(0)
		if fault.KindOf(err) == fault.Network {
			rest = d.rest(d.pulse.failed())
		}
		if rest <= 0 {
			d.reads.failed(d.data.Key(), err)
			return nil, err
		}
		timer := time.NewTimer(min(pause, rest))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil, ctx.Err()
		}
	}
}

// beginsProgram reports whether an ELF file begins at off.
func beginsProgram(f *os.File, off int64) bool {
	var b [6]byte
	_, err := f.ReadAt(b[:], off)
	return err == nil && bytes.Equal(b[:], elfMagic)
}

// rest returns how long an outage is still borne that began at since.
func (d *device) rest(since time.Time) time.Duration {
	if !d.reads.met.Load() {
		return 0
	}
	return d.reads.patience - time.Since(since)
}

// errSilent is the cause when try gives up.
var errSilent = errors.New("nothing arrives")

// try fills once, for as long as bytes arrive.
func (d *device) try(ctx context.Context, off, n, end int64) (*os.File, error) {
	start := time.Now()
	bear := max(d.rest(d.pulse.start(start)), silence)
	within, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		timer := time.NewTimer(bear)
		defer timer.Stop()
		for {
			select {
			case <-within.Done():
				return
			case <-timer.C:
			}
			rest := bear - time.Since(d.pulse.last(start))
			if rest <= 0 {
				cancel(errSilent)
				return
			}
			timer.Reset(rest)
		}
	}()
	f, err := d.data.Fill(within, off, n, end)
	if err != nil && ctx.Err() == nil && context.Cause(within) == errSilent {
		return nil, fault.New(fault.Network, "layer %s: %w for %s", d.blob.Short(), errSilent, bear.Round(time.Second))
	}
	return f, err
}

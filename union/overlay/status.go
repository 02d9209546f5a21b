package overlay

import (
	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/imgfs/imgfs/internal/upperdir"
)

// status returns the errno of an error. A bare errno of the upper's file
// system (ENOSPC, EDQUOT, EMLINK...) is the caller's; whatever is wrapped is a
// damage: EIO, logged once per reason.
func (u *Union) status(op string, err error) fuse.Status {
	return u.faults.Status(op, err)
}

// Failures returns how many requests failed by a damage, and why the last did.
func (u *Union) Failures() (total uint64, last string) { return u.faults.Get() }

var errDamaged = upperdir.ErrDamaged

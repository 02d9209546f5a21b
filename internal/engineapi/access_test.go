package engineapi

import (
	"testing"

	"golang.org/x/sys/unix"
)

func TestOwn(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		cred  *unix.Ucred
		uid   int
		whole bool // every user has a number
		want  bool
	}{
		{&unix.Ucred{Uid: 1000}, 1000, true, true},
		{&unix.Ucred{Uid: 0}, 1000, true, true},
		{&unix.Ucred{Uid: 1001}, 1000, true, false},
		{&unix.Ucred{Uid: overflowID}, 1000, false, false},
		{&unix.Ucred{Uid: overflowID}, overflowID, true, true},
		{&unix.Ucred{Uid: overflowID}, overflowID, false, false}, // anybody without a number here
		{nil, 0, true, false},
	} {
		if got := own(tt.cred, tt.uid, func() bool { return tt.whole }); got != tt.want {
			t.Errorf("%+v for uid %d: %v", tt.cred, tt.uid, got)
		}
	}
}

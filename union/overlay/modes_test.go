package overlay_test

import (
	"testing"

	"github.com/imgfs/imgfs/union/overlay"
)

// TestVolatile: an upper that need not survive is the same tree.
func TestVolatile(t *testing.T) {
	needRoot(t)
	k := asRoot
	k.mount = func(dir string, c chain) (target, error) {
		u, err := newUnion(dir, c, 0)
		if err != nil {
			return nil, err
		}
		u.Volatile = true
		return u, u.mount()
	}
	randomScenarios(t, k, 3001, 3002, 150)
}

// TestNames does nothing but make, move and remove names, and mounts often.
func TestNames(t *testing.T) {
	needRoot(t)
	k := asRoot
	k.can.names, k.every = true, 60
	last := uint64(2)
	if *long {
		last = 200
	}
	randomScenarios(t, k, 4001, 4000+last, 300)
}

// TestSquash: a user who mounts for himself owns what the image gives to root,
// and what he makes is root's in the tree.
func TestSquash(t *testing.T) {
	needRoot(t)
	u, err := newUnion(workDir(t), chain{`dir . mode=0755 mtime=1
file roots size=5000 mode=0600 mtime=1
file mine size=10 mode=0600 uid=1000 gid=1000 mtime=1
file other size=10 mode=0644 uid=7 gid=8 mtime=1
dir d mode=0700 mtime=1
file d/f size=10 mtime=1
symlink s roots mtime=1
`}, 1000)
	must(t, err)
	u.Squash = true
	must(t, u.mount())
	t.Cleanup(func() {
		if err := u.close(); err != nil {
			t.Error(err)
		}
	})
	expect(t, u,
		[2]string{"stat roots", "100600 1000:1000 nlink=1 size=5000"}, [2]string{"stat mine", "100600 0:0 nlink=1 size=10"},
		[2]string{"stat other", "100644 7:8 nlink=1 size=10"}, [2]string{"stat .", "040755 1000:1000"},
		[2]string{"as 1000 append roots 10 t", "ok"}, [2]string{"as 1000 chmod roots 4755", "ok"}, [2]string{"as 1000 append mine 10 t", "EACCES"},
		[2]string{"as 1000 create d/new 640", "ok"}, [2]string{"as 1000 mkdir d/dir 750", "ok"}, [2]string{"as 1000 symlink d/s f", "ok"},
		[2]string{"as 1000 mknod d/fifo fifo 600", "ok"}, [2]string{"as 1000 rename d/f f", "ok"}, [2]string{"as 1000 rename d e", "ok"},
		[2]string{"as 1000 chown f 1000 1000", "ok"}, [2]string{"as 1000 chown f 7 7", "EPERM"}, [2]string{"as 1000 setxattr f user.a v", "ok"},
		[2]string{"stat roots", "104755 1000:1000 nlink=1 size=5010"}, [2]string{"stat e/new", "100640 1000:1000 nlink=1 size=0"},
		[2]string{"stat e/dir", "040750 1000:1000"}, [2]string{"stat e/s", "120777 1000:1000 nlink=1 size=1"}, [2]string{"stat e/fifo", "010600 1000:1000 nlink=1 size=0"},
		[2]string{"stat f", "100644 1000:1000 nlink=1 size=10"}, [2]string{"stat s", "120777 1000:1000 nlink=1 size=5"},
	)
	// The tree itself has other numbers.
	u.Squash = false
	must(t, u.remount())
	expect(t, u,
		[2]string{"stat roots", "104755 0:0 nlink=1 size=5010"}, [2]string{"stat mine", "100600 1000:1000 nlink=1 size=10"},
		[2]string{"stat e/new", "100640 0:0 nlink=1 size=0"}, [2]string{"stat e/dir", "040750 0:0"}, [2]string{"stat e/fifo", "010600 0:0 nlink=1 size=0"},
		[2]string{"stat f", "100644 0:0 nlink=1 size=10"}, [2]string{"stat e/s", "120777 0:0 nlink=1 size=1"},
		[2]string{"chown f 1000 1000", "ok"}, [2]string{"chown roots 5 6", "ok"},
	)
	u.Squash = true
	must(t, u.remount())
	expect(t, u, [2]string{"stat f", "100644 0:0 nlink=1 size=10"}, [2]string{"stat roots", "100755 5:6 nlink=1 size=5010"})
}

// TestSubordinateIDs: the subordinate users of who mounts are the tree's others,
// as they are in the user namespaces that he can make.
func TestSubordinateIDs(t *testing.T) {
	needRoot(t)
	u, err := newUnion(workDir(t), chain{`dir . mode=0755 mtime=1
file roots size=10 mode=0600 mtime=1
file daemons size=10 mode=0644 uid=1 gid=2 mtime=1
file far size=10 mode=0644 uid=70000 gid=70000 mtime=1
`}, 1000)
	must(t, err)
	u.Squash = true
	u.Users = []overlay.IDRange{{Wire: 100000, Tree: 1, Count: 65536}}
	must(t, u.mount())
	t.Cleanup(func() {
		if err := u.close(); err != nil {
			t.Error(err)
		}
	})
	expect(t, u,
		[2]string{"stat roots", "100600 1000:1000 nlink=1 size=10"}, [2]string{"stat daemons", "100644 100000:100001 nlink=1 size=10"},
		[2]string{"stat far", "100644 70000:70000 nlink=1 size=10"},
		[2]string{"chown roots 100041 100000", "ok"}, [2]string{"stat roots", "100600 100041:100000 nlink=1 size=10"},
	)
	u.Squash = false
	must(t, u.remount())
	expect(t, u, [2]string{"stat roots", "100600 42:1 nlink=1 size=10"})
}

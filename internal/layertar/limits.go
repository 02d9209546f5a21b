package layertar

// Limits bounds what one layer may cost. A zero field means its default, which
// is far above what images need and far below what hurts.
type Limits struct {
	Entries int   // directory entries, implied ones included; default 8 Mi
	Memory  int64 // bytes held for names, attributes and maps; default 2 GiB
	Special int   // bytes of one PAX header, GNU long name or sparse map; default 1 MiB
	Path    int   // bytes of a cleaned path or a hard link's target; default 4096
	Depth   int   // nesting of directories; default 2048
	Xattrs  int   // bytes of one inode's attributes, names included; default 192 KiB
	Device  int64 // bytes of the data file; default and maximum 2 TiB - 1 KiB
}

const (
	maxName   = 255                     // bytes of one component: NAME_MAX
	maxTarget = 4095                    // bytes of a symbolic link: PATH_MAX less its NUL
	maxXattr  = 1<<16 - 1               // bytes of an attribute's value: the index format's limit
	maxDevice = (1<<32 - 2) * blockSize // bytes: 32-bit block numbers, the last one means a hole
	maxSteps  = 4096                    // components walked for one path, symbolic links expanded
	maxLinks  = 255                     // symbolic links followed for one path, as containerd's resolver
	// Bytes of the paths that links are replaced in: as many as they can have if
	// none becomes longer than a path may be.
	maxExpanded = maxLinks * 4096
	maxChunks   = 4096   // chunks of one sparse file
	dentryCost  = 40 + 8 // bytes held per name beside the name, hash slot included
	inodeCost   = 96     // bytes held per inode, replaced ones included
)

func (l Limits) withDefaults() Limits {
	def := func(p *int, v int) {
		if *p <= 0 {
			*p = v
		}
	}
	def(&l.Entries, 8<<20)
	def(&l.Special, 1<<20)
	def(&l.Path, 4096)
	def(&l.Depth, 2048)
	def(&l.Xattrs, 192<<10)
	if l.Memory <= 0 {
		l.Memory = 2 << 30
	}
	if l.Device <= 0 || l.Device > maxDevice {
		l.Device = maxDevice
	}
	return l
}

package fs

// Stats counts a mount's requests since it was served.
type Stats struct {
	Lookups    uint64
	Getattrs   uint64
	Readdirs   uint64 // READDIR and READDIRPLUS
	Opens      uint64 // OPEN and OPENDIR
	Reads      uint64
	ReadBytes  uint64 // in the replies to READ
	Writes     uint64
	WriteBytes uint64 // that the replies to WRITE took
	Xattrs     uint64 // GETXATTR and LISTXATTR
	Changes    uint64 // of names and attributes: CREATE, MKDIR, RENAME, UNLINK, SETATTR, SETXATTR and their like
	Syncs      uint64 // FSYNC and FSYNCDIR
	Closes     uint64 // FLUSH, RELEASE and RELEASEDIR
	Forgets    uint64 // messages, each of which may name many inodes
	Statfs     uint64 // the kernel keeps no answer; find(1) asks once per run
	Others     uint64
	Errors     uint64 // replies with EIO
	LastError  string // the reason of the last one, if the file system gave one
}

// Stats returns the counts at this moment.
func (s *Server) Stats() Stats {
	get := func(ops ...int) (n uint64) {
		for _, op := range ops {
			n += s.counts[op].Load()
		}
		return n
	}
	st := Stats{
		Lookups:    get(opLookup),
		Getattrs:   get(opGetattr),
		Readdirs:   get(opReaddir, opReaddirplus),
		Opens:      get(opOpen, opOpendir),
		Reads:      get(opRead),
		ReadBytes:  s.readBytes.Load(),
		Writes:     get(opWrite),
		WriteBytes: s.writeBytes.Load(),
		Xattrs:     get(opGetxattr, opListxattr),
		Changes: get(opSetattr, opSymlink, opMknod, opMkdir, opUnlink, opRmdir, opRename, opRename2, opLink,
			opSetxattr, opRemovexattr, opCreate, opTmpfile, opFallocate, opCopyFileRange),
		Syncs:   get(opFsync, opFsyncdir),
		Closes:  get(opFlush, opRelease, opReleasedir),
		Forgets: get(opForget, opBatchForget),
		Statfs:  get(opStatfs),
		Errors:  s.failed.Load(),
	}
	var all uint64
	for op := range s.counts {
		all += s.counts[op].Load()
	}
	st.Others = all - st.Lookups - st.Getattrs - st.Readdirs - st.Opens - st.Reads - st.Writes - st.Xattrs -
		st.Changes - st.Syncs - st.Closes - st.Forgets - st.Statfs
	if f, ok := s.rfs.(Failer); ok {
		_, st.LastError = f.Failures()
	}
	return st
}

package engineapi

import "runtime/debug"

// Build is the identity of a build: two binaries with the same Build are
// taken to be the same program.
type Build struct {
	Version string // of the module, or "devel"
	Commit  string // 12 hex digits, "+dirty" behind them for a changed tree; "" if unknown
	Time    string // of the commit, RFC 3339; "" if unknown
	Go      string // version of the compiler
}

// String returns what [VersionHeader] carries: version and commit.
func (b Build) String() string {
	if b.Commit == "" {
		return b.Version
	}
	return b.Version + "-" + b.Commit
}

// ThisBuild returns the identity of the running program.
func ThisBuild() Build {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return Build{Version: "devel"}
	}
	b := Build{Version: info.Main.Version, Go: info.GoVersion}
	if b.Version == "" || b.Version == "(devel)" {
		b.Version = "devel"
	}
	dirty := false
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			b.Commit = s.Value[:min(12, len(s.Value))]
		case "vcs.time":
			b.Time = s.Value
		case "vcs.modified":
			dirty = s.Value == "true"
		}
	}
	if dirty {
		b.Commit += "+dirty"
	}
	return b
}

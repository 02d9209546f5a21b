package engineapi

import (
	"fmt"
	"net/http"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

func (s *server) ping(w http.ResponseWriter, r *http.Request) error {
	h := w.Header()
	h.Set("Builder-Version", "1") // 2 would send docker build to BuildKit
	h.Set("Cache-Control", "no-cache, no-store, must-revalidate")
	h.Set("Pragma", "no-cache")
	h.Set("Content-Type", "text/plain; charset=utf-8")
	if r.Method == http.MethodGet {
		fmt.Fprint(w, "OK")
	}
	return nil
}

func (s *server) version(w http.ResponseWriter, r *http.Request) error {
	v := Version{
		Version:       s.build.Version,
		APIVersion:    APIVersion,
		MinAPIVersion: MinAPIVersion,
		GitCommit:     s.build.Commit,
		GoVersion:     s.build.Go,
		Os:            runtime.GOOS,
		Arch:          runtime.GOARCH,
		KernelVersion: kernelVersion(),
		BuildTime:     s.build.Time,
	}
	v.Platform.Name = "imgfs " + s.build.String()
	v.Components = []Component{{Name: "Engine", Version: v.Version, Details: map[string]string{
		"ApiVersion": v.APIVersion, "MinAPIVersion": v.MinAPIVersion, "Os": v.Os, "Arch": v.Arch,
		"GitCommit": v.GitCommit, "GoVersion": v.GoVersion, "KernelVersion": v.KernelVersion, "BuildTime": v.BuildTime,
		"Experimental": "false",
	}}}
	return reply(w, v)
}

func kernelVersion() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Release[:])
}

// machine returns the architecture as uname and docker info spell it.
func machine() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return runtime.GOARCH
	}
	return strings.TrimSpace(unix.ByteSliceToString(u.Machine[:]))
}

// shutdown answers and then holds the connection until the store is unlocked,
// so that the client knows when; the process's end closes it too.
func (s *server) shutdown(w http.ResponseWriter, r *http.Request) error {
	gone, err := s.engine.Shutdown(r.Context(), boolParam(r, "force"))
	if err != nil {
		return err
	}
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return fmt.Errorf("connection: %w", err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: application/json\r\n%s: %s\r\n\r\n{}\n",
		VersionHeader, s.build)
	<-gone
	return nil
}

package engineapi

import (
	"fmt"
	"net/http"
	"os"
	"runtime"
	"strconv"
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

func (s *server) version() Version {
	return Version{
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
}

func kernelVersion() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Release[:])
}

// systemInfo is the part of docker's GET /info that means something here.
type systemInfo struct {
	ID              string
	Name            string
	Images          int
	Driver          string
	DriverStatus    [][2]string
	ServerVersion   string
	OSType          string
	Architecture    string
	KernelVersion   string
	NCPU            int
	DockerRootDir   string
	Containers      int
	SecurityOptions []string
	Warnings        []string
}

func (s *server) info(w http.ResponseWriter, r *http.Request) error {
	st, err := s.engine.Status(r.Context())
	if err != nil {
		return err
	}
	host, _ := os.Hostname() // shown only
	return reply(w, systemInfo{
		ID:     "imgfs",
		Name:   host,
		Images: st.Images,
		Driver: "imgfs",
		DriverStatus: [][2]string{
			{"Layers", strconv.Itoa(st.Layers)},
			{"Mounts", strconv.Itoa(st.Mounts)},
			{"Disk Bytes", strconv.FormatInt(st.DiskBytes, 10)},
		},
		ServerVersion: s.build.Version,
		OSType:        runtime.GOOS,
		Architecture:  machine(),
		KernelVersion: kernelVersion(),
		NCPU:          runtime.NumCPU(),
		DockerRootDir: st.Root,
		Warnings:      st.Problems,
	})
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

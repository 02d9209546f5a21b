package engineapi

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Info is the reply of GET /info: of docker's, what means something here.
type Info struct {
	ID                string
	Containers        int // live mounts, all of which are running
	ContainersRunning int
	ContainersPaused  int
	ContainersStopped int
	Images            int
	Driver            string
	DriverStatus      [][2]string // lines to show: what is here, and what is lazy
	Plugins           InfoPlugins
	InfoLimits
	Debug              bool
	NFd                int
	NGoroutines        int
	SystemTime         string
	LoggingDriver      string
	CgroupDriver       string
	NEventsListener    int
	KernelVersion      string
	OperatingSystem    string
	OSVersion          string
	OSType             string
	Architecture       string
	IndexServerAddress string
	RegistryConfig     InfoRegistries
	NCPU               int
	MemTotal           int64 // bytes
	DockerRootDir      string
	HTTPProxy          string `json:"HttpProxy"`
	HTTPSProxy         string `json:"HttpsProxy"`
	NoProxy            string
	Name               string
	Labels             []string
	ExperimentalBuild  bool
	ServerVersion      string
	Runtimes           map[string]struct{}
	DefaultRuntime     string
	Swarm              InfoSwarm
	LiveRestoreEnabled bool // mounts outlive the daemon
	Isolation          string
	InitBinary         string
	SecurityOptions    []string
	Warnings           []string
}

// InfoPlugins lists none.
type InfoPlugins struct {
	Volume, Network, Authorization, Log []string
}

// InfoSwarm says that there is none.
type InfoSwarm struct {
	LocalNodeState string
}

// InfoRegistries says how registries are reached.
type InfoRegistries struct {
	InsecureRegistryCIDRs []string
	IndexConfigs          map[string]InfoIndex
	Mirrors               []string
}

// InfoIndex is one registry.
type InfoIndex struct {
	Name     string
	Mirrors  []string
	Secure   bool
	Official bool

	Problem string `json:"-"` // why what is configured cannot be used
}

// InfoLimits is what a kernel can do for containers. Docker's client before API
// 1.42 warns of each that is false; no container runs here, so nothing is amiss.
type InfoLimits struct {
	MemoryLimit       bool
	SwapLimit         bool
	CPUCfsPeriod      bool `json:"CpuCfsPeriod"`
	CPUCfsQuota       bool `json:"CpuCfsQuota"`
	CPUShares         bool
	CPUSet            bool
	IPv4Forwarding    bool
	BridgeNfIPTables  bool `json:"BridgeNfIptables"`
	BridgeNfIP6Tables bool `json:"BridgeNfIp6tables"`
	OomKillDisable    bool
}

var allLimits = InfoLimits{true, true, true, true, true, true, true, true, true, true}

// info says of the store what docker's client shows.
func (s *server) info(w http.ResponseWriter, r *http.Request) error {
	st, err := s.engine.Status(r.Context())
	if err != nil {
		return err
	}
	disk, err := s.engine.DiskUsage(r.Context())
	if err != nil {
		return err
	}
	host, _ := os.Hostname() // shown only
	i := Info{
		ID: "imgfs", Name: host, ServerVersion: s.build.Version,
		Containers: st.Mounts, ContainersRunning: st.Mounts, Images: st.Images,
		Driver: "imgfs", DriverStatus: driverStatus(&st, &disk), DockerRootDir: st.Root,
		InfoLimits:    allLimits,
		Plugins:       InfoPlugins{Volume: []string{}, Network: []string{}, Authorization: nil, Log: []string{}},
		LoggingDriver: "none", CgroupDriver: "none", Swarm: InfoSwarm{"inactive"},
		NGoroutines: runtime.NumGoroutine(), SystemTime: time.Now().Format(time.RFC3339Nano),
		KernelVersion: kernelVersion(), OperatingSystem: operatingSystem(), OSType: runtime.GOOS, Architecture: machine(),
		NCPU: runtime.NumCPU(), MemTotal: memory(),
		IndexServerAddress: "https://index.docker.io/v1/",
		RegistryConfig: InfoRegistries{
			InsecureRegistryCIDRs: []string{"::1/128", "127.0.0.0/8"},
			IndexConfigs:          map[string]InfoIndex{},
			Mirrors:               []string{},
		},
		Labels: []string{}, Runtimes: map[string]struct{}{}, SecurityOptions: []string{},
		LiveRestoreEnabled: true,
		Warnings:           st.Problems,
	}
	for _, c := range s.engine.Configured(r.Context()) {
		i.RegistryConfig.IndexConfigs[c.Name] = c
		if c.Official {
			i.RegistryConfig.Mirrors = c.Mirrors
		}
		if c.Problem != "" {
			i.Warnings = append(i.Warnings, "WARNING: "+c.Name+": "+c.Problem)
		}
	}
	for _, f := range st.Faults {
		i.Warnings = append(i.Warnings, "WARNING: reads of "+f.Target+" fail: "+f.Reason)
	}
	return reply(w, i)
}

// driverStatus returns the lines that docker info shows of the store.
func driverStatus(st *Status, disk *DiskUsage) [][2]string {
	var here, lazy int64
	partly := 0
	for _, l := range disk.Layers {
		here += l.Present
		if l.Present < l.Size {
			lazy += l.Size - l.Present
			partly++
		}
	}
	lines := [][2]string{
		{"Layers", strconv.Itoa(st.Layers)},
		{"Lazy Layers", strconv.Itoa(partly)},
		{"Mounts", strconv.Itoa(st.Mounts)},
		{"Cached", humanSize(here)},
		{"Lazy", humanSize(lazy)},
		{"On Disk", humanSize(st.DiskBytes)},
	}
	if disk.Limit > 0 {
		lines = append(lines, [2]string{"Cache Limit", humanSize(disk.Limit)})
	}
	return lines
}

// humanSize writes bytes as docker does: in steps of a thousand, to four digits.
func humanSize(n int64) string {
	f, unit := float64(n), 0
	for ; f >= 1000 && unit < len(sizeUnits)-1; unit++ {
		f /= 1000
	}
	return fmt.Sprintf("%.4g%s", f, sizeUnits[unit])
}

var sizeUnits = []string{"B", "kB", "MB", "GB", "TB", "PB"}

// memory returns how many bytes this machine has; 0 if that is not known.
func memory() int64 {
	var i unix.Sysinfo_t
	if unix.Sysinfo(&i) != nil {
		return 0
	}
	return int64(uint64(i.Totalram) * uint64(i.Unit))
}

// operatingSystem returns its name as it wants to be called.
func operatingSystem() string {
	b, err := os.ReadFile("/etc/os-release")
	if err != nil {
		return runtime.GOOS
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(strings.TrimSpace(line), "PRETTY_NAME="); ok {
			return strings.Trim(v, `"'`)
		}
	}
	return runtime.GOOS
}

// Version returns the daemon's version.
func (c *Client) Version(ctx context.Context) (Version, error) {
	var v Version
	return v, c.get(ctx, "/version", nil, &v)
}

// Info returns what docker's clients show of a daemon.
func (c *Client) Info(ctx context.Context) (Info, error) {
	var i Info
	return i, c.get(ctx, "/info", nil, &i)
}

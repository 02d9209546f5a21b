package daemon

import (
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/imgfs/imgfs/internal/engineapi"
)

// metrics is the engine as Prometheus sees it: all is looked at when it is
// asked for. No label has values that clients or images could choose.
type metrics struct{ e *engine }

// metricSet makes the metrics of one scrape.
type metricSet chan<- prometheus.Metric

func (s metricSet) gauge(name, help string, v float64, labels ...string) {
	s.put(prometheus.GaugeValue, name, help, v, labels)
}

func (s metricSet) counter(name, help string, v float64, labels ...string) {
	s.put(prometheus.CounterValue, name, help, v, labels)
}

// put adds a metric; labels are names and values in turn.
func (s metricSet) put(kind prometheus.ValueType, name, help string, v float64, labels []string) {
	var names, values []string
	for i := 0; i < len(labels); i += 2 {
		names, values = append(names, labels[i]), append(values, labels[i+1])
	}
	s <- prometheus.MustNewConstMetric(prometheus.NewDesc("imgfs_"+name, help, names, nil), kind, v, values...)
}

// newRegistry returns a registry of everything that is told of e.
func (e *engine) newRegistry() *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(metrics{e}, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return r
}

// Describe implements prometheus.Collector: what there is depends on what has
// happened.
func (m metrics) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (m metrics) Collect(ch chan<- prometheus.Metric) {
	s := metricSet(ch)
	s.gauge("build_info", "Version of the daemon.", 1, "version", engineapi.ThisBuild().Version)
	m.store(s)
	m.mounts(s)
	m.work(s)
}

func (m metrics) store(s metricSet) {
	s.gauge("images", "Images in the store.", float64(m.e.images.Len()))
	known := m.e.layers.Known()
	var here, size int64
	for _, l := range known {
		p, n := m.e.layers.Presence(l.Key)
		here, size = here+p, size+n
	}
	s.gauge("layers", "Layers in the store.", float64(len(known)))
	const help = "Bytes of layers: here, or to be fetched when they are read."
	s.gauge("layer_bytes", help, float64(here), "state", "here")
	s.gauge("layer_bytes", help, float64(size-here), "state", "lazy")
	s.gauge("layer_passes", "Layers being brought in now.", float64(len(m.e.layers.Passes())))
}

func (m metrics) mounts(s metricSet) {
	live := map[[2]string]int{}
	m.e.mu.Lock()
	total := m.e.ended
	for _, mt := range m.e.mounts {
		total.add(mt)
		mode := mt.rec.Mode
		if mode == "" {
			mode = "ro"
		}
		live[[2]string{mt.rec.Driver, mode}]++
	}
	works, problems := m.e.works, len(m.e.problems)
	m.e.mu.Unlock()
	for _, driver := range []string{"fuse", "overlay", "erofs"} {
		for _, mode := range []string{"ro", "rw"} {
			s.gauge("mounts", "Live mounts.", float64(live[[2]string{driver, mode}]), "driver", driver, "mode", mode)
		}
	}
	s.gauge("transfers", "Pulls, pushes, loads and other work on images that goes on now.", float64(works))
	s.gauge("problems", "What could not be restored or served since the start.", float64(problems))
	f := total.fuse
	for _, op := range []struct {
		name string
		n    uint64
	}{
		{"lookup", f.Lookups}, {"getattr", f.Getattrs}, {"readdir", f.Readdirs}, {"open", f.Opens}, {"read", f.Reads},
		{"write", f.Writes}, {"xattr", f.Xattrs}, {"change", f.Changes}, {"sync", f.Syncs}, {"close", f.Closes},
		{"forget", f.Forgets}, {"statfs", f.Statfs}, {"other", f.Others},
	} {
		s.counter("fuse_requests_total", "Requests of the kernel to mounts.", float64(op.n), "op", op.name)
	}
	s.counter("fuse_read_bytes_total", "Bytes in replies to READ.", float64(f.ReadBytes))
	s.counter("fuse_written_bytes_total", "Bytes taken by WRITE.", float64(f.WriteBytes))
	s.counter("fuse_errors_total", "Requests of the kernel answered with EIO.", float64(f.Errors))
	s.counter("read_waits_total", "Reads of mounts that waited for bytes that were not here.", float64(total.waits))
	s.counter("read_wait_seconds_total", "What those waited.", total.waited.Seconds())
	s.counter("read_fetched_bytes_total", "Bytes that were fetched for those.", float64(total.fetched))
}

func (m metrics) work(s metricSet) {
	t := &m.e.figures
	s.counter("registry_connections_total", "Connections to registries.", float64(t.dials.Load()))
	s.counter("registry_received_bytes_total", "Bytes fetched from registries, as on the wire.", float64(t.received.Load()))
	s.counter("registry_sent_bytes_total", "Bytes sent to registries, as on the wire.", float64(t.sent.Load()))
	s.counter("connections_refused_total", "Connections of clients turned away.", float64(t.refused.Load()))
	s.gauge("http_requests_in_flight", "Requests being served.", float64(t.serving.Load()))
	t.mu.Lock()
	for k, n := range t.requests {
		s.counter("http_requests_total", "Requests served.", float64(n), "method", strings.ToLower(k.method), "code", k.code)
	}
	for k, n := range t.works {
		s.counter("operations_total", "Operations by how they ended: pull, push, mount, save, load, import.", float64(n), "operation", k.op, "result", k.result)
	}
	t.mu.Unlock()
	events, subscribers := m.e.events.counts()
	for k, n := range events {
		s.counter("events_total", "What imgfs events has told.", float64(n), "type", k.typ, "action", k.action)
	}
	s.gauge("event_subscribers", "Clients that listen to events.", float64(subscribers))
}

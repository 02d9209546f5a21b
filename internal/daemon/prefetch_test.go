package daemon

import (
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"testing"

	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/id"
	"github.com/imgfs/imgfs/internal/imgtest"
)

// before puts a server before a registry, and returns its address. Of each range
// of a layer that is asked for, seen is told first, and done afterwards.
func before(t *testing.T, reg *imgtest.Registry, l testLayer, seen, done func(req *http.Request, first, last int64)) string {
	t.Helper()
	to, err := url.Parse(reg.URL)
	if err != nil {
		t.Fatal(err)
	}
	blob := string(id.BlobOf(l.blob))
	proxy := httputil.NewSingleHostReverseProxy(to)
	proxy.ErrorLog = log.New(io.Discard, "", 0)
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if !strings.HasSuffix(req.URL.Path, blob) {
			proxy.ServeHTTP(w, req)
			return
		}
		first, last := int64(0), int64(len(l.blob)-1)
		fmt.Sscanf(req.Header.Get("Range"), "bytes=%d-%d", &first, &last) // or all of it
		seen(req, first, last)
		proxy.ServeHTTP(w, req)
		done(req, first, last)
	}))
	t.Cleanup(front.Close)
	return front.Listener.Addr().String()
}

func nothing(*http.Request, int64, int64) {}

// TestPrefetchAll fetches a layer behind a mount that nobody reads, until all of
// it is here.
func TestPrefetchAll(t *testing.T) {
	needFUSE(t)
	files := bigTree(40)
	layer := estargz(t, tarOf(t, files))
	reg := imgtest.NewRegistry(t, imgtest.RegistryOptions{})
	pushImage(t, reg, "x", "1", layer)
	came := make(chan int64, 1000)
	host := before(t, reg, layer, nothing, func(_ *http.Request, first, last int64) { came <- last - first + 1 })
	d := runDaemon(t, Options{})
	dir := mountDir(t)
	ctx := testContext(t)
	if _, err := mountAs(ctx, d.client, host+"/x:1", dir, noPatience, func(r *engineapi.MountRequest) { r.Prefetch = "all" }); err != nil {
		t.Fatal(err)
	}
	for sum := int64(0); sum < int64(len(layer.blob)); {
		select {
		case n := <-came:
			sum += n
		case <-ctx.Done():
			t.Fatalf("%d bytes of %d were fetched", sum, len(layer.blob))
		}
	}
	reg.Inject(imgtest.Fault{On: imgtest.KindBlob, Status: http.StatusServiceUnavailable})
	wantTree(t, dir, files)
}

// TestPrefetchLandmark fetches at the mount what the image's maker wants fetched
// first, and stops when the mount ends.
func TestPrefetchLandmark(t *testing.T) {
	needFUSE(t)
	files := bigTree(41)
	layer := estargz(t, tarOf(t, files), "bin/3", "bin/big")
	reg := imgtest.NewRegistry(t, imgtest.RegistryOptions{})
	pushImage(t, reg, "x", "1", layer)
	asked, left := make(chan bool, 1000), make(chan bool, 1000)
	host := before(t, reg, layer, func(req *http.Request, first, _ int64) {
		if first > int64(len(layer.blob))/2 {
			return // of the table of contents
		}
		asked <- true
		<-req.Context().Done()
		left <- true
	}, nothing)
	d := runDaemon(t, Options{})
	dir := mountDir(t)
	ctx := testContext(t)
	m, err := mountAs(ctx, d.client, host+"/x:1", dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, what := range []chan bool{asked, left} {
		select {
		case <-what:
		case <-ctx.Done():
			t.Fatal("nothing was asked for, or went on being asked for")
		}
		if what == asked {
			unmounted(t, d.client, m)
		}
	}
}

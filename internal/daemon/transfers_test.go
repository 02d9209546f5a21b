package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
	"github.com/imgfs/imgfs/internal/imgtest"
)

// overlapping puts n images into reg, each of which has four of a dozen layers,
// and returns their names.
func overlapping(t testing.TB, reg *imgtest.Registry, n int) []string {
	t.Helper()
	var refs []string
	for i := range n {
		var layers []string
		for j := range 4 {
			layers = append(layers, fmt.Sprintf("file f%d size=%d", (i+j)%12, 20000+(i+j)%12))
		}
		pushTo(t, fmt.Sprintf("lib/x%d", i), "1", append(layers, fmt.Sprintf("file own %d", i)), reg)
		refs = append(refs, fmt.Sprintf("%s/lib/x%d:1", reg.Host, i))
	}
	reg.Forget()
	return refs
}

// blobs returns how often each blob was got.
func blobs(reg *imgtest.Registry) map[string]int {
	got := map[string]int{}
	for _, q := range reg.Requests(imgtest.KindBlob) {
		got[q.URL.Path[strings.LastIndexByte(q.URL.Path, '/')+1:]]++
	}
	return got
}

// TestManyPulls has 200 clients pull 20 images that share layers, from a
// registry that takes its time: all finish, and each blob crosses the wire once.
func TestManyPulls(t *testing.T) {
	t.Parallel()
	reg := imgtest.NewRegistry(t, imgtest.RegistryOptions{})
	refs := overlapping(t, reg, 20)
	for _, kind := range []imgtest.Kind{imgtest.KindManifest, imgtest.KindBlob} {
		reg.Inject(imgtest.Fault{On: kind, Delay: 20 * time.Millisecond})
	}
	d := runDaemon(t, Options{})
	ctx := testContext(t)
	var wg sync.WaitGroup
	for i := range 200 {
		wg.Go(func() {
			c := engineapi.New(d.Socket)
			defer c.Close()
			res, err := c.Pull(ctx, engineapi.PullRequest{Reference: refs[i%len(refs)]}, nil)
			if err != nil || res.Reference != refs[i%len(refs)] || res.ImageID == "" {
				t.Errorf("client %d: %+v, %v", i, res, err)
			}
		})
	}
	wg.Wait()
	got := blobs(reg)
	for b, n := range got {
		if n != 1 {
			t.Errorf("blob %s was got %d times", b, n)
		}
	}
	if want := 20 + 20 + 12; len(got) != want { // configs, layers of their own, shared ones
		t.Errorf("%d blobs were got, want %d", len(got), want)
	}
	if n := reg.Count(imgtest.KindManifest); n != len(refs) {
		t.Errorf("%d manifests were got, want %d", n, len(refs))
	}
	st, err := d.client.Status(ctx)
	if err != nil || st.Images != len(refs) {
		t.Errorf("%d images, %v", st.Images, err)
	}
}

// TestPullersLeave has clients go in the middle of a pull that others share:
// those get their image all the same, of one request; with the last to leave
// the transfer ends, and its layers are free to come anew.
func TestPullersLeave(t *testing.T) {
	t.Parallel()
	reg := imgtest.NewRegistry(t, imgtest.RegistryOptions{})
	img := pushTo(t, "x", "1", []string{"file a size=300000"}, reg)
	ref := reg.Host + "/x:1"
	layer := img.Layers[0].Digest
	d := runDaemon(t, Options{})
	ctx := testContext(t)
	for _, stays := range []int{2, 0} {
		reg.Forget()
		// The blob stops short until it is let go on, by being cut.
		reg.Inject(imgtest.Fault{On: imgtest.KindBlob, Match: layer, Short: 1000, Stall: true, Times: 1})
		type client struct {
			leave context.CancelFunc
			err   error
			steps chan engineapi.Progress
		}
		clients := make([]*client, 5)
		var wg sync.WaitGroup
		for i := range clients {
			cctx, leave := context.WithCancel(ctx)
			c := &client{leave: leave, steps: make(chan engineapi.Progress, 1000)}
			clients[i] = c
			wg.Go(func() {
				conn := engineapi.New(d.Socket)
				defer conn.Close()
				_, c.err = conn.Pull(cctx, engineapi.PullRequest{Reference: ref}, func(p engineapi.Progress) { c.steps <- p })
				close(c.steps)
			})
		}
		waiting := 0
		for _, c := range clients { // all are in it
			for p := range c.steps {
				if p.Status == "Repository "+ref+" already being pulled by another client. Waiting." {
					waiting++
				}
				if p.Status == "Downloading" {
					break
				}
			}
		}
		if waiting != len(clients)-1 {
			t.Errorf("%d clients were told that they wait for another", waiting)
		}
		reg.AwaitHeld(t)
		for _, c := range clients[stays:] {
			c.leave()
		}
		if stays == 0 {
			wg.Wait()
			for i, c := range clients {
				if !errors.Is(c.err, context.Canceled) {
					t.Errorf("client %d: %v", i, c.err)
				}
			}
			reg.AwaitFree(t) // nothing goes on; the next one is served from the start
			if _, err := d.client.Pull(ctx, engineapi.PullRequest{Reference: ref}, nil); err != nil {
				t.Error(err)
			}
			break
		}
		reg.Cut(t) // the stalled transfer; it is resumed
		wg.Wait()
		for i, c := range clients {
			if c.leave(); (c.err == nil) != (i < stays) {
				t.Errorf("client %d: %v", i, c.err)
			}
		}
		if n := reg.Count(imgtest.KindManifest); n != 1 {
			t.Errorf("%d manifests were got", n)
		}
		if _, err := d.client.Remove(ctx, ref, engineapi.RemoveOptions{}); err != nil {
			t.Fatal(err)
		}
	}
}

// TestResume has a large layer break off again and again: the pull goes on where
// it was, by ranges, and no byte is got twice.
func TestResume(t *testing.T) {
	t.Parallel()
	reg := imgtest.NewRegistry(t, imgtest.RegistryOptions{})
	l := gzipped(t, tarOf(t, content{"big": randomText(3 << 20)}))
	pushImage(t, reg, "x", "1", l)
	const piece = 900_000
	reg.Inject(imgtest.Fault{On: imgtest.KindBlob, Match: string(id.BlobOf(l.blob)), Short: piece, Times: 3})
	d := runDaemon(t, Options{})
	told := false
	_, err := d.client.Pull(testContext(t), engineapi.PullRequest{Reference: reg.Host + "/x:1"}, func(p engineapi.Progress) {
		told = told || regexp.MustCompile(`^Retrying in (1 second|\d+ seconds)$`).MatchString(p.Status)
	})
	if err != nil {
		t.Fatal(err)
	}
	if !told {
		t.Error("nobody was told that the transfer broke")
	}
	at, asked := 0, 0
	for _, q := range reg.Requests(imgtest.KindBlob) {
		if !strings.HasSuffix(q.URL.Path, string(id.BlobOf(l.blob))) {
			continue
		}
		want := ""
		if at > 0 {
			want = fmt.Sprintf("bytes=%d-%d", at, len(l.blob)-1)
		}
		if got := q.Header.Get("Range"); got != want {
			t.Errorf("request %d: Range %q, want %q", asked, got, want)
		}
		if ua := q.Header.Get("User-Agent"); !regexp.MustCompile(`^imgfs/\S+ go/\S+ os/linux arch/\w+$`).MatchString(ua) {
			t.Errorf("request %d: User-Agent %q", asked, ua)
		}
		asked++
		at += piece
	}
	if asked != 4 {
		t.Errorf("%d requests for the layer, want 4", asked)
	}
}

// TestPullOrPush has an image pulled while it is pushed and the other way
// round: refused, with docker's words. A second push shares the first.
func TestPullOrPush(t *testing.T) {
	t.Parallel()
	from := imgtest.NewRegistry(t, imgtest.RegistryOptions{})
	img := pushTo(t, "x", "1", []string{"file a size=30000"}, from)
	ref := from.Host + "/x:1"
	d := runDaemon(t, Options{})
	ctx := testContext(t)
	busy := func(kind imgtest.Kind, what string, do func() error, others ...func() error) []error {
		t.Helper()
		from.Inject(imgtest.Fault{On: kind, Delay: time.Hour, Times: 1})
		first := make(chan error, 1)
		from.Forget()
		go func() { first <- do() }()
		from.Await(t, kind)
		var errs []error
		for _, f := range others {
			errs = append(errs, f())
		}
		st, err := d.client.Status(ctx)
		if err != nil || strings.Join(st.Transfers, ",") != what+" "+ref {
			t.Errorf("transfers %q, %v; want %s", st.Transfers, err, what)
		}
		from.Cut(t)
		return append([]error{<-first}, errs...)
	}
	pull := func() error { _, err := d.client.Pull(ctx, engineapi.PullRequest{Reference: ref}, nil); return err }
	push := func() error { _, err := d.client.Push(ctx, engineapi.PushRequest{Reference: ref}, nil); return err }
	if err := pull(); err != nil {
		t.Fatal(err)
	}
	for i, tt := range []struct {
		errs []error
		want string
	}{
		{busy(imgtest.KindHead, "pull", pull, push), "pull " + ref + " is already in progress"},
		{busy(imgtest.KindBlobHead, "push", push, pull), "push " + ref + " is already in progress"},
	} {
		if tt.errs[0] != nil || fault.KindOf(tt.errs[1]) != fault.Conflict || tt.errs[1].Error() != tt.want {
			t.Errorf("%d: %v, want %s", i, tt.errs, tt.want)
		}
	}
	if !bytes.Equal(manifestAt(t, from.Host, "x", "1"), img.Manifest.Data) {
		t.Error("the manifest was changed")
	}
}

// TestPullWords collects what is told of layers: docker's words and no others,
// and each layer's last one says that it is here.
func TestPullWords(t *testing.T) {
	t.Parallel()
	reg := imgtest.NewRegistry(t, imgtest.RegistryOptions{})
	base := []string{"file a size=200000", "file b size=200000"}
	pushTo(t, "lib/x", "1", base, reg)
	pushTo(t, "lib/x", "2", append(base, "file c 1"), reg)
	d := runDaemon(t, Options{})
	words := []string{"Pulling fs layer", "Waiting", "Downloading", "Verifying Checksum", "Extracting", "Pull complete", "Already exists"}
	for _, tt := range []struct {
		tag  string
		want map[string]int
	}{
		{"1", map[string]int{"Pull complete": 2}},
		{"2", map[string]int{"Pull complete": 1, "Already exists": 2}},
	} {
		tag, want := tt.tag, tt.want
		ref := reg.Host + "/lib/x:" + tag
		last := map[string]string{}
		var lines []string // that are of no layer
		res, err := d.client.Pull(testContext(t), engineapi.PullRequest{Reference: ref}, func(p engineapi.Progress) {
			if len(p.ID) != 12 {
				lines = append(lines, p.ID+": "+p.Status)
				return
			}
			if last[p.ID] = p.Status; len(lines) != 1 || !slices.Contains(words, p.Status) {
				t.Errorf("%+v", p)
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		if want := []string{tag + ": Pulling from lib/x", ": Digest: " + string(res.Digest), ": Status: Downloaded newer image for " + ref}; !slices.Equal(lines, want) {
			t.Errorf("%q, want %q", lines, want)
		}
		got := map[string]int{}
		for _, s := range last {
			got[s]++
		}
		if !maps.Equal(got, want) {
			t.Errorf("%s: layers end with %v, want %v", tag, got, want)
		}
	}
}

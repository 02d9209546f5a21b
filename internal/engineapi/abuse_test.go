package engineapi

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/imgfs/imgfs/internal/fault"
)

// raw sends bytes as they are and returns the status and body of the reply; 0
// where there is none.
func raw(t *testing.T, c *Client, request string) (int, string) {
	t.Helper()
	conn, err := net.Dial("unix", c.socket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	go io.WriteString(conn, request) // the server may not read it all
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return 0, ""
	}
	defer res.Body.Close()
	b, _ := io.ReadAll(res.Body) // the connection may go in the middle
	return res.StatusCode, string(b)
}

// TestAbuse sends what no client of docker's sends: a status and a sentence
// come back, and nothing else.
func TestAbuse(t *testing.T) {
	c := serve(t, &goldenEngine{engine{images: testImages}})
	const end = " HTTP/1.1\r\nHost: h\r\nConnection: close\r\n"
	body := func(s string) string { return fmt.Sprintf("Content-Length: %d\r\n\r\n%s", len(s), s) }
	many := `{"label":{` + strings.Repeat(`"k":true,`, 10) + `"x":true}}`
	for i := range maxFilters + 1 {
		many = strings.Replace(many, `"x"`, fmt.Sprintf(`"x%d":true,"x"`, i), 1)
	}
	for _, tt := range []struct {
		request string
		status  int
		want    string
	}{
		// versions
		{"GET /v1.53/images/json" + end + "\r\n", 400, "client version 1.53 is too new. Maximum supported API version is 1.52"},
		{"GET /v1.23/images/json" + end + "\r\n", 400, "client version 1.23 is too old. Minimum supported API version is 1.24, please upgrade your client to a newer version"},
		{"GET /v0.1/images/json" + end + "\r\n", 400, "too old"},
		{"GET /v99999999999999999999.1/images/json" + end + "\r\n", 404, "page not found"},
		{"GET /v1.-1/images/json" + end + "\r\n", 400, "too old"},
		{"GET /v1.x/images/json" + end + "\r\n", 404, "page not found"},
		{"GET /v1.41" + end + "\r\n", 404, "page not found"},
		{"GET /v1.41//images/json" + end + "\r\n", 404, "page not found"},

		// names are names, whatever stands in them
		{"GET /images/../../etc/passwd/json" + end + "\r\n", 404, "No such image: ../../etc/passwd"},
		{"GET /images/%00%ff/json" + end + "\r\n", 404, "No such image: "},
		{"GET /images/%2e%2e%2fjson/json" + end + "\r\n", 404, "No such image: ../json"},
		{"DELETE /images/" + end + "\r\n", 404, "page not found"},
		{"DELETE /images/%09" + end + "\r\n", 400, "image name cannot be blank"},
		{"GET /images//json" + end + "\r\n", 404, "page not found"},

		// methods
		{"PUT /images/json" + end + "\r\n", 404, "page not found"},
		{"BREW /images/json" + end + "\r\n", 404, "page not found"},
		{"HEAD /images/json" + end + "\r\n", 404, ""},
		{"OPTIONS * HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n", 200, ""}, // the http package's own

		// queries
		{"GET /images/json?filters=%5B" + end + "\r\n", 400, "invalid filter: "},
		{"GET /images/json?filters=7" + end + "\r\n", 400, "invalid filter: "},
		{`GET /images/json?filters={"dangling":{"true":true,"false":true}}` + end + "\r\n", 400, "invalid filter 'dangling=false,true'"},
		{`GET /images/json?filters={"reference":{"[":true}}` + end + "\r\n", 400, "invalid filter 'reference=['"},
		{`GET /images/json?filters={"before":{"nosuch":true}}` + end + "\r\n", 404, "No such image: nosuch"},
		{"GET /images/json?filters=" + url.QueryEscape(many) + end + "\r\n", 400, "more than 1000 values"},
		{"GET /images/json?all=1;b=2" + end + "\r\n", 400, "invalid query"},
		{"GET /images/json?all=%zz" + end + "\r\n", 400, "invalid query"},
		{"GET /images/x/json?platform=%7B%7D" + end + "\r\n", 400, "both OS and Architecture must be provided"},
		{`GET /images/x/json?platform={"variant":"v8"}` + end + "\r\n", 400, "optional platform fields provided, but OS and Architecture are missing"},
		{"POST /images/x/tag?tag=1" + end + "\r\n", 400, "invalid reference format"},
		{"POST /images/x/tag?repo=u&tag=a!b" + end + "\r\n", 400, "invalid tag format"},
		{"POST /images/create?fromImage=u&tag=sha256:ab" + end + "\r\n", 400, "invalid tag format"},
		{"POST /images/create" + end + "\r\n", 400, "fromImage is missing"},
		{"POST /images/create?fromImage=oci:/etc" + end + "\r\n", 400, "invalid reference format"},
		{"POST /images/create?fromImage=docker-archive:/x.tar&tag=1" + end + "\r\n", 400, "invalid reference format"},
		{"GET /images/search?term=x&limit=-1" + end + "\r\n", 400, "invalid limit specified"},
		{`GET /images/search?term=x&filters={"stars":["many"]}` + end + "\r\n", 400, "invalid filter 'stars=many'"},
		{`POST /images/prune?filters={"until":["1","2"]}` + end + "\r\n", 400, "more than one until filter specified"},
		{`POST /images/prune?filters={"until":["monday"]}` + end + "\r\n", 400, `failed to parse value as time or duration: \"monday\"`},
		{"GET /events?since=yesterday" + end + "\r\n", 400, "since"},
		{"GET /events?since=1.0000000001" + end + "\r\n", 400, "since"},
		{"GET /system/df?verbose=perhaps" + end + "\r\n", 400, "invalid value for verbose: perhaps"},

		// bodies
		{"POST /auth" + end + body("{"), 400, "request: unexpected EOF"},
		{"POST /auth" + end + body("[]"), 400, "request: json: cannot unmarshal"},
		{"POST /auth" + end + body(""), 400, "request: EOF"},
		{"POST /auth" + end + body(`{"username":"`+strings.Repeat("x", maxBody)+`"}`), 413, "request body is larger than 1048576 bytes"},
		{"POST /imgfs/v1/commit" + end + body(strings.Repeat(" ", maxBody+1)), 413, "is larger than"},
		{"POST /images/prune" + end + body(strings.Repeat("x", 4*maxBody)), 200, "ImagesDeleted"}, // none is read

		// headers
		{"POST /images/create?fromImage=u&tag=1" + end + "X-Registry-Auth: %%%\r\n\r\n", 200, "Status: Downloaded"},
		{"POST /images/create?fromImage=u" + end + RegistryHeader + ": e30x\r\n\r\n", 400, "header " + RegistryHeader},
		{"GET /_ping" + end + "X: " + strings.Repeat("x", 2*maxHeader) + "\r\n\r\n", 431, ""},
		{"GET /_ping HTTP/1.1\r\n\r\n", 400, ""}, // no host
		{"nonsense\r\n\r\n", 400, ""},
	} {
		status, got := raw(t, c, tt.request)
		if status != tt.status || !strings.Contains(got, tt.want) {
			t.Errorf("%.200q: got %d %.300s; want %d, %s", tt.request, status, got, tt.status, tt.want)
		}
		if status < 400 || status == 431 || !strings.HasPrefix(got, "{") {
			continue
		}
		var e Error
		if err := json.Unmarshal([]byte(got), &e); err != nil || e.Message == "" {
			t.Errorf("%.200q: %s is not docker's form: %v", tt.request, got, err)
		}
	}
}

// waiting is an engine whose pulls last until their client goes.
type waiting struct {
	engine
	began, ended chan string
}

func (e *waiting) Pull(ctx context.Context, req PullRequest, report func(Progress)) (PullResult, error) {
	report(Progress{ID: "l", Status: "Waiting"})
	e.began <- req.Reference
	<-ctx.Done()
	e.ended <- req.Reference
	return PullResult{}, ctx.Err()
}

func (e *waiting) Push(ctx context.Context, req PushRequest, report func(Progress)) ([]PushedTag, error) {
	_, err := e.Pull(ctx, PullRequest{Reference: req.Reference}, report)
	return nil, err
}

// TestDisconnect has clients go in the middle: the engine is told, by each
// one's own context.
func TestDisconnect(t *testing.T) {
	e := &waiting{began: make(chan string), ended: make(chan string)}
	c := serve(t, e)
	for _, request := range []string{"/images/create?fromImage=u&tag=1", "/images/u:1/push?tag="} {
		stays := dial(t, c, "POST "+request)
		if got := <-e.began; got != "u:1" {
			t.Errorf("began %s", got)
		}
		goes := dial(t, c, "POST "+request)
		<-e.began
		goes.Close()
		if got := <-e.ended; got != "u:1" {
			t.Errorf("ended %s", got)
		}
		select {
		case <-e.ended:
			t.Error("a client's leaving ended the request of another")
		default:
		}
		stays.Close()
		<-e.ended
	}
}

// dial sends a request without a body and leaves the connection open.
func dial(t *testing.T, c *Client, request string) net.Conn {
	t.Helper()
	conn, err := net.Dial("unix", c.socket)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(conn, "%s HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n", request)
	return conn
}

// TestEventsEnd has the hub drop a subscriber: the error is the last line, to
// docker's clients and to ours.
func TestEventsEnd(t *testing.T) {
	e := &dropping{}
	c := serve(t, e)
	n := 0
	err := c.Events(context.Background(), "", "", nil, func(Event) error { n++; return nil })
	if n != 1 || fault.KindOf(err) != fault.Unavailable || err.Error() != "events were lost" {
		t.Errorf("%d events, then %v", n, err)
	}
	stop := fault.New(fault.Failed, "enough")
	if err := c.Events(context.Background(), "1", "2", nil, func(Event) error { return stop }); err != stop {
		t.Errorf("stopped: %v", err)
	}
	for accept, want := range map[string]string{
		"": eventsJSON, "*/*": eventsJSON, "application/x-ndjson": eventsNDJSON, "application/json-seq": eventsSeq,
		"application/x-ndjson;q=0.5, application/json-seq": eventsSeq, "text/html, application/jsonl": eventsLines,
		"application/json-seq;q=x": eventsJSON, ";;,": eventsJSON,
	} {
		res, body := get(t, c, "GET", "/events", "Accept", accept)
		if got := res.Header.Get("Content-Type"); got != want || strings.HasPrefix(body, "\x1e") != (want == eventsSeq) {
			t.Errorf("Accept %q: %s %q, want %s", accept, got, body, want)
		}
	}
}

type dropping struct{ engine }

func (dropping) Events(_ context.Context, _, _ time.Time, emit func(Event) error) error {
	if err := emit(Event{Type: "image", Action: "pull"}); err != nil {
		return err
	}
	return fault.New(fault.Unavailable, "events were lost")
}

// TestEventFilters is what docker's daemon keeps of its events.
func TestEventFilters(t *testing.T) {
	pull := Event{Type: "image", Action: "pull", Scope: "local", Actor: EventActor{ID: "u:1", Attributes: map[string]string{"name": "u", "k": "v"}}}
	mount := Event{Type: "mount", Action: "mount", Scope: "local", Actor: EventActor{ID: "m1", Attributes: map[string]string{"name": "/x", "image": "u:1"}}}
	for _, tt := range []struct {
		filters     string
		pull, mount bool
	}{
		{``, true, true},
		{`{}`, true, true},
		{`{"type":[]}`, true, true},
		{`{"type":["image"]}`, true, false},
		{`{"type":["image","mount"]}`, true, true},
		{`{"event":["pull"]}`, true, false},
		{`{"scope":["swarm"]}`, false, false},
		{`{"image":["u"]}`, true, true},
		{`{"image":["u:1"]}`, true, true},
		{`{"image":["other"]}`, false, false},
		{`{"label":["k=v"]}`, true, false},
		{`{"label":["k=v","name=x"]}`, false, false},
		{`{"mount":["m1"]}`, false, true},
		{`{"mount":["/x"]}`, false, true},
		{`{"container":["c"]}`, false, false},
		{`{"type":["image"],"event":["mount"]}`, false, false},
	} {
		f, err := parseFilters(tt.filters)
		if err != nil {
			t.Fatal(err)
		}
		if a, b := f.happened(&pull), f.happened(&mount); a != tt.pull || b != tt.mount {
			t.Errorf("%s: keeps pull %v, mount %v", tt.filters, a, b)
		}
	}
}

// partly is an engine that does not read archives to their end.
type partly struct{ engine }

func (partly) Load(_ context.Context, _ LoadRequest, body io.Reader, _ func(Progress)) ([]LoadedImage, error) {
	_, err := io.CopyN(io.Discard, body, 100)
	return []LoadedImage{{Reference: "u:1"}}, err
}

// TestKeptAlive sends request after request over one connection, of which the
// bodies are not read to their end: the next must not meet a closed connection,
// as clients do not send it again.
func TestKeptAlive(t *testing.T) {
	c := serve(t, &partly{})
	for range 20 {
		// More than the http package reads on its own, and little enough to be sent
		// before anybody reads it; of no known length.
		body := io.MultiReader(strings.NewReader(strings.Repeat("x", 400<<10)))
		for range 2 {
			req, err := http.NewRequest("POST", "http://h/images/load", body)
			if err != nil {
				t.Fatal(err)
			}
			body = io.MultiReader(strings.NewReader(strings.Repeat("x", 100)))
			res, err := c.http.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			if b, err := io.ReadAll(res.Body); err != nil || string(b) != `{"stream":"Loaded image: u:1\n"}`+"\r\n" {
				t.Fatalf("%q %v", b, err)
			}
			res.Body.Close()
		}
	}
}

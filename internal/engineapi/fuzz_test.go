package engineapi

import (
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
)

// FuzzRequest sends any path, query and headers to docker's routes: the reply
// is JSON, or lines of it, and a failure has docker's form.
func FuzzRequest(f *testing.F) {
	for _, request := range goldenRequests {
		method, path, _ := strings.Cut(request, " ")
		path, query, _ := strings.Cut(path, "?")
		f.Add(method, "/v1.41"+path, strings.ReplaceAll(query, "=P", `={"os":"linux","architecture":"arm64"}`), "e30=")
	}
	s := &server{engine: &goldenEngine{}, log: slog.New(slog.DiscardHandler), router: newRouter([][]route{imageRoutes, nameRoutes, systemRoutes})}
	f.Fuzz(func(t *testing.T, method, path, query, auth string) {
		r := &http.Request{
			Method: method, URL: &url.URL{Path: path, RawQuery: query}, Header: http.Header{},
			Body: http.NoBody, Proto: "HTTP/1.1",
		}
		if strings.Contains(path, "/imgfs/") || strings.Contains(query, "fromSrc") || strings.HasSuffix(path, "/auth") {
			return // what the engine of this test has not
		}
		r.Header.Set("X-Registry-Auth", auth)
		if len(auth)%2 == 1 {
			r.Header.Set(RegistryHeader, auth)
		}
		w := httptest.NewRecorder()
		s.ServeHTTP(w, r)
		if w.Code >= 400 {
			var e Error
			if err := json.Unmarshal(w.Body.Bytes(), &e); err != nil || e.Message == "" {
				t.Fatalf("%d %s: %v", w.Code, w.Body, err)
			}
			return
		}
		if w.Header().Get("Content-Type") != "application/json" {
			return
		}
		dec := json.NewDecoder(w.Body)
		for dec.More() {
			if err := dec.Decode(new(any)); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// FuzzConfig shows any configuration at any version of the API: it is what
// docker's clients decode.
func FuzzConfig(f *testing.F) {
	f.Add([]byte(`{"Cmd":["sh"],"User":7,"Env":[1],"Labels":{"a":null},"ExposedPorts":{"80/tcp":{}},"volumes":{"/x":{}},"Healthcheck":{"Interval":1.5}}`), "/v1.24/images/x/json")
	f.Add([]byte(`{"Hostname":"h","Tty":true,"Image":"i"}`), "/images/x/json")
	f.Fuzz(func(t *testing.T, config []byte, path string) {
		var got struct {
			Hostname, Domainname, User, Image, WorkingDir, StopSignal string
			AttachStdin, AttachStdout, AttachStderr, Tty, OpenStdin   bool
			StdinOnce, ArgsEscaped                                    bool
			ExposedPorts, Volumes                                     map[string]struct{}
			Env, Cmd, Entrypoint, OnBuild, Shell                      []string
			Labels                                                    map[string]string
			Healthcheck                                               *struct {
				Test              []string
				Interval, Timeout int64
				Retries           int
			}
		}
		b := configOf(&http.Request{URL: &url.URL{Path: path}}, config)
		if err := json.Unmarshal(b, &got); err != nil {
			t.Fatalf("%s: %v", b, err)
		}
	})
}

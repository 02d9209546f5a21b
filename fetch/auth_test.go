package fetch

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/imgtest"
)

func b64(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

func TestAuthFlows(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		reg    imgtest.RegistryOptions
		entry  string // in auths
		token  string // registry accepts this one from the start
		text   string // of the error, "" = it works
		tokens int    // requests at the token server
	}{
		{"anonymous token", imgtest.RegistryOptions{Auth: "token"}, ``, "", "", 1},
		{"token by password", imgtest.RegistryOptions{Auth: "token", Username: "u", Password: "p:q"}, `{"auth":"` + b64("u:p:q") + `"}`, "", "", 1},
		{"access_token without expires_in", imgtest.RegistryOptions{Auth: "token", AccessToken: true}, ``, "", "", 1},
		{"wrong password", imgtest.RegistryOptions{Auth: "token", Username: "u", Password: "p"}, `{"auth":"` + b64("u:x") + `"}`, "", "pull access denied", 1},
		{"no password", imgtest.RegistryOptions{Auth: "token", Username: "u", Password: "p"}, ``, "", "pull access denied", 1},
		{"identity token", imgtest.RegistryOptions{Auth: "token", Username: "-", Identity: "idt"}, `{"identitytoken":"idt"}`, "", "", 1},
		{"identity token as password", imgtest.RegistryOptions{Auth: "token", Username: "-", Identity: "idt"}, `{"auth":"` + b64("<token>:idt") + `"}`, "", "", 1},
		{"wrong identity token", imgtest.RegistryOptions{Auth: "token", Username: "-", Identity: "idt"}, `{"identitytoken":"other"}`, "", "pull access denied", 1},
		{"token server without OAuth2", imgtest.RegistryOptions{Auth: "token", Username: "<token>", Password: "idt"}, `{"identitytoken":"idt"}`, "", "", 2},
		{"registry token", imgtest.RegistryOptions{Auth: "token", Username: "-"}, `{"registrytoken":"ready"}`, "ready", "", 0},
		{"wrong registry token", imgtest.RegistryOptions{Auth: "token", Username: "-"}, `{"registrytoken":"other"}`, "ready", "pull access denied", 0},
		{"basic", imgtest.RegistryOptions{Auth: "basic", Username: "u", Password: "p"}, `{"username":"u","password":"p"}`, "", "", 0},
		{"basic, wrong", imgtest.RegistryOptions{Auth: "basic", Username: "u", Password: "p"}, `{"auth":"` + b64("u:x") + `"}`, "", "pull access denied", 0},
		{"basic, none", imgtest.RegistryOptions{Auth: "basic", Username: "u", Password: "p"}, ``, "", "pull access denied", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			reg := imgtest.NewRegistry(t, c.reg)
			layer := noise(100)
			makeImage(t, reg, "a/x", "1", "", layer)
			if c.token != "" {
				reg.AddToken(c.token)
			}
			o := options(t)
			if c.entry != "" {
				writeFile(t, filepath.Join(o.Auth.DockerConfig, "config.json"), `{"auths":{"`+reg.Host+`":`+c.entry+`}}`)
			}
			img, err := New(o).Resolve(t.Context(), mustParse(t, reg.Host+"/a/x:1"), Platform{})
			if c.text != "" {
				wantFault(t, err, fault.Denied, c.text, "imgfs login "+reg.Host)
			} else if err != nil {
				t.Fatal(err)
			} else {
				wantLayer(t, img, 0, layer)
			}
			wantCounts(t, reg, map[imgtest.Kind]int{imgtest.KindToken: c.tokens})
		})
	}
}

// A token server out of order is tried again; nonsense from it is an error of
// one line; and it cannot send an identity token on to another host.
func TestTokenServerFails(t *testing.T) {
	t.Parallel()
	other := imgtest.NewRegistry(t, imgtest.RegistryOptions{Auth: "token", Identity: "idt"})
	for _, c := range []struct {
		name  string
		fault imgtest.Fault
		entry string
		kind  fault.Kind
		text  string
	}{
		{"503 twice", imgtest.Fault{Status: 503, Times: 2}, ``, 0, ""},
		{"503 for ever", imgtest.Fault{Status: 503}, ``, fault.Network, "503 Service Unavailable"},
		{"nonsense", imgtest.Fault{Status: 200, Body: "<html>\n<p>secret"}, ``, fault.Network, "answer holds no token"},
		{"never ends", imgtest.Fault{Short: 1, Stall: true}, ``, fault.Network, "token server"},
		{"no token", imgtest.Fault{Status: 200, Body: "{\n}"}, ``, fault.Network, "answer holds no token"},
		{"no POST", imgtest.Fault{Status: 405, Times: 1}, `{"identitytoken":"idt"}`, 0, ""},
		{"POST redirected", imgtest.Fault{Location: strings.Replace(other.URL, "127.0.0.1", "localhost", 1) + "/token"}, `{"identitytoken":"idt"}`, fault.Network, "another host"},
	} {
		t.Run(c.name, func(t *testing.T) {
			reg := imgtest.NewRegistry(t, imgtest.RegistryOptions{Auth: "token"})
			makeImage(t, reg, "x", "1", "")
			c.fault.On = imgtest.KindToken
			reg.Inject(c.fault)
			o := options(t)
			if c.fault.Stall {
				o.Timeout = 300 * time.Millisecond
			}
			if c.entry != "" {
				writeFile(t, filepath.Join(o.Auth.DockerConfig, "config.json"), `{"auths":{"`+reg.Host+`":`+c.entry+`}}`)
			}
			_, err := New(o).Resolve(t.Context(), mustParse(t, reg.Host+"/x:1"), Platform{})
			if c.text == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			wantFault(t, err, c.kind, c.text, "")
			if n := len(reg.Requests(imgtest.KindToken)); c.fault.Location != "" && n != 1 {
				t.Errorf("asked %d times to be redirected", n)
			}
			if strings.Contains(err.Error(), "secret") {
				t.Errorf("quotes the answer: %v", err)
			}
		})
	}
	if other.Count() != 0 {
		t.Error("the identity token went to another host")
	}
}

func TestAuthFromRequest(t *testing.T) {
	t.Parallel()
	reg := imgtest.NewRegistry(t, imgtest.RegistryOptions{Auth: "basic", Username: "u", Password: "p"})
	makeImage(t, reg, "x", "1", "")
	o := options(t)
	writeFile(t, filepath.Join(o.Auth.Home, ".docker", "config.json"), `{"auths":{"`+reg.Host+`":{"auth":"`+b64("no:no")+`"}}}`)
	o.Auth.Username, o.Auth.Password = "u", "p"
	mustResolve(t, New(o), reg.Host+"/x:1")

	token := imgtest.NewRegistry(t, imgtest.RegistryOptions{Auth: "token", Username: "-"})
	makeImage(t, token, "x", "1", "")
	token.AddToken("ready")
	o = options(t)
	o.Auth.Token = "ready"
	mustResolve(t, New(o), token.Host+"/x:1")
}

// Regressions 1 and 2: a token that turns stale, answered 401 or 400, and a
// password that was changed on disk meanwhile.
func TestStaleToken(t *testing.T) {
	t.Parallel()
	for _, status := range []int{0, 400} {
		reg := imgtest.NewRegistry(t, imgtest.RegistryOptions{Auth: "token", Username: "u", Password: "p", StaleStatus: status})
		layer := noise(10000)
		makeImage(t, reg, "x", "1", "", layer)
		o := options(t)
		file := filepath.Join(o.Auth.DockerConfig, "config.json")
		login := func(pass string) {
			writeFile(t, file, `{"auths":{"`+reg.Host+`":{"auth":"`+b64("u:"+pass)+`"}}}`)
		}
		login("p")
		img := mustResolve(t, New(o), reg.Host+"/x:1")
		reg.Forget()
		reg.ExpireTokens()
		reg.Inject(imgtest.Fault{On: imgtest.KindBlob, Short: 5000, Skip: 1, Times: 1})
		wantLayer(t, img, 0, layer)
		wantCounts(t, reg, map[imgtest.Kind]int{imgtest.KindToken: 1, imgtest.KindBlob: 3})

		reg.Forget()
		reg.ExpireTokens()
		reg.SetPassword("new")
		login("new")
		wantLayer(t, img, 0, layer)
		wantCounts(t, reg, map[imgtest.Kind]int{imgtest.KindToken: 1})

		// Nothing helps: one more try, then the truth.
		reg.Forget()
		reg.ExpireTokens()
		login("wrong")
		_, err := readLayer(t.Context(), img, 0)
		wantFault(t, err, fault.Denied, "pull access denied", "imgfs login")
		wantCounts(t, reg, map[imgtest.Kind]int{imgtest.KindToken: 1, imgtest.KindBlob: 1})
		login("new")
		wantLayer(t, img, 0, layer)
	}
}

// A 400 with nobody's token stale is a 400.
func TestPlain400(t *testing.T) {
	t.Parallel()
	reg := imgtest.NewRegistry(t, imgtest.RegistryOptions{Auth: "token"})
	makeImage(t, reg, "x", "1", "", noise(10))
	img := mustResolve(t, New(options(t)), reg.Host+"/x:1")
	reg.Forget()
	reg.Inject(imgtest.Fault{On: imgtest.KindBlob, Status: 400})
	_, err := readLayer(t.Context(), img, 0)
	wantFault(t, err, fault.Network, "400 Bad Request", "")
	if n := reg.Count(imgtest.KindBlob); n != 2 {
		t.Errorf("%d requests, want 2", n)
	}
}

// A token is replaced before it runs out, by one request however many wait.
func TestTokenRenewedInTime(t *testing.T) {
	t.Parallel()
	reg := imgtest.NewRegistry(t, imgtest.RegistryOptions{Auth: "token", ExpiresIn: 3600})
	layer := noise(1000)
	makeImage(t, reg, "x", "1", "", layer)
	c := New(options(t))
	img := mustResolve(t, c, reg.Host+"/x:1")
	reg.Forget()
	read := func() {
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				if _, err := readLayer(t.Context(), img, 0); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
	}
	read()
	wantCounts(t, reg, map[imgtest.Kind]int{imgtest.KindToken: 0, imgtest.KindBlob: 8})
	expire(c.upstreams[reg.Host][0].auth, "x")
	read()
	wantCounts(t, reg, map[imgtest.Kind]int{imgtest.KindToken: 1, imgtest.KindBlob: 16})
}

// expire lets two thirds of a token's life pass.
func expire(a *authorizer, repository string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	g := a.grants[repository]
	g.until = g.until.Add(-3600e9)
	a.grants[repository] = g
}

func TestAuthFiles(t *testing.T) {
	t.Parallel()
	user := func(u string) string { return `{"auth":"` + b64(u+":secret") + `"}` }
	auths := func(pairs ...string) string {
		var s []string
		for i := 0; i < len(pairs); i += 2 {
			s = append(s, `"`+pairs[i]+`":`+user(pairs[i+1]))
		}
		return `{"auths":{` + strings.Join(s, ",") + `}}`
	}
	for _, c := range []struct {
		name             string
		files            map[string]string // beneath home
		host, repository string
		want             string // user
	}{
		{"none", nil, "h", "r", ""},
		{"docker", map[string]string{".docker/config.json": auths("h", "a")}, "h", "r", "a"},
		{"podman", map[string]string{"run/containers/auth.json": auths("h", "a")}, "h", "r", "a"},
		{"config", map[string]string{".config/containers/auth.json": auths("h", "a")}, "h", "r", "a"},
		{"dockercfg", map[string]string{".dockercfg": `{"https://h/v1/":` + user("a") + `}`}, "h", "r", "a"},
		// Merged for each registry: a file that exists does not hide another.
		{"other file", map[string]string{".docker/config.json": auths("x", "a"), "run/containers/auth.json": auths("h", "b")}, "h", "r", "b"},
		{"first file wins", map[string]string{".docker/config.json": auths("h", "a"), "run/containers/auth.json": auths("h", "b")}, "h", "r", "a"},
		{"empty entry hides nothing", map[string]string{".docker/config.json": `{"auths":{"h":{}}}`, ".dockercfg": `{"h":` + user("b") + `}`}, "h", "r", "b"},
		{"broken file hides nothing", map[string]string{".docker/config.json": `{`, ".dockercfg": `{"h":` + user("b") + `}`}, "h", "r", "b"},
		// The most specific key.
		{"repository", map[string]string{".docker/config.json": auths("h", "a", "h/n", "b", "h/n/r", "c")}, "h", "n/r", "c"},
		{"namespace", map[string]string{".docker/config.json": auths("h", "a", "h/n", "b", "h/n/r", "c")}, "h", "n/s", "b"},
		{"host", map[string]string{".docker/config.json": auths("h", "a", "h/n", "b")}, "h", "m/s", "a"},
		{"not a prefix of a name", map[string]string{".docker/config.json": auths("h/n", "b")}, "h", "nn/s", ""},
		{"port matters", map[string]string{".docker/config.json": auths("h:1", "a")}, "h:2", "r", ""},
		{"scheme and path", map[string]string{".docker/config.json": auths("https://h:5000/v2/", "a")}, "h:5000", "r", "a"},
		// Docker Hub has many names.
		{"hub", map[string]string{".docker/config.json": auths("https://index.docker.io/v1/", "a")}, hubHost, "library/r", "a"},
		{"hub as podman writes it", map[string]string{"run/containers/auth.json": auths("docker.io", "a")}, hubHost, "library/r", "a"},
		{"hub namespace", map[string]string{"run/containers/auth.json": auths("docker.io", "a", "docker.io/me", "b")}, hubHost, "me/r", "b"},
		{"hub key first", map[string]string{".docker/config.json": auths("registry-1.docker.io", "b", "https://index.docker.io/v1/", "a")}, hubHost, "library/r", "a"},
		{"nul padded", map[string]string{".docker/config.json": `{"auths":{"h":{"auth":"` + b64("a:secret\x00\x00") + `"}}}`}, "h", "r", "a"},
	} {
		t.Run(c.name, func(t *testing.T) {
			home := t.TempDir()
			for name, text := range c.files {
				writeFile(t, filepath.Join(home, name), text)
			}
			a := AuthOptions{Home: home, RuntimeDir: home + "/run", DockerConfig: home + "/.docker", ConfigHome: home + "/.config"}
			got, err := a.lookup(t.Context(), options(t).withDefaults().Logger, c.host, c.repository)
			if err != nil || got.username != c.want || c.want != "" && got.password != "secret" {
				t.Errorf("got %q, %v, want %q", got.username, err, c.want)
			}
		})
	}
}

func TestExplicitAuthFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	log := options(t).withDefaults().Logger
	for text, want := range map[string]string{"": "no such file", "{": "not valid JSON"} {
		a := AuthOptions{AuthFile: filepath.Join(dir, "f"), Home: dir, DockerConfig: dir, RuntimeDir: dir, ConfigHome: dir}
		if text != "" {
			writeFile(t, a.AuthFile, text)
		}
		_, err := a.lookup(t.Context(), log, "h", "r")
		wantFault(t, err, fault.Invalid, want, "--authfile")
		os.Remove(a.AuthFile)
	}
}

// The environment stands in for fields that are not set.
func TestAuthEnvironment(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("HOME", dir+"/home")
	t.Setenv("DOCKER_CONFIG", dir+"/docker")
	t.Setenv("XDG_RUNTIME_DIR", dir+"/run")
	t.Setenv("XDG_CONFIG_HOME", dir+"/config")
	t.Setenv("REGISTRY_AUTH_FILE", dir+"/env.json")
	var got []string
	for _, f := range (AuthOptions{}).files() {
		got = append(got, strings.TrimPrefix(f.path, dir))
	}
	want := "[/env.json /docker/config.json /run/containers/auth.json /config/containers/auth.json /home/.dockercfg]"
	if fmt.Sprint(got) != want {
		t.Errorf("got %v, want %s", got, want)
	}
	own := AuthOptions{AuthFile: "/a", DockerConfig: "/b", RuntimeDir: "/c", ConfigHome: "/d", Home: "/e"}
	for _, f := range own.files() {
		if strings.HasPrefix(f.path, dir) {
			t.Errorf("the environment got in the way: %s", f.path)
		}
	}
}

func TestCredentialPrograms(t *testing.T) {
	bin := t.TempDir()
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	program := func(name, script string) {
		path := filepath.Join(bin, "docker-credential-"+name)
		writeFile(t, path, "#!/bin/sh\n"+script)
		if err := os.Chmod(path, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	program("good", `[ "$1" = get ] || exit 2; read -r s; echo "{\"ServerURL\":\"$s\",\"Username\":\"u-$s\",\"Secret\":\"secret\"}"`)
	program("token", `cat >/dev/null; echo '{"Username":"<token>","Secret":"idt"}'`)
	program("none", `cat >/dev/null; echo "credentials not found in native keychain"; exit 1`)
	program("broken", `cat >/dev/null; echo oops; exit 1`)
	program("chatty", `cat >/dev/null; echo oops`)
	program("endless", `cat >/dev/null; exec yes`)
	stored := `"auths":{"h":{"auth":"` + b64("stored:secret") + `"}}`
	for _, c := range []struct{ name, config, host, user, identity string }{
		{"store", `{"credsStore":"good"}`, "h", "u-h", ""},
		{"store, hub", `{"credsStore":"good"}`, hubHost, "u-https://index.docker.io/v1/", ""},
		{"helper", `{"credHelpers":{"h":"good"},"credsStore":"broken"}`, "h", "u-h", ""},
		{"helper of another", `{"credHelpers":{"x":"good"}}`, "h", "", ""},
		{"identity token", `{"credHelpers":{"h":"token"}}`, "h", "", "idt"},
		{"not found", `{"credsStore":"none"}`, "h", "", ""},
		{"not found, but stored", `{"credsStore":"none",` + stored + `}`, "h", "stored", ""},
		{"broken is anonymous", `{"credsStore":"broken"}`, "h", "", ""},
		{"not JSON", `{"credsStore":"chatty"}`, "h", "", ""},
		{"endless", `{"credsStore":"endless"}`, "h", "", ""},
		{"absent", `{"credsStore":"absent"}`, "h", "", ""},
		{"absent, but stored", `{"credsStore":"absent",` + stored + `}`, "h", "stored", ""},
		{"no path", `{"credsStore":"../good"}`, "h", "", ""},
	} {
		o := options(t)
		writeFile(t, filepath.Join(o.Auth.DockerConfig, "config.json"), c.config)
		got, err := o.Auth.lookup(t.Context(), o.withDefaults().Logger, c.host, "r")
		if err != nil || got.username != c.user || got.identity != c.identity {
			t.Errorf("%s: got %q, %q, %v", c.name, got.username, got.identity, err)
		}
	}
}

func FuzzAuthFile(f *testing.F) {
	f.Add([]byte(`{"auths":{"https://h/v1/":{"auth":"YTpi"}},"credsStore":"x"}`))
	f.Add([]byte(`{"h":{"auth":"YTpi","identitytoken":"x"}}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		c, err := parseAuthFile(raw)
		if err != nil {
			return
		}
		c.credHelpers, c.credsStore = nil, "" // nothing may be run here
		for k := range c.auths {
			if strings.Contains(k, "://") && !strings.Contains(string(raw), "://") {
				t.Fatalf("key %q", k)
			}
			host, repo, _ := strings.Cut(k, "/")
			c.find(t.Context(), host, repo)
		}
	})
}

// The token server is where the registry says, within reason.
func TestRealm(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		host     string
		insecure bool
		realm    string
		ok       bool
	}{
		{"r.example", false, "https://auth.example/token?x=y", true},
		{"r.example", false, "http://auth.example/token", false},
		{"r.example", true, "http://auth.example/token", true},
		{"r.example", false, "https://169.254.169.254/latest", false},
		{"r.example", false, "https://10.0.0.1/token", false},
		{"r.example", false, "https://127.0.0.1/token", false},
		{"r.example", false, "https://[::1]/token", false},
		{"10.0.0.1:5000", false, "https://10.0.0.1:5001/token", true},
		{"10.0.0.1:5000", false, "http://10.0.0.1:5001/token", false},
		{"10.0.0.1:5000", false, "https://10.0.0.2/token", true},
		{"10.0.0.1:5000", false, "https://169.254.169.254/token", false},
		{"127.0.0.1:5000", false, "http://127.0.0.1:5001/token", true},
		{"127.0.0.1:5000", false, "http://auth.example/token", false},
		{"r.example", false, "ftp://auth.example/", false},
		{"r.example", false, "https://u:p@auth.example/", false},
		{"r.example", false, "/token", false},
		{"r.example", false, "https://%zz/", false},
	} {
		a := newAuthorizer(c.host, c.insecure, http.DefaultClient, time.Second, nil)
		if _, err := a.realm(c.realm); (err == nil) != c.ok {
			t.Errorf("%s (insecure %v) -> %s: %v", c.host, c.insecure, c.realm, err)
		}
	}
}

// A token that is renewed in time is asked for by the scope of its own
// repository, not of the one that was challenged last.
func TestRenewedForItsRepository(t *testing.T) {
	t.Parallel()
	reg := imgtest.NewRegistry(t, imgtest.RegistryOptions{Auth: "token", ExpiresIn: 3600})
	layer := noise(1000)
	makeImage(t, reg, "x", "1", "", layer)
	makeImage(t, reg, "y", "1", "", layer)
	c := New(options(t))
	img := mustResolve(t, c, reg.Host+"/x:1")
	mustResolve(t, c, reg.Host+"/y:1")
	reg.Forget()
	expire(c.upstreams[reg.Host][0].auth, "x")
	wantLayer(t, img, 0, layer)
	for _, q := range reg.Requests() {
		if scope := q.URL.Query().Get("scope"); q.Kind == imgtest.KindToken && scope != "repository:x:pull" {
			t.Errorf("asked for %q", scope)
		}
	}
	wantCounts(t, reg, map[imgtest.Kind]int{imgtest.KindToken: 1, imgtest.KindBlob: 1})
}

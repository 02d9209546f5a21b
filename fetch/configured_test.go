package fetch

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestConfigured(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"docker.io":         "[host.\"https://mirror.example\"]\ncapabilities = [\"pull\"]\n",
		"reg.example_5000_": "server = \"http://reg.example:5000\"\n",
		"bad.example":       "server = ",
		"_default":          "[host.\"https://all.example\"]\n",
		"certs.example":     "",
	} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
		if text == "" {
			continue // certificates alone
		}
		if err := os.WriteFile(filepath.Join(dir, name, "hosts.toml"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	got := Options{CertsDirs: []string{dir, filepath.Join(dir, "absent")}}.Configured()
	want := []Configured{
		{Host: "bad.example", Secure: true},
		{Host: "certs.example", Secure: true},
		{Host: "docker.io", Mirrors: []string{"https://mirror.example/"}, Secure: true},
		{Host: "reg.example:5000", Secure: false},
	}
	if len(got) != len(want) {
		t.Fatalf("got %+v", got)
	}
	for i, w := range want {
		g := got[i]
		if g.Host != w.Host || !slices.Equal(g.Mirrors, w.Mirrors) || g.Secure != w.Secure || (g.Err != nil) != (w.Host == "bad.example") {
			t.Errorf("got %+v, want %+v", g, w)
		}
	}
	if got := (Options{CertsDirs: []string{filepath.Join(dir, "absent")}}).Configured(); len(got) != 1 || got[0].Host != "docker.io" || !got[0].Secure {
		t.Errorf("without directories: %+v", got)
	}
}

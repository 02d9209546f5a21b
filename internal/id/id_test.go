package id

import (
	"encoding/json"
	"strings"
	"testing"
)

// Regression 33. The IDs were calculated with sha256sum, from the rule of the
// image specification: printf '%s %s' CHAIN DIFF | sha256sum.
func TestChain(t *testing.T) {
	const (
		a = "sha256:ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb" // "a"
		b = "sha256:3e23e8160039594a33894f6564e1b1348bbd7a0088d42c4acb73eeaed59c009d" // "b"
		c = "sha256:2e7d2c03a9507ae265ecf5b5356885a53393a2029d241394997265a1a25aefc6" // "c"
	)
	for _, tt := range []struct {
		name   string
		layers []DiffID
		want   ChainID
	}{
		{"none", nil, ""},
		{"one layer is its own chain", []DiffID{a}, a},
		{"two", []DiffID{a, b}, "sha256:51c0c8ace48498d6f5fee6b0592cc06f2da0f3cbe09c5a34a97dce85c3889676"},
		{"three", []DiffID{a, b, c}, "sha256:2fce7f8ce91bcf0a1428b36e1024639fdbd9469eea762dba98aa749631885106"},
		{"the order counts", []DiffID{b, a}, "sha256:67912b19465da2dd61635ba35b1f2a3eaf11d709b99b6789cffcc1de4616a4e3"},
		{"the same layer twice", []DiffID{a, a}, "sha256:d76fa7fcc3c98373e78d03a76c1447a1bec04bf49a44cb1f098bd84523f8450f"},
	} {
		if got := Chain(tt.layers); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
		}
		if n := len(tt.layers); n > 0 {
			if got := Chain(tt.layers[:n-1]).Append(tt.layers[n-1]); got != tt.want {
				t.Errorf("%s, appended: %s, want %s", tt.name, got, tt.want)
			}
		}
	}
}

func TestParse(t *testing.T) {
	hex := strings.Repeat("0f", 32)
	for _, tt := range []struct {
		in string
		ok bool
	}{
		{"sha256:" + hex, true},
		{"", false},
		{hex, false},
		{"sha256:" + hex[:63], false},
		{"sha256:" + hex + "0", false},
		{"sha256:" + strings.ToUpper(hex), false},
		{"sha256:" + hex[:62] + "/.", false},
		{"sha512:" + hex + hex, false},
		{"sha256:../" + hex[3:], false},
	} {
		for name, parse := range map[string]func(string) (string, error){
			"blob":  func(s string) (string, error) { v, err := ParseBlob(s); return string(v), err },
			"diff":  func(s string) (string, error) { v, err := ParseDiffID(s); return string(v), err },
			"image": func(s string) (string, error) { v, err := ParseImageID(s); return string(v), err },
		} {
			got, err := parse(tt.in)
			if (err == nil) != tt.ok || tt.ok && got != tt.in || !tt.ok && got != "" {
				t.Errorf("%s of %q: %q, %v", name, tt.in, got, err)
			}
		}
		var v struct{ D DiffID }
		err := json.Unmarshal([]byte(`{"D":"`+tt.in+`"}`), &v)
		if want := tt.ok || tt.in == ""; (err == nil) != want {
			t.Errorf("JSON of %q: %v", tt.in, err)
		}
	}
}

func TestShort(t *testing.T) {
	d := DiffID("sha256:" + strings.Repeat("ab", 32))
	if d.Hex() != strings.Repeat("ab", 32) || d.Short() != "abababababab" {
		t.Errorf("hex %s, short %s", d.Hex(), d.Short())
	}
	if z := DiffID(""); z.Hex() != "" || z.Short() != "" {
		t.Errorf("zero value: hex %q, short %q", z.Hex(), z.Short())
	}
}

// A stack of proven layers has the chain ID; an unproven layer has a key that
// depends on all it is made of.
func TestKeys(t *testing.T) {
	layers := []DiffID{of[DiffID]([]byte("a")), of[DiffID]([]byte("b")), of[DiffID]([]byte("c"))}
	if got, want := Stack(Keys(layers)), ChainKey(Chain(layers)); got != want {
		t.Errorf("stack of proven layers: %s, want the chain ID %s", got, want)
	}
	seen := map[LayerKey]bool{}
	for _, form := range []string{"stream", "packed"} {
		for _, blob := range []Blob{"", BlobOf(nil)} {
			for _, index := range []Blob{"", BlobOf(nil), BlobOf([]byte("a"))} {
				k := Unproven(form, blob, index)
				if _, err := ParseLayerKey(string(k)); err != nil || seen[k] {
					t.Errorf("key %s: seen %v, %v", k, seen[k], err)
				}
				seen[k] = true
			}
		}
	}
}

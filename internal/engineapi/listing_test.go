package engineapi

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http/httptest"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/imgfs/imgfs/internal/id"
)

// listed are images with all that a listing may hold.
func listed(n int) []ImageSummary {
	list := []ImageSummary{}
	for i := range n {
		here, lazy := int64(i), int64(2*i)
		s := ImageSummary{
			ID: id.ImageIDOf([]byte{byte(i), byte(i >> 8)}), RepoTags: []string{fmt.Sprintf("x/y:%d", i), "localhost:5000/z:1"},
			RepoDigests: []string{"x/y@" + string(id.BlobOf([]byte{byte(i)}))}, Created: int64(i - 3), Size: 1 << 40,
			SharedSize: -1, Labels: map[string]string{"a": "b", "c": ""}, Cached: &here, Lazy: &lazy,
		}
		switch i % 3 {
		case 1:
			s.RepoTags, s.RepoDigests, s.Labels, s.Cached, s.Lazy = nil, []string{}, nil, nil, nil
			s.ParentID, s.Broken = string(s.ID), "its config is not there"
		case 2:
			s.Labels = map[string]string{}
		}
		list = append(list, s)
	}
	return list
}

// TestReadList compares the reading by hand with that of encoding/json.
func TestReadList(t *testing.T) {
	t.Parallel()
	b, err := json.Marshal(listed(9))
	if err != nil {
		t.Fatal(err)
	}
	byHand := string(b) + "\n"
	for _, tt := range []struct {
		name, text string
		hand       bool
	}{
		{"ours", byHand, true},
		{"none", "[]\n", true},
		{"indented", strings.ReplaceAll(byHand, ",", ", "), false},
		{"an escape", strings.ReplaceAll(byHand, "x/y", `x\/y`), false},
		{"what nobody knows", strings.ReplaceAll(byHand, `"Size"`, `"Größe":{"a":[1]},"Size"`), false},
		{"manifests", strings.ReplaceAll(byHand, `"Size"`, `"Manifests":[{"ID":"x"}],"Size"`), false},
	} {
		var want []ImageSummary
		if err := json.Unmarshal([]byte(tt.text), &want); err != nil {
			t.Fatal(err)
		}
		got, err := readList(strings.NewReader(tt.text))
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v (%v)\nwant %+v", tt.name, got, err, want)
		}
		p := listing{rest: tt.text}
		if p.images(); p.bad == tt.hand {
			t.Errorf("%s: read by hand: %t", tt.name, !p.bad)
		}
	}
	for _, text := range []string{"", "[", "[{]", `[{"Id":"x"}]`, `[{"Created":1.5}]`, byHand[:len(byHand)/2], byHand + "x"} {
		if got, err := readList(strings.NewReader(text)); err == nil {
			t.Errorf("%q: %v", text, got)
		}
	}
}

// TestReplyImages compares what is written by hand with what encoding/json writes.
func TestReplyImages(t *testing.T) {
	t.Parallel()
	list := listed(9)
	size := int64(7)
	list[0].VirtualSize, list[0].Descriptor, list[0].Manifests = &size, &Descriptor{MediaType: "<x>"}, []ManifestSummary{{ID: "x"}}
	list[1].RepoTags = []string{"<none>:<none>", "a\"b\\", "ä\x00\xff\u2028"}
	list[2].Labels = map[string]string{"z\n": "1", "a": "<&>", "": "é"}
	for i := range list {
		var want bytes.Buffer
		enc := json.NewEncoder(&want)
		enc.SetEscapeHTML(false)
		if err := enc.Encode(&list[i]); err != nil {
			t.Fatal(err)
		}
		if got := string(appendImage(nil, &list[i])) + "\n"; got != want.String() {
			t.Errorf("%s\nwant %s", got, want.String())
		}
	}
	if want, got := reflect.TypeFor[ImageSummary]().NumField(), 15; want != got {
		t.Errorf("ImageSummary has %d fields, and appendImage and listing.image know %d", want, got)
	}
	for _, n := range []int{0, 1, 1000} {
		w := httptest.NewRecorder()
		list := listed(n)
		replyImages(w, list)
		if got, err := readList(w.Body); err != nil || !reflect.DeepEqual(got, list) {
			t.Errorf("%d images: read %d (%v)", n, len(got), err)
		}
	}
}

func TestShorten(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		tags, digests, want []string
	}{
		{[]string{"a:1"}, []string{"a@sha256:1", "b@sha256:1"}, []string{"b@sha256:1"}},
		{[]string{"host:5000/a:1"}, []string{"host:5000/a@sha256:1"}, []string{}},
		{nil, []string{"a@sha256:1"}, []string{"a@sha256:1"}},
	} {
		list := []ImageSummary{{RepoTags: tt.tags, RepoDigests: tt.digests, Labels: map[string]string{"a": "b"}}}
		if shorten(list, true); len(list[0].RepoDigests) != len(tt.digests) || list[0].Labels != nil {
			t.Errorf("with digests: %v", list)
		}
		if shorten(list, false); !slices.Equal(list[0].RepoDigests, tt.want) {
			t.Errorf("%v, want %q", list, tt.want)
		}
	}
}

// FuzzReadList has whatever is read by hand be what encoding/json reads.
func FuzzReadList(f *testing.F) {
	b, _ := json.Marshal(listed(4))
	f.Add(string(b))
	f.Fuzz(func(t *testing.T, text string) {
		p := listing{rest: text}
		got := p.images()
		if p.bad || strings.TrimSpace(p.rest) != "" {
			return
		}
		var want []ImageSummary
		if err := json.Unmarshal([]byte(text), &want); err != nil || !reflect.DeepEqual(got, want) {
			t.Fatalf("%+v\nwant %+v (%v)", got, want, err)
		}
	})
}

func BenchmarkReadList(b *testing.B) {
	list := listed(10_000)
	for i := range list {
		list[i].Labels = nil
	}
	text, _ := json.Marshal(list)
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		if _, err := readList(strings.NewReader(string(text))); err != nil {
			b.Fatal(err)
		}
	}
}

package main

import (
	"bytes"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/docker/go-units"

	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
)

var formatRows = []imageRow{
	{ID: "515ae707f091", Repository: "ubuntu", Tag: "14.04", Digest: none, CreatedSince: "5 years ago", Size: "197MB", Cached: "60MB", Lazy: "140MB"},
	{ID: "0123456789ab", Repository: none, Tag: none, Digest: none, CreatedSince: "N/A", Size: "1.2GB", Cached: "0B", Lazy: "N/A"},
}

func TestFormat(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ format, want string }{
		{"", "" +
			"REPOSITORY   TAG       IMAGE ID       CREATED       SIZE      CACHED    LAZY\n" +
			"ubuntu       14.04     515ae707f091   5 years ago   197MB     60MB      140MB\n" +
			"<none>       <none>    0123456789ab   N/A           1.2GB     0B        N/A\n"},
		{"table", "" +
			"REPOSITORY   TAG       IMAGE ID       CREATED       SIZE      CACHED    LAZY\n" +
			"ubuntu       14.04     515ae707f091   5 years ago   197MB     60MB      140MB\n" +
			"<none>       <none>    0123456789ab   N/A           1.2GB     0B        N/A\n"},
		{`table {{.ID}}\t{{.Repository}}`, "" +
			"IMAGE ID       REPOSITORY\n" +
			"515ae707f091   ubuntu\n" +
			"0123456789ab   <none>\n"},
		{`table {{upper .ID}}\t{{json .Tag}}\t{{truncate .Repository 3}}`, "" +
			"IMAGE ID       TAG        REPOSITORY\n" +
			"515AE707F091   \"14.04\"    ubu\n" +
			"0123456789AB   \"<none>\"   <no\n"},
		{`{{.Repository}}:{{.Tag}}`, "ubuntu:14.04\n<none>:<none>\n"},
		{`{{pad .Tag 1 2}}|{{title .Repository}}|{{join (split .Size "M") "-"}}`, " 14.04  |Ubuntu|197-B\n <none>  |<none>|1.2GB\n"},
		{`{{println .ID}}x`, "515ae707f091\nx\n0123456789ab\nx\n"},
		{"json", `{"Containers":"","CreatedAt":"","CreatedSince":"5 years ago","Digest":"<none>","ID":"515ae707f091","Repository":"ubuntu","SharedSize":"","Size":"197MB","Tag":"14.04","UniqueSize":"","Cached":"60MB","Lazy":"140MB"}` + "\n" +
			`{"Containers":"","CreatedAt":"","CreatedSince":"N/A","Digest":"<none>","ID":"0123456789ab","Repository":"<none>","SharedSize":"","Size":"1.2GB","Tag":"<none>","UniqueSize":"","Cached":"0B","Lazy":"N/A"}` + "\n"},
	} {
		var b bytes.Buffer
		if err := printRows(&b, test.format, imageTable, imageHead, formatRows); err != nil || b.String() != test.want {
			t.Errorf("%q: %v\n%swant\n%s", test.format, err, b.String(), test.want)
		}
	}
	for _, format := range []string{"{{.Nonsense}}", "{{.ID", "{{nofunc .ID}}", "table {{.Nonsense}}"} {
		var b bytes.Buffer
		if err := printRows(&b, format, imageTable, imageHead, formatRows); fault.KindOf(err) != fault.Invalid || !strings.HasPrefix(err.Error(), "template parsing error: template: :1:") {
			t.Errorf("%q: %v, want a usage error in docker's words", format, err)
		}
	}
}

func TestImageRows(t *testing.T) {
	t.Parallel()
	image := id.ImageID("sha256:" + strings.Repeat("ab", 32))
	const d1, d2 = "sha256:1111", "sha256:2222"
	for _, test := range []struct {
		name          string
		tags, digests []string
		plain, full   string // repository, tag, digest of each row
	}{
		{"one tag", []string{"ubuntu:14.04"}, nil, "ubuntu 14.04 <none>", "ubuntu 14.04 <none>"},
		{"one tag with digest", []string{"ubuntu:14.04"}, []string{"ubuntu@" + d1}, "ubuntu 14.04 <none>", "ubuntu 14.04 " + d1},
		{"a port is no tag", []string{"localhost:5000/x:1"}, nil, "localhost:5000/x 1 <none>", "localhost:5000/x 1 <none>"},
		{"two tags, two digests", []string{"a:1", "a:2"}, []string{"a@" + d1, "a@" + d2},
			"a 1 <none>, a 2 <none>", "a 1 " + d1 + ", a 1 " + d2 + ", a 2 " + d1 + ", a 2 " + d2},
		{"pulled by digest", nil, []string{"a@" + d1}, "a <none> <none>", "a <none> " + d1},
		{"tag here, digest there", []string{"a:1"}, []string{"b@" + d1}, "a 1 <none>, b <none> <none>", "a 1 <none>, b <none> " + d1},
		{"nameless", nil, nil, "<none> <none> <none>", "<none> <none> <none>"},
		{"nameless, older API", []string{"<none>:<none>"}, []string{"<none>@<none>"}, "<none> <none> <none>", "<none> <none> <none>"},
	} {
		i := engineapi.ImageSummary{ID: image, RepoTags: test.tags, RepoDigests: test.digests}
		for _, digests := range []bool{false, true} {
			want := test.plain
			if digests {
				want = test.full
			}
			var got []string
			for _, r := range appendImageRows(nil, &i, digests, false) {
				got = append(got, r.Repository+" "+r.Tag+" "+r.Digest)
				if r.ID != "abababababab" || r.CreatedSince != "N/A" {
					t.Errorf("%s: row %+v", test.name, r)
				}
			}
			if s := strings.Join(got, ", "); s != want {
				t.Errorf("%s (digests %v): %s, want %s", test.name, digests, s, want)
			}
		}
	}
	i := engineapi.ImageSummary{ID: image, Created: time.Now().Add(-49 * time.Hour).Unix(), Size: 123456789}
	if r := appendImageRows(nil, &i, false, true)[0]; r.ID != string(image) || r.CreatedSince != "2 days ago" || r.Size != "123MB" {
		t.Errorf("row %+v", r)
	}
}

func TestInspectTemplate(t *testing.T) {
	t.Parallel()
	doc, err := document(engineapi.ImageInspect{Os: "linux", Config: []byte(`{"Env":["A=1"]}`)})
	if err != nil {
		t.Fatal(err)
	}
	for format, want := range map[string]string{
		"{{.Os}}":                             "linux\n",
		"{{json .Config.Env}}":                `["A=1"]` + "\n",
		"{{range .Config.Env}}{{.}}\n{{end}}": "A=1\n\n",
	} {
		tmpl, err := parseTemplate(format, functions)
		if err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		if err := printTemplate(&b, tmpl, doc); err != nil || b.String() != want {
			t.Errorf("%q: %q, %v", format, b.String(), err)
		}
	}
}

// TestSize compares size with docker's own.
func TestSize(t *testing.T) {
	t.Parallel()
	for _, n := range []int64{0, 1, 9, 999, 1000, 1001, 1234, 12345, 99949, 99950, 999499, 999500, 999999, 1e6, 123456789, 1 << 40, 1e15, math.MaxInt64} {
		if got, want := size(n), units.HumanSizeWithPrecision(float64(n), 3); got != want {
			t.Errorf("%d: %q, want %q", n, got, want)
		}
	}
}

// TestPlainTable compares tables whose cells are fields with what their
// template, through package tabwriter, prints.
func TestPlainTable(t *testing.T) {
	t.Parallel()
	rows := []imageRow{{ID: "0123456789ab", Repository: "a", Tag: "1"}, {ID: "x", Repository: strings.Repeat("ä", 30), Tag: ""}}
	for _, format := range []string{imageTable, imageTableDigest, `{{.ID}}`, `{{.ID}}\t{{.Tag}}`} {
		var got, want strings.Builder
		if plainCells[imageRow](unescape.Replace(format)) == nil {
			t.Errorf("%s: not plain", format)
		}
		if err := printRows(&got, "table "+format, "", imageHead, rows); err != nil {
			t.Error(err)
		}
		slow := strings.ReplaceAll(format, "}}", " }}")
		if plainCells[imageRow](unescape.Replace(slow)) != nil {
			t.Errorf("%s: plain", slow)
		}
		if err := printRows(&want, "table "+slow, "", imageHead, rows); err != nil {
			t.Error(err)
		}
		if got.String() != want.String() {
			t.Errorf("%s:\n%s\nwant\n%s", format, got.String(), want.String())
		}
	}
}

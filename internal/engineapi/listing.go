package engineapi

import (
	"bytes"
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/imgfs/imgfs/internal/id"
)

// A list of ten thousand images is three megabytes, with labels eight, of which
// package encoding/json would take longer than all the rest of a listing. So it
// is written and read by hand, as far as that is simple.

// replyImages writes the reply of GET /images/json.
func replyImages(w http.ResponseWriter, list []ImageSummary) error {
	w.Header().Set("Content-Type", "application/json")
	const piece = 64 << 10
	b := make([]byte, 0, 2*piece)
	b = append(b, '[')
	for i := range list {
		if i > 0 {
			b = append(b, ',')
		}
		if b = appendImage(b, &list[i]); len(b) > piece {
			if _, err := w.Write(b); err != nil {
				return nil // the client has gone
			}
			b = b[:0]
		}
	}
	w.Write(append(b, "]\n"...))
	return nil
}

// shorten leaves out labels and, unless they are wanted, digests of repositories
// that a tag names as well.
func shorten(list []ImageSummary, digests bool) {
	for i := range list {
		img := &list[i]
		img.Labels = nil
		if digests {
			continue
		}
		img.RepoDigests = slices.DeleteFunc(slices.Clone(img.RepoDigests), func(d string) bool {
			return slices.ContainsFunc(img.RepoTags, func(t string) bool { return withoutTag(t) == withoutTag(d) })
		})
	}
}

// appendImage appends what package encoding/json would, without escapes for HTML.
func appendImage(b []byte, i *ImageSummary) []byte {
	b = appendText(append(b, `{"Id":`...), string(i.ID))
	b = appendText(append(b, `,"ParentId":`...), i.ParentID)
	b = appendTexts(append(b, `,"RepoTags":`...), i.RepoTags)
	b = appendTexts(append(b, `,"RepoDigests":`...), i.RepoDigests)
	b = strconv.AppendInt(append(b, `,"Created":`...), i.Created, 10)
	b = strconv.AppendInt(append(b, `,"Size":`...), i.Size, 10)
	if i.VirtualSize != nil {
		b = strconv.AppendInt(append(b, `,"VirtualSize":`...), *i.VirtualSize, 10)
	}
	b = strconv.AppendInt(append(b, `,"SharedSize":`...), i.SharedSize, 10)
	b = strconv.AppendInt(append(b, `,"Containers":`...), i.Containers, 10)
	b = appendLabels(append(b, `,"Labels":`...), i.Labels)
	if i.Descriptor != nil {
		b = appendAny(append(b, `,"Descriptor":`...), i.Descriptor)
	}
	if len(i.Manifests) > 0 {
		b = appendAny(append(b, `,"Manifests":`...), i.Manifests)
	}
	if i.Cached != nil {
		b = strconv.AppendInt(append(b, `,"Cached":`...), *i.Cached, 10)
	}
	if i.Lazy != nil {
		b = strconv.AppendInt(append(b, `,"Lazy":`...), *i.Lazy, 10)
	}
	if i.Broken != "" {
		b = appendText(append(b, `,"Broken":`...), i.Broken)
	}
	return append(b, '}')
}

// plain reports whether a text stands in JSON as it is.
func plain(s string) bool {
	for i := range len(s) {
		if !plainByte[s[i]] {
			return false
		}
	}
	return true
}

var plainByte = func() (t [256]bool) {
	for c := ' '; c <= '~'; c++ {
		t[c] = c != '"' && c != '\\'
	}
	return t
}()

func appendText(b []byte, s string) []byte {
	if !plain(s) {
		return appendAny(b, s)
	}
	b = append(b, '"')
	b = append(b, s...)
	return append(b, '"')
}

func appendTexts(b []byte, list []string) []byte {
	if list == nil {
		return append(b, "null"...)
	}
	b = append(b, '[')
	for i, s := range list {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendText(b, s)
	}
	return append(b, ']')
}

func appendLabels(b []byte, m map[string]string) []byte {
	if m == nil {
		return append(b, "null"...)
	}
	b = append(b, '{')
	for i, k := range slices.Sorted(maps.Keys(m)) {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(appendText(b, k), ':')
		b = appendText(b, m[k])
	}
	return append(b, '}')
}

// appendAny is package encoding/json; what is passed can be encoded.
func appendAny(b []byte, v any) []byte {
	out := bytes.NewBuffer(b)
	enc := json.NewEncoder(out)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return append(b, "null"...)
	}
	return bytes.TrimSuffix(out.Bytes(), []byte("\n"))
}

// readList reads the reply of GET /images/json: what a server of ours writes by
// hand, anything else by package encoding/json.
func readList(r io.Reader) ([]ImageSummary, error) {
	var text strings.Builder
	text.Grow(1 << 20)
	if _, err := io.Copy(&text, r); err != nil {
		return nil, err
	}
	p := &listing{rest: text.String()} // the strings of all images are parts of it
	if list := p.images(); !p.bad && strings.TrimSpace(p.rest) == "" {
		return list, nil
	}
	var list []ImageSummary
	return list, json.Unmarshal([]byte(text.String()), &list)
}

// listing is JSON in the form that package encoding/json writes: without
// blanks.
type listing struct {
	rest string
	bad  bool // it is not of that form, or holds what is not known here
}

// skip takes one character, if it is next.
func (p *listing) skip(c byte) bool {
	if p.bad || p.rest == "" || p.rest[0] != c {
		return false
	}
	p.rest = p.rest[1:]
	return true
}

func (p *listing) need(c byte) {
	if !p.skip(c) {
		p.bad = true
	}
}

// each calls element for what stands between open and close.
func (p *listing) each(open, close byte, element func()) {
	p.need(open)
	if p.skip(close) {
		return
	}
	for !p.bad {
		element()
		if p.skip(close) {
			return
		}
		p.need(',')
	}
}

func (p *listing) images() []ImageSummary {
	const one = 250 // bytes, at least, of one of them
	list := make([]ImageSummary, 0, len(p.rest)/one)
	p.each('[', ']', func() {
		list = append(list, ImageSummary{})
		p.image(&list[len(list)-1])
	})
	return list
}

func (p *listing) image(i *ImageSummary) {
	p.each('{', '}', func() {
		key := p.text()
		p.need(':')
		switch key {
		case "Id":
			var err error
			i.ID, err = id.ParseImageID(p.text())
			p.bad = p.bad || err != nil
		case "ParentId":
			i.ParentID = p.text()
		case "RepoTags":
			i.RepoTags = p.texts()
		case "RepoDigests":
			i.RepoDigests = p.texts()
		case "Created":
			i.Created = p.number()
		case "Size":
			i.Size = p.number()
		case "SharedSize":
			i.SharedSize = p.number()
		case "Containers":
			i.Containers = p.number()
		case "Cached":
			n := p.number()
			i.Cached = &n
		case "Lazy":
			n := p.number()
			i.Lazy = &n
		case "Labels":
			p.bad = p.bad || i.Labels != nil // they would be added
			i.Labels = p.labels()
		case "Broken":
			i.Broken = p.text()
		default:
			p.bad = true
		}
	})
}

// text takes a string; what is not plain ASCII is left to package encoding/json.
func (p *listing) text() string {
	p.need('"')
	end := strings.IndexByte(p.rest, '"')
	if p.bad || end < 0 || !plain(p.rest[:end]) {
		p.bad = true
		return ""
	}
	s := p.rest[:end]
	p.rest = p.rest[end+1:]
	return s
}

func (p *listing) null() bool {
	rest, ok := strings.CutPrefix(p.rest, "null")
	if ok {
		p.rest = rest
	}
	return ok
}

func (p *listing) texts() []string {
	if p.null() {
		return nil
	}
	list := []string{}
	p.each('[', ']', func() { list = append(list, p.text()) })
	return list
}

func (p *listing) labels() map[string]string {
	if p.null() {
		return nil
	}
	m := map[string]string{}
	p.each('{', '}', func() {
		k := p.text()
		p.need(':')
		m[k] = p.text()
	})
	return m
}

// number takes a whole number of up to 18 digits.
func (p *listing) number() int64 {
	s, sign := p.rest, int64(1)
	if strings.HasPrefix(s, "-") {
		s, sign = s[1:], -1
	}
	var n int64
	digits := 0
	for ; digits < len(s) && s[digits] >= '0' && s[digits] <= '9' && digits < 19; digits++ {
		n = 10*n + int64(s[digits]-'0')
	}
	p.bad = p.bad || digits == 0 || digits > 18 || digits > 1 && s[0] == '0'
	p.rest = s[digits:]
	return sign * n
}

package engineapi

import (
	"encoding/json"
	"io"
	"strconv"
	"strings"

	"github.com/imgfs/imgfs/internal/id"
)

// readList reads the reply of GET /images/json. Ten thousand images are two or
// three megabytes, of which package encoding/json would take longer than all
// the rest of a listing: what a server of ours writes is read by hand, and
// anything else by that package.
func readList(r io.Reader) ([]ImageSummary, error) {
	b, err := io.ReadAll(r)
	if err != nil {
		return nil, err
	}
	p := &listing{rest: string(b)} // the strings of all images are parts of it
	if list := p.images(); !p.bad && strings.TrimSpace(p.rest) == "" {
		return list, nil
	}
	var list []ImageSummary
	return list, json.Unmarshal(b, &list)
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
	for i := 0; i < len(p.rest) && !p.bad; i++ {
		switch c := p.rest[i]; {
		case c == '"':
			s := p.rest[:i]
			p.rest = p.rest[i+1:]
			return s
		case c < ' ' || c == '\\' || c > '~':
			p.bad = true
		}
	}
	p.bad = true
	return ""
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

func (p *listing) number() int64 {
	end := strings.IndexAny(p.rest, ",}")
	if end < 0 {
		p.bad = true
		return 0
	}
	n, err := strconv.ParseInt(p.rest[:end], 10, 64)
	p.bad = p.bad || err != nil || strconv.FormatInt(n, 10) != p.rest[:end]
	p.rest = p.rest[end:]
	return n
}

package span

import "io"

// passPlain copies src to w. Its spans are of one length.
func passPlain(src io.Reader, w io.Writer, rec *recording) (int64, error) {
	p := &plainPass{src: src, spacing: defaultSpacing, r: newRecorder(rec)}
	if rec.Spacing > 0 {
		p.spacing = int(min(rec.Spacing, maxRecorded))
	}
	defer p.r.close()
	p.d = p.r.next()
	n, err := io.Copy(w, p)
	if err == nil && len(p.d.blob) > 0 {
		p.end()
	}
	return n, err
}

// plainPass makes drafts of what is read through it.
type plainPass struct {
	src     io.Reader
	spacing int
	r       *recorder
	d       *draft
}

func (p *plainPass) Read(b []byte) (int, error) {
	if len(p.d.blob) == p.spacing {
		p.end()
	}
	n, err := p.src.Read(b[:min(len(b), p.spacing-len(p.d.blob))])
	p.d.blob = append(p.d.blob, b[:n]...)
	return n, err
}

// end hands over the draft and begins the next.
func (p *plainPass) end() {
	d := p.d
	n := int64(len(d.blob))
	d.e.Len, d.e.From, d.e.To = n, d.e.Off, d.e.Off+n
	p.d = p.r.next()
	p.d.e.Off = d.e.To
	p.r.put(d)
}

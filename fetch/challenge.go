package fetch

import "strings"

// challenge is one element of WWW-Authenticate (RFC 9110, 11.6.1).
type challenge struct {
	scheme string            // lower case
	params map[string]string // names in lower case
}

// parseChallenges reads WWW-Authenticate headers. A header may hold several
// challenges, separated by commas like the parameters of each. What cannot be
// understood ends the header; what was understood before it stays.
func parseChallenges(headers []string) []challenge {
	var all []challenge
	for _, h := range headers {
		p := parser{h}
		for {
			p.skip(" \t,")
			scheme := p.token()
			if scheme == "" {
				break
			}
			c := challenge{scheme: strings.ToLower(scheme), params: map[string]string{}}
			for p.param(c.params) {
			}
			all = append(all, c)
		}
	}
	return all
}

// parser consumes s from the front.
type parser struct{ s string }

func (p *parser) skip(set string) { p.s = strings.TrimLeft(p.s, set) }

func isTokenChar(c byte) bool {
	return c > ' ' && c < 0x7f && !strings.ContainsRune(`"(),/:;<=>?@[\]{}`, rune(c))
}

func (p *parser) token() string {
	i := 0
	for i < len(p.s) && isTokenChar(p.s[i]) {
		i++
	}
	t := p.s[:i]
	p.s = p.s[i:]
	return t
}

// param consumes one name=value into m. It consumes nothing and returns false
// where the next thing is another challenge, or the end.
func (p *parser) param(m map[string]string) bool {
	q := *p
	q.skip(" \t,")
	name := strings.ToLower(q.token())
	q.skip(" \t")
	rest, ok := strings.CutPrefix(q.s, "=")
	if name == "" || !ok {
		return false
	}
	q.s = rest
	q.skip(" \t")
	var value string
	if strings.HasPrefix(q.s, `"`) {
		if value, ok = q.quoted(); !ok {
			return false
		}
	} else {
		// Some servers leave URLs unquoted: take what is up to the comma.
		i := strings.IndexAny(q.s, " \t,")
		if i < 0 {
			i = len(q.s)
		}
		value, q.s = q.s[:i], q.s[i:]
	}
	if _, ok := m[name]; !ok {
		m[name] = value
	}
	*p = q
	return true
}

func (p *parser) quoted() (string, bool) {
	var b strings.Builder
	for i := 1; i < len(p.s); i++ {
		switch c := p.s[i]; {
		case c == '"':
			p.s = p.s[i+1:]
			return b.String(), true
		case c == '\\' && i+1 < len(p.s):
			i++
			b.WriteByte(p.s[i])
		default:
			b.WriteByte(c)
		}
	}
	return "", false
}

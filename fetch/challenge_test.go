package fetch

import (
	"fmt"
	"strings"
	"testing"
)

func TestParseChallenges(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ in, want string }{
		{`Basic realm="x"`, "[{basic map[realm:x]}]"},
		{`Bearer realm="https://a/t",service="s",scope="repository:a/b:pull,push"`, "[{bearer map[realm:https://a/t scope:repository:a/b:pull,push service:s]}]"},
		{`bearer realm=https://a/t , service = s`, "[{bearer map[realm:https://a/t service:s]}]"},
		{`Negotiate, Basic realm="a\"b, c=d"`, `[{negotiate map[]} {basic map[realm:a"b, c=d]}]`},
		{`Bearer realm="a",error="x", Basic realm="b"`, "[{bearer map[error:x realm:a]} {basic map[realm:b]}]"},
		{`Bearer realm="a",realm="b"`, "[{bearer map[realm:a]}]"},
		{`Bearer realm="a`, "[{bearer map[]} {realm map[]}]"},
		{`Bearer`, "[{bearer map[]}]"},
		{``, "[]"},
		{`"`, "[]"},
	} {
		if got := fmt.Sprint(parseChallenges([]string{c.in})); got != c.want {
			t.Errorf("%s: got %s, want %s", c.in, got, c.want)
		}
	}
}

func FuzzChallenge(f *testing.F) {
	f.Add(`Bearer realm="https://a/t",service="s" , Basic realm=x`)
	f.Add(`a="\`)
	f.Fuzz(func(t *testing.T, s string) {
		for _, c := range parseChallenges([]string{s}) {
			if c.scheme == "" || c.scheme != strings.ToLower(c.scheme) || !strings.Contains(strings.ToLower(s), c.scheme) {
				t.Fatalf("%q: scheme %q", s, c.scheme)
			}
			for k := range c.params {
				if k == "" || k != strings.ToLower(k) {
					t.Fatalf("%q: parameter %q", s, k)
				}
			}
		}
	})
}

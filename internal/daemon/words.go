package daemon

import (
	"errors"
	"strings"
)

// errQuote is returned for a quote or a brace without its end.
var errQuote = errors.New("unexpected end of statement while looking for a matching quote or brace")

// rawWords splits the arguments of an instruction at blanks that are neither
// quoted nor escaped. Quotes and backslashes stay in the words.
func rawWords(s string) []string {
	var words []string
	word, quote := -1, byte(0)
	for i := 0; i < len(s); i++ {
		blank := s[i] == ' ' || s[i] == '\t'
		switch {
		case quote == 0 && blank:
			if word >= 0 {
				words, word = append(words, s[word:i]), -1
			}
			continue
		case s[i] == '\\' && quote != '\'':
			if word < 0 {
				word = i
			}
			i++
			continue
		case quote == 0 && (s[i] == '"' || s[i] == '\''):
			quote = s[i]
		case s[i] == quote:
			quote = 0
		}
		if word < 0 {
			word = i
		}
	}
	if word >= 0 {
		words = append(words, s[word:])
	}
	return words
}

// expand takes the quotes off a word and puts in the values of variables: $NAME,
// ${NAME}, ${NAME:-default}, ${NAME:+instead}.
func expand(s string, env func(string) (string, bool)) (string, error) {
	var b strings.Builder
	quote := byte(0)
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case quote == '\'' && c != '\'':
			b.WriteByte(c)
		case c == quote:
			quote = 0
		case quote == 0 && (c == '"' || c == '\''):
			quote = c
		case c == '\\':
			if i+1 == len(s) {
				b.WriteByte(c)
				break
			}
			i++
			if quote == '"' && !strings.ContainsRune(`"$\`, rune(s[i])) {
				b.WriteByte('\\')
			}
			b.WriteByte(s[i])
		case c == '$':
			v, n, err := variable(s[i+1:], env)
			if err != nil {
				return "", err
			}
			b.WriteString(v)
			i += n
		default:
			b.WriteByte(c)
		}
	}
	if quote != 0 {
		return "", errQuote
	}
	return b.String(), nil
}

// variable returns the value of the variable that s, behind a $, begins with,
// and how many bytes that takes.
func variable(s string, env func(string) (string, bool)) (value string, n int, err error) {
	if !strings.HasPrefix(s, "{") {
		for n < len(s) && nameByte(s[n], n) {
			n++
		}
		if n == 0 {
			return "$", 0, nil
		}
		value, _ = env(s[:n])
		return value, n, nil
	}
	end, depth := 0, 0
	for ; ; end++ {
		if end == len(s) {
			return "", 0, errQuote
		}
		if s[end] == '{' {
			depth++
		} else if s[end] == '}' {
			if depth--; depth == 0 {
				break
			}
		}
	}
	name, other, modified := strings.Cut(s[1:end], ":")
	value, _ = env(name)
	if !modified {
		return value, end + 1, nil
	}
	if other == "" || other[0] != '-' && other[0] != '+' {
		return "", 0, errors.New("unsupported modifier in ${" + s[1:end] + "}")
	}
	if (value != "") == (other[0] == '+') {
		value, err = expand(other[1:], env)
	}
	return value, end + 1, err
}

func nameByte(c byte, at int) bool {
	return c == '_' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || at > 0 && c >= '0' && c <= '9'
}

// expandWords splits and expands the arguments of an instruction.
func expandWords(s string, env func(string) (string, bool)) ([]string, error) {
	words := rawWords(s)
	for i, w := range words {
		var err error
		if words[i], err = expand(w, env); err != nil {
			return nil, err
		}
	}
	return words, nil
}

// assignments reads NAME=VALUE words, or the older form NAME VALUE, in which
// the value goes to the end of the line.
func assignments(s string, env func(string) (string, bool)) ([][2]string, error) {
	words := rawWords(s)
	if !strings.Contains(words[0], "=") {
		rest := strings.TrimSpace(s[len(words[0]):])
		if rest == "" {
			return nil, errors.New(words[0] + " has no value")
		}
		v, err := expand(rest, env)
		return [][2]string{{words[0], v}}, err
	}
	var pairs [][2]string
	for _, w := range words {
		k, v, ok := strings.Cut(w, "=")
		if !ok {
			return nil, errors.New("can't find = in " + w)
		}
		k, err1 := expand(k, env)
		v, err2 := expand(v, env)
		if err := errors.Join(err1, err2); err != nil {
			return nil, err
		}
		if k == "" {
			return nil, errors.New("names can not be blank")
		}
		pairs = append(pairs, [2]string{k, v})
	}
	return pairs, nil
}

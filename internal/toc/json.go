package toc

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"
)

// jsonReader reads JSON as it comes, value by value, for a TOC that is some
// megabytes of small objects: encoding/json would take most of the time of a
// mount. It accepts what encoding/json does, but for halves of surrogate pairs,
// and leaves bytes in strings that are not UTF-8 as they are.
type jsonReader struct {
	r   io.Reader
	buf []byte // read; [at:] is ahead
	at  int
	err error // of r; final

	text []byte // the last string that was not in buf in one piece
}

const (
	jsonBuffer = 64 << 10
	jsonString = 1 << 20 // bytes of a string
	jsonDepth  = 100     // nesting of values that are passed over
)

var (
	errJSON   = errors.New("malformed JSON")
	errNumber = errors.New("a number beyond 64 bits")
)

func newJSONReader(r io.Reader) *jsonReader {
	return &jsonReader{r: r, buf: make([]byte, 0, jsonBuffer)}
}

// peek returns the next byte; 0, which JSON has nowhere, at the end.
func (j *jsonReader) peek() byte {
	for j.at == len(j.buf) {
		if j.err != nil {
			return 0
		}
		var n int
		n, j.err = j.r.Read(j.buf[:cap(j.buf)])
		j.buf, j.at = j.buf[:n], 0
	}
	return j.buf[j.at]
}

// next returns the next byte that is not space, without taking it.
func (j *jsonReader) next() byte {
	for {
		switch c := j.peek(); c {
		case ' ', '\t', '\n', '\r':
			j.at++
		default:
			return c
		}
	}
}

// bad returns why the input cannot go on as it does.
func (j *jsonReader) bad() error {
	if j.at == len(j.buf) && j.err != nil {
		if j.err == io.EOF {
			return io.ErrUnexpectedEOF
		}
		return j.err
	}
	return errJSON
}

// take takes the byte c behind space.
func (j *jsonReader) take(c byte) error {
	if j.next() != c {
		return j.bad()
	}
	j.at++
	return nil
}

// end says that nothing but space follows.
func (j *jsonReader) end() error {
	if j.next(); j.at < len(j.buf) {
		return errors.New("data behind the end")
	}
	if j.err != io.EOF {
		return j.err
	}
	return nil
}

// object calls f behind each key of an object, which is valid until f reads on.
// f takes the value.
func (j *jsonReader) object(f func(key []byte) error) error {
	var name [32]byte // as long as any that is looked for
	return j.members('{', '}', func() error {
		if j.next() != '"' {
			return j.bad()
		}
		key, err := j.string()
		if err != nil {
			return err
		}
		key = append(name[:0], key...) // the colon may be in the next piece of input
		if err := j.take(':'); err != nil {
			return err
		}
		return f(key)
	})
}

// array calls f for each element of an array. f takes it.
func (j *jsonReader) array(f func() error) error { return j.members('[', ']', f) }

func (j *jsonReader) members(open, end byte, f func() error) error {
	if err := j.take(open); err != nil {
		return err
	}
	if j.next() == end {
		j.at++
		return nil
	}
	for {
		if err := f(); err != nil {
			return err
		}
		switch j.next() {
		case ',':
			j.at++
		case end:
			j.at++
			return nil
		default:
			return j.bad()
		}
	}
}

// null takes a null, if it is the next value: it leaves things as they are.
func (j *jsonReader) null() (bool, error) {
	if j.next() != 'n' {
		return false, nil
	}
	return true, j.word("null")
}

func (j *jsonReader) word(w string) error {
	for i := range len(w) {
		if j.peek() != w[i] {
			return j.bad()
		}
		j.at++
	}
	return nil
}

// bytes takes a string, or null. It is valid until the next one is read.
func (j *jsonReader) bytes() ([]byte, error) {
	if null, err := j.null(); null || err != nil {
		return nil, err
	}
	if j.next() != '"' {
		return nil, j.bad()
	}
	return j.string()
}

// string takes a string whose quote is the next byte.
func (j *jsonReader) string() ([]byte, error) {
	j.at++
	for i, c := range j.buf[j.at:] { // nearly all end in the buffer, and have no escapes
		if c == '"' {
			s := j.buf[j.at : j.at+i]
			j.at += i + 1
			return s, nil
		}
		if c == '\\' || c < ' ' {
			break
		}
	}
	j.text = j.text[:0]
	for len(j.text) <= jsonString {
		c := j.peek()
		if c < ' ' {
			return nil, j.bad()
		}
		j.at++
		switch c {
		case '"':
			return j.text, nil
		case '\\':
			if err := j.escape(); err != nil {
				return nil, err
			}
		default:
			j.text = append(j.text, c)
		}
	}
	return nil, fmt.Errorf("string of more than %d bytes", jsonString)
}

// escape appends what is escaped behind a backslash.
func (j *jsonReader) escape() error {
	c := j.peek()
	switch c {
	case '"', '\\', '/':
	case 'b':
		c = '\b'
	case 'f':
		c = '\f'
	case 'n':
		c = '\n'
	case 'r':
		c = '\r'
	case 't':
		c = '\t'
	case 'u':
		j.at++
		r, err := j.unit()
		if err == nil && utf16.IsSurrogate(r) {
			var low rune
			if err = j.word(`\u`); err == nil {
				low, err = j.unit()
			}
			if r = utf16.DecodeRune(r, low); err == nil && r == utf8.RuneError {
				err = errJSON
			}
		}
		j.text = utf8.AppendRune(j.text, r)
		return err
	default:
		return j.bad()
	}
	j.at++
	j.text = append(j.text, c)
	return nil
}

// unit takes four hexadecimal digits.
func (j *jsonReader) unit() (rune, error) {
	var d [4]byte
	for i := range d {
		d[i] = j.peek()
		if d[i] == 0 {
			return 0, j.bad()
		}
		j.at++
	}
	n, err := strconv.ParseUint(string(d[:]), 16, 16)
	if err != nil {
		return 0, errJSON
	}
	return rune(n), nil
}

// number takes an integer, or null.
func (j *jsonReader) number() (int64, error) {
	if null, err := j.null(); null || err != nil {
		return 0, err
	}
	neg := j.peek() == '-'
	if neg {
		j.at++
	}
	var n uint64
	digits := 0
	first := j.peek()
	for c := first; c >= '0' && c <= '9'; c = j.peek() {
		if n > math.MaxInt64/10 {
			return 0, errNumber
		}
		n = n*10 + uint64(c-'0')
		digits++
		j.at++
	}
	switch c := j.peek(); {
	case digits == 0, digits > 1 && first == '0', c == '.', c == 'e', c == 'E':
		return 0, j.bad()
	}
	switch {
	case !neg && n <= math.MaxInt64:
		return int64(n), nil
	case neg && n <= math.MaxInt64+1:
		return -int64(n), nil
	}
	return 0, errNumber
}

// skip passes over a value.
func (j *jsonReader) skip(depth int) error {
	if depth == 0 {
		return errors.New("values nested too deep")
	}
	switch c := j.next(); {
	case c == '"':
		_, err := j.string()
		return err
	case c == '{':
		return j.object(func([]byte) error { return j.skip(depth - 1) })
	case c == '[':
		return j.array(func() error { return j.skip(depth - 1) })
	case c == 't':
		return j.word("true")
	case c == 'f':
		return j.word("false")
	case c == 'n':
		return j.word("null")
	}
	return j.float()
}

// float passes over a number of any form.
func (j *jsonReader) float() error {
	var s []byte
	for len(s) < 64 {
		c := j.peek()
		if (c < '0' || c > '9') && c != '-' && c != '+' && c != '.' && c != 'e' && c != 'E' {
			break
		}
		s = append(s, c)
		j.at++
	}
	if !json.Valid(s) {
		return j.bad()
	}
	return nil
}

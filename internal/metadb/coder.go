package metadb

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"strings"
	"time"
)

// ErrDamaged is the error of a record that cannot be read.
var ErrDamaged = errors.New("damaged record")

// Coder writes or reads a record, of which a start of the daemon may read some
// ten thousand: the same calls in the same order do either, so that a record's
// form is written down once. Numbers are varints; nothing is self-describing,
// so a record begins with its version.
type Coder struct {
	b       []byte // what is written, or left to be read
	reading bool
	bad     bool
	share   *Shared
}

// Shared is what the records of one kind have in common: digests and texts
// that are equal are the same string in memory. The zero value is ready.
type Shared struct {
	digests map[[32]byte]string
	texts   map[string]string
}

// Decode reads a record by the calls that fields makes, all of it.
// ErrDamaged if it is not one.
func Decode(record []byte, share *Shared, fields func(*Coder)) error {
	if share.digests == nil {
		share.digests, share.texts = map[[32]byte]string{}, map[string]string{}
	}
	c := &Coder{b: record, reading: true, share: share}
	fields(c)
	if c.bad || len(c.b) > 0 {
		return ErrDamaged
	}
	return nil
}

// Encode returns what the calls that fields makes write.
func Encode(fields func(*Coder)) []byte {
	c := &Coder{}
	fields(c)
	return c.b
}

// Reading reports whether the record is read.
func (c *Coder) Reading() bool { return c.reading }

// Fail has Decode return ErrDamaged.
func (c *Coder) Fail() { c.bad = true }

// Rest returns what is left to be read.
func (c *Coder) Rest() []byte { return c.b }

func (c *Coder) take(n uint64) []byte {
	if c.bad || n > uint64(len(c.b)) {
		c.bad = true
		return nil
	}
	b := c.b[:n]
	c.b = c.b[n:]
	return b
}

// Version writes a version, or refuses another.
func (c *Coder) Version(v byte) {
	if !c.reading {
		c.b = append(c.b, v)
	} else if b := c.take(1); b == nil || b[0] != v {
		c.bad = true
	}
}

// Bool codes a bool.
func (c *Coder) Bool(p *bool) {
	if !c.reading {
		if *p {
			c.b = append(c.b, 1)
		} else {
			c.b = append(c.b, 0)
		}
	} else if b := c.take(1); b != nil {
		*p = b[0] == 1
		c.bad = b[0] > 1
	}
}

// Int codes a number.
func Int[T ~int | ~int64](c *Coder, p *T) {
	if !c.reading {
		c.b = binary.AppendVarint(c.b, int64(*p))
		return
	}
	v, n := binary.Varint(c.b)
	if n <= 0 {
		c.bad = true
		return
	}
	c.take(uint64(n))
	*p = T(v)
}

// Len codes the length n of a list whose elements take at least size bytes
// each: it returns the one to go by.
func (c *Coder) Len(n, size int) int {
	Int(c, &n)
	if c.bad || c.reading && (n < 0 || n > len(c.b)/size) {
		c.bad = true
		return 0
	}
	return n
}

// Time codes a time; the zero time stays that.
func (c *Coder) Time(p *time.Time) {
	some := !p.IsZero()
	if c.Bool(&some); !some || c.bad {
		return
	}
	sec, nsec := p.Unix(), p.Nanosecond()
	Int(c, &sec)
	Int(c, &nsec)
	if c.reading {
		*p = time.Unix(sec, int64(nsec)).UTC()
	}
}

// OwnText codes a text.
func OwnText[T ~string](c *Coder, p *T) {
	if b := c.text(string(*p)); c.reading {
		*p = T(b)
	}
}

func (c *Coder) text(s string) []byte {
	n := c.Len(len(s), 1)
	if c.reading {
		return c.take(uint64(n))
	}
	c.b = append(c.b, s...)
	return nil
}

// Text is OwnText for one that many records may share.
func Text[T ~string](c *Coder, p *T) {
	b := c.text(string(*p))
	if !c.reading {
		return
	}
	s, ok := c.share.texts[string(b)]
	if !ok {
		s = string(b)
		c.share.texts[s] = s
	}
	*p = T(s)
}

const algorithm = "sha256:"

// Digest codes "sha256:" and 64 hexadecimal digits, or "", of which many
// records may have the same.
func Digest[T ~string](c *Coder, p *T) { digest(c, p, true) }

// OwnDigest is Digest for one that no other record has.
func OwnDigest[T ~string](c *Coder, p *T) { digest(c, p, false) }

func digest[T ~string](c *Coder, p *T, share bool) {
	some := *p != ""
	if c.Bool(&some); !some || c.bad {
		return
	}
	if !c.reading {
		var err error
		if c.b, err = hex.AppendDecode(c.b, []byte(strings.TrimPrefix(string(*p), algorithm))); err != nil {
			panic("metadb: not a digest: " + string(*p)) // its type says that it is well formed
		}
		return
	}
	b := c.take(32)
	if b == nil {
		return
	}
	if share {
		if s, ok := c.share.digests[[32]byte(b)]; ok {
			*p = T(s)
			return
		}
	}
	var text [len(algorithm) + 64]byte
	copy(text[:], algorithm)
	hex.Encode(text[len(algorithm):], b)
	s := string(text[:])
	if share {
		c.share.digests[[32]byte(b)] = s
	}
	*p = T(s)
}

// Skip leaves out what is left to be read.
func (c *Coder) Skip() { c.b = nil }

// Package fault gives an error the two things its reader needs beside the
// text: what kind of failure it is, and the command that mends it.
//
// Every package wraps its errors with %w as usual; where the kind is known
// first, it makes an *Error. The kind travels through wrapping, over the wire
// (package engineapi) and ends as an exit code (cmd/imgfs) or an HTTP status
// (engineapi). The zero Kind, Failed, is any other failure.
package fault

import (
	"context"
	"errors"
	"fmt"
	"strings"
)

// Kind says what sort of failure an error is.
type Kind uint8

// The kinds, with the exit code and the HTTP status each becomes.
const (
	Failed      Kind = iota // 1, 500: anything else
	Invalid                 // 2, 400: the user's input is malformed
	NotFound                // 3, 404: image, tag, mount or path absent
	Denied                  // 4, 401/403: authentication or permission
	Integrity               // 5, 500: a digest does not match, a hostile or damaged image
	Network                 // 6, 502: registry unreachable, rate limit
	Conflict                // 7, 409: busy, in use, ambiguous
	Unavailable             // 8, 503: daemon or FUSE unavailable
	Canceled                // 130: interrupted by the user
)

var names = [...]string{"failed", "invalid", "not-found", "denied", "integrity", "network", "conflict", "unavailable", "canceled"}

// String returns the kind's name on the wire.
func (k Kind) String() string {
	if int(k) < len(names) {
		return names[k]
	}
	return names[Failed]
}

// ParseKind is the inverse of String; an unknown name is Failed.
func ParseKind(s string) Kind {
	for i, n := range names {
		if n == s {
			return Kind(i)
		}
	}
	return Failed
}

// Error is an error with a kind and, where one helps, a hint.
type Error struct {
	Kind Kind
	Hint string // a sentence with the command that mends it, or ""
	Err  error  // never nil
}

// Error returns the text without the hint: hints stand on a line of their own.
func (e *Error) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// New returns an error of kind k; format may use %w.
func New(k Kind, format string, args ...any) error {
	return &Error{Kind: k, Err: fmt.Errorf(format, args...)}
}

// WithHint returns err with a hint; its kind stays. nil stays nil.
func WithHint(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	return &Error{Kind: KindOf(err), Hint: fmt.Sprintf(format, args...), Err: err}
}

// KindOf returns the kind of the outermost *Error in err's chain.
func KindOf(err error) Kind {
	var e *Error
	if errors.As(err, &e) {
		return e.Kind
	}
	if errors.Is(err, context.Canceled) {
		return Canceled
	}
	return Failed
}

// HintOf returns the outermost non-empty hint in err's chain.
func HintOf(err error) string {
	for err != nil {
		var e *Error
		if !errors.As(err, &e) {
			return ""
		}
		if e.Hint != "" {
			return e.Hint
		}
		err = e.Err
	}
	return ""
}

// Word returns s as a shell takes it, for the command of a hint: in quotes
// where it needs them.
func Word(s string) string {
	special := func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("/._-+:@%,=", r))
	}
	if s != "" && strings.IndexFunc(s, special) < 0 {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

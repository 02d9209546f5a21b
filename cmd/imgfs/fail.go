package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/imgfs/imgfs/internal/fault"
)

// exits is the table of exit codes: what scripts may rely on. The man page
// and every help text take theirs from here.
var exits = [...]struct {
	kind fault.Kind
	code int
	text string
}{
	{fault.Failed, 1, "failed"},
	{fault.Invalid, 2, "wrong usage or malformed input"},
	{fault.NotFound, 3, "not found (image, mount, path)"},
	{fault.Denied, 4, "authentication or permission refused"},
	{fault.Integrity, 5, "damaged or hostile image (a digest does not match)"},
	{fault.Network, 6, "network or registry trouble"},
	{fault.Conflict, 7, "busy, in use or ambiguous"},
	{fault.Unavailable, 8, "daemon or FUSE unavailable"},
	{fault.Canceled, 130, "interrupted"},
}

// exitCode returns the code the process ends with for err; nil is 0.
func exitCode(err error) int {
	if err == nil {
		return 0
	}
	k := fault.KindOf(err)
	for _, e := range exits {
		if e.kind == k {
			return e.code
		}
	}
	return 1
}

// reported is an error whose text has been printed already.
type reported struct{ error }

func (r reported) Unwrap() error { return r.error }

// fail prints err and returns the exit code.
func fail(ctx context.Context, w io.Writer, err error) int {
	if code := ended(0); errors.As(err, &code) {
		return int(code)
	}
	// Whatever broke because the user interrupted is an interruption.
	if ctx.Err() != nil {
		err = fault.New(fault.Canceled, "interrupted")
	}
	if !errors.As(err, &reported{}) {
		printError(w, err)
	}
	return exitCode(err)
}

// printError writes err as one line and its hint as a second.
func printError(w io.Writer, err error) {
	fmt.Fprintf(w, "imgfs: %s\n", oneLine(err.Error()))
	if h := fault.HintOf(err); h != "" {
		fmt.Fprintf(w, "hint: %s\n", oneLine(h))
	}
}

// oneLine keeps hostile text (a registry's error body, a file name) from
// reaching the terminal as anything but one line of printable characters.
func oneLine(s string) string {
	s = strings.Join(strings.FieldsFunc(s, func(r rune) bool { return r == '\n' || r == '\r' }), "; ")
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return '?'
		}
		return r
	}, s)
}

// firstOf keeps the first error: a command with several arguments goes on
// after a failure and ends with the first one's code.
func firstOf(first, err error) error {
	if first != nil {
		return first
	}
	return err
}

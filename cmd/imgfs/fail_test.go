package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
)

func TestFail(t *testing.T) {
	t.Parallel()
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	for _, test := range []struct {
		name string
		ctx  context.Context
		err  error
		code int
		text string
	}{
		{"any", t.Context(), errors.New("disk full"), 1, "imgfs: disk full\n"},
		{"kind", t.Context(), fault.New(fault.NotFound, "no such image"), 3, "imgfs: no such image\n"},
		{"kind, wrapped", t.Context(), fmt.Errorf("layer: %w", fault.New(fault.Integrity, "digest")), 5, "imgfs: layer: digest\n"},
		{"hint", t.Context(), fault.WithHint(fault.New(fault.Denied, "no"), "log %s", "in"), 4, "imgfs: no\nhint: log in\n"},
		{"one line", t.Context(), errors.New("a\nb\r\n\x1b[31mc\u009b"), 1, "imgfs: a; b; ?[31mc?\n"},
		{"interrupted", canceled, fault.New(fault.Network, "broken"), 130, "imgfs: interrupted\n"},
		{"said already", t.Context(), reported{fault.New(fault.Conflict, "busy")}, 7, ""},
		{"over the wire", t.Context(), engineapi.WireError(fault.WithHint(fault.New(fault.Network, "down"), "wait")).Err(), 6, "imgfs: down\nhint: wait\n"},
	} {
		var b bytes.Buffer
		if code := fail(test.ctx, &b, test.err); code != test.code || b.String() != test.text {
			t.Errorf("%s: code %d, %q, want %d, %q", test.name, code, b.String(), test.code, test.text)
		}
	}
	if exitCode(nil) != 0 {
		t.Error("no error, but a code")
	}
	for k := fault.Failed; k <= fault.Canceled; k++ {
		if c := exitCode(&fault.Error{Kind: k, Err: errors.New("x")}); k != fault.Failed && c == 1 {
			t.Errorf("kind %v has no exit code", k)
		}
	}
}

package engineapi

import (
	"errors"
	"net/http"

	"github.com/imgfs/imgfs/internal/fault"
)

// ErrNoDaemon is returned (wrapped) by every method of [Client] when nobody
// listens on the socket, or when the daemon went away before it took the
// request: sending it again, to a new daemon, is safe.
var ErrNoDaemon = errors.New("no daemon answers")

// WireError returns err as it travels; nil for nil.
func WireError(err error) *Error {
	if err == nil {
		return nil
	}
	return &Error{Message: err.Error(), Kind: fault.KindOf(err).String(), Hint: fault.HintOf(err)}
}

// Err returns the error that e carries, a *fault.Error; nil for nil.
func (e *Error) Err() error {
	if e == nil {
		return nil
	}
	return &fault.Error{Kind: fault.ParseKind(e.Kind), Hint: e.Hint, Err: errors.New(e.Message)}
}

// statusOf returns the HTTP status of an error.
func statusOf(err error) int {
	switch fault.KindOf(err) {
	case fault.Invalid:
		return http.StatusBadRequest
	case fault.NotFound:
		return http.StatusNotFound
	case fault.Denied:
		return http.StatusForbidden
	case fault.Network:
		return http.StatusBadGateway
	case fault.Conflict:
		return http.StatusConflict
	case fault.Unavailable:
		return http.StatusServiceUnavailable
	}
	return http.StatusInternalServerError
}

// kindOf is the inverse of statusOf, for servers that send a message alone.
func kindOf(status int) fault.Kind {
	switch status {
	case http.StatusBadRequest:
		return fault.Invalid
	case http.StatusNotFound:
		return fault.NotFound
	case http.StatusUnauthorized, http.StatusForbidden:
		return fault.Denied
	case http.StatusBadGateway:
		return fault.Network
	case http.StatusConflict:
		return fault.Conflict
	case http.StatusServiceUnavailable:
		return fault.Unavailable
	}
	return fault.Failed
}

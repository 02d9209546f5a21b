package engineapi

import (
	"context"
	"time"
)

// Events is what the route of events needs.
type Events interface {
	// Events calls emit with what happened since, if that is not zero, as far
	// as it is remembered, and then with what happens, until until, if that is
	// not zero, or ctx ends.
	Events(ctx context.Context, since, until time.Time, emit func(Event) error) error
}

// Event is one thing that happened, docker's message.
type Event struct {
	Type     string     `json:"Type"`   // image, mount, layer or daemon
	Action   string     `json:"Action"` // pull, push, tag, untag, delete, load, import, save, prune, mount, unmount, …
	Actor    EventActor `json:"Actor"`
	Scope    string     `json:"scope"` // local
	Time     int64      `json:"time"`  // seconds since 1970
	TimeNano int64      `json:"timeNano"`
}

// EventActor is what it happened to.
type EventActor struct {
	ID         string            `json:"ID"`         // reference or ID of an image, ID of a mount
	Attributes map[string]string `json:"Attributes"` // name, and more by type
}

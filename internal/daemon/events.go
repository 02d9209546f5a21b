package daemon

import (
	"context"
	"maps"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/imgfs/imgfs/imagedb"
	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
	"github.com/imgfs/imgfs/internal/id"
)

// Types of events. What one happened to is known by the reference (pull, push)
// or the ID of an image, by the ID of a mount, or by the key of a layer.
const (
	imageEvents  = "image"
	mountEvents  = "mount"
	layerEvents  = "layer"
	daemonEvents = "daemon"
)

const (
	// eventsKept is how many events are remembered, for who asks what has
	// happened, and for who cannot keep up.
	eventsKept = 1024
	// eventBatch is how many events a subscriber takes at a time.
	eventBatch = 32
	// maxEventLabels bounds the labels of an image that its events carry, in
	// bytes; with more they carry none.
	maxEventLabels = 4 << 10
)

// events tells subscribers what happens. The zero value works.
//
// All subscribers read one ring, each from a place of its own: a thousand of
// them cost a thousand numbers, and who publishes never waits. A subscriber
// whose next event has been overwritten is told so and ends.
type events struct {
	mu          sync.Mutex // guards the rest; a leaf
	ring        [eventsKept]engineapi.Event
	next        uint64        // number of the event to come; the first was 0
	more        chan struct{} // closed when there is one more; nil: nobody waits
	subscribers int
	totals      map[eventKind]uint64
}

// eventKind is what events are counted by.
type eventKind struct{ typ, action string }

// publish enters an event, whose time is now.
func (s *events) publish(ev engineapi.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	ev.Scope, ev.Time, ev.TimeNano = "local", now.Unix(), now.UnixNano()
	s.ring[s.next%eventsKept] = ev
	s.next++
	if s.totals == nil {
		s.totals = map[eventKind]uint64{}
	}
	s.totals[eventKind{ev.Type, ev.Action}]++
	if s.more != nil {
		close(s.more)
		s.more = nil
	}
}

// counts returns how many events of each kind there were, and how many listen
// now.
func (s *events) counts() (totals map[eventKind]uint64, subscribers int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.totals), s.subscribers
}

// subscriber is a place in the ring.
type subscriber struct {
	next uint64 // number of the event to take
	live uint64 // number of the first that it has subscribed to: older ones are a courtesy
	buf  [eventBatch]engineapi.Event
}

// subscribe returns a subscriber of what happens from now on, and of all that
// is remembered if past is set. It is followed by one unsubscribe.
func (s *events) subscribe(past bool) *subscriber {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.subscribers++
	sub := &subscriber{next: s.next, live: s.next}
	if past {
		sub.next = s.oldestLocked()
	}
	return sub
}

func (s *events) unsubscribe() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.subscribers--
}

// oldestLocked returns the number of the oldest event that is remembered.
//
// Preconditions: s.mu is held.
func (s *events) oldestLocked() uint64 {
	return s.next - min(s.next, eventsKept)
}

// take returns the next events, valid until the next call, or, if there are
// none, a channel that is closed when there are. fault.Unavailable if some that
// were subscribed to are forgotten.
func (s *events) take(sub *subscriber) (batch []engineapi.Event, more <-chan struct{}, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	oldest := s.oldestLocked()
	if lost := max(sub.live, sub.next); lost < oldest {
		return nil, nil, fault.New(fault.Unavailable, "events are lost: %d came faster than they were read", oldest-lost)
	}
	sub.next = max(sub.next, oldest)
	n := 0
	for ; n < len(sub.buf) && sub.next < s.next; n++ {
		sub.buf[n] = s.ring[sub.next%eventsKept]
		sub.next++
	}
	if n > 0 {
		return sub.buf[:n], nil, nil
	}
	if s.more == nil {
		s.more = make(chan struct{})
	}
	return nil, s.more, nil
}

// event tells whoever listens that something happened. attrs are names and
// values of attributes, in turn.
func (e *engine) event(typ, action, id string, attrs ...string) {
	m := make(map[string]string, len(attrs)/2)
	for i := 0; i+1 < len(attrs); i += 2 {
		m[attrs[i]] = attrs[i+1]
	}
	e.events.publish(engineapi.Event{Type: typ, Action: action, Actor: engineapi.EventActor{ID: id, Attributes: m}})
}

// imageEvent is event for an image by its ID, with its labels and its name as
// docker has them: that is the ID too, but where one is given.
func (e *engine) imageEvent(action string, img *imagedb.Image, attrs ...string) {
	size := 0
	for k, v := range img.Labels {
		size += len(k) + len(v)
	}
	m := map[string]string{}
	if size <= maxEventLabels {
		maps.Copy(m, img.Labels)
	}
	m["name"] = string(img.ID)
	for i := 0; i+1 < len(attrs); i += 2 {
		m[attrs[i]] = attrs[i+1]
	}
	e.events.publish(engineapi.Event{Type: imageEvents, Action: action, Actor: engineapi.EventActor{ID: string(img.ID), Attributes: m}})
}

// mountEvent is event for a mount.
func (e *engine) mountEvent(action string, rec *record) {
	attrs := []string{"name", rec.Target, "driver", rec.Driver, "mode", rec.mount().Mode}
	if rec.ImageID != "" {
		attrs = append(attrs, "image", rec.Image, "imageID", string(rec.ImageID))
	}
	e.event(mountEvents, action, rec.ID, attrs...)
}

// daemonEvent is event for the daemon itself.
func (e *engine) daemonEvent(action string) {
	host, _ := os.Hostname() // shown only
	e.event(daemonEvents, action, "imgfs", "name", host, "root", e.paths.Root)
}

// Events implements engineapi.Events. As with docker, what is remembered is
// told if since or until is given. It returns nil when it has come to the end.
func (e *engine) Events(ctx context.Context, since, until time.Time, emit func(engineapi.Event) error) error {
	sub := e.events.subscribe(!since.IsZero() || !until.IsZero())
	defer e.events.unsubscribe()
	var end <-chan time.Time // never
	if !until.IsZero() {
		timer := time.NewTimer(time.Until(until))
		defer timer.Stop()
		end = timer.C
	}
	for last := false; ; {
		batch, more, err := e.events.take(sub)
		if err != nil {
			return err
		}
		for _, ev := range batch {
			if !until.IsZero() && ev.TimeNano > until.UnixNano() {
				return nil
			}
			if !since.IsZero() && ev.TimeNano < since.UnixNano() {
				continue
			}
			if err := emit(ev); err != nil {
				return err
			}
		}
		switch {
		case len(batch) > 0:
			continue
		case last:
			return nil
		}
		select {
		case <-more:
		case <-end:
			last = true // what came before until is told
		case <-ctx.Done():
			last = true // also why this is the end
		}
	}
}

// evicted is layerdb's Options.Evicted.
func (e *engine) evicted(k id.LayerKey, freed int64) {
	e.event(layerEvents, "evict", string(k), "freed", strconv.FormatInt(freed, 10))
}

package pool

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/imgfs/imgfs/internal/fault"
)

func newPool(t *testing.T) *Pool[string] {
	// A step is TOPIC=TEXT; one without = has no topic.
	p := New(func(s string) string {
		topic, _, ok := strings.Cut(s, "=")
		if !ok {
			return ""
		}
		return topic
	})
	t.Cleanup(p.Close)
	return p
}

// TestPools is the table of docker's pools_test.go, 1.5: what is under way is
// joined where docker says that it is in progress and has its caller wait.
func TestPools(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPool(t)
		defer p.Close()
		stops := map[string]chan struct{}{}
		for n, tt := range []struct {
			do, kind, name string // add or remove
			variant        string
			want           string // "": started or ended; joined; or the error
		}{
			{"add", "pull", "test1", "", ""},
			{"add", "pull", "test2", "", ""},
			{"add", "push", "test1", "", "push: pull test1 is already in progress"},
			{"add", "pull", "test1", "", "joined"},
			{"add", "wait", "test3", "", "wait: Unknown pool type"},
			{"remove", "pull", "test2", "", ""},
			{"remove", "pull", "test1", "", ""},

			// And what docker has no row for.
			{"add", "push", "test1", "", ""},
			{"add", "pull", "test1", "", "pull: push test1 is already in progress"},
			{"add", "push", "test1", "", "joined"},
			{"add", "push", "test1", "other", "push: push test1 is already in progress"},
			{"remove", "push", "test1", "", ""},
			{"add", "pull", "test1", "", ""},
			{"add", "pull", "test1", "other", ""}, // beside the first
			{"add", "push", "test1", "", "push: pull test1 is already in progress"},
			{"remove", "pull", "test1", "", ""},
			{"add", "push", "test1", "", "push: pull test1 is already in progress"},
			{"remove", "pull", "test1", "other", ""},
			{"add", "push", "test1", "", ""},
			{"remove", "push", "test1", "", ""},
		} {
			key := tt.kind + tt.name + tt.variant
			if tt.do == "remove" {
				close(stops[key])
				delete(stops, key)
				synctest.Wait()
				continue
			}
			began, joined := false, false
			var failed error
			stop := make(chan struct{})
			go func() {
				_, failed = Do(t.Context(), p, Call{Kind(tt.kind), tt.name, tt.variant}, func(context.Context, func(string)) (int, error) {
					began = true
					<-stop
					return n, nil
				}, func(string) {}, func() { joined = true })
			}()
			synctest.Wait()
			got := ""
			switch {
			case failed != nil:
				got = tt.kind + ": " + failed.Error()
			case joined && !began:
				got = "joined"
			case !began:
				got = "nothing"
			default:
				stops[key] = stop
			}
			if got != tt.want {
				t.Errorf("row %d, %s %s %s: %q, want %q", n, tt.do, tt.kind, tt.name, got, tt.want)
			}
			if failed != nil && tt.kind != "wait" && fault.KindOf(failed) != fault.Conflict {
				t.Errorf("row %d: kind %v", n, fault.KindOf(failed))
			}
		}
		if left := p.List(); len(left) > 0 || len(p.flights) > 0 {
			t.Errorf("left: %v", left)
		}
	})
}

// TestBroadcast has ten callers share one flight: each gets its outcome, and
// the last step of each topic at least, whenever it came.
func TestBroadcast(t *testing.T) {
	for _, want := range []error{nil, errors.New("the registry is on fire")} {
		synctest.Test(t, func(t *testing.T) {
			p := newPool(t)
			defer p.Close()
			runs, more := 0, make(chan struct{})
			run := func(ctx context.Context, report func(string)) (string, error) {
				runs++
				report("begun")
				report("a=1")
				<-more
				report("a=2")
				report("b=1")
				report("a=3")
				report("ended")
				return "the image", want
			}
			type outcome struct {
				result string
				err    error
				steps  []string
			}
			all := make([]outcome, 10)
			for i := range all {
				o := &all[i]
				go func() {
					o.result, o.err = Do(t.Context(), p, Call{Pull, "x", nil}, run, func(s string) { o.steps = append(o.steps, s) }, nil)
				}()
				synctest.Wait()
			}
			if got := p.List(); !slices.Equal(got, []string{"pull x"}) {
				t.Errorf("under way: %v", got)
			}
			close(more)
			synctest.Wait()
			for i, o := range all {
				if !errors.Is(o.err, want) || want == nil && o.result != "the image" {
					t.Errorf("caller %d: %q %v", i, o.result, o.err)
				}
				steps := slices.DeleteFunc(o.steps, func(s string) bool { return s == "a=2" }) // may be skipped
				if got := strings.Join(steps, " "); got != "begun a=1 b=1 a=3 ended" {
					t.Errorf("caller %d saw %s", i, got)
				}
			}
			if runs != 1 {
				t.Errorf("%d runs", runs)
			}
			// An outcome is not remembered.
			if _, err := Do(t.Context(), p, Call{Pull, "x", nil}, run, func(string) {}, nil); !errors.Is(err, want) || runs != 2 {
				t.Errorf("%d runs, %v", runs, err)
			}
		})
	}
}

// TestLeave has callers leave: the flight goes on until the last has, and who
// comes then has one of its own.
func TestLeave(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPool(t)
		defer p.Close()
		runs, ended := 0, 0
		run := func(ctx context.Context, _ func(string)) (int, error) {
			runs++
			<-ctx.Done()
			ended++
			return 0, ctx.Err()
		}
		why := errors.New("gone")
		leave := make([]context.CancelCauseFunc, 3)
		errs := make([]error, 3)
		for i := range leave {
			ctx, cancel := context.WithCancelCause(t.Context())
			leave[i] = cancel
			go func() { _, errs[i] = Do(ctx, p, Call{Pull, "x", nil}, run, func(string) {}, nil) }()
			synctest.Wait()
		}
		for i := range leave {
			if ended != 0 {
				t.Fatalf("ended after %d of 3 had left", i)
			}
			leave[i](why)
			synctest.Wait()
			if !errors.Is(errs[i], why) {
				t.Errorf("caller %d: %v", i, errs[i])
			}
		}
		if runs != 1 || ended != 1 || len(p.List()) != 0 {
			t.Errorf("%d runs, %d ended, left %v", runs, ended, p.List())
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := Do(ctx, p, Call{Pull, "x", nil}, run, func(string) {}, nil); !errors.Is(err, context.Canceled) || runs != 1 {
			t.Errorf("%v after %d runs", err, runs)
		}
	})
}

func TestCloseAndPanic(t *testing.T) {
	p := newPool(t)
	_, err := Do(t.Context(), p, Call{Pull, "x", nil}, func(context.Context, func(string)) (int, error) { panic("a parser") }, func(string) {}, nil)
	if err == nil || !strings.Contains(err.Error(), "panic: a parser") {
		t.Errorf("got %v", err)
	}
	began, ended := make(chan struct{}), make(chan error)
	go func() {
		_, err := Do(t.Context(), p, Call{Push, "x", nil}, func(ctx context.Context, _ func(string)) (int, error) {
			close(began)
			<-ctx.Done()
			return 0, fmt.Errorf("stopped: %w", ctx.Err())
		}, func(string) {}, nil)
		ended <- err
	}()
	<-began
	p.Close()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if _, err := Do(t.Context(), p, Call{Pull, "x", nil}, func(context.Context, func(string)) (int, error) { return 0, nil }, func(string) {}, nil); fault.KindOf(err) != fault.Unavailable {
		t.Errorf("got %v", err)
	}
}

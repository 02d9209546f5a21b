package main

import (
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/urfave/cli/v2"
	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/term"

	"github.com/imgfs/imgfs/internal/engineapi"
)

// display shows the steps of a pull. Its methods are called from one
// goroutine.
type display interface {
	step(engineapi.Progress)
	// end leaves the terminal clean; nothing may be shown after it.
	end()
}

// newDisplay returns the display that --progress and -q ask for.
func newDisplay(c *cli.Context) (display, error) {
	if err := oneOf(c, "progress", "auto", "tty", "plain", "quiet"); err != nil {
		return nil, err
	}
	w, mode := c.App.ErrWriter, c.String("progress")
	if mode == "auto" {
		mode = "plain"
		if f, ok := w.(*os.File); ok && os.Getenv("TERM") != "dumb" {
			// Terminals without a size draw no bars.
			if width, _, err := term.GetSize(int(f.Fd())); err == nil && width > 0 {
				mode = "tty"
			}
		}
	}
	switch {
	case c.Bool("quiet") || mode == "quiet":
		return quiet{}, nil
	case mode == "tty":
		return &bars{w: w, byID: map[string]*bar{}}, nil
	}
	return &lines{w: w, last: map[string]string{}}, nil
}

// ifNeeded shows nothing as long as nothing has to be fetched: the steps up
// to there are held back.
type ifNeeded struct {
	display
	held []engineapi.Progress // nil once something is shown
	open bool
}

func (d *ifNeeded) step(p engineapi.Progress) {
	if !d.open && (p.Status == "Already exists" || p.ID == "" || strings.HasPrefix(p.Status, "Pulling from ")) {
		d.held = append(d.held, p)
		return
	}
	for _, h := range d.held {
		d.display.step(h)
	}
	d.held, d.open = nil, true
	d.display.step(p)
}

type quiet struct{}

func (quiet) step(engineapi.Progress) {}
func (quiet) end()                    {}

// lines prints one line for each new state of a layer, without counts.
type lines struct {
	w    io.Writer
	last map[string]string // by layer
}

func (l *lines) step(p engineapi.Progress) {
	text := oneLine(p.Status)
	if p.ID != "" {
		text = oneLine(p.ID) + ": " + text
		if l.last[p.ID] == p.Status {
			return
		}
		l.last[p.ID] = p.Status
	}
	fmt.Fprintln(l.w, text)
}

func (l *lines) end() {}

// bars draws one bar for each layer.
type bars struct {
	w     io.Writer
	group *mpb.Progress // nil until the first step
	byID  map[string]*bar
}

// bar is one layer's line.
type bar struct {
	*mpb.Bar
	status string // written by step, drawn by the group's goroutine: see draw
	draw   chan string
}

func (b *bars) step(p engineapi.Progress) {
	if b.group == nil {
		b.group = mpb.New(mpb.WithOutput(b.w), mpb.WithWidth(40), mpb.WithAutoRefresh())
	}
	if p.ID == "" {
		fmt.Fprintln(b.group, oneLine(p.Status))
		return
	}
	one := b.byID[p.ID]
	if one == nil {
		one = b.add(oneLine(p.ID))
		b.byID[p.ID] = one
	}
	if p.Status != one.status {
		one.status = p.Status
		one.show(oneLine(p.Status))
	}
	if p.Total > 0 {
		one.SetTotal(p.Total, false)
		one.SetCurrent(p.Current)
	}
	switch status, _, _ := strings.Cut(p.Status, " from "); status {
	case "Pull complete", "Already exists", "Pushed", "Layer already exists", "Mounted":
		one.SetTotal(-1, true)
	}
}

// show hands a status to the drawing goroutine; a status not drawn yet is
// replaced.
func (b *bar) show(status string) {
	for {
		select {
		case b.draw <- status:
			return
		case <-b.draw:
		}
	}
}

func (b *bars) add(id string) *bar {
	one := &bar{draw: make(chan string, 1)}
	status := ""
	state := decor.Any(func(decor.Statistics) string {
		select {
		case status = <-one.draw:
		default:
		}
		return id + ": " + status + " "
	}, decor.WC{W: 36, C: decor.DindentRight})
	counts := decor.Any(func(s decor.Statistics) string {
		if s.Completed || s.Total <= 0 || s.Current <= 0 {
			return ""
		}
		return fmt.Sprintf(" %s/%s", size(s.Current), size(s.Total))
	})
	one.Bar = b.group.New(0,
		mpb.BarStyle().Lbound("[").Filler("=").Tip(">").Padding(" ").Rbound("]"),
		mpb.PrependDecorators(state),
		mpb.AppendDecorators(counts),
		mpb.BarFillerOnComplete(""),
	)
	return one
}

func (b *bars) end() {
	if b.group == nil {
		return
	}
	for _, one := range b.byID {
		one.Abort(false) // no effect on a complete one
	}
	b.group.Wait()
}

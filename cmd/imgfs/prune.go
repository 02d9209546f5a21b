package main

import (
	"bufio"
	"fmt"
	"os"
	"strings"

	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"github.com/imgfs/imgfs/internal/fault"
)

func pruneCommand() *cli.Command {
	return command(cli.Command{
		Name:  "prune",
		Usage: "remove images that nothing needs",
		Description: `
Without -a those without a name go, but for those that others were made of. What
is mounted stays. On a terminal it asks first, unless -f is given; elsewhere -f
must be. Layers that are left over by something else are for imgfs gc.

Filters: until=TIME (made before: a date, or how long ago), label=KEY[=VALUE],
label!=KEY[=VALUE].

Examples:
  imgfs prune
  imgfs prune -af --filter until=240h
  imgfs prune -f --filter label!=keep

` + exitsText(fault.Failed, fault.Invalid, fault.Unavailable, fault.Canceled),
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "all", Aliases: []string{"a"}, Usage: "remove all images that are not mounted"},
			&cli.StringSliceFlag{Name: "filter", Usage: "`KEY=VALUE` remove only what matches"},
			&cli.BoolFlag{Name: "force", Aliases: []string{"f"}, Usage: "do not ask"},
		},
		Action: prune,
	})
}

func prune(c *cli.Context) error {
	if err := argsBetween(c, 0, 0); err != nil {
		return err
	}
	filters, err := filterFlags(c)
	if err != nil {
		return err
	}
	filters["dangling"] = []string{fmt.Sprint(!c.Bool("all"))}
	warning := "This will remove all dangling images."
	if c.Bool("all") {
		warning = "This will remove all images without at least one mount."
	}
	if !c.Bool("force") {
		if err := confirm(c, warning); err != nil {
			return err
		}
	}
	client, err := connect(c)
	if err != nil {
		return err
	}
	report, err := client.Prune(c.Context, filters)
	if err != nil {
		return err
	}
	if len(report.ImagesDeleted) > 0 {
		fmt.Fprintln(c.App.Writer, "Deleted Images:")
		for _, i := range report.ImagesDeleted {
			if i.Untagged != "" {
				fmt.Fprintf(c.App.Writer, "untagged: %s\n", i.Untagged)
			}
			if i.Deleted != "" {
				fmt.Fprintf(c.App.Writer, "deleted: %s\n", i.Deleted)
			}
		}
		fmt.Fprintln(c.App.Writer)
	}
	fmt.Fprintf(c.App.Writer, "Total reclaimed space: %s\n", size(report.SpaceReclaimed))
	return nil
}

// confirm asks on a terminal whether to go on, as docker does.
func confirm(c *cli.Context, warning string) error {
	if !term.IsTerminal(int(os.Stdin.Fd())) {
		return fault.WithHint(fault.New(fault.Invalid, "nobody can be asked: standard input is no terminal"), "give --force")
	}
	fmt.Fprintf(c.App.ErrWriter, "WARNING! %s\nAre you sure you want to continue? [y/N] ", warning)
	answer := make(chan string, 1)
	// It ends with the process, should nobody ever answer.
	go func() {
		line, _ := bufio.NewReader(os.Stdin).ReadString('\n')
		answer <- line
	}()
	select {
	case line := <-answer:
		if s := strings.ToLower(strings.TrimSpace(line)); s == "y" || s == "yes" {
			return nil
		}
		return fault.New(fault.Canceled, "image prune has been cancelled")
	case <-c.Context.Done():
		fmt.Fprintln(c.App.ErrWriter)
		return c.Context.Err()
	}
}

package main

import (
	"strconv"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
)

func statsCommand() *cli.Command {
	return command(cli.Command{
		Name: "stats", ArgsUsage: "[DIR|ID...]",
		Usage: "show what mounts have been asked for, and what they waited for",
		Description: `
Counted since the mount. REQUESTS are those that came from the kernel: what it has
in its page cache it does not ask for. FETCHED is what of the bytes read was not
here, WAITED how long reads waited for it. CACHED and LAZY are of the image. A
mount of driver erofs is read by the kernel alone: of it nothing is counted.

Template fields: .ID .Mount .Image .Driver .Requests .Lookups .Readdirs .Opens
.Reads .ReadBytes .Writes .WriteBytes .Changes .Fetched .Waits .Waited .Cached
.Lazy .Errors .LastError

Examples:
  imgfs stats
  imgfs stats /mnt/x
  imgfs stats --format '{{.Mount}} {{.Waited}} {{.LastError}}'
  watch -n1 imgfs stats

` + exitsText(fault.Failed, fault.Invalid, fault.NotFound, fault.Unavailable),
		Flags: []cli.Flag{
			formatFlag(),
			&cli.BoolFlag{Name: "no-trunc", Usage: "print counts of bytes in full"},
		},
		Action: stats,
	})
}

// statsRow is one line of `imgfs stats`.
type statsRow struct {
	ID, Mount, Image, Driver             string
	Requests, Lookups, Readdirs, Opens   string
	Reads, ReadBytes, Writes, WriteBytes string
	Changes, Fetched, Waits, Waited      string
	Cached, Lazy, Errors, LastError      string
}

var statsHead = statsRow{"ID", "MOUNT", "IMAGE", "DRIVER", "REQUESTS", "LOOKUPS", "READDIRS", "OPENS", "READS", "READ",
	"WRITES", "WRITTEN", "CHANGES", "FETCHED", "WAITS", "WAITED", "CACHED", "LAZY", "ERRORS", "LAST ERROR"}

const statsTable = `{{.Mount}}\t{{.Image}}\t{{.Requests}}\t{{.ReadBytes}}\t{{.WriteBytes}}\t{{.Fetched}}\t{{.Waited}}\t{{.Cached}}\t{{.Lazy}}\t{{.Errors}}`

func stats(c *cli.Context) error {
	client, err := connectToShow(c, 0, -1)
	if err != nil {
		return err
	}
	var list []engineapi.Mount
	if c.NArg() == 0 {
		if list, err = client.Mounts(c.Context); err != nil {
			return err
		}
	}
	for _, name := range c.Args().Slice() {
		m, err := inspectMount(c, client, name)
		if err != nil {
			return fault.WithHint(err, "see imgfs mounts")
		}
		list = append(list, m)
	}
	var rows []statsRow
	for i := range list {
		rows = append(rows, rowOfStats(&list[i], c.Bool("no-trunc")))
	}
	return printRows(c.App.Writer, c.String("format"), statsTable, statsHead, rows)
}

func rowOfStats(m *engineapi.Mount, exact bool) statsRow {
	s := &m.Stats
	number := func(n uint64) string { return strconv.FormatUint(n, 10) }
	bytes := func(n int64) string {
		if exact {
			return strconv.FormatInt(n, 10)
		}
		return size(n)
	}
	return statsRow{
		ID: m.ID, Mount: m.Target, Image: m.Image, Driver: m.Driver,
		Requests: number(s.Lookups + s.Getattrs + s.Readdirs + s.Opens + s.Reads + s.Writes + s.Changes + s.Others),
		Lookups:  number(s.Lookups), Readdirs: number(s.Readdirs), Opens: number(s.Opens),
		Reads: number(s.Reads), ReadBytes: bytes(int64(s.ReadBytes)), Writes: number(s.Writes), WriteBytes: bytes(int64(s.WriteBytes)),
		Changes: number(s.Changes), Fetched: bytes(int64(s.FetchedBytes)), Waits: number(s.Waits),
		Waited: s.Waited.Round(time.Millisecond).String(),
		Cached: bytes(s.CachedBytes), Lazy: bytes(s.LazyBytes), Errors: number(s.ErrorsTotal), LastError: oneLine(s.LastError),
	}
}

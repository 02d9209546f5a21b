package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/docker/go-units"
	"github.com/urfave/cli/v2"

	"github.com/imgfs/imgfs/internal/engineapi"
	"github.com/imgfs/imgfs/internal/fault"
)

func infoCommand() *cli.Command {
	return command(cli.Command{
		Name:  "info",
		Usage: "show what the daemon's host and store are like",
		Description: `
In docker's words, and by docker's fields: .ServerVersion .Containers (mounts)
.Images .Driver .DriverStatus .DockerRootDir .KernelVersion .OperatingSystem
.Architecture .NCPU .MemTotal .RegistryConfig .Warnings, and .ClientVersion. What
goes on just now is for imgfs status.

Examples:
  imgfs info
  imgfs info --format '{{.DockerRootDir}}'
  imgfs info --format json | jq .RegistryConfig

` + exitsText(fault.Failed, fault.Invalid, fault.Unavailable),
		Flags:  []cli.Flag{&cli.StringFlag{Name: "format", Aliases: []string{"f"}, Usage: "`TEMPLATE` Go template, or json"}},
		Action: info,
	})
}

// infoDoc is what --format sees.
type infoDoc struct {
	engineapi.Info
	ClientVersion string
}

func info(c *cli.Context) error {
	client, err := connectToShow(c, 0, 0)
	if err != nil {
		return err
	}
	i, err := client.Info(c.Context)
	if err != nil {
		return err
	}
	doc := infoDoc{i, engineapi.ThisBuild().Version}
	if format := c.String("format"); format != "" {
		return printRows(c.App.Writer, format, "", infoDoc{}, []infoDoc{doc})
	}
	return errors.Join(printInfo(c.App.Writer, &doc), warn(c.App.ErrWriter, i.Warnings))
}

func warn(w io.Writer, warnings []string) error {
	for _, text := range warnings {
		if _, err := fmt.Fprintln(w, oneLine(text)); err != nil {
			return err
		}
	}
	return nil
}

// printInfo writes what docker info writes, as far as there is such.
func printInfo(w io.Writer, i *infoDoc) error {
	out := bufio.NewWriter(w)
	line := func(format string, args ...any) { fmt.Fprintln(out, oneLine(fmt.Sprintf(format, args...))) }
	line("Client:")
	line(" Version: %s", i.ClientVersion)
	fmt.Fprintln(out)
	line("Server:")
	line(" Mounts: %d", i.ContainersRunning)
	line(" Images: %d", i.Images)
	line(" Server Version: %s", i.ServerVersion)
	line(" Storage Driver: %s", i.Driver)
	for _, s := range i.DriverStatus {
		line("  %s: %s", s[0], s[1])
	}
	line(" Kernel Version: %s", i.KernelVersion)
	line(" Operating System: %s", i.OperatingSystem)
	line(" OSType: %s", i.OSType)
	line(" Architecture: %s", i.Architecture)
	line(" CPUs: %d", i.NCPU)
	line(" Total Memory: %s", units.BytesSize(float64(i.MemTotal)))
	line(" Name: %s", i.Name)
	line(" Root Dir: %s", i.DockerRootDir)
	for _, proxy := range [][2]string{{"HTTP Proxy", i.HTTPProxy}, {"HTTPS Proxy", i.HTTPSProxy}, {"No Proxy", i.NoProxy}} {
		if proxy[1] != "" {
			line(" %s: %s", proxy[0], proxy[1])
		}
	}
	list := func(title string, values []string) {
		if len(values) > 0 {
			line(" %s:", title)
			for _, v := range slices.Sorted(slices.Values(values)) {
				line("  %s", v)
			}
		}
	}
	list("Insecure Registries", i.RegistryConfig.InsecureRegistryCIDRs)
	list("Registry Mirrors", i.RegistryConfig.Mirrors)
	line(" Live Restore Enabled: %t", i.LiveRestoreEnabled)
	return out.Flush()
}

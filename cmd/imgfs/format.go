package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"text/template"
	"time"

	"github.com/docker/go-units"
	"github.com/urfave/cli/v2"

	"github.com/imgfs/imgfs/internal/fault"
)

// printRows writes rows as --format asks, in docker's manner: "json" is one
// object per line, "table TEMPLATE" a table, "" or "table" the table of the
// standard template, and anything else a template applied to each row. A
// table's headings are the fields of head, a row that holds names.
func printRows[T any](w io.Writer, format, standard string, head T, rows []T) error {
	table := false
	switch rest, isTable := strings.CutPrefix(format, "table "); {
	case format == "json":
		return printJSONLines(w, rows)
	case format == "" || format == "table":
		table, format = true, standard
	case isTable:
		table, format = true, strings.TrimSpace(rest)
	}
	format = unescape.Replace(format)
	if cells := plainCells[T](format); table && cells != nil {
		return printCells(w, cells, head, rows)
	}
	t, err := parseTemplate(format, functions)
	if err != nil {
		return err
	}
	out, flush := w, func() error { return nil }
	if table {
		tw := tabwriter.NewWriter(w, 10, 1, 3, ' ', 0)
		out, flush = tw, tw.Flush
		th, err := parseTemplate(format, headFunctions)
		if err != nil {
			return err
		}
		if err := printTemplate(out, th, head); err != nil {
			return err
		}
	}
	for _, row := range rows {
		if err := printTemplate(out, t, row); err != nil {
			return err
		}
	}
	return flush()
}

func printJSONLines[T any](w io.Writer, rows []T) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	for _, row := range rows {
		if err := enc.Encode(row); err != nil {
			return err
		}
	}
	return nil
}

// checkFormat refuses a --format that cannot be parsed, before any work.
func checkFormat(c *cli.Context) error {
	format, _ := strings.CutPrefix(c.String("format"), "table ")
	_, err := parseTemplate(unescape.Replace(format), functions)
	return err
}

// unescape lets a shell's single quotes hold tabs and newlines.
var unescape = strings.NewReplacer(`\t`, "\t", `\n`, "\n")

// functions are docker's template functions.
var functions = template.FuncMap{
	"json":     toJSON,
	"lower":    strings.ToLower,
	"upper":    strings.ToUpper,
	"title":    upperFirst,
	"split":    strings.Split,
	"join":     strings.Join,
	"pad":      pad,
	"truncate": truncate,
	"println":  fmt.Sprintln,
}

// headFunctions leave headings as they are.
var headFunctions = template.FuncMap{
	"json":     func(s string) string { return s },
	"lower":    func(s string) string { return s },
	"upper":    func(s string) string { return s },
	"title":    func(s string) string { return s },
	"split":    func(s, _ string) []string { return []string{s} },
	"join":     strings.Join,
	"pad":      pad,
	"truncate": func(s string, _ int) string { return s },
	"println":  fmt.Sprintln,
}

func toJSON(v any) (string, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	err := enc.Encode(v)
	return strings.TrimSuffix(b.String(), "\n"), err
}

func pad(s string, before, after int) string {
	if s == "" {
		return s
	}
	return strings.Repeat(" ", max(0, before)) + s + strings.Repeat(" ", max(0, after))
}

// truncate cuts s to n characters.
func truncate(s string, n int) string {
	r := []rune(s)
	return string(r[:max(0, min(n, len(r)))])
}

func parseTemplate(text string, f template.FuncMap) (*template.Template, error) {
	t, err := template.New("").Funcs(f).Option("missingkey=error").Parse(text)
	if err != nil {
		return nil, fault.New(fault.Invalid, "template parsing error: %w", err)
	}
	return t, nil
}

// printTemplate writes t applied to v and a newline, or nothing on an error.
func printTemplate(w io.Writer, t *template.Template, v any) error {
	var b bytes.Buffer
	if err := t.Execute(&b, v); err != nil {
		return fault.New(fault.Invalid, "template parsing error: %w", err)
	}
	b.WriteByte('\n')
	_, err := b.WriteTo(w)
	return err
}

// size writes bytes as docker does: 1.23MB. It is units.HumanSize without
// package fmt.
func size(n int64) string {
	v, i := float64(n), 0
	for ; v >= 1000 && i < len(sizeUnits)-1; i++ {
		v /= 1000
	}
	return strconv.FormatFloat(v, 'g', 3, 64) + sizeUnits[i]
}

var sizeUnits = [...]string{"B", "kB", "MB", "GB", "TB", "PB", "EB"}

// since writes how long ago t was, "N/A" for the zero time.
func since(t time.Time) string {
	if t.IsZero() || t.Unix() <= 0 {
		return "N/A"
	}
	return units.HumanDuration(time.Since(t)) + " ago"
}

// printJSON writes v as docker prints a document: indented.
func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "    ")
	return enc.Encode(v)
}

package main

import (
	"bufio"
	"io"
	"reflect"
	"slices"
	"strings"
	"unicode/utf8"
)

// plainCells returns how to get the cells of a row that a template asks for, if
// that is fields between tabs and nothing else, as the standard tables are;
// else nil. A list of ten thousand rows is printed at once so; templates would
// take longer than all the rest.
func plainCells[T any](format string) func(row *T, cells []string) []string {
	t := reflect.TypeFor[T]()
	if t.Kind() != reflect.Struct {
		return nil
	}
	var fields [][]int
	for _, cell := range strings.Split(format, "\t") {
		name, ok := strings.CutPrefix(cell, "{{.")
		name, ok2 := strings.CutSuffix(name, "}}")
		f, known := t.FieldByName(name)
		if !ok || !ok2 || !known || !f.IsExported() || f.Type.Kind() != reflect.String {
			return nil
		}
		fields = append(fields, f.Index)
	}
	return func(row *T, cells []string) []string {
		v := reflect.ValueOf(row).Elem()
		for _, f := range fields {
			cells = append(cells, v.FieldByIndex(f).String())
		}
		return cells
	}
}

// The form of tables is that of docker's.
const (
	leastWidth = 10 // characters of a column
	gap        = 3  // between columns, at least
)

// printCells writes a table of head and rows, whose last column is as wide as
// it is.
func printCells[T any](w io.Writer, cellsOf func(*T, []string) []string, head T, rows []T) error {
	cells := cellsOf(&head, nil)
	n := len(cells)
	cells = slices.Grow(cells, n*len(rows))
	for i := range rows {
		cells = cellsOf(&rows[i], cells)
	}
	widths := make([]int, n)
	for i, c := range cells {
		widths[i%n] = max(widths[i%n], leastWidth, utf8.RuneCountInString(c)+gap)
	}
	out := bufio.NewWriterSize(w, 64<<10)
	blanks := strings.Repeat(" ", slices.Max(widths))
	for i, c := range cells {
		out.WriteString(c)
		if i%n == n-1 {
			out.WriteByte('\n')
		} else {
			out.WriteString(blanks[:widths[i%n]-utf8.RuneCountInString(c)])
		}
	}
	return out.Flush()
}

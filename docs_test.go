package imgfs_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestDockerRows reads docs/docker-subsystem.md: all rows are there, each has a
// test, and every test that is named exists.
func TestDockerRows(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(filepath.Join("docs", "docker-subsystem.md"))
	if err != nil {
		t.Fatal(err)
	}
	const rows, columns = 55, 4
	named := regexp.MustCompile("`((?:[a-z0-9]+/)*[a-z0-9]+)\\.((?:Test|Fuzz)\\w+)(?:/(\\w+))?`")
	seen := map[string]bool{}
	tests := map[string]map[string]bool{} // by package
	for n, line := range strings.Split(string(text), "\n") {
		found := named.FindAllStringSubmatch(line, -1)
		if m := regexp.MustCompile(`^\| (\d+) \|`).FindStringSubmatch(line); m != nil {
			if seen[m[1]] {
				t.Errorf("line %d: row %s stands there twice", n+1, m[1])
			}
			seen[m[1]] = true
			if len(found) == 0 {
				t.Errorf("row %s has no test", m[1])
			}
			if got := strings.Count(strings.ReplaceAll(line, `\|`, ""), "|") - 1; got != columns {
				t.Errorf("row %s has %d columns", m[1], got)
			}
		}
		for _, m := range found {
			pkg, test, script := m[1], m[2], m[3]
			if tests[pkg] == nil {
				tests[pkg] = testsOf(t, pkg)
			}
			if !tests[pkg][test] {
				t.Errorf("line %d: there is no %s in %s", n+1, test, pkg)
			}
			if script == "" {
				continue
			}
			if _, err := os.Stat(filepath.Join(pkg, "testdata", "script", script+".txtar")); err != nil {
				t.Errorf("line %d: %v", n+1, err)
			}
		}
	}
	for n := range rows {
		if row := fmt.Sprint(n + 1); !seen[row] {
			t.Errorf("row %s is missing", row)
		}
	}
	if len(seen) > rows {
		t.Errorf("%d rows, want %d", len(seen), rows)
	}
}

// testsOf returns the names of a package's top-level functions in test files.
func testsOf(t *testing.T, pkg string) map[string]bool {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(pkg, "*_test.go"))
	if err != nil || len(files) == 0 {
		t.Errorf("package %s has no tests (%v)", pkg, err)
	}
	names := map[string]bool{}
	for _, path := range files {
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range f.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil {
				names[fn.Name.Name] = true
			}
		}
	}
	return names
}

// Package imgfs_test polices the tree: who may import whom, where third-party
// modules may be used, and the rules of CONTRIBUTING.md that a program can see.
package imgfs_test

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/imgfs/imgfs/"

// imports is the whole import graph between our packages. ARCHITECTURE.md
// draws it; a package or an import that is not listed here fails the test, and
// so does one that is listed and gone.
var imports = map[string][]string{
	"internal/id":         {},
	"internal/fault":      {},
	"internal/erofs":      {},
	"internal/inflate":    {},
	"internal/span/zscan": {},
	"internal/span":       {"internal/inflate", "internal/fault", "internal/span/zscan"},
	"internal/lazy":       {"internal/fault", "internal/span"},
	"internal/metadb":     {},
	"internal/layertar":   {"internal/erofs", "internal/fault"},
	"internal/toc":        {"internal/id", "internal/erofs", "internal/layertar", "internal/span"},
	"internal/engineapi":  {"internal/id", "internal/fault"},
	"fetch":               {"internal/id", "internal/fault"},
	"internal/pool":       {"internal/fault"},
	"imagedb":             {"internal/id", "internal/fault", "internal/metadb"},
	"layerdb":             {"internal/id", "internal/fault", "internal/metadb", "internal/erofs", "internal/layertar", "internal/span", "internal/toc", "internal/lazy"},
	"union":               {"internal/fault", "internal/erofs", "internal/layertar"},
	"internal/lower":      {"internal/erofs"},
	"internal/upperdir":   {"internal/id", "internal/fault", "internal/erofs", "internal/lower"},
	"union/overlay":       {"internal/erofs", "internal/lower", "internal/upperdir"},
	"fs":                  {"internal/id", "internal/fault", "internal/erofs", "internal/layertar", "internal/lower"},
	"internal/daemon": {"internal/id", "internal/fault", "internal/erofs", "internal/metadb", "internal/lower", "internal/subid",
		"internal/upperdir", "internal/engineapi", "internal/layertar", "internal/span", "internal/toc", "internal/lazy", "internal/pool", "fetch", "imagedb", "layerdb", "union", "union/overlay", "fs"},
	"internal/subid":   {},
	"internal/sandbox": {"internal/fault", "internal/subid"},
	"cmd/imgfs":        {"internal/fault", "internal/engineapi", "internal/daemon", "internal/sandbox", "fs"},
	// Not part of the binary.
	"internal/imgtest": {"internal/id", "internal/erofs"},
	"internal/demo":    {"internal/fault", "internal/imgtest"},
	"internal/bench":   {"internal/imgtest", "internal/id", "internal/erofs", "internal/metadb", "imagedb", "layerdb", "union"},
}

// testOnly packages may be imported by any test and by no shipped package.
var testOnly = []string{"internal/imgtest"}

// modules says where a third-party module may be used outside tests; one
// that is not listed may not be used at all.
var modules = map[string][]string{
	"github.com/hanwen/go-fuse/v2":                     {"fs", "internal/lower", "union/overlay", "internal/bench"},
	"github.com/opencontainers/go-digest":              {"internal/id"},
	"github.com/klauspost/compress":                    {"internal/span", "internal/toc", "layerdb", "internal/imgtest"},
	"github.com/cespare/xxhash/v2":                     {"internal/lazy"},
	"github.com/containerd/stargz-snapshotter/estargz": {"internal/toc"},
	"github.com/vbatts/tar-split":                      {"internal/toc"},
	"github.com/urfave/cli/v2":                         {"cmd/imgfs"},
	"github.com/vbauerster/mpb/v8":                     {"cmd/imgfs"},
	"github.com/docker/go-units":                       {"cmd/imgfs"},
	"golang.org/x/term":                                {"cmd/imgfs"},
	"github.com/dgraph-io/badger/v4":                   {"internal/metadb", "imagedb", "layerdb", "internal/daemon"},
	"github.com/distribution/reference":                {"fetch", "imagedb"},
	"github.com/google/go-containerregistry":           {"fetch", "internal/imgtest", "internal/demo", "internal/bench"},
	"github.com/pelletier/go-toml/v2":                  {"fetch"},
	"github.com/ulikunitz/xz":                          {"internal/span"},
	"github.com/prometheus/client_golang":              {"internal/daemon"},
	"github.com/coreos/go-systemd/v22":                 {"internal/daemon"},
	"github.com/rogpeppe/go-internal":                  {"internal/imgtest"},
	"golang.org/x/sys":                                 {"*"},
	"golang.org/x/sync":                                {"*"},
}

const maxLines = 600

var bannedNames = []string{"utils", "util", "common", "helpers", "helper", "misc", "types", "base"}

func TestTree(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	docs := map[string]bool{}
	used := map[string]bool{} // "importer imported"
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if n := d.Name(); path != "." && (strings.HasPrefix(n, ".") || n == "testdata" || n == "bin") {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(path, ".go") {
			return nil
		}
		pkg := filepath.ToSlash(filepath.Dir(path))
		src, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if n := bytes.Count(src, []byte("\n")); n > maxLines {
			t.Errorf("%s: %d lines, more than %d: it holds two ideas", path, n, maxLines)
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, src, parser.ParseComments)
		if err != nil {
			return err
		}
		test := strings.HasSuffix(path, "_test.go")
		checkImports(t, path, pkg, f, test)
		if test || pkg == "." {
			return nil
		}
		for _, spec := range f.Imports {
			used[pkg+" "+strings.TrimPrefix(strings.Trim(spec.Path.Value, `"`), module)] = true
		}
		seen[pkg] = true
		docs[pkg] = docs[pkg] || f.Doc != nil
		checkRules(t, path, pkg, f)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for pkg := range seen {
		if !docs[pkg] {
			t.Errorf("%s: no package doc", pkg)
		}
		if slices.Contains(bannedNames, filepath.Base(pkg)) {
			t.Errorf("%s: says nothing about what it holds", pkg)
		}
		if _, ok := imports[pkg]; !ok {
			t.Errorf("%s: not in the import graph", pkg)
		}
	}
	for pkg, list := range imports {
		if !seen[pkg] {
			t.Errorf("%s: in the import graph, but not in the tree", pkg)
		}
		for _, own := range list {
			if !used[pkg+" "+own] {
				t.Errorf("%s: in the import graph, but does not import %s", pkg, own)
			}
		}
	}
}

func checkImports(t *testing.T, path, pkg string, f *ast.File, test bool) {
	for _, spec := range f.Imports {
		p := strings.Trim(spec.Path.Value, `"`)
		if own, ok := strings.CutPrefix(p, module); ok {
			if !test && !slices.Contains(imports[pkg], own) {
				t.Errorf("%s: %s may not import %s", path, pkg, own)
			}
			if test && !slices.Contains(imports[pkg], own) && own != pkg && !slices.Contains(testOnly, own) && !oracle(pkg, own) {
				t.Errorf("%s: tests of %s may not import %s", path, pkg, own)
			}
			continue
		}
		if !strings.Contains(strings.SplitN(p, "/", 2)[0], ".") || test {
			continue
		}
		if err := moduleAllowed(p, pkg); err != nil {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// oracle allows tests to build their input with the packages beneath, which
// the package itself need not know.
func oracle(pkg, own string) bool {
	return strings.HasPrefix(own, "internal/") && own != "internal/daemon" ||
		pkg == "internal/daemon" || pkg == "cmd/imgfs" || pkg == "." ||
		pkg == "internal/upperdir" && own == "union" || // a layer is applied by a merge
		pkg == "union/overlay" && (own == "union" || own == "fs") // real chains, really mounted
}

func moduleAllowed(path, pkg string) error {
	for m, where := range modules {
		if path == m || strings.HasPrefix(path, m+"/") {
			if slices.Contains(where, "*") || slices.Contains(where, pkg) {
				return nil
			}
			return fmt.Errorf("%s may not use %s", pkg, m)
		}
	}
	return fmt.Errorf("%s uses %s, which no rule allows", pkg, path)
}

func checkRules(t *testing.T, path, pkg string, f *ast.File) {
	main := f.Name.Name == "main"
	for _, d := range f.Decls {
		if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && fn.Name.Name == "init" {
			t.Errorf("%s: init() has side effects", path)
		}
	}
	ast.Inspect(f, func(n ast.Node) bool {
		sel, ok := n.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		x, ok := sel.X.(*ast.Ident)
		if !ok {
			return true
		}
		switch x.Name + "." + sel.Sel.Name {
		case "os.Exit", "log.Fatal", "log.Fatalf":
			if !main {
				t.Errorf("%s: %s.%s outside main", path, x.Name, sel.Sel.Name)
			}
		case "time.Sleep":
			t.Errorf("%s: time.Sleep: wait for an event instead", path)
		}
		return true
	})
}

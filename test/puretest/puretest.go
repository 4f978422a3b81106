// Package puretest keeps packages pure.
package puretest

import (
	"go/parser"
	"go/token"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// Imports fails the test unless the package in the current folder imports nothing but
// the standard library, and of that nothing that touches the outside world or the
// clock. Packages of ours must be allowed by name.
func Imports(tb testing.TB, allowed ...string) {
	tb.Helper()
	forbidden := map[string]bool{"net": true, "os": true, "time": true, "syscall": true, "unsafe": true, "log": true, "reflect": true}
	files, err := filepath.Glob("*.go")
	if err != nil || len(files) == 0 {
		tb.Fatalf("no files: %v", err)
	}
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ImportsOnly)
		if err != nil {
			tb.Fatal(err)
		}
		for _, spec := range f.Imports {
			path, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				tb.Fatal(err)
			}
			root, _, _ := strings.Cut(path, "/")
			if forbidden[path] || (root != "net" && forbidden[root]) || strings.Contains(root, ".") ||
				root == "multihomed" && !slices.Contains(allowed, path) {
				tb.Errorf("%s imports %s", name, path)
			}
			if root == "net" && path != "net/netip" {
				tb.Errorf("%s imports %s", name, path)
			}
		}
	}
}

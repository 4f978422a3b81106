package lookup_test

import (
	"go/parser"
	"go/token"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// TestDependencies keeps the package pure: nothing but the standard library,
// and of that nothing that touches the outside world or the clock; and routing.
func TestDependencies(t *testing.T) {
	t.Parallel()
	forbidden := map[string]bool{"net": true, "os": true, "time": true, "syscall": true, "unsafe": true, "log": true, "reflect": true}
	files, err := filepath.Glob("*.go")
	if err != nil || len(files) == 0 {
		t.Fatalf("no files: %v", err)
	}
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ImportsOnly)
		if err != nil {
			t.Fatal(err)
		}
		for _, spec := range f.Imports {
			path, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				t.Fatal(err)
			}
			root, _, _ := strings.Cut(path, "/")
			if forbidden[path] || (root != "net" && forbidden[root]) || strings.Contains(root, ".") || root == "multihomed" && path != "multihomed/routing" {
				t.Errorf("%s imports %s", name, path)
			}
			if root == "net" && path != "net/netip" {
				t.Errorf("%s imports %s", name, path)
			}
		}
	}
}

package cli_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// root is the top of the tree, as tests of this package see it.
var root = filepath.Join("..", "..")

// TestWalks wants every name in the walks of ARCHITECTURE.md in the code, so that
// whoever renames a function hears of it; outside of the walks, every exported one.
func TestWalks(t *testing.T) {
	t.Parallel()
	before, rest, begins := strings.Cut(document(t, "ARCHITECTURE.md"), "<!-- the walks -->\n")
	walks, after, ends := strings.Cut(rest, "<!-- the end of the walks -->\n")
	if !begins || !ends {
		t.Fatal("ARCHITECTURE.md has no walks")
	}
	known := names(t)
	quoted, exported := regexp.MustCompile("`([a-z][a-z0-9]*(?:\\.\\w+)+)`"), regexp.MustCompile("`([a-z][a-z0-9]*(?:\\.[A-Z]\\w*)+)`")
	found := quoted.FindAllStringSubmatch(walks, -1)
	if len(found) < 50 {
		t.Fatalf("%d names: the walks are not understood", len(found))
	}
	ours := map[string]bool{}
	for name := range known {
		of, _, _ := strings.Cut(name, ".")
		ours[of] = true
	}
	for _, f := range exported.FindAllStringSubmatch(before+after, -1) {
		// A package of a library is its own business.
		if of, _, _ := strings.Cut(f[1], "."); ours[of] {
			found = append(found, f)
		}
	}
	for _, f := range found {
		if !known[f[1]] {
			t.Errorf("ARCHITECTURE.md names %s, which does not exist", f[1])
		}
	}
}

// TestPathsInDocuments wants every folder and file that a document names, and the target
// of every link to one.
func TestPathsInDocuments(t *testing.T) {
	t.Parallel()
	pages, err := filepath.Glob(filepath.Join(root, "docs", "*.md"))
	if err != nil || len(pages) == 0 {
		t.Fatalf("docs: %v", err)
	}
	documents := []string{"README.md", "CONTRIBUTING.md", "ARCHITECTURE.md"}
	for _, p := range pages {
		documents = append(documents, filepath.Join("docs", filepath.Base(p)))
	}
	quoted := regexp.MustCompile("`(?:\\./)?((?:allocator|cmd|dispatcher|docs|internal|nm|packaging|routing|test)(?:/[\\w.-]+)+)`")
	link := regexp.MustCompile(`\]\(([^)#:]+)(?:#[^)]*)?\)`)
	checked := 0
	for _, name := range documents {
		text := document(t, name)
		var paths []string
		for _, f := range quoted.FindAllStringSubmatch(text, -1) {
			paths = append(paths, f[1])
		}
		for _, f := range link.FindAllStringSubmatch(text, -1) {
			paths = append(paths, filepath.Join(filepath.Dir(name), f[1]))
		}
		for _, p := range paths {
			checked++
			if _, err := os.Stat(filepath.Join(root, p)); err != nil {
				t.Errorf("%s names %s: %v", name, p, err)
			}
		}
	}
	if checked < 50 {
		t.Errorf("%d paths: the documents are not understood", checked)
	}
}

func document(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(root, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// names are package.Name and package.Type.Name of all that the tree declares outside
// of tests: functions, types, their methods and fields, constants and variables.
func names(t *testing.T) map[string]bool {
	t.Helper()
	all := map[string]bool{}
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && path != root && strings.HasPrefix(entry.Name(), "."):
			return fs.SkipDir
		case entry.IsDir(), !strings.HasSuffix(path, ".go"), strings.HasSuffix(path, "_test.go"):
			return nil
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		for _, d := range file.Decls {
			for _, name := range declared(d) {
				all[file.Name.Name+"."+name] = true
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// declared are the names that a declaration makes.
func declared(d ast.Decl) (out []string) {
	if f, is := d.(*ast.FuncDecl); is {
		if f.Recv == nil {
			return []string{f.Name.Name}
		}
		receiver := f.Recv.List[0].Type
		if p, is := receiver.(*ast.StarExpr); is {
			receiver = p.X
		}
		if g, is := receiver.(*ast.IndexExpr); is {
			receiver = g.X
		}
		if of, is := receiver.(*ast.Ident); is {
			return []string{of.Name + "." + f.Name.Name}
		}
		return nil
	}
	general, is := d.(*ast.GenDecl)
	if !is {
		return nil
	}
	for _, s := range general.Specs {
		switch s := s.(type) {
		case *ast.ValueSpec:
			for _, n := range s.Names {
				out = append(out, n.Name)
			}
		case *ast.TypeSpec:
			out = append(out, s.Name.Name)
			for _, n := range members(s.Type) {
				out = append(out, s.Name.Name+"."+n)
			}
		}
	}
	return out
}

// members are the fields of a struct, and the methods of an interface.
func members(of ast.Expr) (out []string) {
	var list *ast.FieldList
	switch of := of.(type) {
	case *ast.StructType:
		list = of.Fields
	case *ast.InterfaceType:
		list = of.Methods
	default:
		return nil
	}
	for _, f := range list.List {
		for _, n := range f.Names {
			out = append(out, n.Name)
		}
	}
	return out
}

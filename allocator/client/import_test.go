package client_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"
)

// TestImportedFromOutside builds a program of another module as the package's documentation
// says, without a network: it takes nothing that this module does not need itself.
func TestImportedFromOutside(t *testing.T) {
	tree, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	ours, err := os.ReadFile(filepath.Join(tree, "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	sums, err := os.ReadFile(filepath.Join(tree, "go.sum"))
	if err != nil {
		t.Fatal(err)
	}
	find := func(pattern string) []byte {
		t.Helper()
		line := regexp.MustCompile(pattern).Find(ours)
		if line == nil {
			t.Fatalf("go.mod has no line like %s", pattern)
		}
		return line
	}
	dir := t.TempDir()
	// The second requirement is what `go mod tidy` adds.
	for name, text := range map[string][]byte{
		"go.mod": fmt.Appendf(nil, "module example.org/outside\n\n%s\n\nrequire multihomed v0.0.0\n\nrequire %s\n\nreplace multihomed => %s\n",
			find(`(?m)^go .*$`), find(`golang\.org/x/sys v\S+`), tree),
		"go.sum": sums,
		"main.go": []byte(`package main

import (
	"context"
	"fmt"
	"net/netip"

	"multihomed/allocator/client"
)

func main() {
	c, err := client.New(client.Options{})
	if err != nil {
		panic(err)
	}
	fmt.Println(c.Lease(context.Background(), client.Request{Interface: "wan0", Address: netip.MustParseAddr("192.0.2.1")}))
}
`),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	build := exec.CommandContext(t.Context(), "go", "build", "-o", filepath.Join(dir, "outside"), ".")
	build.Dir = dir
	build.Env = append(os.Environ(), "GOFLAGS=", "GOPROXY=off", "GOWORK=off")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
}

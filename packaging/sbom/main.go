// Sbom prints the modules and the Go release of a Go program, as its linker recorded
// them, as a CycloneDX document (https://cyclonedx.org/docs/1.5/json/).
//
//	SOURCE_DATE_EPOCH=... sbom PROGRAM NAME VERSION
package main

import (
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"
)

type document struct {
	Format       string       `json:"bomFormat"`
	Spec         string       `json:"specVersion"`
	Version      int          `json:"version"`
	Metadata     metadata     `json:"metadata"`
	Components   []component  `json:"components"`
	Dependencies []dependency `json:"dependencies"`
}

type metadata struct {
	Timestamp string    `json:"timestamp"`
	Component component `json:"component"`
}

type component struct {
	Type       string     `json:"type"`
	Ref        string     `json:"bom-ref"`
	Name       string     `json:"name"`
	Version    string     `json:"version"`
	PURL       string     `json:"purl"`
	Hashes     []hash     `json:"hashes,omitempty"`
	Properties []property `json:"properties,omitempty"`
}

type hash struct {
	Algorithm string `json:"alg"`
	Content   string `json:"content"`
}

type property struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

type dependency struct {
	Ref       string   `json:"ref"`
	DependsOn []string `json:"dependsOn,omitempty"`
}

func main() {
	if err := run(os.Args[1:], os.Getenv("SOURCE_DATE_EPOCH"), os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "sbom:", err)
		os.Exit(1)
	}
}

func run(args []string, epoch string, out io.Writer) error {
	if len(args) != 3 {
		return fmt.Errorf("usage: sbom PROGRAM NAME VERSION (got %d arguments)", len(args))
	}
	seconds, err := strconv.ParseInt(epoch, 10, 64)
	if err != nil {
		return fmt.Errorf("parsing SOURCE_DATE_EPOCH: %w", err)
	}
	doc, err := describe(args[0], args[1], args[2], time.Unix(seconds, 0))
	if err != nil {
		return err
	}
	encoder := json.NewEncoder(out)
	encoder.SetIndent("", "  ")
	encoder.SetEscapeHTML(false)
	return encoder.Encode(doc)
}

// describe reads the build information of a program. The time is that of the release.
func describe(path, name, version string, at time.Time) (document, error) {
	info, err := buildinfo.ReadFile(path)
	if err != nil {
		return document{}, fmt.Errorf("reading the build information of %s: %w", path, err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return document{}, fmt.Errorf("reading the program: %w", err)
	}
	sum := sha256.Sum256(text)
	self := module("application", name, version)
	self.Hashes = []hash{{"SHA-256", hex.EncodeToString(sum[:])}}
	doc := document{
		Format: "CycloneDX", Spec: "1.5", Version: 1,
		Metadata: metadata{Timestamp: at.UTC().Format(time.RFC3339), Component: self},
	}
	doc.Components = append(doc.Components, module("library", "std", strings.TrimPrefix(info.GoVersion, "go")))
	for _, m := range info.Deps {
		if m.Replace != nil {
			m = m.Replace
		}
		c := module("library", m.Path, m.Version)
		if m.Sum != "" {
			// go.sum hashes a list of files, not one file (golang.org/x/mod/sumdb/dirhash).
			c.Properties = []property{{"go:sum", m.Sum}}
		}
		doc.Components = append(doc.Components, c)
	}
	var refs []string
	for _, c := range doc.Components {
		refs = append(refs, c.Ref)
	}
	doc.Dependencies = []dependency{{Ref: self.Ref, DependsOn: refs}}
	return doc, nil
}

// module names a module as package URLs do (https://github.com/package-url/purl-spec).
func module(kind, path, version string) component {
	purl := "pkg:golang/" + path + "@" + strings.ReplaceAll(version, "+", "%2B")
	return component{Type: kind, Ref: purl, Name: path, Version: version, PURL: purl}
}

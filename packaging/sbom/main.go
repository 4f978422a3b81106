// Sbom prints the modules and the Go release of a Go program, as its linker recorded
// them, with their licences, as a CycloneDX document (https://cyclonedx.org/docs/1.5/json/).
// It runs in the tree of the program.
//
//	SOURCE_DATE_EPOCH=... GO=go sbom PROGRAM NAME VERSION
package main

import (
	"cmp"
	"context"
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
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
	Licenses   []license  `json:"licenses"`
	PURL       string     `json:"purl"`
	Hashes     []hash     `json:"hashes,omitempty"`
	Properties []property `json:"properties,omitempty"`
}

type hash struct {
	Algorithm string `json:"alg"`
	Content   string `json:"content"`
}

type license struct {
	License struct {
		ID string `json:"id"`
	} `json:"license"`
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
	if err := doc.license(info.Deps); err != nil {
		return document{}, err
	}
	var refs []string
	for _, c := range doc.Components {
		refs = append(refs, c.Ref)
	}
	doc.Dependencies = []dependency{{Ref: self.Ref, DependsOn: refs}}
	return doc, nil
}

// license adds what the files of the modules say. The first component is Go itself.
func (d *document) license(modules []*debug.Module) error {
	root, err := ask("env", "GOROOT")
	if err != nil {
		return err
	}
	self, err := ask("list", "-m", "-f", "{{.Dir}}")
	if err != nil {
		return err
	}
	directories := []string{root}
	if len(modules) > 0 {
		query := []string{"list", "-m", "-f", "{{.Dir}}"}
		for _, m := range modules {
			if m.Replace != nil {
				m = m.Replace
			}
			query = append(query, m.Path+"@"+m.Version)
		}
		text, err := ask(query...)
		if err != nil {
			return err
		}
		directories = append(directories, strings.Split(text, "\n")...)
	}
	if len(directories) != len(d.Components) {
		return fmt.Errorf("%d components, %d directories", len(d.Components), len(directories))
	}
	for i, directory := range directories {
		if d.Components[i].Licenses, err = licenseOf(directory); err != nil {
			return err
		}
	}
	d.Metadata.Component.Licenses, err = licenseOf(self)
	return err
}

// ask runs the Go command.
func ask(args ...string) (string, error) {
	cmd := exec.CommandContext(context.Background(), cmp.Or(os.Getenv("GO"), "go"), args...)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("go %s: %w", strings.Join(args, " "), err)
	}
	return strings.TrimSpace(string(out)), nil
}

// licenseOf recognises the licence of a module by its words, and names it as SPDX does (https://spdx.org/licenses/).
func licenseOf(directory string) ([]license, error) {
	for _, name := range []string{"LICENSE", "LICENSE.txt", "LICENSE.md", "COPYING"} {
		text, err := os.ReadFile(filepath.Join(directory, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("reading a licence: %w", err)
		}
		words := strings.Join(strings.Fields(string(text)), " ")
		var l license
		switch {
		case strings.Contains(words, "Apache License Version 2.0"):
			l.License.ID = "Apache-2.0"
		case strings.Contains(words, "Permission is hereby granted, free of charge, to any person obtaining a copy"):
			l.License.ID = "MIT"
		case strings.Contains(words, "Redistribution and use in source and binary forms") && strings.Contains(strings.ToLower(words), "neither the name"):
			l.License.ID = "BSD-3-Clause"
		case strings.Contains(words, "Redistribution and use in source and binary forms"):
			l.License.ID = "BSD-2-Clause"
		default:
			return nil, fmt.Errorf("the licence %s is not known; to fix: add it to packaging/sbom", filepath.Join(directory, name))
		}
		return []license{l}, nil
	}
	return nil, fmt.Errorf("%s has no licence", directory)
}

// module names a module as package URLs do (https://github.com/package-url/purl-spec).
func module(kind, path, version string) component {
	purl := "pkg:golang/" + path + "@" + strings.ReplaceAll(version, "+", "%2B")
	return component{Type: kind, Ref: purl, Name: path, Version: version, PURL: purl}
}

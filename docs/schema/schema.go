// Package schema has the JSON schemas (draft 2020-12) of what multihomectl prints with --json. They are made of the Go
// types and their comments: `go test ./docs/schema -update` writes them anew.
package schema

import (
	"embed"
	"errors"
	"fmt"
	"slices"
)

//go:embed *.schema.json
var files embed.FS

// Names are the commands whose output has a schema, sorted. Words of a command are joined by hyphens.
func Names() []string {
	return []string{"bind-list", "doctor", "explain", "lease", "lease-list", "plan", "status", "watch"}
}

// ErrNone says that a command has no schema.
var ErrNone = errors.New("the output of this command has no schema")

// Of returns the schema of a command's output.
func Of(command string) ([]byte, error) {
	if !slices.Contains(Names(), command) {
		return nil, ErrNone
	}
	text, err := files.ReadFile(command + ".schema.json")
	if err != nil {
		return nil, fmt.Errorf("reading the schema: %w", err)
	}
	return text, nil
}

package rttables

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"multihomed/internal/ownership"
	"multihomed/routing"
)

// GeneratedFile is the file in the runtime directory that names the tables of links.
// OwnFile in /etc/iproute2/rt_tables.d is a symbolic link to it. Where it does not
// exist iproute2 shows numbers: it passes over what it cannot open
// (rtnl_hash_initialize in lib/rt_names.c).
const GeneratedFile = "rt_tables.conf"

// A Leased is a table, and the link that it is leased to.
type Leased struct {
	Table     routing.TableID
	Interface string
	Family    routing.Family
}

// generate returns a file with the names of tables, in order of their numbers. A name
// is mh-INTERFACE:4 or mh-INTERFACE:6. An interface that has more tables of a family
// has the number in the names of all but the lowest: mh-INTERFACE:4:10003. No
// interface has a colon in its name (dev_valid_name in net/core/dev.c), so names differ.
func generate(tables []Leased) []byte {
	tables = slices.Clone(tables)
	slices.SortFunc(tables, func(a, b Leased) int { return int(int64(a.Table) - int64(b.Table)) })
	var b strings.Builder
	b.WriteString("# The tables that multihomed leased to links: written by the daemon.\n")
	type kind struct {
		name   string
		family routing.Family
	}
	seen := map[kind]bool{}
	for _, t := range tables {
		family := 4
		if t.Family == routing.IPv6 {
			family = 6
		}
		fmt.Fprintf(&b, "%d\tmh-%s:%d", t.Table, escaped(t.Interface), family)
		if k := (kind{t.Interface, t.Family}); seen[k] {
			fmt.Fprintf(&b, ":%d", t.Table)
		} else {
			seen[k] = true
		}
		b.WriteByte('\n')
	}
	return []byte(b.String())
}

// escaped writes %XX for every byte that a shell, a terminal or iproute2 (a comment
// begins with #) could take for something else.
func escaped(name string) string {
	var b strings.Builder
	for _, c := range []byte(name) {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '.', c == '_', c == '-', c == '@', c == '+':
			b.WriteByte(c)
		default:
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

// Write writes the names into the runtime directory.
func Write(runtime string, tables []Leased) error {
	if err := ownership.WriteFile(filepath.Join(runtime, GeneratedFile), generate(tables), 0o644); err != nil {
		return fmt.Errorf("writing the names of routing tables: %w", err)
	}
	return nil
}

// Remove takes the names away, when no table is left that they could name. It is no
// error if there are none.
func Remove(runtime string) error {
	if err := os.Remove(filepath.Join(runtime, GeneratedFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing the names of routing tables: %w", err)
	}
	return nil
}

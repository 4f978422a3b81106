package config

import (
	"bytes"
	"errors"
	"fmt"
	"sort"
	"strconv"
	"strings"

	"github.com/pelletier/go-toml/v2/unstable"
)

// positions says on which line each key is. Keys are dotted, without the index
// of a list; lists have their lines in order.
type positions struct {
	newlines []int
	lines    map[string]int
	// entries holds, for each list of tables, where its entries are.
	entries map[string][]entry
	// huge holds the numbers that do not fit into 64 bits, as the file has them.
	huge map[occurrence]string
	// decodable is the document with 0 in place of those: a decoder gives up at them.
	decodable []byte
}

// An occurrence is a key at one place of the file.
type occurrence struct {
	key  string
	line int
}

// An entry is one table of a list: its own line and those of its keys.
type entry struct {
	line int
	keys map[string]int
}

// locate parses a document just for the lines. An error is one of syntax.
func locate(data []byte) (*positions, *Error) {
	p := &positions{lines: map[string]int{}, entries: map[string][]entry{}, huge: map[occurrence]string{}, decodable: bytes.Clone(data)}
	for i, c := range data {
		if c == '\n' {
			p.newlines = append(p.newlines, i)
		}
	}
	parser := &unstable.Parser{}
	parser.Reset(data)
	var table string
	inList := false
	for parser.NextExpression() {
		node := parser.Expression()
		switch node.Kind {
		case unstable.Table, unstable.ArrayTable:
			var line int
			table, line = p.key(node.Key(), "")
			inList = node.Kind == unstable.ArrayTable
			p.note(table, line)
			if inList {
				p.entries[table] = append(p.entries[table], entry{line: line, keys: map[string]int{}})
			}
		case unstable.KeyValue:
			p.keyValue(node, table, inList)
		default:
			// Comments have no keys.
		}
	}
	if err := parser.Error(); err != nil {
		found, ok := errors.AsType[*unstable.ParserError](err)
		if !ok {
			return nil, &Error{Message: err.Error()}
		}
		return nil, &Error{Line: p.line(cap(data) - cap(found.Highlight)), Message: "not valid TOML: " + found.Message}
	}
	return p, nil
}

func (p *positions) keyValue(node *unstable.Node, table string, inList bool) {
	key, line := p.key(node.Key(), table)
	p.note(key, line)
	if list := p.entries[table]; inList && len(list) > 0 && list[len(list)-1].keys != nil {
		list[len(list)-1].keys[key] = line
	}
	p.value(node.Value(), key, line)
}

// value looks into inline tables and arrays of them.
func (p *positions) value(node *unstable.Node, key string, line int) {
	switch node.Kind {
	case unstable.InlineTable:
		p.inline(node, key)
	case unstable.Array:
		for it := node.Children(); it.Next(); {
			e := entry{line: line}
			if it.Node().Kind == unstable.InlineTable {
				e.keys = map[string]int{}
			}
			p.entries[key] = append(p.entries[key], e)
			p.value(it.Node(), key, line)
		}
	case unstable.Integer:
		p.integer(node, occurrence{key, line})
	default:
		// Another scalar.
	}
}

// integer notes a number that overflows 64 bits.
func (p *positions) integer(node *unstable.Node, at occurrence) {
	text := string(node.Data)
	if _, err := strconv.ParseInt(text, 0, 64); !errors.Is(err, strconv.ErrRange) {
		return
	}
	p.huge[at] = text
	there := p.decodable[node.Raw.Offset:][:node.Raw.Length]
	copy(there, bytes.Repeat([]byte(" "), len(there)))
	there[0] = '0'
}

func (p *positions) inline(node *unstable.Node, key string) {
	for it := node.Children(); it.Next(); {
		if child := it.Node(); child.Kind == unstable.KeyValue {
			p.keyValue(child, key, len(p.entries[key]) > 0)
		}
	}
}

// key returns a dotted key and its line.
func (p *positions) key(parts unstable.Iterator, table string) (string, int) {
	var names []string
	if table != "" {
		names = append(names, table)
	}
	line := 0
	for parts.Next() {
		part := parts.Node()
		names = append(names, string(part.Data))
		if line == 0 {
			line = p.line(int(part.Raw.Offset))
		}
	}
	return strings.Join(names, "."), line
}

func (p *positions) note(key string, line int) {
	if _, ok := p.lines[key]; !ok {
		p.lines[key] = line
	}
}

func (p *positions) line(offset int) int {
	return 1 + sort.SearchInts(p.newlines, offset)
}

// of returns the line of a key in the i-th entry of a list, or of the entry.
func (p *positions) of(list string, i int, key string) int {
	if i >= len(p.entries[list]) {
		return p.lines[list]
	}
	e := p.entries[list][i]
	if line, ok := e.keys[list+"."+key]; ok {
		return line
	}
	if line := within(e.keys, list+"."+key); line > 0 {
		return line
	}
	return e.line
}

// first returns the first line of a key, or of a key in that table.
func (p *positions) first(key string) int {
	if line, ok := p.lines[key]; ok {
		return line
	}
	return within(p.lines, key)
}

// within returns the line of the first key of a table. A table that only dotted keys make
// has no line of its own.
func within(lines map[string]int, table string) int {
	first := 0
	for key, line := range lines {
		if strings.HasPrefix(key, table+".") && (first == 0 || line < first) {
			first = line
		}
	}
	return first
}

// entryKey names a key in the i-th entry of a list, for error messages.
func entryKey(list string, i int, key string) string {
	name := fmt.Sprintf("%s (entry %d)", list, i+1)
	if key == "" {
		return name
	}
	return fmt.Sprintf("%s.%s (entry %d)", list, key, i+1)
}

package schema_test

import (
	"bytes"
	"encoding"
	"encoding/json"
	"fmt"
	"go/ast"
	"go/constant"
	"go/parser"
	"go/token"
	"go/types"
	"maps"
	"net/netip"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"

	"multihomed/routing"
)

// A node is a schema or a part of one. Its keys are in the order in which a person reads them.
type node struct {
	Schema               string           `json:"$schema,omitempty"`
	ID                   string           `json:"$id,omitempty"`
	Title                string           `json:"title,omitempty"`
	Description          string           `json:"description,omitempty"`
	Ref                  string           `json:"$ref,omitempty"`
	Type                 any              `json:"type,omitempty"`
	Const                any              `json:"const,omitempty"`
	Enum                 []string         `json:"enum,omitempty"`
	Format               string           `json:"format,omitempty"`
	Pattern              string           `json:"pattern,omitempty"`
	Minimum              *uint64          `json:"minimum,omitempty"`
	Maximum              *uint64          `json:"maximum,omitempty"`
	AnyOf                []*node          `json:"anyOf,omitempty"`
	Items                *node            `json:"items,omitempty"`
	PropertyNames        *node            `json:"propertyNames,omitempty"`
	Required             []string         `json:"required,omitempty"`
	Properties           ordered          `json:"properties,omitempty"`
	AdditionalProperties any              `json:"additionalProperties,omitempty"`
	Defs                 map[string]*node `json:"$defs,omitempty"`
}

// ordered are properties in the order of the Go type, which is that of the output.
type ordered []property

type property struct {
	name string
	node *node
}

func (o ordered) MarshalJSON() ([]byte, error) {
	var b bytes.Buffer
	b.WriteByte('{')
	for i, p := range o {
		if i > 0 {
			b.WriteByte(',')
		}
		value, err := plain(p.node)
		if err != nil {
			return nil, err
		}
		fmt.Fprintf(&b, "%q:%s", p.name, value)
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

// plain is JSON with the characters of HTML as they are.
func plain(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	err := e.Encode(v)
	return bytes.TrimSpace(b.Bytes()), err
}

// A generator makes schemas of Go types.
type generator struct {
	// sources are the parsed packages by their import path.
	sources map[string]*source
	// closed are the values of string fields whose Go type does not tell them, by "package.Type.Field".
	closed map[string][]string
	defs   map[string]*node
	// missing are the fields that no comment explains.
	missing []string
}

// A source is what the text of a package says that reflection does not.
type source struct {
	types map[string]*ast.TypeSpec
	docs  map[string]string
	// groups are the constants of each const declaration, typed those of each named type.
	groups [][]named
	typed  map[string][]string
}

type named struct{ name, value string }

// read parses a package of this module.
func (g *generator) read(path string) (*source, error) {
	if s, known := g.sources[path]; known {
		return s, nil
	}
	s := &source{types: map[string]*ast.TypeSpec{}, docs: map[string]string{}, typed: map[string][]string{}}
	files, err := filepath.Glob(filepath.Join("..", "..", strings.TrimPrefix(path, "multihomed/"), "*.go"))
	if err != nil || len(files) == 0 {
		return nil, fmt.Errorf("files of %s: %v (%w)", path, files, err)
	}
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ParseComments)
		if err != nil {
			return nil, fmt.Errorf("reading %s: %w", name, err)
		}
		for _, d := range file.Decls {
			if d, is := d.(*ast.GenDecl); is {
				s.declare(d)
			}
		}
	}
	g.sources[path] = s
	return s, nil
}

func (s *source) declare(d *ast.GenDecl) {
	var group []named
	for _, spec := range d.Specs {
		switch spec := spec.(type) {
		case *ast.TypeSpec:
			doc := spec.Doc.Text()
			if doc == "" {
				doc = d.Doc.Text()
			}
			s.types[spec.Name.Name], s.docs[spec.Name.Name] = spec, doc
		case *ast.ValueSpec:
			if d.Tok != token.CONST || len(spec.Values) != 1 {
				continue
			}
			literal, is := spec.Values[0].(*ast.BasicLit)
			if !is || literal.Kind != token.STRING {
				continue
			}
			value := constant.StringVal(constant.MakeFromLiteral(literal.Value, token.STRING, 0))
			group = append(group, named{spec.Names[0].Name, value})
			if spec.Type != nil {
				of := types.ExprString(spec.Type)
				s.typed[of] = append(s.typed[of], value)
			}
		}
	}
	if len(group) > 0 {
		s.groups = append(s.groups, group)
	}
}

// beside are the values of all constants in the declaration of one of them.
func (s *source) beside(name string) (out []string) {
	for _, group := range s.groups {
		if slices.ContainsFunc(group, func(n named) bool { return n.name == name }) {
			for _, n := range group {
				out = append(out, n.value)
			}
		}
	}
	return out
}

var (
	timeType   = reflect.TypeFor[time.Time]()
	addrType   = reflect.TypeFor[netip.Addr]()
	prefixType = reflect.TypeFor[netip.Prefix]()
	marshaler  = reflect.TypeFor[encoding.TextMarshaler]()
)

// of makes the schema of a type. Key names the field that has it.
func (g *generator) of(t reflect.Type, key string) (*node, error) {
	if values, closed := g.closed[key]; closed && t.Kind() == reflect.String {
		return &node{Type: "string", Enum: values}, nil
	}
	switch t {
	case timeType:
		return &node{Type: "string", Format: "date-time"}, nil
	case addrType:
		return &node{Type: "string", AnyOf: []*node{{Format: "ipv4"}, {Format: "ipv6"}}}, nil
	case prefixType:
		return &node{Type: "string", Pattern: "^[0-9a-f.:]+/[0-9]{1,3}$"}, nil
	case reflect.TypeFor[routing.Commands]():
		return &node{Type: "array", Items: &node{Type: "string"}}, nil
	case reflect.TypeFor[routing.Severity]():
		var names []string
		for s := routing.Notice; s <= routing.Error; s++ {
			names = append(names, s.String())
		}
		return &node{Type: "string", Enum: names}, nil
	}
	if t.Implements(marshaler) {
		return nil, fmt.Errorf("%s: how does %v look in JSON?", key, t)
	}
	zero := uint64(0)
	switch t.Kind() {
	case reflect.Bool:
		return &node{Type: "boolean"}, nil
	case reflect.Int, reflect.Int64:
		return &node{Type: "integer"}, nil
	case reflect.Uint8, reflect.Uint16, reflect.Uint32:
		most := uint64(1)<<t.Bits() - 1
		return &node{Type: "integer", Minimum: &zero, Maximum: &most}, nil
	case reflect.Uint64:
		return &node{Type: "integer", Minimum: &zero}, nil
	case reflect.Float64:
		return &node{Type: "number"}, nil
	case reflect.String:
		n := &node{Type: "string"}
		if path := t.PkgPath(); path != "" {
			s, err := g.read(path)
			if err != nil {
				return nil, err
			}
			if _, open := g.closed[t.String()]; !open {
				n.Enum = s.typed[t.Name()]
			}
		}
		return n, nil
	case reflect.Slice:
		items, err := g.of(t.Elem(), key)
		return &node{Type: "array", Items: items}, err
	case reflect.Map:
		values, err := g.of(t.Elem(), key)
		n := &node{Type: "object", AdditionalProperties: values}
		if names, closed := g.closed[key+" keys"]; closed {
			n.PropertyNames = &node{Enum: names}
		}
		return n, err
	case reflect.Struct:
		return g.object(t)
	default:
		return nil, fmt.Errorf("%s: no schema for %v", key, t)
	}
}

// object makes a definition of a struct, and returns what refers to it.
func (g *generator) object(t reflect.Type) (*node, error) {
	ref := &node{Ref: "#/$defs/" + t.Name()}
	if _, done := g.defs[t.Name()]; done {
		return ref, nil
	}
	// Fields may be added: that is what true says.
	n := &node{Type: "object", AdditionalProperties: true}
	g.defs[t.Name()] = n
	return ref, g.fields(n, t)
}

func (g *generator) fields(n *node, t reflect.Type) error {
	s, err := g.read(t.PkgPath())
	if err != nil {
		return err
	}
	docs, jsonNames := comments(s, t)
	if n.Description == "" {
		n.Description = words(s.docs[t.Name()], jsonNames, s)
	}
	for f := range fieldsOf(t) {
		if f.Anonymous && f.Tag.Get("json") == "" {
			if err := g.fields(n, f.Type); err != nil {
				return err
			}
			continue
		}
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name == "-" || name == "" {
			continue
		}
		of, null := f.Type, false
		optional := strings.Contains(options, "omitempty") || strings.Contains(options, "omitzero")
		if of.Kind() == reflect.Pointer {
			of, null = of.Elem(), !optional
		}
		key := t.String() + "." + f.Name
		value, err := g.of(of, key)
		if err != nil {
			return err
		}
		text := docs[f.Name]
		if optional {
			text = strings.NewReplacer("empty if", "absent if", "nil if", "absent if", "nil before", "absent before", "nil unless", "absent unless", "empty for", "absent for").Replace(text)
		}
		text = words(strings.ReplaceAll(text, " is nil", " is null"), jsonNames, s)
		if text == "" && value.Ref != "" {
			text = g.defs[of.Name()].Description
		}
		if text == "" {
			g.missing = append(g.missing, key)
		}
		if name == "schema" {
			value = &node{Type: "integer", Const: 1}
		}
		value.Description = text
		if null {
			value.Type = []any{value.Type, "null"}
		}
		if !optional {
			n.Required = append(n.Required, name)
		}
		n.Properties = append(n.Properties, property{name, value})
	}
	return nil
}

// fieldsOf are the exported and the embedded fields of a struct.
func fieldsOf(t reflect.Type) func(func(reflect.StructField) bool) {
	return func(yield func(reflect.StructField) bool) {
		for f := range t.Fields() {
			if (f.IsExported() || f.Anonymous) && !yield(f) {
				return
			}
		}
	}
}

// comments are those of the fields, and their names in JSON. A comment that names several fields is of each of them.
func comments(s *source, t reflect.Type) (docs, jsonNames map[string]string) {
	docs, jsonNames = map[string]string{}, map[string]string{}
	for f := range fieldsOf(t) {
		jsonNames[f.Name], _, _ = strings.Cut(f.Tag.Get("json"), ",")
	}
	spec, known := s.types[t.Name()]
	if !known {
		return docs, jsonNames
	}
	of, is := spec.Type.(*ast.StructType)
	if !is {
		return docs, jsonNames
	}
	above := ""
	for _, f := range of.Fields.List {
		text := f.Doc.Text()
		if text == "" {
			text = f.Comment.Text()
		}
		for _, name := range f.Names {
			if text != "" {
				above, docs[name.Name] = text, text
			} else if regexp.MustCompile(`\b` + name.Name + `\b`).MatchString(above) {
				docs[name.Name] = above
			}
		}
	}
	return docs, jsonNames
}

var (
	seeAlso = regexp.MustCompile(`,? see \[[^]]+\]| \((?:package [a-z]+|\[[^]]+\])\)`)
	linked  = regexp.MustCompile(`\[+([A-Za-z][A-Za-z.]*)\]+`)
	lines   = regexp.MustCompile(`\s+`)
)

// words are a comment in the words of JSON: fields by their names there, constants by their values.
func words(doc string, jsonNames map[string]string, s *source) string {
	doc = seeAlso.ReplaceAllString(lines.ReplaceAllString(strings.TrimSpace(doc), " "), "")
	doc = linked.ReplaceAllStringFunc(doc, func(link string) string {
		if strings.HasPrefix(link, "[[") {
			return link // A table of the configuration.
		}
		name := strings.Trim(link, "[]")
		for _, group := range s.groups {
			for _, n := range group {
				if n.name == name {
					return fmt.Sprintf("%q", n.value)
				}
			}
		}
		return name
	})
	for _, name := range slices.SortedFunc(maps.Keys(jsonNames), func(a, b string) int { return len(b) - len(a) }) {
		if to := jsonNames[name]; to != "" && to != "-" {
			doc = regexp.MustCompile(`\b`+name+`\b`).ReplaceAllString(doc, to)
		}
	}
	return doc
}

// root is the schema of a command's output.
func (g *generator) root(t reflect.Type, command, description string) (*node, error) {
	g.defs = map[string]*node{}
	n := &node{
		Schema: "https://json-schema.org/draft/2020-12/schema", ID: "https://multihomed.org/schema/1/" + command + ".schema.json",
		Title: "multihomectl " + strings.ReplaceAll(command, "-", " ") + " --json", Description: description, Type: "object", AdditionalProperties: true,
	}
	if err := g.fields(n, t); err != nil {
		return nil, err
	}
	n.Defs = g.defs
	return n, nil
}

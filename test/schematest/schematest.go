// Package schematest checks what multihomectl prints with --json against the published schemas.
package schematest

import (
	"bytes"
	"fmt"
	"sync"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"multihomed/docs/schema"
)

// Check says in what the output of a command is not as its schema has it. It is stricter than the schema, which lets
// fields be added: here each has to be known.
func Check(command string, output []byte) error {
	all, err := compiled()
	if err != nil {
		return err
	}
	s, known := all[command]
	if !known {
		return fmt.Errorf("there is no schema of %q", command)
	}
	value, err := jsonschema.UnmarshalJSON(bytes.NewReader(output))
	if err != nil {
		return fmt.Errorf("multihomectl %s --json prints no JSON: %w\n%s", command, err, output)
	}
	if err := s.Validate(value); err != nil {
		return fmt.Errorf("multihomectl %s --json: %w\n%s", command, err, output)
	}
	return nil
}

// compiled are the schemas, each with exactly the fields that it names.
var compiled = sync.OnceValues(func() (map[string]*jsonschema.Schema, error) {
	all := map[string]*jsonschema.Schema{}
	for _, name := range schema.Names() {
		text, err := schema.Of(name)
		if err != nil {
			return nil, err //nolint:wrapcheck // it says all
		}
		document, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
		if err != nil {
			return nil, fmt.Errorf("the schema of %s: %w", name, err)
		}
		exactly(document)
		c := jsonschema.NewCompiler()
		c.AssertFormat()
		if err := c.AddResource(name, document); err != nil {
			return nil, fmt.Errorf("the schema of %s: %w", name, err)
		}
		if all[name], err = c.Compile(name); err != nil {
			return nil, fmt.Errorf("the schema of %s: %w", name, err)
		}
	}
	return all, nil
})

// exactly forbids the fields that a schema lets be added.
func exactly(value any) {
	switch value := value.(type) {
	case map[string]any:
		if value["additionalProperties"] == true {
			value["additionalProperties"] = false
		}
		for _, v := range value {
			exactly(v)
		}
	case []any:
		for _, v := range value {
			exactly(v)
		}
	}
}

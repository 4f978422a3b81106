package schematest_test

import (
	"os/exec"
	"strings"
	"testing"

	"multihomed/docs/schema"
	"multihomed/test/schematest"
)

const good = `{"schema":1,"ok":true,"complete":true,"probed":false,"findings":[{"code":"arp","severity":"notice","text":"x","evidence":[]}],"not_looked":[]}`

func TestCheck(t *testing.T) {
	t.Parallel()
	if err := schematest.Check("doctor", []byte(good)); err != nil {
		t.Error(err)
	}
	for what, c := range map[string][2]string{
		"a field that nobody knows": {`"ok":true`, `"ok":true,"more":1`},
		"one in a list":             {`"text":"x"`, `"text":"x","more":1`},
		"a field that is missing":   {`"probed":false,`, ``},
		"a value that nobody knows": {`"notice"`, `"fatal"`},
		"another type":              {`"findings":[`, `"findings":null,"x":[`},
		"another version":           {`"schema":1`, `"schema":2`},
		"no JSON":                   {`{"schema"`, `"schema"`},
	} {
		bad := strings.Replace(good, c[0], c[1], 1)
		if err := schematest.Check("doctor", []byte(bad)); bad == good || err == nil {
			t.Errorf("%s is found good: %s", what, bad)
		}
	}
	if err := schematest.Check("flush", nil); err == nil {
		t.Error("a command without a schema")
	}
	if _, err := schema.Of("../doctor"); err == nil {
		t.Error("a path is a command")
	}
}

// TestNotInTheProgram: who checks is for tests.
func TestNotInTheProgram(t *testing.T) {
	t.Parallel()
	out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", "multihomed/cmd/multihomed").Output()
	if err != nil || !strings.Contains(string(out), "multihomed/docs/schema\n") || strings.Contains(string(out), "jsonschema") || strings.Contains(string(out), "schematest") {
		t.Errorf("%v: %s", err, out)
	}
}

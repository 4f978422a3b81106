package schema_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"maps"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"multihomed/docs/schema"
	"multihomed/internal/doctor"
	"multihomed/internal/explain"
	"multihomed/internal/preview"
	"multihomed/internal/status"
	"multihomed/internal/watch"
	"multihomed/routing"
)

var update = flag.Bool("update", false, "write the schemas")

const added = ` Fields may be added. If one goes or changes its meaning, "schema" and the schema's address change.`

// documents are what multihomectl prints.
var documents = map[string]struct {
	of          reflect.Type
	description string
}{
	"status":     {reflect.TypeFor[status.Status](), `What multihomed does on a host, and what is wrong. Lists are never null. Names of interfaces and profiles may hold any bytes, and are escaped: bytes that are no printable UTF-8 are \xNN, and a backslash is \\.` + added},
	"explain":    {reflect.TypeFor[explain.Document](), `How a host routes a packet, and why. Lists are never null. Names are escaped as in the status.` + added},
	"doctor":     {reflect.TypeFor[doctor.Report](), `What disturbs the links of a host. Lists are never null. Names are escaped as in the status.` + added},
	"plan":       {reflect.TypeFor[preview.Document](), `What multihomed would change now. Lists are never null. Names are escaped as in the status.` + added},
	"bind-list":  {reflect.TypeFor[status.Bindings](), `What is bound to links, and whether it is in force. Lists are never null. Names are escaped as in the status.` + added},
	"lease":      {reflect.TypeFor[status.GrantedLease](), `A lease of a routing table: with --hold each line of the output is such an object. Names are escaped as in the status.` + added},
	"lease-list": {reflect.TypeFor[status.ClientLeases](), `Routing tables that clients lease. Lists are never null. Names are escaped as in the status.` + added},
	"watch":      {reflect.TypeFor[watch.Event](), `One change on a host: each line of the output is such an object. Names are escaped as in the status.` + added},
}

// newGenerator knows the closed sets of values whose Go type is string.
func newGenerator(t *testing.T) *generator {
	t.Helper()
	g := &generator{sources: map[string]*source{}, closed: map[string][]string{}}
	families := []string{routing.IPv4.String(), routing.IPv6.String()}
	for _, key := range []string{
		"status.Status.Unbound keys", "status.Link.Roles keys", "status.Link.LeftAlone keys", "status.OtherRule.Family", "status.Network.Family", "status.Object.Family",
		"status.Health.Family", "status.AnsweredFamily.Family", "watch.Event.Family", "preview.DocumentStep.Family",
	} {
		g.closed[key] = families
	}
	roles := []string{"uplink", "local"}
	kept := []string{"disabled", "masked"}
	maps.Copy(g.closed, map[string][]string{
		"status.Link.Role": roles, "status.FamilyRole.Role": roles, "status.Object.Kind": {"rule", "route", "group"},
		"status.Daemon.Kept": kept, "status.Manager.Unwanted": kept, "status.Address.Flags": {"tentative", "duplicate", "deprecated", "temporary", "dynamic"},
		"explain.Document.Annotations": {status.ByDaemon, status.ByHost, ""},
		// Codes are many, and more may come: the manual lists them.
		"routing.Code": nil, "preview.Action": nil,
	})
	// Constants that are declared together are one set.
	for key, of := range map[string]string{
		"status.Status.By": "ByDaemon", "status.OtherRule.Place": "Ahead", "status.Binding.State": "BindingActive",
		"explain.Document.Outcome": "Sent", "explain.Lookup.Outcome": "Sent", "explain.Rule.Result": "NotUnderstood", "explain.Rule.By": "ByMultihomed",
		"explain.Lookup.Purpose": "ForRoute",
	} {
		path, _, _ := strings.Cut(key, ".")
		s, err := g.read("multihomed/internal/" + path)
		if err != nil {
			t.Fatal(err)
		}
		if g.closed[key] = s.beside(of); len(g.closed[key]) < 2 {
			t.Fatalf("%s: the values beside %s are %q", key, of, g.closed[key])
		}
	}
	return g
}

// TestSchemas wants the schemas to be those of the Go types and their comments: every field is there, and required
// unless it may be left out.
func TestSchemas(t *testing.T) {
	t.Parallel()
	if want := len(schema.Names()); want != len(documents) {
		t.Errorf("%d schemas, %d documents", want, len(documents))
	}
	g := newGenerator(t)
	for _, name := range schema.Names() {
		d := documents[name]
		n, err := g.root(d.of, name, d.description)
		if err != nil {
			t.Fatal(err)
		}
		compact, err := plain(n)
		if err != nil {
			t.Fatal(err)
		}
		var text bytes.Buffer
		if err := json.Indent(&text, compact, "", " "); err != nil {
			t.Fatal(err)
		}
		text.WriteByte('\n')
		if *update {
			if err := os.WriteFile(name+".schema.json", text.Bytes(), 0o644); err != nil {
				t.Fatal(err)
			}
			continue
		}
		have, err := schema.Of(name)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(text.String(), string(have)); diff != "" {
			t.Errorf("%s: the schema is not that of the Go types (-types +schema); go test ./docs/schema -update writes it:\n%s", name, diff)
		}
	}
	for _, field := range g.missing {
		t.Errorf("%s has no comment, which the schema would have as its description", field)
	}
}

package dbus_test

import (
	"encoding/json"
	"encoding/xml"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
	"github.com/google/go-cmp/cmp"

	"multihomed/internal/dbusapi"
	"multihomed/test/lab"
	"multihomed/test/lab/labtest"
)

const manager = dbusapi.ManagerInterface + "."

// TestOrders: what changes something returns when it is done, with the sentence of multihomectl.
func TestOrders(t *testing.T) {
	r := newRig(t, lab.HostConfig{FastDAD: true}, 2)
	conn := r.connect()
	r.property(conn, dbusapi.Path, manager+"State", "ready")
	r.property(conn, dbusapi.Path, manager+"LinksInForce", "2")
	link := dbusapi.LinkPath(r.index("wan1"))
	of := func(pairs ...any) map[string]dbus.Variant {
		out := map[string]dbus.Variant{}
		for i := 0; i+1 < len(pairs); i += 2 {
			out[pairs[i].(string)] = dbus.MakeVariant(pairs[i+1])
		}
		return out
	}
	for _, c := range []struct {
		method string
		arg    any
		want   string
	}{
		{"Off", []string{"wan1"}, "wan1 is switched off: removed "},
		{"Off", []string{"wan1"}, "wan1 is switched off already, since "},
		{"On", []string{"wan1"}, "wan1 is switched on: 1 link with its routing"},
		{"On", []string{}, "nothing was switched off: 2 links with their routing"},
		{"Off", []string{}, "multihomed is switched off: removed "},
		{"On", []string{}, "multihomed is switched on: 2 links with their routing"},
		{"FailoverReset", "wan1", "the history of wan1 is forgotten: "},
		{"Off", []string{"wan9"}, `! there is no interface or active profile "wan9"; there are wan0, wan1`},
		{"Bind", of("link", "wan1", "user", "daemon", "runtime", true), "user=daemon is bound to wan1"},
		{"Bind", of("link", "wan1", "user", "daemon", "mark", "1"), "! a binding has one selector"},
		{"Bind", of("link", "wan1", "usr", "root"), `! the key "usr" is not known`},
		{"Bind", of("link", "wan1", "mark", uint32(1)), `! the value of "mark" has the type "u"`},
		{"Unbind", "user=daemon", "user=daemon is no longer bound to wan1"},
		{"Unbind", "user=daemon", "! user=daemon is not bound"},
		{"FailoverTest", "wan0", "wan0 counts as dead until "},
		{"FailoverReset", "wan0", "the history of wan0 is forgotten: "},
		{"FailoverTest", "wan9", `! there is no uplink "wan9"`},
		{"Reload", nil, ""},
		{"Reconcile", nil, ""},
		{"SetLogLevel", "debug", ""},
		{"SetLogLevel", "loud", `! the level is "loud"; it may be debug, info, warn, error`},
	} {
		var args []any
		if c.arg != nil {
			args = []any{c.arg}
		}
		call := conn.Object(dbusapi.Name, dbusapi.Path).Call(manager+c.method, 0, args...)
		got := ""
		if call.Err != nil {
			got = "! " + call.Err.Error()
		} else if len(call.Body) > 0 {
			got, _ = call.Body[0].(string)
		}
		if !strings.HasPrefix(got, c.want) || c.want == "" && got != "" {
			t.Errorf("%s %v: %q, want %q", c.method, c.arg, got, c.want)
		}
		if c.method == "Off" && c.want[0] == 'w' {
			r.property(conn, link, dbusapi.LinkInterface+".Off", "true")
		}
	}
	r.property(conn, link, dbusapi.LinkInterface+".State", "active")
	r.property(conn, dbusapi.Path, manager+"LogLevel", "debug")
	if err := conn.Object(dbusapi.Name, dbusapi.Path).Call(manager+"Reload", 0).Err; err != nil {
		t.Error(err)
	}
	r.property(conn, dbusapi.Path, manager+"LogLevel", "info")
}

// TestQuestions: what multihomectl prints as JSON, the daemon says, too.
func TestQuestions(t *testing.T) {
	r := newRig(t, lab.HostConfig{FastDAD: true}, 2)
	conn := r.connect()
	r.property(conn, dbusapi.Path, manager+"LinksInForce", "2")
	// A verdict between two questions would be a difference.
	r.judged(conn, "wan0", "wan1")
	ask := func(method string, arg any) string {
		t.Helper()
		var text string
		if err := conn.Object(dbusapi.Name, dbusapi.Path).Call(manager+method, 0, arg).Store(&text); err != nil {
			t.Errorf("%s %v: %v", method, arg, err)
		}
		return text
	}
	options := map[string]dbus.Variant{}
	for _, c := range []struct {
		method string
		arg    map[string]dbus.Variant
		args   []string
		status int
		fields []string
	}{
		{"Explain", map[string]dbus.Variant{"destination": dbus.MakeVariant("192.0.2.1"), "protocol": dbus.MakeVariant("tcp"), "dport": dbus.MakeVariant(uint16(443)), "what_if": dbus.MakeVariant([]string{"down:wan0"})}, []string{"explain", "192.0.2.1", "--proto", "tcp", "--dport", "443", "--what-if", "down:wan0"}, 0, nil},
		{"Plan", options, []string{"plan"}, 0, nil},
		{"Diagnose", options, []string{"doctor"}, 0, []string{"ok", "findings"}},
		{"Describe", options, []string{"status"}, 0, []string{"ok", "unbound", "problems", "tables"}},
	} {
		out, err := r.ctl(append(c.args, "--json")...)
		if err != nil {
			t.Errorf("%q: %v", c.args, err)
		}
		ours, theirs := object(t, ask(c.method, c.arg)), object(t, out)
		fields := c.fields
		if fields == nil {
			for name := range theirs {
				fields = append(fields, name)
			}
		}
		for _, name := range fields {
			if diff := cmp.Diff(theirs[name], ours[name]); diff != "" {
				t.Errorf("%s: %s (-multihomectl +D-Bus):\n%s", c.method, name, diff)
			}
		}
	}
	short, whole := ask("Describe", map[string]dbus.Variant{"objects": dbus.MakeVariant(false)}), ask("Describe", options)
	if links := object(t, short)["links"].([]any); len(links) != 2 || len(short) >= len(whole) || strings.Contains(short, "lookup") {
		t.Errorf("without objects: %s", short)
	}
	for _, format := range []string{"svg", "dot"} {
		text := ask("Graph", map[string]dbus.Variant{"format": dbus.MakeVariant(format), "flow": dbus.MakeVariant("192.0.2.1")})
		if !strings.Contains(text, "wan0") || strings.HasPrefix(text, "digraph") != (format == "dot") {
			t.Errorf("%s: %.200s", format, text)
		}
	}
	err := conn.Object(dbusapi.Name, dbusapi.Path).Call(manager+"Explain", 0, map[string]dbus.Variant{"destination": dbus.MakeVariant("x")}).Err
	if failure, is := err.(dbus.Error); !is || failure.Name != dbusapi.InvalidArgs { //nolint:errorlint // godbus returns it bare
		t.Errorf("of a word that is no address: %v", err)
	}
}

func object(t *testing.T, text string) map[string]any {
	t.Helper()
	out := map[string]any{}
	if err := json.Unmarshal([]byte(text), &out); err != nil {
		t.Errorf("%v:\n%s", err, text)
	}
	return out
}

// TestTools: busctl, gdbus and python3-dbus read every property, also of an interface whose name is not UTF-8.
func TestTools(t *testing.T) {
	r := newRig(t, lab.HostConfig{FastDAD: true}, 1)
	conn := r.connect()
	r.property(conn, dbusapi.Path, manager+"LinksInForce", "1")
	_, err := r.IP(t.Context(), "link", "add", "a\xffb", "type", "veth", "peer", "name", "p\xffp")
	r.must(err)
	_, err = r.IP(t.Context(), "link", "set", "a\xffb", "up")
	r.must(err)
	var want []string
	paths := []dbus.ObjectPath{dbusapi.Path, dbusapi.LinkPath(r.index("wan0"))}
	for _, path := range paths {
		all, _ := dbusapi.Interfaces(path)
		for _, i := range all {
			for _, p := range i.Properties {
				want = append(want, fmt.Sprintf("%s %s %s %s", path, i.Name, p.Name, p.Type))
			}
		}
	}
	slices.Sort(want)
	for _, tool := range [][]string{{"sh", "scripts/read.busctl"}, {"sh", "scripts/read.gdbus"}, {"/usr/bin/python3", "scripts/read.py"}} {
		out, err := r.Run(t.Context(), tool[0], tool[1:]...)
		if err != nil {
			t.Errorf("%v: %v\n%s", tool, err, out)
			continue
		}
		got := strings.Split(strings.TrimSpace(out), "\n")
		slices.Sort(got)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%v (-interfaces +read):\n%s", tool, diff)
		}
	}
	// What an object says of itself is what it answers to.
	for _, path := range paths {
		var text string
		r.must(conn.Object(dbusapi.Name, path).Call(dbusapi.Introspectable+".Introspect", 0).Store(&text))
		var node struct {
			Interfaces []struct {
				Name    string `xml:"name,attr"`
				Methods []struct {
					Name string `xml:"name,attr"`
					Args []struct {
						Direction string `xml:"direction,attr"`
					} `xml:"arg"`
				} `xml:"method"`
			} `xml:"interface"`
		}
		r.must(xml.Unmarshal([]byte(text), &node))
		for _, i := range node.Interfaces {
			for _, m := range i.Methods {
				// An argument too many is refused before anything is done.
				err := conn.Object(dbusapi.Name, path).Call(i.Name+"."+m.Name, 0, "a", "b", "c", "d").Err
				if failure, is := err.(dbus.Error); !is || failure.Name != dbusapi.InvalidArgs { //nolint:errorlint // godbus returns it bare
					t.Errorf("%s %s.%s: %v", path, i.Name, m.Name, err)
				}
			}
		}
	}
}

// TestNews: a pass that changes one link is one signal of that link, with what it wrote in one more; what
// changes nothing is none.
func TestNews(t *testing.T) {
	r := newRig(t, lab.HostConfig{FastDAD: true}, 2)
	conn := r.connect()
	r.property(conn, dbusapi.Path, manager+"LinksInForce", "2")
	r.judged(conn, "wan0", "wan1")
	r.must(conn.AddMatchSignal(dbus.WithMatchPathNamespace(dbusapi.Path)))
	signals := make(chan *dbus.Signal, 1000)
	conn.Signal(signals)
	_, err := r.IP(t.Context(), "address", "add", "198.51.100.7/24", "dev", "wan1")
	r.must(err)
	link := dbusapi.LinkPath(r.index("wan1"))
	got := map[string]int{}
	for got[string(link)+" PropertiesChanged"] == 0 || got[string(dbusapi.Path)+" Changed"] == 0 {
		select {
		case s := <-signals:
			got[string(s.Path)+" "+s.Name[strings.LastIndex(s.Name, ".")+1:]]++
		case <-time.After(lab.Stretched(10 * time.Second)):
			t.Fatalf("signals: %v", got)
		}
	}
	if got[string(link)+" PropertiesChanged"] != 1 || got[string(dbusapi.LinkPath(r.index("wan0")))+" PropertiesChanged"] != 0 {
		t.Errorf("an address makes the signals %v", got)
	}
	// A carrier that goes is told at once.
	began := time.Now()
	_, err = r.IP(t.Context(), "link", "set", "wan1", "down")
	r.must(err)
	for isTold := false; !isTold; {
		select {
		case s := <-signals:
			isTold = s.Path == link
		case <-time.After(lab.Stretched(10 * time.Second)):
			t.Fatal("a link that goes down is not told")
		}
	}
	t.Logf("told after %v", time.Since(began))
	// Passes that change nothing say nothing.
	r.property(conn, link, dbusapi.LinkInterface+".Up", "false")
	// NetworkManager gives it up some seconds later.
	r.property(conn, dbusapi.Path, manager+"LinksTotal", "1")
	labtest.Eventually(t, func() error { // The other link is not watched any more.
		v, err := conn.Object(dbusapi.Name, dbusapi.LinkPath(r.index("wan0"))).GetProperty(dbusapi.LinkInterface + ".Health")
		if err == nil && !strings.Contains(v.String(), "no other link") {
			err = fmt.Errorf("health of wan0 is %s", v)
		}
		return err
	})
	r.must(conn.Object(dbusapi.Name, dbusapi.Path).Call(manager+"Reconcile", 0).Err)
	for len(signals) > 0 {
		<-signals
	}
	for range 5 {
		r.must(conn.Object(dbusapi.Name, dbusapi.Path).Call(manager+"Reconcile", 0).Err)
	}
	select {
	case s := <-signals:
		t.Errorf("nothing changed, and there is a signal: %v", s)
	default:
	}
}

package dbusapi_test

import (
	"encoding/xml"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"multihomed/internal/dbusapi"
)

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile("../../packaging/" + path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// TestManual: the manual has each method with its arguments, each property with its type, each signal, each action.
func TestManual(t *testing.T) {
	t.Parallel()
	manual := read(t, "man/org.multihomed1.5")
	for _, i := range []*dbusapi.Interface{dbusapi.Manager(), dbusapi.LinkOf()} {
		_, text, found := strings.Cut(manual, ".Sh "+i.Name+"\n")
		if !found {
			t.Fatalf("no section %s", i.Name)
		}
		text, _, _ = strings.Cut(text, "\n.Sh ")
		var want []string
		arguments := func(args []dbusapi.Arg) string {
			words := make([]string, 0, len(args))
			for _, a := range args {
				words = append(words, a.Type+" Va "+a.Name)
			}
			return strings.Join(words, " , ")
		}
		callable := func(name string, in []dbusapi.Arg) string {
			if len(in) == 0 {
				return "Ic " + name + " Ns Po Pc"
			}
			return "Ic " + name + " Ns Po " + arguments(in) + " Pc"
		}
		for _, m := range i.Methods {
			line := callable(m.Name, m.In)
			if len(m.Out) > 0 {
				line += ` \(-> ` + arguments(m.Out)
			}
			want = append(want, line)
		}
		for _, p := range i.Properties {
			line := fmt.Sprintf("Va %s Pq %s", p.Name, p.Type)
			if p.Emits == dbusapi.Silent {
				line += " *"
			}
			want = append(want, line)
		}
		for _, s := range i.Signals {
			want = append(want, callable(s.Name, s.Args))
		}
		var got []string
		for line := range strings.Lines(text) {
			if item, is := strings.CutPrefix(strings.TrimSpace(line), ".It "); is {
				got = append(got, item)
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-interface +manual):\n%s", i.Name, diff)
		}
	}
	for _, name := range []string{
		dbusapi.NoSuchLink, dbusapi.Failed, dbusapi.AccessDenied, dbusapi.InvalidArgs, dbusapi.LimitsExceeded, dbusapi.UnknownMethod,
		dbusapi.UnknownObject, dbusapi.UnknownInterface, dbusapi.UnknownProperty, dbusapi.PropertyReadOnly, dbusapi.InteractionNeeded,
	} {
		if !strings.Contains(manual, ".It Er "+name+"\n") {
			t.Errorf("the manual lacks the error %s", name)
		}
	}
}

// TestActions: polkit's policy, the manual and the interface have the same actions, each with its owner.
func TestActions(t *testing.T) {
	t.Parallel()
	methods := map[string][]string{}
	for _, m := range dbusapi.Manager().Methods {
		if m.Action != "" {
			methods[m.Action] = append(methods[m.Action], m.Name)
		}
		if (m.Kind == dbusapi.Changing) != (m.Action != "") && m.Name != "Diagnose" {
			t.Errorf("%s changes something, and everybody may call it, or the other way around", m.Name)
		}
	}
	var policy struct {
		Actions []struct {
			ID       string `xml:"id,attr"`
			Active   string `xml:"defaults>allow_active"`
			Inactive string `xml:"defaults>allow_inactive"`
			Any      string `xml:"defaults>allow_any"`
			Owner    []struct {
				Key   string `xml:"key,attr"`
				Value string `xml:",chardata"`
			} `xml:"annotate"`
		} `xml:"action"`
	}
	if err := xml.Unmarshal([]byte(read(t, "polkit/org.multihomed1.policy")), &policy); err != nil {
		t.Fatal(err)
	}
	var inPolicy []string
	for _, a := range policy.Actions {
		inPolicy = append(inPolicy, a.ID)
		if a.Active != "auth_admin_keep" || a.Inactive != "auth_admin" || a.Any != "auth_admin" {
			t.Errorf("%s is allowed by %s, %s, %s", a.ID, a.Any, a.Inactive, a.Active)
		}
		if len(a.Owner) != 1 || a.Owner[0].Key != "org.freedesktop.policykit.owner" || a.Owner[0].Value != "unix-user:multihomed" {
			t.Errorf("%s is owned by %v", a.ID, a.Owner)
		}
	}
	var inManual []string
	for _, found := range regexp.MustCompile(`(?m)^\.It Cm (\S+)\n(.*)$`).FindAllStringSubmatch(read(t, "man/org.multihomed1.5"), -1) {
		inManual = append(inManual, found[1])
		if want := strings.Join(methods[found[1]], ", "); found[2] != want {
			t.Errorf("%s is for %s, the manual says %s", found[1], want, found[2])
		}
	}
	want := make([]string, 0, len(methods))
	for a := range methods {
		want = append(want, a)
	}
	for _, list := range [][]string{want, inPolicy, inManual} {
		slices.Sort(list)
		if !slices.Equal(list, want) {
			t.Errorf("actions are %q, want %q", list, want)
		}
	}
}

package status_test

import (
	"encoding/json"
	"testing"

	"multihomed/internal/escape"
	"multihomed/internal/status"
	"multihomed/routing"
)

// TestNamesOfAnyBytes: every name that the kernel takes comes through JSON, and no two
// become one.
func TestNamesOfAnyBytes(t *testing.T) {
	names := []string{"wan0", "a\xff", "a\xfe", `a\xff`, "a\ufffd", "a\u202e", "\x1b[2J", `a\\xff`}
	s := status.Status{Unbound: map[string]status.Unbound{"ipv4": {Interface: names[1]}}}
	var problems []routing.Problem
	for _, name := range names {
		s.Links = append(s.Links, status.Link{Interface: name, Profile: name, LeftAlone: map[string]string{"ipv6": name}, Objects: []status.Object{{Text: "from all oif " + name}}})
		s.Others = append(s.Others, status.Other{Interface: name, Why: name})
		s.OffLinks = append(s.OffLinks, status.OffLink{Interface: name})
		problems = append(problems, routing.Problem{Link: name, Text: name})
	}
	s.Escape()
	for i := range s.Links {
		s.Links[i].Escape()
	}
	s.Tell(problems)
	data, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	told, err := status.Decode(data, true)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for i, name := range names {
		l := told.Links[i]
		for what, got := range map[string]string{
			"interface": l.Interface, "profile": l.Profile, "other": told.Others[i].Interface,
			"off": told.OffLinks[i].Interface, "problem": told.Problems[i].Link,
		} {
			if escape.Original(got) != name {
				t.Errorf("%s: %q comes back as %q", what, name, escape.Original(got))
			}
		}
		if seen[l.Interface] {
			t.Errorf("%q stands for two names", l.Interface)
		}
		seen[l.Interface] = true
	}
	if got := told.Unbound["ipv4"].Interface; got != `a\xff` {
		t.Errorf("unbound leaves by %q", got)
	}
}

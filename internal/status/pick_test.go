package status_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"testing"

	"multihomed/internal/status"
)

func names(s *status.Status) []string {
	out := []string{}
	for _, l := range s.Links {
		out = append(out, l.Interface)
	}
	return out
}

// TestPick wants the links that are asked for, however they are called, and all else of the status.
func TestPick(t *testing.T) {
	t.Parallel()
	s := status.Status{Schema: status.Schema, By: status.ByDaemon, Shared: []status.Object{{Kind: "rule", Text: "shared"}}}
	hostile := []string{`a"b`, `c\\d`, `,{"interface":"`, `],"shared":[`, "plain", "<&>"}
	for i, name := range hostile {
		s.Links = append(s.Links, status.Link{Interface: name, Objects: []status.Object{{Kind: "rule", Text: fmt.Sprintf(`rule %d "x\y"`, i)}, {Kind: "rule", Text: `"text":"rule`}}})
	}
	data, err := status.Encode(s, func(status.Link) []byte { return nil })
	if err != nil {
		t.Fatal(err)
	}
	for i, name := range hostile {
		for _, w := range []status.Wanted{{Rules: []string{fmt.Sprintf(`rule %d "x\y"`, i)}}, {Interfaces: []string{name}}} {
			got, err := status.Pick(data, w)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(names(got), []string{name}) || len(got.Shared) != 1 || got.By != status.ByDaemon {
				t.Errorf("%+v: %q, %+v", w, names(got), got)
			}
		}
	}
	if got, err := status.Pick(data, status.Wanted{}); err != nil || len(got.Links) != 0 {
		t.Errorf("%v, %q", err, names(got))
	}
	if got, err := status.Pick(data, status.Wanted{All: true}); err != nil || !slices.Equal(names(got), hostile) {
		t.Errorf("%v, %q", err, names(got))
	}
	s.Links = nil
	if data, err = json.Marshal(s); err != nil {
		t.Fatal(err)
	}
	if got, err := status.Pick(data, status.Wanted{Interfaces: []string{"x"}}); err != nil || len(got.Links) != 0 {
		t.Errorf("%v, %+v", err, got)
	}
}

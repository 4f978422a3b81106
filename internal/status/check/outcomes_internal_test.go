package check

import (
	"errors"
	"slices"
	"testing"

	"multihomed/routing"
	"multihomed/routing/lookup"
	"multihomed/routing/reconcile"
)

// TestOtherNames: they are read where something may have changed them, and else not.
func TestOtherNames(t *testing.T) {
	t.Parallel()
	fault := errors.New("no socket")
	rule := []routing.Rule{{Family: routing.IPv4, Priority: 1, OIF: "vpn0"}}
	one, two := []string{"wan0"}, []string{"wan0", "wan1"}
	var names otherNames
	for _, step := range []struct {
		what              string
		moves, generation uint64
		interfaces        []string
		rules             []routing.Rule
		// alt is what the kernel says, reads whether it must be asked.
		alt   []string
		err   error
		reads bool
	}{
		{what: "a failure", moves: 1, generation: 1, interfaces: one, rules: rule, err: fault, reads: true},
		{what: "the first time", moves: 1, generation: 1, interfaces: one, rules: rule, reads: true},
		{what: "nothing", moves: 1, generation: 1, interfaces: one, rules: rule},
		{what: "a rule of ours", moves: 1, generation: 2, interfaces: one, rules: rule},
		{what: "a new name", moves: 2, generation: 3, interfaces: one, rules: rule, alt: []string{"vpn0"}, reads: true},
		{what: "nothing, with a name", moves: 2, generation: 3, interfaces: one, rules: rule, alt: []string{"vpn0"}},
		{what: "a rule that may be another one", moves: 2, generation: 4, interfaces: one, rules: rule, alt: []string{"vpn0"}, reads: true},
		{what: "another interface", moves: 2, generation: 4, interfaces: two, rules: rule, alt: []string{"vpn0"}, reads: true},
		{what: "no rule", moves: 2, generation: 5, interfaces: two, reads: true},
	} {
		var interfaces []lookup.Interface
		for n, name := range step.interfaces {
			interfaces = append(interfaces, lookup.Interface{Index: n + 2, Name: name})
		}
		asked := false
		err := names.add(&reconcile.Snapshot{Moves: step.moves, Generation: step.generation}, interfaces, step.rules, func() error {
			asked = true
			interfaces[0].AltNames = step.alt
			return step.err
		})
		if !errors.Is(err, step.err) || asked != step.reads || !slices.Equal(interfaces[0].AltNames, step.alt) {
			t.Errorf("%s: %v, asked %v, names %v", step.what, err, asked, interfaces[0].AltNames)
		}
	}
	// Without the daemon nothing tells what happened.
	asked := 0
	for range 2 {
		if err := names.add(nil, nil, nil, func() error { asked++; return nil }); err != nil {
			t.Error(err)
		}
	}
	if asked != 2 {
		t.Errorf("asked %d times without a snapshot", asked)
	}
}

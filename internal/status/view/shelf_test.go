package view_test

import (
	"fmt"
	"slices"
	"testing"
	"testing/fstest"

	"multihomed/internal/config"
	"multihomed/internal/offswitch"
	"multihomed/internal/status"
	"multihomed/internal/status/check"
	"multihomed/internal/status/view"
	"multihomed/internal/status/view/viewtest"
	"multihomed/nm"
	"multihomed/routing"
	"multihomed/routing/reconcile"
)

// Snapshot is one of a host with many uplinks.
func snapshot(links int) *reconcile.Snapshot {
	p := routing.NewPlanner(routing.Policy{Tables: routing.TableRange{First: 10000, Last: 19999}, UplinkGroup: 28008, ContainerPrefixLength: 7})
	s := &reconcile.Snapshot{Generation: 1, Policy: p.Policy(), Claims: map[string]reconcile.Claim{}}
	for n := range links {
		l := viewtest.Uplink(fmt.Sprintf("wan%d", n), n+2, fmt.Sprintf("10.%d.%d.7/24", n/250, n%250), fmt.Sprintf("10.%d.%d.1", n/250, n%250))
		l.Tables = map[routing.Key]routing.TableID{}
		for _, k := range routing.Keys(l) {
			l.Tables[k] = routing.TableID(10000 + n)
		}
		p.Set(l)
		s.Claims[l.Name] = reconcile.Claim{Standing: reconcile.Link, Why: "connected", Profile: l.Name}
	}
	for plan := range p.Links() {
		s.Interfaces = append(s.Interfaces, &reconcile.Interface{
			Facts: routing.Interface{Index: plan.Link.Index, Name: plan.Link.Name, Up: true, Carrier: true, Group: plan.Link.Group}, IsLink: true, Plan: plan,
		})
	}
	for i, f := range routing.Families() {
		s.Others[i] = viewtest.Kernels(f)
	}
	return s
}

// BenchmarkStatus is what a status of 1,000 links costs: in the daemon when something has
// changed, and for who asks.
func BenchmarkStatus(b *testing.B) {
	s := snapshot(1000)
	cfg := config.Default()
	var document []byte
	tell := func(b *testing.B, s *reconcile.Snapshot, shelf *view.Shelf) {
		b.Helper()
		v := view.FromSnapshot(cfg, s, view.Daemon{Ready: true}, nm.Status{Running: true, Complete: true}, false, offswitch.State{})
		shelf.Use(v)
		told := v.Status(check.Problems(v, fstest.MapFS{}), "1")
		if len(told.Links) != 1000 || !told.OK {
			b.Fatalf("%d links, %+v", len(told.Links), told.Problems)
		}
		var err error
		if document, err = v.Document(told); err != nil {
			b.Fatal(err)
		}
	}
	b.Run("made", func(b *testing.B) {
		for range b.N {
			tell(b, s, view.NewShelf())
		}
		b.ReportMetric(float64(len(document)), "bytes")
	})
	b.Run("one link changed", func(b *testing.B) {
		shelf := view.NewShelf()
		tell(b, s, shelf)
		for b.Loop() {
			next := *s
			next.Generation++
			next.Interfaces = slices.Clone(s.Interfaces)
			changed := *next.Interfaces[7]
			next.Interfaces[7] = &changed
			tell(b, &next, shelf)
		}
	})
	b.Run("read", func(b *testing.B) {
		for range b.N {
			if told, err := status.Decode(document, false); err != nil || len(told.Links) != 1000 {
				b.Fatalf("%+v, %v", told, err)
			}
		}
	})
}

// TestShelf: what is kept from an earlier view is what would be made anew.
func TestShelf(t *testing.T) {
	t.Parallel()
	s, cfg := snapshot(4), config.Default()
	look := func(s *reconcile.Snapshot) *view.View {
		return view.FromSnapshot(cfg, s, view.Daemon{Ready: true}, nm.Status{Running: true, Complete: true}, false, offswitch.State{})
	}
	shelf := view.NewShelf()
	rule := slices.Collect(s.Rules())[3].Rule
	bound := routing.PlannedRule{
		Rule:   routing.Rule{Family: routing.IPv4, Protocol: routing.Multihomed, Priority: routing.PriorityBinding, IIF: "br0", Action: routing.ActionLookup, Table: 10001},
		Reason: routing.Reason{Decision: routing.Bind, Link: "wan1"},
	}
	route := s.Interfaces[1].Plan.Routes[0].Route
	for _, step := range []struct {
		what   string
		change func(*reconcile.Snapshot)
	}{
		{"nothing", func(*reconcile.Snapshot) {}},
		{"nothing again", func(*reconcile.Snapshot) {}},
		{"a rule is missing", func(s *reconcile.Snapshot) { s.Missing = []routing.Op{{Verb: routing.AddRule, Rule: rule}} }},
		{"a route is different", func(s *reconcile.Snapshot) { s.Missing = []routing.Op{{Verb: routing.ReplaceRoute, Route: route}} }},
		{"a group is missing", func(s *reconcile.Snapshot) {
			s.Missing = []routing.Op{{Verb: routing.SetGroup, Index: s.Interfaces[2].Facts.Index, Group: 28008}}
		}},
		{"a link changed", func(s *reconcile.Snapshot) {
			i := *s.Interfaces[0]
			i.Facts.Carrier, i.Claim, i.Claimed = false, reconcile.Claim{Standing: reconcile.Draining, Why: "disconnected"}, true
			s.Interfaces[0] = &i
		}},
		{"BGP", func(s *reconcile.Snapshot) {
			for _, table := range s.Interfaces[3].Plan.Link.Tables {
				s.Paths = map[routing.TableID]int{table: 77}
			}
		}},
		{"something is bound to a link", func(s *reconcile.Snapshot) { s.Lifts = []routing.PlannedRule{bound} }},
		{"its rule is missing", func(s *reconcile.Snapshot) {
			s.Lifts, s.Missing = []routing.PlannedRule{bound}, []routing.Op{{Verb: routing.AddRule, Rule: bound.Rule}}
		}},
		{"it is bound no more", func(*reconcile.Snapshot) {}},
		{"a link went", func(s *reconcile.Snapshot) { s.Interfaces = s.Interfaces[1:] }},
	} {
		next := *s
		next.Interfaces = slices.Clone(s.Interfaces)
		step.change(&next)
		fresh, kept := look(&next), look(&next)
		shelf.Use(kept)
		want, have := fresh.Status(check.Problems(fresh, fstest.MapFS{}), "1"), kept.Status(check.Problems(kept, fstest.MapFS{}), "1")
		a, err := fresh.Document(want)
		if err != nil {
			t.Fatal(err)
		}
		b, err := kept.Document(have)
		if err != nil {
			t.Fatal(err)
		}
		if string(a) != string(b) {
			t.Errorf("%s: anew\n%s\nkept\n%s", step.what, a, b)
		}
	}
}

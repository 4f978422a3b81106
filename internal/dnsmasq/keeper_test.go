package dnsmasq_test

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"multihomed/internal/dnsmasq"
	"multihomed/internal/owners"
	"multihomed/routing"
	"multihomed/routing/reconcile"
)

// TestServersOfDeadLinks: they leave the file, unless nothing would be left, and come back, also
// where nobody names them any more because NetworkManager is away.
func TestServersOfDeadLinks(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "servers")
	one, two, six := server("wan0", "192.0.2.53", "192.0.2.10"), server("wan1", "198.51.100.53", "198.51.100.10"), server("wan0", "2001:db8::53", "2001:db8::10")
	lan := only(server("lan0", "10.0.0.53", "", "corp"))
	set := func(indexes ...int) map[int]struct{} {
		out := map[int]struct{}{}
		for _, i := range indexes {
			out[i] = struct{}{}
		}
		return out
	}
	snapshot := &reconcile.Snapshot{}
	for i, name := range []string{"lan0", "wan0", "wan1"} {
		snapshot.Interfaces = append(snapshot.Interfaces, &reconcile.Interface{Facts: routing.Interface{Name: name, Index: i + 1}})
	}
	if err := os.WriteFile(path, dnsmasq.Render([]dnsmasq.Server{one, two, six, lan}), 0o600); err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	again := func() *dnsmasq.Keeper {
		return dnsmasq.NewKeeper(dnsmasq.New(path, filepath.Join(t.TempDir(), "pid"), log), log)
	}
	keeper := again()
	for _, step := range []struct {
		name    string
		dead    routing.ByFamily[map[int]struct{}]
		restart bool
		want    []dnsmasq.Server
	}{
		{"all work", routing.ByFamily[map[int]struct{}]{}, false, []dnsmasq.Server{one, two, six, lan}},
		{"one is dead in IPv4", routing.ByFamily[map[int]struct{}]{set(2), nil}, false, []dnsmasq.Server{two, six, lan, dead(one)}},
		{"after a restart too", routing.ByFamily[map[int]struct{}]{set(2), nil}, true, []dnsmasq.Server{two, six, lan, dead(one)}},
		{"all are dead", routing.ByFamily[map[int]struct{}]{set(2, 3), set(2)}, false, []dnsmasq.Server{one, two, six, lan}},
		{"IPv6 alone works", routing.ByFamily[map[int]struct{}]{set(2, 3), nil}, false, []dnsmasq.Server{six, lan, dead(one), dead(two)}},
		{"all work again", routing.ByFamily[map[int]struct{}]{}, true, []dnsmasq.Server{one, two, six, lan}},
	} {
		if step.restart {
			keeper = again()
		}
		// These owners know nothing: what they said before stays.
		if err := keeper.Keep(t.Context(), dnsmasq.Pass{Snapshot: snapshot, DNS: &owners.DNS{}, Dead: step.dead}); err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if want := dnsmasq.Render(step.want); !bytes.Equal(text, want) {
			t.Errorf("%s: the file is\n%s\nwant\n%s", step.name, text, want)
		}
	}
}

package note_test

import (
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"multihomed/dispatcher"
	"multihomed/internal/handoff"
	"multihomed/internal/handoff/note"
	"multihomed/internal/hookstate"
	"multihomed/routing"
)

var since = time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)

// of are configurations of these families, with an address each, or none.
func of(addresses bool, families ...routing.Family) map[routing.Family]dispatcher.Config {
	all := map[routing.Family]dispatcher.Config{}
	for _, f := range families {
		var c dispatcher.Config
		if addresses {
			c.Addresses = []netip.Prefix{netip.PrefixFrom(f.Any().Addr().Next(), f.Bits())}
		}
		all[f] = c
	}
	return all
}

func take(t *testing.T, runtime string, e dispatcher.Event) handoff.Message {
	t.Helper()
	m, err := note.Note(t.Context(), runtime, e, since)
	if err != nil || m.Caller != e.Caller || m.Action != e.Action || m.Interface != e.Interface {
		t.Errorf("%+v: %+v, %v", e, m, err)
	}
	return m
}

// files wants what is said of lo, as "caller family part".
func files(t *testing.T, when, runtime string, want ...string) {
	t.Helper()
	store, errs := hookstate.Open(runtime)
	lo, err := net.InterfaceByName("lo")
	if err != nil || len(errs) > 0 {
		t.Fatal(errs, err)
	}
	configs, _ := store.Of("lo")
	var got []string
	for _, c := range configs {
		got = append(got, strings.TrimSpace(c.Caller+" "+c.Family.String()+" "+c.Part))
		if c.Index != lo.Index || !c.Since.Equal(since) || len(c.Addresses) != 1 {
			t.Errorf("%s: %+v", when, c)
		}
	}
	if !slices.Equal(got, want) || len(store.Interfaces()) > 1 {
		t.Errorf("%s: %q of %q, want %q", when, got, store.Interfaces(), want)
	}
}

func TestConfigured(t *testing.T) {
	t.Parallel()
	runtime := filepath.Join(t.TempDir(), "run")
	both := of(true, routing.IPv4, routing.IPv6)
	e := dispatcher.Event{Caller: "dhclient", Action: "BOUND", Interface: "lo", Effect: dispatcher.Configured, Configs: both}
	if m := take(t, runtime, e); m.Gone || m.Hints != nil {
		t.Errorf("%+v", m)
	}
	files(t, "configured", runtime, "dhclient ipv4", "dhclient ipv6")
	// What it does not speak of stays.
	e.Configs = nil
	take(t, runtime, e)
	files(t, "nothing was said", runtime, "dhclient ipv4", "dhclient ipv6")
	e.Caller = strings.Repeat("x", 300)
	e.Configs = both
	if _, err := note.Note(t.Context(), runtime, e, since); err == nil || strings.Count(err.Error(), "do not name a caller") != 2 {
		t.Errorf("what cannot be written is told of each: %v", err)
	}
}

func TestNothingIsWritten(t *testing.T) {
	t.Parallel()
	both := of(true, routing.IPv4, routing.IPv6)
	for name, c := range map[string]struct {
		event dispatcher.Event
		hints int
		gone  bool
	}{
		"NetworkManager":       {dispatcher.Event{Caller: "NetworkManager", Action: "up", Interface: "lo", Effect: dispatcher.Configured, Configs: both}, 2, false},
		"NetworkManager, down": {dispatcher.Event{Caller: "NetworkManager", Action: "down", Interface: "lo", Effect: dispatcher.Gone}, 0, true},
		"no interface":         {dispatcher.Event{Caller: "dhclient", Interface: "none-such", Effect: dispatcher.Configured, Configs: both}, 0, false},
		"NetworkManager's, no": {dispatcher.Event{Caller: "NetworkManager", Interface: "none-such", Effect: dispatcher.Configured, Configs: both}, 0, false},
		"nothing":              {dispatcher.Event{Caller: "dhclient", Effect: dispatcher.Nothing}, 0, false},
		"changed":              {dispatcher.Event{Caller: "dhclient", Interface: "lo", Effect: dispatcher.Changed, Configs: both}, 0, false},
		"gone":                 {dispatcher.Event{Caller: "dhclient", Interface: "lo", Effect: dispatcher.Gone}, 0, true},
		"removed":              {dispatcher.Event{Caller: "udev", Interface: "none-such", Effect: dispatcher.Removed}, 0, true},
	} {
		runtime := t.TempDir()
		m := take(t, runtime, c.event)
		if len(m.Hints) != c.hints || m.Gone != c.gone {
			t.Errorf("%s: %+v", name, m)
		}
		for _, h := range m.Hints {
			if h.Interface != "lo" || h.Index <= 0 || len(h.Addresses) != 1 {
				t.Errorf("%s: %+v", name, h)
			}
		}
		if left, err := os.ReadDir(runtime); err != nil || len(left) > 0 {
			t.Errorf("%s: written: %v, %v", name, left, err)
		}
	}
}

func TestGone(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		event dispatcher.Event
		want  []string
	}{
		"a family":            {dispatcher.Event{Caller: "dhclient", Effect: dispatcher.Gone, Configs: of(false, routing.IPv4)}, []string{"dhcpcd ipv4", "dhcpcd ipv4 two", "dhclient ipv6", "dhcpcd ipv6"}},
		"a part":              {dispatcher.Event{Caller: "dhcpcd", Part: "two", Effect: dispatcher.Gone, Configs: of(false, routing.IPv4)}, []string{"dhclient ipv4", "dhcpcd ipv4", "dhclient ipv6", "dhcpcd ipv6"}},
		"without a part":      {dispatcher.Event{Caller: "dhcpcd", Effect: dispatcher.Gone, Configs: of(false, routing.IPv4, routing.IPv6)}, []string{"dhclient ipv4", "dhcpcd ipv4 two", "dhclient ipv6"}},
		"no family":           {dispatcher.Event{Caller: "dhcpcd", Effect: dispatcher.Gone, Configs: of(false)}, []string{"dhclient ipv4", "dhcpcd ipv4", "dhcpcd ipv4 two", "dhclient ipv6", "dhcpcd ipv6"}},
		"all of a caller":     {dispatcher.Event{Caller: "dhcpcd", Part: "any", Effect: dispatcher.Gone}, []string{"dhclient ipv4", "dhclient ipv6"}},
		"what it never said":  {dispatcher.Event{Caller: "ifupdown", Effect: dispatcher.Gone}, []string{"dhclient ipv4", "dhcpcd ipv4", "dhcpcd ipv4 two", "dhclient ipv6", "dhcpcd ipv6"}},
		"the interface":       {dispatcher.Event{Caller: "udev", Effect: dispatcher.Removed}, nil},
		"the interface's one": {dispatcher.Event{Caller: "udev", Effect: dispatcher.Removed, Configs: of(false, routing.IPv4)}, nil},
	} {
		runtime := t.TempDir()
		for _, e := range []dispatcher.Event{
			{Caller: "dhclient", Configs: of(true, routing.IPv4, routing.IPv6)},
			{Caller: "dhcpcd", Configs: of(true, routing.IPv4, routing.IPv6)},
			{Caller: "dhcpcd", Part: "two", Configs: of(true, routing.IPv4)},
		} {
			e.Interface, e.Effect = "lo", dispatcher.Configured
			take(t, runtime, e)
		}
		c.event.Interface = "lo"
		if m := take(t, runtime, c.event); !m.Gone {
			t.Errorf("%s: %+v", name, m)
		}
		files(t, name, runtime, c.want...)
	}
}

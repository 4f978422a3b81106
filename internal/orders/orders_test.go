package orders_test

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"multihomed/internal/binding"
	"multihomed/internal/config"
	"multihomed/internal/handoff"
	"multihomed/internal/offswitch"
	"multihomed/internal/orders"
	"multihomed/internal/status"
)

// host has an interface whose name a shell would take apart, and one that is not UTF-8.
func host() orders.Host {
	return orders.Host{
		Interfaces: []string{"lo", "wan1", "$(x);'", "b\xffd"},
		Profiles:   map[string]orders.Profile{"wan1": {UUID: "u1", Name: "Fibre 1"}, "lo": {UUID: "u0", Name: "lo"}},
	}
}

// TestTargets: words are names of interfaces, names and UUIDs of profiles, or of what is off.
func TestTargets(t *testing.T) {
	off := offswitch.State{Links: []offswitch.Link{{UUID: "u9", Profile: "Gone", Interface: "ppp0"}}}
	for _, c := range []struct {
		words []string
		want  string
	}{
		{[]string{"wan1"}, "wan1"},
		{[]string{"u1", "Fibre 1", "wan1"}, "wan1"},
		{[]string{"Gone"}, "ppp0"},
		{[]string{"b\xffd", "$(x);'"}, `b\xffd,$(x);'`},
		{[]string{""}, `! there is no interface or active profile ""; there are `},
		{[]string{"wan1", "wan2"}, `! there is no interface or active profile "wan2"; there are `},
		{[]string{"lo"}, "! lo is the loopback"},
		{[]string{"u0"}, "! lo is the loopback"},
	} {
		targets, err := host().Targets(off, c.words)
		var names []string
		for _, target := range targets {
			names = append(names, target.String())
		}
		got := strings.Join(names, ",")
		if err != nil {
			got = "! " + err.Error()
		}
		if _, is := errors.AsType[*orders.WordError](err); is != (c.want[0] == '!') || !strings.HasPrefix(got, c.want) {
			t.Errorf("%q: %s, want %s", c.words, got, c.want)
		}
	}
}

// TestSwitch switches links off and on again on disk. The commands that it prints are fit for a shell.
func TestSwitch(t *testing.T) {
	d := offswitch.Directories{State: t.TempDir(), Runtime: t.TempDir()}
	cfg := config.Config{StateDir: d.State}
	name := "$(x);'"
	target := orders.Target{Name: name, Word: name}
	mark := offswitch.Mark{Since: time.Now().UTC().Truncate(time.Second), By: "alice"}
	before, now, err := orders.SwitchOff(d, []orders.Target{target}, mark)
	if err != nil {
		t.Fatal(err)
	}
	const undo = `to switch it on: multihomectl on '$(x);'\'''`
	if got := orders.SentenceOff(cfg, before, now, target, "1 rule"); got != name+" is switched off: removed 1 rule; "+undo {
		t.Error(got)
	}
	before, now, err = orders.SwitchOff(d, []orders.Target{target}, mark)
	if got := orders.SentenceOff(cfg, before, now, target, ""); err != nil || !strings.Contains(got, "already, since ") || !strings.HasSuffix(got, ": there was nothing to remove; "+undo) {
		t.Error(got, err)
	}
	present := host().Present()
	before, now, err = orders.SwitchOn(d, []orders.Target{target}, present)
	if got := orders.SentenceOn(before, now, []orders.Target{target}, present); err != nil || got != name+" is switched on" {
		t.Error(got, err)
	}
	before, now, err = orders.SwitchOn(d, nil, present)
	if got := orders.SentenceOn(before, now, nil, present); err != nil || got != "nothing was switched off" {
		t.Error(got, err)
	}
}

// TestBind: hostile values are words, never another entry or another key.
func TestBind(t *testing.T) {
	for _, c := range []struct {
		link, key, value, inbound string
		isGood                    bool
	}{
		{"wan1", "user", "daemon", "", true},
		{"wan1", "mark", "0x10", "", true},
		{"wan1", "user", "x\"\n[[bind]]\nlink = \"wan2", "", false},
		{"wan1", "user", "", "", false},
		{"", "user", "daemon", "", false},
		{"wan1", "mark", "99999999999999999999", "", false},
		{"wan1", "source", "not an address", "", false},
		{"wan1", "user", "daemon", "\"\nstrict = true", false},
		{strings.Repeat("w", 1<<16), "user", "daemon", "", false},
	} {
		b := orders.Binding{Link: c.link, Selector: config.Selector{Key: c.key, Value: c.value}, Inbound: c.inbound}
		entry, err := b.Entry(config.Default(), "multihomed.toml")
		if (err == nil) != c.isGood || err == nil && (entry.Link != c.link || entry.Selector().Key != c.key) {
			t.Errorf("%.60q %.60q: %+v, %v", c.link, c.value, entry.Selector(), err)
		}
		if _, is := errors.AsType[*orders.WordError](err); err != nil && !is {
			t.Errorf("%q: %v is no error of a word", c.value, err)
		}
	}
	for _, word := range []string{"", "user", "users=x", "=", "link=wan1"} {
		if _, err := orders.ParseSelector(word); err == nil {
			t.Errorf("%q is a selector", word)
		}
	}
	if s, err := orders.ParseSelector("user=a=b"); err != nil || s.Value != "a=b" {
		t.Error(s, err)
	}
}

// TestOwnMark: bind list shows a mark that nobody added, and nobody can remove.
func TestOwnMark(t *testing.T) {
	cfg := config.Default()
	cfg.StateDir, cfg.RuntimeDir = t.TempDir(), t.TempDir()
	for mark, want := range map[string]string{"0x81000000": "stays until the next boot", "0x81000000/0xff000000": "stays until the next boot", "0x10": "is not bound", "x": "is not bound"} {
		if _, err := orders.FindBound(cfg, config.Selector{Key: "mark", Value: mark}, "multihomed.toml"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("mark=%s: %v; want %q", mark, err, want)
		}
	}
}

// TestSentenceOfOrder: its command is fit for a shell.
func TestSentenceOfOrder(t *testing.T) {
	until := time.Now()
	s := status.Status{
		Failover: &status.Failover{Uplinks: []status.Health{{Interface: "a;b", Family: "ipv4", Tested: &until}}},
		Unbound:  map[string]status.Unbound{"ipv4": {Interface: "wan1"}},
	}
	if got := orders.SentenceOfOrder(s, handoff.TestFailover, "a;b"); !strings.HasSuffix(got, ": unbound IPv4 leaves by wan1; to end it now: multihomectl failover reset 'a;b'") {
		t.Error(got)
	}
}

// TestMostBinds: one binding too many is refused in words that say what to do, and the others stay.
func TestMostBinds(t *testing.T) {
	dir := t.TempDir()
	works := offswitch.Directories{State: filepath.Join(dir, "state"), Runtime: filepath.Join(dir, "run")}
	entry := func(uid int) config.Bind {
		b := orders.Binding{Link: "wan1", Selector: config.Selector{Key: "user", Value: fmt.Sprint(uid)}}
		entry, err := b.Entry(config.Default(), "multihomed.toml")
		if err != nil {
			t.Fatal(err)
		}
		return entry
	}
	err := binding.Change(works, binding.Runtime, func(list []config.Bind) ([]config.Bind, error) {
		for n := range config.MostBinds {
			list = append(list, entry(1000+n))
		}
		return list, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := orders.Bind(works, entry(1), true); err == nil || err.Error() != "256 bindings are kept already, and no more are allowed; to fix: remove one of them, see multihomectl bind list" {
		t.Errorf("one too many: %v", err)
	}
	if err := orders.Bind(works, entry(1000), true); err != nil {
		t.Errorf("one that is there: %v", err)
	}
}

package preview_test

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"multihomed/internal/preview"
	"multihomed/internal/shell"
	"multihomed/routing"
	"multihomed/routing/answers"
	"multihomed/test/golden"
)

const hostile = "a;$(id)`\\'\"\x1b\xff"

func addr(s string) netip.Addr     { return netip.MustParseAddr(s) }
func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func route(f routing.Family, destination, gateway string, device int) routing.Route {
	r := routing.Route{Family: f, Type: routing.RouteUnicast, Protocol: routing.Multihomed, Table: 10000, Metric: routing.FirstMetric, Destination: prefix(destination), Device: device}
	if gateway != "" {
		r.Gateway = addr(gateway)
	} else if f == routing.IPv4 {
		r.Scope = routing.ScopeLink
	}
	return r
}

func rule(f routing.Family, p routing.Priority, table routing.TableID) routing.Rule {
	return routing.Rule{Family: f, Priority: p, Action: routing.ActionLookup, Table: table, Protocol: routing.Multihomed}
}

// facts are one of everything.
func facts() preview.Facts {
	link := routing.Reason{Decision: routing.FollowDevice, Link: "wan0"}
	device := rule(routing.IPv4, routing.PriorityDevice, 10000)
	device.OIF = "wan0"
	odd := rule(routing.IPv4, routing.PriorityDevice, 10002)
	odd.OIF = hostile
	source := rule(routing.IPv4, routing.PrioritySource, 10000)
	source.From = prefix("192.0.2.7/32")
	known := rule(routing.IPv4, routing.PriorityKnown, routing.TableMain)
	known.From, known.SuppressPrefixLength, known.SuppressGroup = prefix("192.0.2.7/32"), routing.Some(7), routing.Some(28008)
	moved := known
	moved.SuppressGroup = routing.Some(77)
	never := routing.Rule{Family: routing.IPv4, Priority: routing.PriorityUnreachable, From: prefix("192.0.2.7/32"), Action: routing.ActionUnreachable, Protocol: routing.Multihomed}
	finding := rule(routing.IPv6, routing.PriorityBinding, 10001)
	finding.From, finding.FindSource = prefix("2001:db8::/64"), true
	alias := rule(routing.IPv4, 20000, 10000)
	alias.IIF = routing.LoopbackAlias

	changed := route(routing.IPv4, "0.0.0.0/0", "192.0.2.1", 2)
	changed.Attributes = routing.RareAttributes{Metrics: routing.Metrics{2: 1400}}.Share()
	six := route(routing.IPv6, "::/0", "fe80::1", 2)
	six.Preference = routing.PreferenceHigh
	shared := route(routing.IPv6, "::/0", "fe80::1", 2)
	shared.Table, shared.Weight = 10999, 2
	shared.Attributes = routing.RareAttributes{Legs: routing.PackLegs([]routing.Leg{{Gateway: addr("fe80::2"), Device: 3, Weight: 1}})}.Share()
	thrown := route(routing.IPv4, "198.51.100.0/24", "", 0)
	thrown.Type, thrown.Scope = routing.RouteThrow, routing.ScopeUniverse
	old := route(routing.IPv4, "203.0.113.0/24", "", 2)
	old.Table = 9000
	gone := route(routing.IPv4, "203.0.113.0/24", "", 99)

	return preview.Facts{
		Regroup: []routing.Op{
			{Verb: routing.DeleteRule, Rule: known}, {Verb: routing.SetGroup, Index: 2, Group: 77}, {Verb: routing.AddRule, Rule: moved},
		},
		Ops: []routing.Op{
			{Verb: routing.SetGroup, Index: 3, Group: 77, Reason: routing.Reason{Decision: routing.MarkUplink, Link: hostile}},
			{Verb: routing.AddRoute, Route: route(routing.IPv4, "192.0.2.0/24", "", 2), Reason: routing.Reason{Decision: routing.OnLink, Link: "wan0"}},
			{Verb: routing.AddRoute, Route: thrown, Reason: routing.Reason{Decision: routing.ThrownByMain, Link: "wan0"}},
			{Verb: routing.ReplaceRoute, Route: changed, Reason: routing.Reason{Decision: routing.Copied, Link: "wan0"}},
			{Verb: routing.ReplaceRoute, Route: six, Reason: routing.Reason{Decision: routing.Copied, Link: "wan0"}},
			{Verb: routing.ReplaceRoute, Route: shared, Reason: routing.Reason{Decision: routing.FollowLiving}},
			{Verb: routing.AddRule, Rule: moved, Reason: routing.Reason{Decision: routing.KeepKnown, Link: "wan0"}},
			{Verb: routing.AddRule, Rule: alias, Reason: routing.Reason{Decision: routing.Again, Link: "wan0"}},
			{Verb: routing.AddRule, Rule: finding, Reason: routing.Reason{Decision: routing.Bind, Link: "wan0"}},
			{Verb: routing.AddRule, Rule: device, Reason: link},
			{Verb: routing.AddRule, Rule: odd, Reason: routing.Reason{Decision: routing.FollowDevice, Link: hostile}},
			{Verb: routing.MoveRule, Rule: source, Reason: routing.Reason{Decision: routing.FollowSource, Link: "wan0"}},
			{Verb: routing.DeleteRule, Rule: known},
			{Verb: routing.DeleteRule, Rule: never},
			{Verb: routing.DeleteRoute, Route: route(routing.IPv4, "203.0.113.0/24", "", 2)},
			{Verb: routing.DeleteRoute, Route: gone},
			{Verb: routing.ResetGroup, Index: 4},
		},
		Outdated: []routing.Op{{Verb: routing.DeleteRoute, Route: old}},
		Answers: []answers.Op{
			{Phase: answers.BeforeRules, Verb: answers.DeleteElement, Element: answers.Element{Set: "answers4", Address: addr("192.0.2.9"), Number: 3}},
			{Phase: answers.AfterRules, Verb: answers.AddTable},
			{Phase: answers.AfterRules, Verb: answers.AddSet, Set: set("pair6")},
			{Phase: answers.AfterRules, Verb: answers.AddSet, Set: set("answers4")},
			{Phase: answers.AfterRules, Verb: answers.AddChain, Chain: chain("answers")},
			{Phase: answers.AfterRules, Verb: answers.AddChain, Chain: chain("link1")},
			{Phase: answers.AfterRules, Verb: answers.AddRule, Rule: answers.Rule{Chain: "answers", IIF: "b\x1b$*", Action: answers.ActionAccept, Decision: answers.SkipLoopback}},
			{Phase: answers.AfterRules, Verb: answers.AddRule, Handle: 7, Rule: answers.Rule{Chain: "link1", Action: answers.ActionMark, Set: routing.Mark{Value: 1 << 24, Mask: 0xff << 24}, Decision: answers.SetMark}},
			{Phase: answers.AfterRules, Verb: answers.AddElement, Element: answers.Element{Set: "pair6", Address: addr("2001:db8::7"), Interface: "wan0"}},
			{Phase: answers.AfterRules, Verb: answers.AddElement, Element: answers.Element{Set: "pair6", Address: addr("2001:db8::8"), Interface: hostile}},
			{Phase: answers.Leftovers, Verb: answers.DeleteRule, Rule: answers.Rule{Chain: "link1"}, Handle: 9},
			{Phase: answers.Leftovers, Verb: answers.DeleteSet, Set: set("answers6")},
			{Phase: answers.Leftovers, Verb: answers.DeleteChain, Chain: chain("strays")},
		},
		Former: map[routing.RouteKey]preview.Former{
			changed.Key(): {Route: route(routing.IPv4, "0.0.0.0/0", "192.0.2.1", 2), Stands: true},
			six.Key():     {Route: route(routing.IPv6, "::/0", "fe80::1", 2), Stands: true},
			shared.Key():  {Replace: true},
		},
		Names:    map[int]string{2: "wan0", 3: hostile, 4: "lan0"},
		Profiles: map[int]string{2: "Büro \u202e", 3: hostile},
		Hidden:   []string{"the DNS servers in /run/dnsmasq/servers"},
		Unknown:  []string{"leases: no \x1b permission"},
	}
}

func set(name string) answers.Set {
	s, _ := answers.SetNamed(name)
	return s
}

func chain(name string) answers.Chain {
	c, _ := answers.ChainNamed(name)
	return c
}

// TestGolden has the whole output for facts with one of everything.
func TestGolden(t *testing.T) {
	t.Parallel()
	p := preview.Of(facts())
	golden.Compare(t, "plan.sh", []byte(p.Script()))
	var data bytes.Buffer
	encoder := json.NewEncoder(&data)
	encoder.SetIndent("", "  ")
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(p.Document()); err != nil {
		t.Fatal(err)
	}
	golden.Compare(t, "plan.json", data.Bytes())
	golden.Compare(t, "nothing.sh", []byte(preview.Of(preview.Facts{}).Script()))
	golden.Compare(t, "unknown.sh", []byte(preview.Of(preview.Facts{Unknown: []string{"all links"}}).Script()))
	if out, err := exec.CommandContext(t.Context(), "sh", "-n", "testdata/plan.sh").CombinedOutput(); err != nil {
		t.Errorf("sh cannot read the script: %v: %s", err, out)
	}
}

// TestAlias takes the second name of the loopback interface away when no rule says it any more.
// TestHead: the first line tells how to make the changes, but not where that would be wrong.
func TestHead(t *testing.T) {
	t.Parallel()
	one := []preview.Step{{Action: preview.NameLoopback}}
	for _, c := range []struct {
		plan preview.Plan
		want string
	}{
		{preview.Plan{}, "# multihomed would change nothing."},
		{preview.Plan{Steps: one}, "# multihomed would make 1 change now. To make them: multihomectl plan | sh"},
		{preview.Plan{Steps: one, Unknown: []string{"x"}}, "# multihomed would make 1 change, as far as could be read. Something may be missing."},
		// The daemon would undo what another configuration wants.
		{preview.Plan{Steps: one, File: "a\nb.toml"}, `# Started with a\x0ab.toml, multihomed would make 1 change.`},
		{preview.Plan{File: "b.toml"}, "# Started with b.toml, multihomed would change nothing."},
	} {
		if got, _, _ := strings.Cut(c.plan.Script(), "\n"); got != c.want {
			t.Errorf("%q, want %q", got, c.want)
		}
	}
}

func TestAlias(t *testing.T) {
	t.Parallel()
	said := rule(routing.IPv4, 20000, 10000)
	said.IIF = routing.LoopbackAlias
	for _, c := range []struct {
		facts preview.Facts
		want  string
	}{
		{preview.Facts{Alias: true, KeepAlias: true}, ""},
		{preview.Facts{Alias: true}, "ip link property del dev lo altname multihomed-lo"},
		{preview.Facts{Alias: true, KeepAlias: true, Ops: []routing.Op{{Verb: routing.AddRule, Rule: said}}}, "ip -4 rule add pref 20000 from all iif multihomed-lo lookup 10000 protocol 150"},
		{preview.Facts{KeepAlias: true, Ops: []routing.Op{{Verb: routing.AddRule, Rule: said}}}, "ip link property add dev lo altname multihomed-lo\nip -4 rule add pref 20000 from all iif multihomed-lo lookup 10000 protocol 150"},
	} {
		var got []string
		for _, s := range preview.Of(c.facts).Steps {
			got = append(got, s.Commands...)
		}
		if strings.Join(got, "\n") != c.want {
			t.Errorf("got %q, want %q", got, c.want)
		}
	}
}

// netlinkAttribute is one as the kernel reports it.
func netlinkAttribute(kind uint16, value ...byte) string {
	b := binary.NativeEndian.AppendUint16(nil, uint16(4+len(value)))
	b = append(binary.NativeEndian.AppendUint16(b, kind), value...)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return string(b)
}

// TestEncapsulation: routes of main that tables copy may have one. What has no words is no command.
func TestEncapsulation(t *testing.T) {
	t.Parallel()
	label := func(n uint32, last byte) []byte {
		b := binary.BigEndian.AppendUint32(nil, n<<12)
		b[2] |= last
		return b
	}
	eight := func(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }
	for _, c := range []struct {
		kind       uint16
		attributes string
		want       string
	}{
		{1, netlinkAttribute(1, append(label(100, 0), label(2000, 1)...)...) + netlinkAttribute(2, 9), "encap mpls 100/2000 ttl 9"},
		{
			2, netlinkAttribute(1, eight(7)...) + netlinkAttribute(2, 192, 0, 2, 7) + netlinkAttribute(3, 0, 0, 0, 0) + netlinkAttribute(5, 0) + netlinkAttribute(4, 8) + netlinkAttribute(6, 0, 0),
			"encap ip id 7 dst 192.0.2.7 ttl 8",
		},
		{4, netlinkAttribute(2, addr("2001:db8::7").AsSlice()...) + netlinkAttribute(4, 3) + netlinkAttribute(5, 4), "encap ip6 dst 2001:db8::7 hoplimit 3 tc 4"},
		{2, netlinkAttribute(6, 1, 0), ""},
		{5, netlinkAttribute(1, 0), ""},
		{2, netlinkAttribute(99, 0), ""},
		{1, netlinkAttribute(1, 1, 2, 3), ""},
		{2, "\x09\x00\x01", ""},
	} {
		r := route(routing.IPv4, "10.0.0.0/8", "192.0.2.1", 2)
		r.Attributes = routing.RareAttributes{EncapsulationType: c.kind, Encapsulation: c.attributes}.Share()
		s := preview.Of(preview.Facts{Names: map[int]string{2: "wan0"}, Ops: []routing.Op{{Verb: routing.AddRoute, Route: r}}}).Steps[0]
		got := strings.Join(s.Commands, "\n")
		if c.want == "" && (got != "" || s.Note == "") || c.want != "" && !strings.HasSuffix(got, " metric 1073741824 "+c.want) {
			t.Errorf("type %d %q becomes %q, %q, want %q", c.kind, c.attributes, got, s.Note, c.want)
		}
	}
}

// TestNoWords: a change that ip(8) cannot say is shown without a command.
func TestNoWords(t *testing.T) {
	t.Parallel()
	unknown := rule(routing.IPv4, 10000, 10000)
	unknown.Unknown = true
	act := rule(routing.IPv4, 10000, 10000)
	act.Action = 99
	metric := func(i int, v, lock uint32) routing.Op {
		r := route(routing.IPv4, "10.0.0.0/8", "192.0.2.1", 2)
		metrics := routing.Metrics{1: lock}
		metrics[i] = v
		r.Attributes = routing.RareAttributes{Metrics: metrics}.Share()
		return routing.Op{Verb: routing.AddRoute, Route: r}
	}
	odd := route(routing.IPv6, "::/0", "fe80::1", 2)
	odd.Preference = 2
	for _, op := range []routing.Op{
		{Verb: routing.AddRule, Rule: unknown},
		{Verb: routing.AddRule, Rule: act},
		metric(12, 2, 0), metric(13, 200, 0), metric(15, 1, 1<<15),
		{Verb: routing.AddRoute, Route: odd},
		{Verb: routing.AddRoute, Route: route(routing.IPv4, "10.0.0.0/8", "192.0.2.1", 9)},
		{Verb: routing.SetGroup, Index: 9, Group: 1},
	} {
		p := preview.Of(preview.Facts{Names: map[int]string{2: "wan0"}, Ops: []routing.Op{op}})
		if s := p.Steps[0]; len(s.Commands) > 0 || !strings.HasPrefix(s.Note, "no command: ") || !strings.Contains(p.Script(), "# Note: ") {
			t.Errorf("%s becomes %q, note %q", op, s.Commands, s.Note)
		}
	}
}

// FuzzQuote: a shell reads back every name, and the word itself holds nothing that does not print.
func FuzzQuote(f *testing.F) {
	for _, s := range []string{"", "wan0", hostile, "-n", "'", "\\", "$x", "!", "~", "#a", "a\u202eb", "é\xff", "\x7f", "%s", "\\033"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if strings.ContainsAny(s, "\x00\n") {
			return // The kernel lets neither into a name.
		}
		word := shell.Quote(s)
		for _, c := range word {
			if c < ' ' || c == 0x7f || c == '\ufffd' && !strings.Contains(s, "\ufffd") {
				t.Errorf("%q becomes %q", s, word)
			}
		}
		out, err := exec.CommandContext(t.Context(), "sh", "-c", "printf '%s.' "+word).Output()
		if err != nil || string(out) != s+"." {
			t.Errorf("%q becomes %q, which sh reads as %q, %v", s, word, out, err)
		}
	})
}

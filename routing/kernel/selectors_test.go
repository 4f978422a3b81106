package kernel_test

import (
	"encoding/binary"
	"fmt"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"multihomed/routing"
	"multihomed/routing/kernel"
)

// A selectorCase is a rule of somebody else: made by ip(8), or, where the
// attributes are younger than iproute2 6.1, by a request of its own.
type selectorCase struct {
	family routing.Family
	// args are the words of ip-rule(8) after the priority.
	args string
	// raw appends the attributes to a rule that looks table 77 up.
	raw func(kernel.Body)
	// want is what the rule reads like, empty for "as ip(8) prints it".
	want string
}

func (c selectorCase) String() string {
	if c.raw != nil {
		return fmt.Sprintf("%s %s", c.family, c.want)
	}
	return fmt.Sprintf("%s %s", c.family, c.args)
}

func selectorCases() []selectorCase {
	var out []selectorCase
	for _, f := range routing.Families() {
		for _, args := range []string{
			"from all lookup 77", "from all lookup main", "from all fwmark 0x1 lookup 77", "from all fwmark 0x7/0xff lookup 77",
			"from all fwmark 0/0xff lookup 77", "from all fwmark 0x80000001/0x7fffffff lookup 77",
			"from all uidrange 0-999 lookup 77", "from all uidrange 1001-4294967294 lookup 77", "from all uidrange 5-5 lookup 77",
			"from all ipproto tcp lookup 77", "from all ipproto 99 lookup 77",
			"from all ipproto udp sport 53 lookup 77", "from all ipproto udp dport 53 lookup 77",
			"from all ipproto tcp sport 1000-2000 dport 80-81 lookup 77", "from all sport 7 lookup 77",
			"from all tos 0x10 lookup 77",
			"from all iif lo lookup 77", "from all iif wan0 lookup 77", "from all iif absent0 lookup 77",
			"from all oif wan0 lookup 77", "from all oif absent0 lookup 77",
			"not from all fwmark 0xca6c lookup 77", "not from all fwmark 0x1 lookup 77", "not from all iif wan0 lookup 77",
			"from all fwmark 0x1 goto 9000", "from all fwmark 0x1 goto 9001", "from all fwmark 0x1 iif wan0 goto 9000",
			"from all goto 9000", "from all nop", "from all fwmark 0x1 nop",
			"from all blackhole", "from all prohibit", "from all unreachable", "from all fwmark 0x1 unreachable",
			"from all tun_id 7 lookup 77", "from all tun_id 4294967297 lookup 77",
			"from all l3mdev", "from all fwmark 0x1 l3mdev", "from all uidrange 5-5 l3mdev",
			"from all lookup 77 suppress_prefixlength 0", "from all lookup 77 suppress_prefixlength 9",
			"from all lookup 77 suppress_ifgroup 28008", "from all lookup main suppress_prefixlength 7 suppress_ifgroup 28008",
			"from all iif wan0 lookup 77 suppress_prefixlength 0",
		} {
			out = append(out, selectorCase{family: f, args: args})
		}
		for args, want := range map[string]func(kernel.Body){
			"dscp 46":           func(b kernel.Body) { b.Attribute8(25, 46) },
			"dscp 0":            func(b kernel.Body) { b.Attribute8(25, 0) },
			"dscp 10":           func(b kernel.Body) { b.Attribute8(25, 10) },
			"dscp 0x8/0x38":     func(b kernel.Body) { b.Attribute8(25, 8); b.Attribute8(30, 0x38) },
			"sport 0x10/0xfff0": func(b kernel.Body) { b.Attribute(23, ports(16, 16)); b.Attribute(28, port(0xfff0)) },
			"dport 0x10/0xfff0": func(b kernel.Body) { b.Attribute(24, ports(16, 16)); b.Attribute(29, port(0xfff0)) },
			"dport 16":          func(b kernel.Body) { b.Attribute(24, ports(16, 16)); b.Attribute(29, port(0xffff)) },
		} {
			out = append(out, selectorCase{family: f, raw: want, want: "from all " + args + " lookup 77"})
		}
	}
	for _, args := range []string{
		"from 192.0.2.1 lookup 77", "from 192.0.2.0/24 lookup 77", "from 192.0.2.1 to 198.51.100.0/24 lookup 77",
		"from all to 198.51.100.0/24 lookup 77", "from 0.0.0.0/1 lookup 77", "not from 192.0.2.0/24 lookup 77",
		"from 192.0.2.0/24 fwmark 0x1 uidrange 5-5 ipproto tcp dport 80 iif lo oif wan0 goto 9000",
		"from all lookup 77 realms 5", "from all lookup 77 realms 5/6", "from all fwmark 0x1 lookup 77 realms 5",
		"from all to 198.51.100.0/24 tos 0x10 lookup 77",
	} {
		out = append(out, selectorCase{family: routing.IPv4, args: args})
	}
	for _, args := range []string{
		"from 2001:db8::1 lookup 77", "from 2001:db8::/64 lookup 77", "from all to 2001:db8::/64 lookup 77",
		"from 2001:db8::/64 iif lo unreachable", "from ::/1 lookup 77",
	} {
		out = append(out, selectorCase{family: routing.IPv6, args: args})
	}
	for args, want := range map[string]func(kernel.Body){
		"flowlabel 0x12345":     func(b kernel.Body) { b.Attribute(26, word(0x12345)); b.Attribute(27, word(0xfffff)) },
		"flowlabel 0x5/0xf":     func(b kernel.Body) { b.Attribute(26, word(5)); b.Attribute(27, word(15)) },
		"flowlabel 0/0xf0":      func(b kernel.Body) { b.Attribute(26, word(0)); b.Attribute(27, word(0xf0)) },
		"dscp 46 flowlabel 0x1": func(b kernel.Body) { b.Attribute8(25, 46); b.Attribute(26, word(1)); b.Attribute(27, word(0xfffff)) },
	} {
		out = append(out, selectorCase{family: routing.IPv6, raw: want, want: "from all " + args + " lookup 77"})
	}
	slices.SortFunc(out, func(a, b selectorCase) int { return strings.Compare(a.String(), b.String()) })
	return out
}

func port(p uint16) []byte { return binary.NativeEndian.AppendUint16(nil, p) }

func ports(first, last uint16) []byte { return binary.NativeEndian.AppendUint16(port(first), last) }

func word(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v) }

// make has the rule made by somebody else.
func (c selectorCase) make(h *host, p routing.Priority) {
	h.Helper()
	if c.raw == nil {
		family := map[routing.Family]string{routing.IPv4: "-4", routing.IPv6: "-6"}[c.family]
		h.ip(fmt.Sprintf("%s rule add priority %d protocol static %s", family, p, c.args))
		return
	}
	err := h.raw.Do(unix.RTM_NEWRULE, unix.NLM_F_CREATE, func(b kernel.Body) {
		b.Bytes(byte(c.family), 0, 0, 0, 77, 0, 0, 1)
		b.Word(0)
		b.Attribute32(6, uint32(p))
		b.Attribute8(21, 4)
		c.raw(b)
	})
	if err != nil {
		h.Fatalf("%s: %v", c, err)
	}
}

var (
	// ip -N knows no names, whatever /etc/iproute2 says; Rule.String knows those
	// that the kernel's headers and protocols(5) give.
	numbers = strings.NewReplacer("lookup 254", "lookup main", "ipproto-6 ", "tcp ", "ipproto-17 ", "udp ",
		" 6 proto 4", " blackhole proto static", " 7 proto 4", " unreachable proto static", " 8 proto 4", " prohibit proto static",
		"proto 4", "proto static")
	// What the kernel notes is no part of the rule.
	notes = regexp.MustCompile(`\[(detached|unresolved)\] ?`)
)

// printed is what ip(8) prints of the rule of a priority.
func (h *host) printed(f routing.Family, p routing.Priority) string {
	h.Helper()
	family := map[routing.Family]string{routing.IPv4: "-4", routing.IPv6: "-6"}[f]
	out, err := exec.CommandContext(h.Context(), "ip", family, "-N", "rule", "list", "priority", fmt.Sprint(p)).Output()
	must(h, err)
	return strings.Join(strings.Fields(numbers.Replace(notes.ReplaceAllString(string(out), ""))), " ")
}

// foreign makes the rule and returns what the mirror reads.
func (c selectorCase) foreign(h *host, m *kernel.Mirror, p routing.Priority) routing.Rule {
	h.Helper()
	c.make(h, p)
	must(h, m.Drain())
	var found []routing.Rule
	m.View(func(s *kernel.State) {
		for _, r := range s.ForeignRules() {
			if r.Family == c.family && r.Priority == p {
				found = append(found, r)
			}
		}
	})
	if len(found) != 1 {
		h.Fatalf("%s: %d rules: %v", c, len(found), found)
	}
	return found[0]
}

// TestSelectors: a rule with any selector is read, printed as ip(8) prints it,
// and made again by our writer, the same but for its author.
func TestSelectors(t *testing.T) {
	h := newHost(t)
	h.veth("wan0")
	m := h.mirror(kernel.Config{})
	w := h.writer(m)
	h.ip("rule add priority 9000 lookup 99")
	h.ip("-6 rule add priority 9000 lookup 99")
	for i, c := range selectorCases() {
		p := routing.Priority(7000 + i)
		r := c.foreign(h, m, p)
		want := h.printed(c.family, p)
		if c.want != "" {
			want = fmt.Sprintf("%d: %s proto static", p, c.want)
		}
		if r.String() != want {
			t.Errorf("%s: reads %q, want %q", c, r, want)
		}
		if r.Unknown {
			t.Errorf("%s: %+v is not known", c, r)
		}
		ours := r
		ours.Protocol = routing.Multihomed
		h.apply(w, addRule(ours))
		must(t, m.Drain())
		m.View(func(s *kernel.State) {
			if s.CountRule(r) != 1 || s.CountRule(ours) != 1 {
				t.Errorf("%s: foreign %d times, ours %d times: %+v", c, s.CountRule(r), s.CountRule(ours), s.BandOrder(c.family, p))
			}
		})
		h.apply(w, dropRule(ours))
		must(t, m.Drain())
		m.View(func(s *kernel.State) {
			if s.CountRule(r) != 1 || s.CountRule(ours) != 0 {
				t.Errorf("%s, after the deletion: foreign %d times, ours %d times", c, s.CountRule(r), s.CountRule(ours))
			}
		})
	}
	audit(t, m)
}

// TestOneOfMany puts all rules into one priority, where many differ in one
// selector only, and takes out and moves one after the other. The kernel deletes
// the first rule that has the attributes of a request, whatever else it has.
func TestOneOfMany(t *testing.T) {
	const priority = 8500
	h := newHost(t)
	h.veth("wan0")
	m := h.mirror(kernel.Config{})
	w := h.writer(m)
	var rules []routing.Rule
	for i, c := range selectorCases() {
		r := c.foreign(h, m, routing.Priority(7000+i))
		r.Priority, r.Protocol = priority, routing.Multihomed
		if !slices.Contains(rules, r) {
			rules = append(rules, r)
		}
	}
	var ops []routing.Op
	for _, r := range rules {
		foreign := r
		foreign.Protocol = 4
		must(t, h.raw.Do(unix.RTM_NEWRULE, unix.NLM_F_CREATE, func(b kernel.Body) { b.Rule(foreign) }))
		ops = append(ops, addRule(r))
	}
	expect := func(what string, want []routing.Rule) {
		t.Helper()
		must(t, m.Drain())
		m.View(func(s *kernel.State) {
			n := 0
			for _, f := range routing.Families() {
				n += len(s.RuleOrder(f, priority))
				if foreign := len(s.BandOrder(f, priority)) - len(s.RuleOrder(f, priority)); foreign == 0 {
					t.Fatalf("%s: the foreign rules of %s are gone", what, f)
				}
			}
			for _, r := range want {
				foreign := r
				foreign.Protocol = 4
				if s.CountRule(r) != 1 || s.CountRule(foreign) != 1 {
					t.Fatalf("%s: %v stands %d times, its twin %d times", what, r, s.CountRule(r), s.CountRule(foreign))
				}
			}
			if n != len(want) {
				t.Fatalf("%s: %d rules, want %d", what, n, len(want))
			}
		})
	}
	// Those that select more come first: they are hit by what selects less.
	slices.SortFunc(ops, func(a, b routing.Op) int { return len(b.Rule.String()) - len(a.Rule.String()) })
	h.apply(w, ops...)
	expect("added", rules)
	h.apply(w, ops...)
	expect("added again", rules)
	for i := range ops {
		h.apply(w, moveRule(ops[len(ops)-1-i].Rule))
		expect(fmt.Sprintf("moved %v", ops[len(ops)-1-i].Rule), rules)
	}
	for _, r := range rules {
		h.apply(w, dropRule(r))
		expect(fmt.Sprintf("deleted %v", r), slices.DeleteFunc(slices.Clone(rules), func(o routing.Rule) bool { return o == r }))
		h.apply(w, addRule(r))
		expect(fmt.Sprintf("added %v", r), rules)
	}
	half := ops[len(ops)/2:]
	for i := range half {
		half[i].Verb = routing.DeleteRule
	}
	h.apply(w, half...)
	var left []routing.Rule
	for _, op := range ops[:len(ops)/2] {
		left = append(left, op.Rule)
	}
	expect("deleted half of them at once", left)
	audit(t, m)
}

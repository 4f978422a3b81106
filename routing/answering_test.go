package routing_test

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"multihomed/routing"
	"multihomed/routing/kerneltest"
	"multihomed/routing/lookup"
)

// bothAnswered asks for answers in both families.
func bothAnswered() routing.Answers {
	return routing.Answers{Families: routing.ByFamily[bool]{true, true}}
}

// numbered returns the mark of each number of a family, with the interface that answers.
func numbered(h *host, f routing.Family) map[uint32]int {
	out := map[uint32]int{}
	answers, _ := h.planner.Answers(f)
	for _, a := range answers {
		out[h.planner.Answering().Mask.Mark(a.Number).Value] = a.Index
	}
	return out
}

// answersStray fails where a packet with the mark of an uplink may leave by another one.
func answersStray(t tb, h *host, marks map[uint32]int, f routing.Family, uplinks []int, why string) {
	t.Helper()
	for mark, own := range marks {
		for _, to := range far {
			if routing.FamilyOf(to) != f {
				continue
			}
			whole := h.kernel.Lookup(lookup.Flow{From: guest(f), To: to, IIF: "docker0", Mark: mark})
			for v := &whole; v != nil; v = v.Otherwise {
				if len(v.Legs) > 0 && !slices.Contains(uplinks, v.Legs[0].Device) {
					continue // As in strays.
				}
				for _, leg := range v.Legs {
					if slices.Contains(uplinks, leg.Device) && leg.Device != own {
						t.Fatalf("%s: an answer of interface %d, marked %#x, to %s leaves by %s (%s)\n%s", why, own, mark, to, leg, v.Rule, h.kernel.Text())
					}
				}
			}
		}
	}
}

// guest is the address of a container.
func guest(f routing.Family) netip.Addr {
	if f == routing.IPv4 {
		return addr("172.17.0.2")
	}
	return addr("fd00::9")
}

// TestAnswersNeverStray is promise 3 for what is forwarded: at any step of any pass, a number
// that stands leads to its link or nowhere.
func TestAnswersNeverStray(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		h := newHost()
		foreigners(t, h)
		genRefusals(t, h)
		h.planner.SetFailover(genFailover(t, true))
		h.planner.SetAnswers(bothAnswered())
		diverted := [2]map[uint32]int{{}, {}}
		for range rapid.IntRange(2, 6).Draw(t, "events") {
			marked, happened := h.linkHappens(t)
			if !happened {
				continue
			}
			h.kernel.Step = func(op routing.Op) {
				for i, f := range routing.Families() {
					answersStray(t, h, diverted[i], f, marked[f], "after "+op.String())
				}
			}
			h.converge(t)
			h.kernel.Step = nil
			a := bothAnswered()
			for i, f := range routing.Families() {
				diverted[i] = numbered(h, f)
				answersStray(t, h, diverted[i], f, uplinks(h, f), "at rest")
				a.Diverted[i] = map[uint8]struct{}{}
				for mark := range diverted[i] {
					a.Diverted[i][uint8(mark>>24)] = struct{}{}
				}
			}
			h.planner.SetAnswers(a)
			h.converge(t)
			h.settled(t)
		}
	})
}

// TestRungsOfAnswers: each table of an uplink has a number, of its place in the range, and
// three rules; a local link has none, and what is off has none.
func TestRungsOfAnswers(t *testing.T) {
	t.Parallel()
	h := hostOf(t, wan0(), wan1(), link(4, "lan0", address("10.1.1.1/24", 0)))
	rungs := func() (lines []string) {
		for r := range h.kernel.Rules() {
			if r.Priority >= routing.PriorityAnswerKnown && r.Priority <= routing.PriorityAnswerNever && r.Family == routing.IPv4 {
				lines = append(lines, r.String())
			}
		}
		return lines
	}
	equalLines(t, "rules without answers", nil, rungs())
	h.planner.SetAnswers(routing.Answers{Families: routing.ByFamily[bool]{true, false}})
	h.converge(t)
	h.settled(t)
	t0, t1 := tableOf(h, 2, routing.IPv4), tableOf(h, 3, routing.IPv4)
	m0, m1 := markOf(h, t0), markOf(h, t1)
	equalLines(t, "rules of answers", []string{
		"9099: from all fwmark " + m0 + " lookup main suppress_prefixlength 7 suppress_ifgroup 28008",
		"9099: from all fwmark " + m1 + " lookup main suppress_prefixlength 7 suppress_ifgroup 28008",
		"9100: from all fwmark " + m0 + " lookup " + t0.String() + "",
		"9100: from all fwmark " + m1 + " lookup " + t1.String() + "",
		"9101: from all fwmark " + m0 + " unreachable",
		"9101: from all fwmark " + m1 + " unreachable",
	}, rungs())

	// While packets are marked with a number that leads nowhere any more, it is refused.
	answers, _ := h.planner.Answers(routing.IPv4)
	a := routing.Answers{Families: routing.ByFamily[bool]{true, false}}
	a.Diverted[0] = map[uint8]struct{}{answers[0].Number: {}, answers[1].Number: {}}
	h.planner.SetAnswers(a)
	h.remove(2)
	h.converge(t)
	h.settled(t)
	equalLines(t, "rules after a link went", []string{
		"9099: from all fwmark " + m1 + " lookup main suppress_prefixlength 7 suppress_ifgroup 28008",
		"9100: from all fwmark " + m1 + " lookup " + t1.String() + "",
		"9101: from all fwmark " + m0 + " unreachable",
		"9101: from all fwmark " + m1 + " unreachable",
	}, rungs())
	h.planner.SetAnswers(routing.Answers{})
	h.converge(t)
	h.settled(t)
	equalLines(t, "rules after answers were switched off", nil, rungs())
}

func tableOf(h *host, index int, f routing.Family) routing.TableID {
	plan, _ := h.planner.Link(index)
	for k, t := range plan.Link.Tables {
		if k.Family == f {
			return t
		}
	}
	return 0
}

func markOf(h *host, table routing.TableID) string {
	answers, _ := h.planner.Answers(routing.IPv4)
	for _, a := range answers {
		if a.Table == table {
			mark := h.planner.Answering().Mask.Mark(a.Number)
			return fmt.Sprintf("%#x/%#x", mark.Value, mark.Mask)
		}
	}
	return "none"
}

// TestNumbersOfAnswers: a number stays while others come and go, differs from all others, and
// is none by which a rule of somebody else would take the packet.
func TestNumbersOfAnswers(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		mask := rapid.SampledFrom([]routing.MarkMask{0xff000000, 0xf0, 0x7, 0x1fe0000}).Draw(t, "mask")
		if err := mask.Check(); err != nil {
			t.Fatal(err)
		}
		h := newHost()
		foreigners(t, h)
		theirs := routing.Rule{
			Family: routing.IPv4, Priority: 32700, Action: routing.ActionLookup, Table: 77, Protocol: kerneltest.ProtocolStatic,
			Mark: routing.Mark{Value: rapid.Uint32().Draw(t, "value"), Mask: rapid.SampledFrom([]uint32{0xffffffff, 0xffff0000, 0x1000000, 0xff0000, 0xff}).Draw(t, "their mask")},
		}
		theirs.Mark.Value &= theirs.Mark.Mask
		if err := h.kernel.AddForeignRule(theirs); err != nil {
			t.Fatal(err)
		}
		for _, l := range []routing.Link{wan0(), wan1()} {
			h.install(l)
		}
		a := bothAnswered()
		a.Mask = mask
		h.planner.SetAnswers(a)
		h.converge(t)
		h.settled(t)
		seen := map[uint8]bool{}
		answers, left := h.planner.Answers(routing.IPv4)
		if len(answers)+left != 2 {
			t.Fatalf("%d tables have numbers and %d have none", len(answers), left)
		}
		for _, one := range answers {
			if seen[one.Number] || one.Number == 0 || one.Number > mask.Last() {
				t.Fatalf("number %d of %v", one.Number, answers)
			}
			seen[one.Number] = true
			mark := mask.Mark(one.Number)
			if bound := mask.Bound(one.Number); bound.Value == mark.Value || bound.Value&^uint32(mask) != 0 || bound.Mask != mark.Mask {
				t.Fatalf("the mark %v of bound sockets beside %v", bound, mark)
			}
			if mark.Value&theirs.Mark.Mask == theirs.Mark.Value && theirs.Mark.Value != 0 {
				t.Fatalf("%v is taken by %s", mark, theirs)
			}
		}
		h.remove(2)
		h.converge(t)
		h.settled(t)
		rest, _ := h.planner.Answers(routing.IPv4)
		for _, one := range rest {
			if !slices.Contains(answers, one) {
				t.Fatalf("%v became %v when another link went", answers, rest)
			}
		}
	})
}

// TestMarkMask: bits that are no neighbours, too few and too many are refused.
func TestMarkMask(t *testing.T) {
	t.Parallel()
	for mask, sound := range map[routing.MarkMask]bool{
		0xff000000: true, 0x7: true, 0xff: true, 0: false, 0x3: false, 0x1ff: false, 0x5: false, 0xff0000ff: false, 0xf00f: false,
	} {
		if err := mask.Check(); (err == nil) != sound {
			t.Errorf("%#x: %v", uint32(mask), err)
		}
	}
	if most := routing.DefaultMarkMask.Last(); most != 127 {
		t.Errorf("%d numbers", most)
	}
}

// TestAnswersOfMoreLinks: with more tables than numbers, some have none, and the planner says
// how many.
func TestAnswersOfMoreLinks(t *testing.T) {
	t.Parallel()
	h := hostOf(t, wan0(), wan1())
	a := bothAnswered()
	a.Mask = 0x7
	h.planner.SetAnswers(a)
	h.install(otherUplink(4, "wan2", "198.18.0.2/24", "198.18.0.1", 110))
	h.install(otherUplink(5, "wan3", "198.18.1.2/24", "198.18.1.1", 120))
	h.converge(t)
	h.settled(t)
	answers, left := h.planner.Answers(routing.IPv4)
	if len(answers) != 3 || left != 1 {
		t.Errorf("%d numbers, %d tables without one: %v", len(answers), left, answers)
	}
}

func otherUplink(index int, name, own, gateway string, metric uint32) routing.Link {
	return link(index, name, address(own, metric), route(default4, gateway, metric))
}

package preview

import (
	"errors"
	"fmt"
	"slices"
	"strconv"

	"multihomed/internal/shell"
	"multihomed/routing"
	"multihomed/routing/answers"
)

// Facts are what is to change, in the order in which it is changed.
type Facts struct {
	// Regroup moves uplinks of an earlier configuration into the group of this one. It is done first.
	// Ops are the differences of groups after it, and those of rules before it.
	Regroup []routing.Op
	// Ops are the operations of a pass. Outdated are deletions of routes in tables of an earlier
	// configuration, which come last.
	Ops, Outdated []routing.Op
	// Answers are the changes of the nft table.
	Answers []answers.Op
	// Former are the routes that ReplaceRoute replaces.
	Former map[routing.RouteKey]Former
	// Names are those of the interfaces, by index, and Profiles those of their configurations.
	Names, Profiles map[int]string
	// Alias says that the loopback interface has its second name (routing.LoopbackAlias), KeepAlias
	// that a rule needs it after the changes.
	Alias, KeepAlias bool
	// Hidden names what a pass does besides, in sentences.
	Hidden []string
	// Unknown says what could not be read, in sentences: the plan may lack something then.
	Unknown []string
}

// A Former is what stands where a route goes.
type Former struct {
	// Route is ours, if Stands.
	Route  routing.Route
	Stands bool
	// Replace says that one message may replace what is there: no third route shares the place.
	Replace bool
}

// A Plan is a list of steps.
type Plan struct {
	Steps           []Step
	Hidden, Unknown []string
	// File is another configuration that was planned with, empty for that of the daemon.
	File string
}

// An Action is what a step does.
type Action string

// Actions; those of routing are named as its verbs are.
const (
	NameLoopback   Action = "name loopback"
	UnnameLoopback Action = "unname loopback"
	NFTables       Action = "change nft table"
)

// A Step is one change. Where it has no commands, or they lack something, Note says why.
type Step struct {
	Action Action
	// Family is zero for what has none.
	Family routing.Family
	// Interface is the name of the interface that it is about, empty if about none or several.
	Interface string
	// Object is what changes in the words of iproute2, with names as they are.
	Object   string
	Reason   Reason
	Commands []string
	Note     string
}

// A Reason says why something changes.
type Reason struct {
	// Decision is empty for what goes.
	Decision routing.Decision
	Text     string
	// Link and Profile name the link that it serves, empty for none.
	Link, Profile string
}

// Of plans the commands.
func Of(f Facts) Plan {
	p := plan{Facts: f}
	ops := f.Ops
	for _, op := range f.Regroup {
		p.op(op, Reason{Text: "the configuration names another group of uplinks"})
		ops = without(ops, op)
	}
	p.Steps = append(p.Steps, nftSteps(answers.BeforeRules, f.Answers)...)
	for _, op := range ops {
		p.op(op, Reason{})
	}
	for _, op := range f.Outdated {
		p.op(op, Reason{Text: "the table is one of an earlier configuration"})
	}
	p.Steps = append(p.Steps, nftSteps(answers.AfterRules, f.Answers)...)
	p.Steps = append(p.Steps, nftSteps(answers.Leftovers, f.Answers)...)
	if f.Alias && !f.KeepAlias {
		p.Steps = append(p.Steps, Step{
			Action: UnnameLoopback, Interface: routing.Loopback, Object: "altname " + routing.LoopbackAlias, Reason: Reason{Text: "no rule says the name any more"},
			Commands: []string{"ip link property del dev " + routing.Loopback + " altname " + routing.LoopbackAlias},
		})
	}
	return Plan{Steps: p.Steps, Hidden: f.Hidden, Unknown: f.Unknown}
}

// without leaves out what is done to a rule already, and takes away a rule that nobody wants.
func without(ops []routing.Op, done routing.Op) []routing.Op {
	same := func(o routing.Op) bool { return o.Verb == done.Verb && o.Rule == done.Rule }
	switch at := slices.IndexFunc(ops, same); {
	case done.Verb != routing.AddRule && done.Verb != routing.DeleteRule:
		return ops
	case at >= 0:
		return slices.Delete(slices.Clone(ops), at, at+1)
	case done.Verb == routing.AddRule:
		return append(slices.Clone(ops), routing.Op{Verb: routing.DeleteRule, Rule: done.Rule})
	default:
		return ops
	}
}

// noFindSource is said of a rule that ip(8) cannot write whole: see [routing.Rule].
const noFindSource = "ip has no word for FIB_RULE_FIND_SADDR, so the rule does not select packets that have no source yet, as multihomed's does"

// A plan is one that is being made.
type plan struct {
	Facts
	Steps []Step
}

// errNameless says that an interface has gone.
var errNameless = errors.New("the interface has gone")

func (p *plan) name(index int) (string, error) {
	if name, known := p.Names[index]; known {
		return name, nil
	}
	return "", fmt.Errorf("%w: index %d", errNameless, index)
}

// label is a name for people.
func (p *plan) label(index int) string {
	if name, known := p.Names[index]; known {
		return name
	}
	return "if" + strconv.Itoa(index)
}

func (p *plan) reason(op routing.Op) Reason {
	if op.Reason.Decision == "" {
		if op.Verb == routing.DeleteRoute && slices.ContainsFunc(p.Ops, func(o routing.Op) bool { return o.Verb == routing.AddRoute && o.Route.Key() == op.Route.Key() }) {
			return Reason{Text: "it is added anew, because it cannot be replaced in place"}
		}
		return Reason{Text: "nothing needs it any more"}
	}
	r := Reason{Decision: op.Reason.Decision, Text: op.Reason.Decision.Sentence(), Link: op.Reason.Link}
	for index, name := range p.Names {
		if name == r.Link && r.Link != "" {
			r.Profile = p.Profiles[index]
		}
	}
	return r
}

func (p *plan) op(op routing.Op, why Reason) {
	if why == (Reason{}) {
		why = p.reason(op)
	}
	step := Step{Action: Action(op.Verb.String()), Reason: why}
	var err error
	switch op.Verb {
	case routing.SetGroup, routing.ResetGroup:
		step.Interface, step.Object = p.label(op.Index), "group "+strconv.FormatUint(uint64(op.Group), 10)
		step.Commands, err = p.group(op)
	case routing.AddRule, routing.MoveRule, routing.DeleteRule:
		step.Family, step.Object = op.Rule.Family, op.Rule.String()
		step.Interface = op.Rule.OIF
		if op.Verb != routing.DeleteRule {
			p.alias(op.Rule)
		}
		if step.Commands, err = ruleCommands(op); op.Rule.FindSource && op.Verb != routing.DeleteRule {
			step.Note = noFindSource
		}
	case routing.AddRoute, routing.ReplaceRoute, routing.DeleteRoute:
		step.Family = op.Route.Family
		name := ""
		if op.Route.Device != 0 {
			name = p.label(op.Route.Device)
		}
		step.Interface, step.Object = name, op.Route.Text(name)
		step.Commands, err = p.route(op)
	}
	if errors.Is(err, errNameless) && (op.Verb == routing.DeleteRoute || op.Verb == routing.ResetGroup) {
		return // It has gone with the interface.
	}
	if err != nil {
		step.Commands, step.Note = nil, "no command: "+err.Error()
	}
	p.Steps = append(p.Steps, step)
}

func (p *plan) group(op routing.Op) ([]string, error) {
	name, err := p.name(op.Index)
	if err != nil {
		return nil, err
	}
	return []string{"ip link set dev " + shell.Quote(name) + " group " + strconv.FormatUint(uint64(op.Group), 10)}, nil
}

// alias gives the loopback interface its second name before a rule that says it.
func (p *plan) alias(r routing.Rule) {
	if r.IIF != routing.LoopbackAlias || p.Alias {
		return
	}
	p.Alias = true
	p.Steps = append(p.Steps, Step{
		Action: NameLoopback, Interface: routing.Loopback, Object: "altname " + routing.LoopbackAlias,
		Reason:   Reason{Text: "rules say it for what this host sends, where \"iif lo\" has another meaning"},
		Commands: []string{"ip link property add dev " + routing.Loopback + " altname " + routing.LoopbackAlias},
	})
}

// standInGroup is an interface group that no interface is in, and the highest but one that ip(8) takes. A rule that suppresses it does what it
// does without.
const standInGroup = 0x7ffffffe

// ruleCommands are the commands of an operation on a rule. ip(8) adds no rule twice (NLM_F_EXCL), so a
// rule that moves has a stand-in meanwhile.
func ruleCommands(op routing.Op) ([]string, error) {
	verbs, rules := []string{"add"}, []routing.Rule{op.Rule}
	switch {
	case op.Verb == routing.DeleteRule:
		verbs[0] = deletes
	case op.Verb == routing.MoveRule && op.Rule.SuppressGroup.Set:
		verbs, rules = []string{deletes, "add"}, []routing.Rule{op.Rule, op.Rule}
	case op.Verb == routing.MoveRule:
		standIn := op.Rule
		standIn.SuppressGroup = routing.Some(standInGroup)
		verbs, rules = []string{"add", deletes, "add", deletes}, []routing.Rule{standIn, op.Rule, op.Rule, standIn}
	}
	out := make([]string, len(verbs))
	for i, verb := range verbs {
		var err error
		if out[i], err = ruleCommand(verb, rules[i]); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func (p *plan) route(op routing.Op) ([]string, error) {
	type step struct {
		verb  string
		route routing.Route
	}
	// Behind what stands: "add" refuses a second way of IPv6, and a route beside one of somebody else.
	steps := []step{{"append", op.Route}}
	former := p.Former[op.Route.Key()]
	switch {
	case op.Verb == routing.DeleteRoute:
		steps = []step{{deletes, op.Route}}
	case op.Verb == routing.AddRoute:
	case former.Replace:
		steps = []step{{"replace", op.Route}}
	case former.Stands && op.Route.Family == routing.IPv4:
		// Of two that fit, the kernel deletes the first.
		steps = append(steps, step{deletes, former.Route})
	case former.Stands:
		steps = append([]step{{deletes, former.Route}}, steps...) // One next hop cannot stand twice.
	}
	var out []string
	for _, s := range steps {
		command, err := routeCommand(s.verb, s.route, p.name)
		if err != nil {
			return nil, err
		}
		out = append(out, command)
	}
	return out, nil
}

package preview

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"multihomed/routing"
	"multihomed/routing/answers"
)

// table is the one of multihomed, as nft(8) names it.
const table = "inet multihomed"

// errName: a string of nft(8) ends at the next quotation mark, and has no escape for one. Where a string
// ends with an escaped asterisk, nft drops all backslashes (expr_evaluate_string in src/evaluate.c).
var errName = errors.New("nft has no way to write this name of an interface")

func nftWrites(name string) bool {
	return !strings.Contains(name, `"`) && (!strings.HasSuffix(name, "*") || !strings.Contains(name, `\`))
}

// nftName quotes the name of an interface. An asterisk at the end would stand for any end.
func nftName(name string) string {
	if rest, wild := strings.CutSuffix(name, "*"); wild {
		name = rest + `\*`
	}
	return `"` + name + `"`
}

// nftLine is an operation as nft(8) takes it from a file.
func nftLine(o answers.Op) (string, error) {
	for _, name := range []string{o.Rule.IIF, o.Rule.OIF, o.Rule.NotOIF, o.Element.Interface} {
		if !nftWrites(name) {
			return "", errName
		}
	}
	set, of := o.Set, "set"
	if set.Kind == answers.Verdicts {
		of = "map"
	}
	switch o.Verb {
	case answers.AddTable:
		return "add table " + table, nil
	case answers.DeleteTable:
		return "delete table " + table, nil
	case answers.AddChain:
		return "add chain " + table + " " + o.Chain.Name + hook(o.Chain), nil
	case answers.DeleteChain:
		return "delete chain " + table + " " + o.Chain.Name, nil
	case answers.AddSet:
		return fmt.Sprintf("add %s %s %s { type %s; }", of, table, set.Name, setType(set)), nil
	case answers.DeleteSet:
		return fmt.Sprintf("delete %s %s %s", of, table, set.Name), nil
	case answers.AddElement:
		return "add element " + table + " " + o.Element.Text(nftName), nil
	case answers.DeleteElement:
		return "delete element " + table + " " + o.Element.Key().Text(nftName), nil
	case answers.DeleteRule:
		return fmt.Sprintf("delete rule %s %s handle %d", table, o.Rule.Chain, o.Handle), nil
	case answers.AddRule:
		verb, place := "add", ""
		if o.Handle != 0 {
			verb, place = "insert", " handle "+strconv.FormatUint(o.Handle, 10)
		}
		return fmt.Sprintf("%s rule %s %s%s %s comment \"%s\"", verb, table, o.Rule.Chain, place, o.Rule.Text(nftName), o.Rule.Decision.Comment()), nil
	default:
		return "", fmt.Errorf("nft has no word for %q", o.Verb)
	}
}

func hook(c answers.Chain) string {
	name := ""
	switch c.Hook {
	case answers.NoHook:
		return ""
	case answers.Prerouting:
		name = "prerouting"
	case answers.Postrouting:
		name = "postrouting"
	}
	return fmt.Sprintf(" { type filter hook %s priority %d; policy accept; }", name, c.Priority)
}

func setType(s answers.Set) string {
	address := "ipv4_addr"
	if s.Family == routing.IPv6 {
		address = "ipv6_addr"
	}
	switch s.Kind {
	case answers.Verdicts:
		return address + " : verdict"
	case answers.Pairs:
		return address + " . ifname"
	default:
		return address
	}
}

// nftSteps are the operations of a phase, which are one transaction. What nft cannot write is a step
// of its own.
func nftSteps(phase answers.Phase, ops []answers.Op) (steps []Step) {
	var lines []string
	for _, o := range answers.Of(ops, phase) {
		line, err := nftLine(o)
		if err != nil {
			steps = append(steps, Step{Action: NFTables, Object: "nft " + o.String(), Reason: answersReason(phase), Note: "no command: " + err.Error()})
			continue
		}
		lines = append(lines, line)
	}
	if len(lines) == 0 {
		return steps
	}
	return append([]Step{{
		Action: NFTables, Object: "nft table " + table, Reason: answersReason(phase),
		Commands: []string{document("nft -f -", lines)},
	}}, steps...)
}

func answersReason(phase answers.Phase) Reason {
	switch phase {
	case answers.BeforeRules:
		return Reason{Text: "before the rules change: no packet is marked for a rule that goes, and no address that moves is dropped"}
	case answers.AfterRules:
		return Reason{Text: "forwarded packets are answered on the link that was asked, and strays are dropped"}
	default:
		return Reason{Text: "the nft table needs this no more"}
	}
}

package cli

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"multihomed/internal/english"
	"multihomed/internal/explain"
)

// widestExplained is the width beyond which rules and reasons stand too far apart.
const widestExplained = 200

// fewFolded is how many rules of one reason in a row are shown one by one.
const fewFolded = 2

// renderExplanation shows an explanation to a person.
func renderExplanation(w io.Writer, d explain.Document, how look) error {
	r := &explanation{renderer: renderer{look: how}, d: d}
	for _, l := range d.Lookups {
		r.mixed = r.mixed || slices.ContainsFunc(l.Rules, func(e explain.Rule) bool { return e.By == explain.ByMultihomed })
	}
	r.head()
	for i, l := range d.Lookups {
		r.line("")
		if l.Text != "" {
			r.folded("", bold, l.Text)
		} else if i == 0 {
			r.folded("", bold, d.Question.Text)
		}
		r.rules(l)
		r.kernel(l)
	}
	r.foot()
	_, err := io.WriteString(w, r.b.String())
	return err
}

type explanation struct {
	renderer
	d explain.Document
	// mixed says that some rules are of multihomed. Where none is, it goes without saying that all
	// are of other programs.
	mixed bool
}

func (r *explanation) head() {
	s := green
	switch r.d.Outcome {
	case explain.Refused, explain.NoRoute:
		s = red
	case explain.OnLink:
		s = yellow
	}
	for _, line := range wrap(r.d.Summary, r.width) {
		r.line("%s", r.paint.paint(s, line))
	}
	if r.d.Snapshot != "" {
		r.folded("snapshot  ", yellow, "this is about the host that the file is from, as it was at "+r.d.Snapshot)
	}
	for _, text := range r.d.Assumptions {
		r.folded("assumed  ", yellow, text)
	}
}

// priorityWidth is that of the highest priority that is usual.
const priorityWidth = len("32767")

// gap stands between the columns of a table.
const gap = "  "

// rules lists the rules. Those that do not match are folded into one line if several in a row
// do not match for the same reason.
func (r *explanation) rules(l explain.Lookup) {
	text := 0
	for _, rule := range l.Rules {
		if r.verbose || rule.Result != explain.No {
			text = max(text, columns(rule.Text))
		}
	}
	// A rule that is very long does not push the reasons of all others aside.
	text = min(text, max(20, (r.width-priorityWidth)/2))
	for i := 0; i < len(l.Rules); {
		n := 1
		for i+n < len(l.Rules) && sameReason(l.Rules[i], l.Rules[i+n]) {
			n++
		}
		if folds(l.Rules[i].Result) && n > fewFolded && !r.verbose || l.Rules[i].Result == explain.NotAsked && !r.verbose {
			r.run(l.Rules[i:i+n], text)
			i += n
			continue
		}
		r.rule(l.Rules[i], text)
		i++
	}
}

func folds(result string) bool { return result == explain.No || result == explain.SteppedOver }

func sameReason(a, b explain.Rule) bool {
	return a.Result == b.Result && a.Why == b.Why && a.Selector == b.Selector && (folds(a.Result) || a.Result == explain.NotAsked)
}

// run is the line of several rules.
func (r *explanation) run(rules []explain.Rule, width int) {
	first, last := rules[0], rules[len(rules)-1]
	at := fmt.Sprint(first.Priority)
	what := english.Count(len(rules), "rule")
	if first.Selector != "" {
		what += " by " + first.Selector
	}
	if last.Priority != first.Priority {
		what += fmt.Sprintf(" up to %d", last.Priority)
	}
	why := resultText(first)
	r.row(dim, at, what, dim, why, width)
}

// resultText says what came of a rule.
func resultText(e explain.Rule) string {
	matches := "matches: " + e.Why
	if e.Why == explain.EveryPacket {
		matches = "matches every packet"
	}
	switch e.Result {
	case explain.No:
		return "no: " + e.Why
	case explain.SteppedOver:
		return "stepped over: " + e.Why
	case explain.NotAsked:
		return "not asked: " + e.Why
	case explain.NotUnderstood:
		return "skipped: " + e.Why
	case explain.Jumps:
		return matches + ", so the lookup goes on there"
	case explain.JumpsNowhere:
		return matches + ", but " + e.Rejected
	case explain.Nothing:
		return matches + ", and does nothing"
	case explain.Empty:
		text := matches + ", but the table has no route"
		if e.Rejected != "" {
			text += ": " + e.Rejected
		}
		return text
	case explain.Thrown:
		return matches + ", but the table has " + e.Route
	case explain.Outranked:
		return matches + ", but " + e.Rejected
	case explain.Suppressed:
		return matches + ", but " + e.Rejected + " rejects the route " + e.Route
	default:
		switch {
		case e.Route == "":
			return "✔ " + e.Why
		case e.Why == explain.EveryPacket:
			return "✔ " + e.Route
		}
		return "✔ " + e.Why + ": " + e.Route
	}
}

func resultStyle(result string) style {
	switch result {
	case explain.No, explain.SteppedOver, explain.NotAsked:
		return dim
	case explain.Answers:
		return green
	case explain.NotUnderstood, explain.JumpsNowhere:
		return yellow
	default:
		return plain
	}
}

func (r *explanation) rule(e explain.Rule, width int) {
	s := plain
	if folds(e.Result) || e.Result == explain.NotAsked {
		s = dim
	}
	r.row(s, fmt.Sprint(e.Priority), e.Text, resultStyle(e.Result), resultText(e), width)
	if s == dim && !r.verbose {
		return
	}
	if text := whose(e); text != "" && (e.By == explain.ByMultihomed || e.Maker != "" || r.mixed) {
		r.folded(strings.Repeat(" ", priorityWidth)+gap+"  ", cyan, text)
	}
}

// whose says who made a rule and why.
func whose(e explain.Rule) string {
	switch {
	case e.By == explain.ByMultihomed:
		text := "multihomed"
		if e.Sentence != "" {
			text += ": " + e.Sentence
		}
		if e.Lifts != "" {
			text += ": " + e.Lifts
		}
		if e.Link != "" {
			text += ", link " + e.Link
		}
		if e.Profile != "" && e.Profile != e.Link {
			text += ", profile " + e.Profile
		}
		if e.Binding != "" {
			text += " (" + e.Binding + ")"
		}
		return text
	case e.Maker != "":
		return "a rule as " + e.Maker + " makes it"
	case e.By == explain.ByOthers:
		return "a rule of another program"
	default:
		return ""
	}
}

// row is a rule and its result: in one line if that fits, else the result is below.
func (r *explanation) row(s style, at, text string, rs style, why string, width int) {
	indent := priorityWidth + columns(gap)
	room := r.width - indent - width - columns(gap)
	label := strings.Repeat(" ", max(0, priorityWidth-columns(at))) + r.paint.paint(s, at) + gap
	if columns(text) <= width && columns(why) <= room {
		r.line("%s%s%s%s", label, r.paint.pad(s, text, width), gap, r.paint.paint(rs, why))
		return
	}
	r.line("%s%s", label, r.paint.paint(s, text))
	r.folded(strings.Repeat(" ", indent)+"  ", rs, why)
}

// kernel says what the kernel answers.
func (r *explanation) kernel(l explain.Lookup) {
	k := l.Kernel
	label := r.paint.pad(plain, "kernel", priorityWidth) + " "
	switch {
	case k == nil && len(r.d.WhatIf) > 0:
	case k == nil && l.Purpose == explain.ForReverse:
	case k == nil:
		r.folded(label, dim, "it was not asked this")
	case k.Difference != "":
		r.folded(label, red, "it says something else: "+kernelText(k)+" ("+k.Difference+")")
	case k.PrefersDevice:
		r.folded(label, dim, "for a packet that only prefers the device: "+kernelText(k))
	default:
		r.folded(label, green, "the same: "+kernelText(k))
	}
}

func kernelText(k *explain.Kernel) string {
	if k.Error != "" && k.Sent == "" {
		return k.Error
	}
	text := k.Sent
	if text == "" {
		text = k.Route
	}
	if k.Table != 0 {
		text += ", table " + tableName(k.Table)
	}
	if k.Source != "" {
		text += ", src " + k.Source
	}
	return text
}

func tableName(t uint32) string {
	switch t {
	case 253:
		return "default"
	case 254:
		return "main"
	case 255:
		return "local"
	default:
		return fmt.Sprint(t)
	}
}

func (r *explanation) foot() {
	if len(r.d.MayDiffer) > 0 || len(r.d.Unread) > 0 {
		r.line("")
	}
	for _, c := range r.d.MayDiffer {
		r.folded("may differ  ", dim, c.Text)
	}
	for _, text := range r.d.Unread {
		r.folded("unread      ", dim, text)
	}
}

package hosts_test

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"multihomed/test/lab"
)

// A Host is one host of the field.
type Host struct {
	// Name is of the test.
	Name string
	// A description of the host, in the words of its user.
	What string
	// Lab is what the lab's host needs.
	Lab lab.HostConfig
	// Network makes everything that exists before any program starts: links, their
	// providers, and what must exist first. Two providers by default.
	Network func(w *world)
	// Build makes the special parts of the host.
	Build func(w *world)
	// Steps come and go while the host runs; the last one brings it back.
	Steps []Step
	// Ask lists the questions of the user.
	Ask func(w *world) []Question
	// Promised are the differences that multihomed makes on purpose, beside
	// those that every host has (see standard).
	Promised []Promise
	// Selects says which questions a rule of another program selects, so that the standard promises do
	// not cover them; by default those with a mark, a user or a protocol.
	Selects func(w *world, q Question) bool
	// Taken names the steps ("" is the host as built) at which a rule in front of
	// ours takes what is bound, too, so that the standard promises make no
	// difference.
	Taken []string
	// Unpromised switches the standard promises off: nothing may differ.
	Unpromised bool
	// Loud: the questions themselves make devices come and go.
	Loud bool
	// Renumbered: a part of the host adds rules without a priority, whose number
	// depends on the rules that are there. Answers must not depend on it.
	Renumbered bool
	// Publishes: a container has a published port, too: see publishing.
	Publishes bool
	// Overtakes: rules that the kernel numbered before ours stay there when the product goes, in front
	// of others: multihomed never changes a rule of another program. So the answers after its removal
	// are another host's, and only the rest of our objects is checked.
	Overtakes bool
}

// A Step changes the host and returns when the change is complete.
type Step struct {
	Name string
	Do   func(w *world)
}

// A Promise is a difference that multihomed makes on purpose.
type Promise struct {
	Name string
	// Of says whether the promise covers a question.
	Of func(w *world, q Question) bool
	// Want returns the fault of an answer, or "": of every question that the promise covers, whatever
	// it was without the product.
	Want func(w *world, q Question, without, with string) string
	// Steps names the steps at which it makes a difference, "" being the host as
	// it was built; nil is all of them. Elsewhere it holds, but need not differ.
	Steps []string
}

// run asks the host in all phases.
func (h Host) run(t *testing.T) {
	t.Helper()
	if h.Publishes {
		h = h.publishing()
	}
	t.Logf("%s", h.What)
	var control *record
	t.Run("last", func(t *testing.T) {
		w := h.world(t)
		h.build(w)
		control = h.ask(w)
		w.start()
		h.compare(w, "started last", control)
		w.stop()
		w.start()
		w.step = ""
		h.compareStep(w, "restarted", control, 0, h.promises())
		h.gone(w, control)
	})
	if control == nil || t.Failed() && h.broken(control) {
		return // the host itself does not work
	}
	t.Run("first", func(t *testing.T) {
		w := h.world(t)
		w.start()
		h.build(w)
		h.compare(w, "started first", control)
		h.gone(w, control)
	})
}

func (h Host) world(t *testing.T) *world {
	t.Helper()
	w := newWorld(t, h)
	if h.Network != nil {
		h.Network(w)
	} else {
		w.providers()
	}
	return w
}

func (h Host) build(w *world) {
	if h.Build != nil {
		h.Build(w)
	}
}

// A record has the answers of the host without the product, at every step.
type record struct {
	steps  []map[string]string
	others []string
}

func (h Host) broken(r *record) bool { return len(r.steps) != len(h.Steps)+1 }

// ask asks everything at every step, without the product.
func (h Host) ask(w *world) *record {
	w.t.Helper()
	r := &record{}
	add := func() {
		var step map[string]string
		var others string
		w.eventually("the host to be still", func() error {
			if err := w.quiet.settled(); err != nil {
				return err
			}
			last := w.quiet.last.Load()
			step, others = answers(w, h.questions(w)), h.others(w)
			if !h.Loud && w.quiet.last.Load() != last {
				return errors.New("the kernel's routing changed while the host was asked")
			}
			return nil
		})
		r.steps, r.others = append(r.steps, step), append(r.others, others)
	}
	add()
	for _, s := range h.Steps {
		w.step = s.Name
		s.Do(w)
		add()
	}
	if lines := differences(r.others[0], r.others[len(r.others)-1]); len(h.Steps) > 0 && len(lines) > 0 {
		w.t.Fatalf("the steps do not bring the host back:\n%s", strings.Join(lines, "\n"))
	}
	return r
}

func (h Host) questions(w *world) []Question {
	var questions []Question
	if h.Ask != nil {
		questions = h.Ask(w)
	}
	seen := map[string]bool{}
	return slices.DeleteFunc(append(questions, standardQuestions(w)...), func(q Question) bool {
		again := seen[q.String()]
		seen[q.String()] = true
		return again
	})
}

func answers(w *world, questions []Question) map[string]string {
	all := make(map[string]string, len(questions))
	for _, q := range questions {
		answer := q.answer(w)
		// All phases are measured by it, and that nothing came may be the fault of a busy machine.
		if none(answer) {
			answer = q.answer(w)
		}
		all[q.String()] = answer
	}
	return all
}

func (h Host) promises() []Promise {
	if h.Unpromised {
		return h.Promised
	}
	selects := h.Selects
	if selects == nil {
		selects = particular
	}
	p := keepsItsLink(selects)
	if len(h.Taken) > 0 {
		p.Steps = []string{""}
		for _, s := range h.Steps {
			p.Steps = append(p.Steps, s.Name)
		}
		p.Steps = slices.DeleteFunc(p.Steps, func(s string) bool { return slices.Contains(h.Taken, s) })
	}
	return append(slices.Clone(h.Promised), p)
}

// compare goes through the steps with the product.
func (h Host) compare(w *world, phase string, control *record) {
	w.t.Helper()
	w.step = ""
	h.compareStep(w, phase, control, 0, h.promises())
	for i, s := range h.Steps {
		w.step = s.Name
		s.Do(w)
		h.compareStep(w, phase+", "+s.Name, control, i+1, h.promises())
	}
}

// patience is how long the product may take to reach the state that it keeps, and judgements how often the
// answers must have been wrong until then. It takes milliseconds; on a busy machine the questions take seconds.
const (
	patience   = 4 * time.Second
	judgements = 3
)

// compareStep asks until the answers are as expected and the routing no longer changes.
func (h Host) compareStep(w *world, phase string, control *record, step int, promises []Promise) {
	w.t.Helper()
	limit := lab.Stretched(patience)
	if w.failed {
		limit /= 4 // a host that is wrong is often wrong in every phase
	}
	ctx, end := context.WithCancelCause(w.t.Context())
	defer end(nil)
	began, judged := time.Now(), 0
	err := lab.Eventually(ctx, func() error {
		if took := time.Since(began); took > limit && judged >= judgements || took > 10*limit {
			defer end(fmt.Errorf("after %v", took.Round(time.Millisecond))) // This was the last try.
		}
		if err := w.quiet.settled(); err != nil {
			return err
		}
		judged++
		if err := h.judge(w, control, step, promises); err != nil || h.Loud {
			return err
		}
		return w.quiet.settled()
	})
	if err == nil {
		return
	}
	rules4, _ := w.RulesText(w.t.Context(), lab.IPv4)
	rules6, _ := w.RulesText(w.t.Context(), lab.IPv6)
	w.failed = true
	w.t.Errorf("%s:\n%v\nip -4 rule:\n%sip -6 rule:\n%s", phase, err, rules4, rules6)
}

// judge returns the faults of the answers of this moment.
func (h Host) judge(w *world, control *record, step int, promises []Promise) error {
	var wrong []string
	differs := make([]bool, len(promises))
	for _, q := range h.questions(w) {
		without, ok := control.steps[step][q.String()]
		if !ok {
			wrong = append(wrong, fmt.Sprintf("  %v: was not asked without multihomed", q))
			continue
		}
		with := q.answer(w)
		i := slices.IndexFunc(promises, func(p Promise) bool { return p.Of(w, q) })
		switch {
		case i < 0 && with != without:
			wrong = append(wrong, fmt.Sprintf("  %v: without [%s], with [%s]", q, without, with))
		case i >= 0:
			differs[i] = differs[i] || with != without
			if want := promises[i].Want(w, q, without, with); want != "" {
				wrong = append(wrong, fmt.Sprintf("  %v: promise %q: want [%s], with [%s], without [%s]", q, promises[i].Name, want, with, without))
			}
		}
	}
	for i, p := range promises {
		if !differs[i] && p.due(h, step) {
			wrong = append(wrong, fmt.Sprintf("  promise %q makes no difference", p.Name))
		}
	}
	for _, line := range differences(control.others[step], h.others(w)) {
		wrong = append(wrong, "  not ours, and not as without: "+line)
	}
	if n := len(wrong) - mostLines; n > 0 {
		wrong = append(wrong[:mostLines], fmt.Sprintf("  … and %d more", n))
	}
	if len(wrong) > 0 {
		return errors.New(strings.Join(wrong, "\n"))
	}
	return nil
}

// mostLines is how much of a wrong host is printed.
const mostLines = 14

func (p Promise) due(h Host, step int) bool {
	if p.Steps == nil {
		return true
	}
	name := ""
	if step > 0 {
		name = h.Steps[step-1].Name
	}
	return slices.Contains(p.Steps, name)
}

// gone removes the product and asks once more: nothing is left, everything is as
// if it had never been.
func (h Host) gone(w *world, control *record) {
	w.t.Helper()
	if left := w.remove(); len(left) > 0 {
		w.t.Errorf("left after flush:\n%s", strings.Join(left, "\n"))
	}
	if h.Overtakes {
		return
	}
	h.compareStep(w, "removed", control, 0, nil) // the last step has brought the host back
}

// others is everything in the kernel's routing that is not ours, and what is ours
// where nothing of ours may be.
func (h Host) others(w *world) string {
	text, err := w.Snapshot(w.t.Context())
	w.must(err)
	if h.Renumbered {
		text = unnumbered.ReplaceAllString(text, "$1 priority=?")
	}
	for _, f := range []lab.Family{lab.IPv4, lab.IPv6} {
		for _, table := range []string{"main", "local", "default"} {
			routes, err := w.RoutesText(w.t.Context(), f, table)
			w.must(err)
			for line := range strings.Lines(routes) {
				if strings.Contains(line, " proto 150 ") {
					text += fmt.Sprintf("ours in %s: %s", table, line)
				}
			}
		}
	}
	return text
}

// unnumbered finds the numbers of rules that the kernel may have chosen.
var unnumbered = regexp.MustCompile(`(?m)( rule:.*?) priority=(?:[789]\d\d\d|3[12]\d\d\d)`)

// differences lists the lines that only one of two texts has.
func differences(before, after string) []string {
	var out []string
	a, b := strings.Split(before, "\n"), strings.Split(after, "\n")
	for _, line := range a {
		if !slices.Contains(b, line) {
			out = append(out, "- "+line)
		}
	}
	for _, line := range b {
		if !slices.Contains(a, line) {
			out = append(out, "+ "+line)
		}
	}
	return out
}

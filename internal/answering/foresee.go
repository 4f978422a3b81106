package answering

import (
	"context"
	"errors"
	"fmt"

	"multihomed/internal/nftables"
	"multihomed/routing"
	"multihomed/routing/answers"
	"multihomed/routing/reconcile"
)

// A Foreseen is what a Keeper and a loop would agree on.
type Foreseen struct {
	// Snapshot is that of the loop, Ops the changes of the table.
	Snapshot *reconcile.Snapshot
	Ops      []answers.Op
}

// mostRounds bounds the exchange of values between a keeper and a loop: it ends after three.
const mostRounds = 8

// Foresee plays the exchange of values between a Keeper and a loop, and writes nothing. Look makes the
// snapshot of a loop that is told these answers. Of o, Config, Table and Host are needed.
func Foresee(ctx context.Context, o Options, look func(context.Context, reconcile.Answers) (*reconcile.Snapshot, error)) (Foreseen, error) {
	held, _, err := o.Table.Read(ctx)
	unsupported := errors.Is(err, nftables.ErrUnsupported)
	if err != nil && !unsupported {
		return Foreseen{}, fmt.Errorf("reading the nftables table: %w", err)
	}
	marked := marks(held)
	facts := routing.Answers{Families: routing.ByFamily[bool]{len(marked[0]) > 0, len(marked[1]) > 0}, Mask: o.Config.MarkMask, Diverted: marked}
	k := New(o)
	for range mostRounds {
		s, err := look(ctx, told{facts})
		if err != nil || unsupported {
			return Foreseen{Snapshot: s}, err
		}
		host, decided, err := k.decide(ctx, s, marked)
		if err != nil {
			return Foreseen{}, err
		}
		// The rungs that do not stand yet come first.
		planned, _ := answers.Plan(FactsOf(decided, host, s))
		complete := s.Report.Waiting == ""
		ops := answers.Diff(planned, held, func(answers.Op) bool { return complete })
		marked = marks(answers.Held{Elements: heldElements(planned)})
		if !complete {
			keep(&marked, marks(held))
		}
		next := routing.Answers{
			Families: routing.ByFamily[bool]{decided[0].Answers || len(marked[0]) > 0, decided[1].Answers || len(marked[1]) > 0},
			Mask:     o.Config.MarkMask, Diverted: marked,
		}
		if next.Equal(&facts) {
			return Foreseen{Snapshot: s, Ops: ops}, nil
		}
		facts = next
	}
	return Foreseen{}, errors.New("planning the nftables table: rules and table do not agree on numbers")
}

func heldElements(t answers.Table) []answers.HeldElement {
	out := make([]answers.HeldElement, 0, len(t.Elements))
	for _, e := range t.Elements {
		out = append(out, answers.HeldElement{Element: e})
	}
	return out
}

// keep adds numbers to others.
func keep(to *routing.ByFamily[map[uint8]struct{}], from routing.ByFamily[map[uint8]struct{}]) {
	for i := range from {
		for n := range from[i] {
			if to[i] == nil {
				to[i] = map[uint8]struct{}{}
			}
			to[i][n] = struct{}{}
		}
	}
}

// told are facts that a loop is told once.
type told struct{ facts routing.Answers }

func (told) Changed() <-chan struct{}           { return nil }
func (t told) Answers() (routing.Answers, bool) { return t.facts, true }

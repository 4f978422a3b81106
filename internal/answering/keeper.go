package answering

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"golang.org/x/time/rate"

	"multihomed/internal/config"
	"multihomed/internal/event"
	"multihomed/internal/news"
	"multihomed/internal/nftables"
	"multihomed/routing"
	"multihomed/routing/answers"
	"multihomed/routing/reconcile"
)

// Codes of the problems of the keeper; the plan of the table has more.
const (
	// NotWritten: the table cannot be read or written.
	NotWritten routing.Code = "answers-not-written"
	// Removed: somebody keeps removing the table.
	Removed routing.Code = "answers-removed"
	// NotForgotten: tracked connections of an address that has gone cannot be deleted.
	NotForgotten routing.Code = "connections-not-forgotten"
)

// A Table is the nftables table.
type Table interface {
	// Read returns what it holds, and the generation of the ruleset.
	Read(ctx context.Context) (answers.Held, nftables.Generation, error)
	// Write does operations of one phase in one transaction.
	Write(ctx context.Context, ops []answers.Op, generation nftables.Generation) (nftables.Generation, error)
}

// Options are what a Keeper works with.
type Options struct {
	Logger *slog.Logger
	Config config.Answers
	Table  Table
	// Host reads the facts of the host: see [ReadHost].
	Host func(context.Context, *reconcile.Snapshot) (Host, error)
	// Forget deletes the tracked connections that are translated to addresses.
	Forget func(ctx context.Context, addresses ...netip.Addr) (int, error)
	// ForgetClients deletes those of some clients; it knows the interface behind which one is.
	ForgetClients func(ctx context.Context, is func(client netip.Addr, device int) bool, addresses ...netip.Addr) (int, error)
	// Repairs bounds how often what somebody else removed is restored.
	Repairs *rate.Limiter
	// Problems takes what is wrong, whenever that changes.
	Problems func([]routing.Problem)
}

// A Keeper keeps the table. [Keeper.Keep] is for one goroutine; the other methods are for any.
type Keeper struct {
	Options

	changed news.Signal

	mu sync.Mutex
	// known says that the table was read once; facts is what the loop is told.
	known bool
	facts routing.Answers
	state State
	// by names who changed the table since it was written, empty if nobody did.
	by string

	// enforced is what Keep wrote last.
	enforced answers.Table
}

// A State is what a keeper knows, for status.
type State struct {
	// Decided says that the rest is known, and in the log.
	Decided bool
	// Families are the decisions, in the order of [routing.Families].
	Families routing.ByFamily[Decision]
	// Held is what stands of the table.
	Held answers.Held
	// Problems are those of the plan and of the table.
	Problems []routing.Problem
}

// New returns a Keeper that knows nothing.
func New(o Options) *Keeper { return &Keeper{Options: o, changed: news.NewSignal()} }

var _ reconcile.Answers = (*Keeper)(nil)

// Changed is readable when Answers returns something new.
func (k *Keeper) Changed() <-chan struct{} { return k.changed }

// Answers says for what the rungs must stand, and false until the table was read.
func (k *Keeper) Answers() (routing.Answers, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.facts, k.known
}

// State returns what is known.
func (k *Keeper) State() State {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.state
}

// Cares reports whether a change of links could matter: not where nothing forwards, or nothing is
// wanted, and no table stands.
func (k *Keeper) Cares() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.state.Decided || k.state.Held.Exists {
		return true
	}
	return slices.ContainsFunc(k.state.Families[:], func(d Decision) bool {
		return d.Answers || d.Fence || d.Why != NotForwarding && d.Why != Configured
	})
}

// Removed notes that somebody else took something of the table away.
func (k *Keeper) Removed(by string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.by = by
}

// mostTries bounds how often a table is read again that somebody else changes at the same time.
const mostTries = 5

// Keep makes the table hold what a snapshot needs. Nil stands for a loop that has made no pass:
// then the table is only read.
func (k *Keeper) Keep(ctx context.Context, s *reconcile.Snapshot) error {
	var err error
	for range mostTries {
		if err = k.try(ctx, s); !errors.Is(err, nftables.ErrChanged) && !errors.Is(err, nftables.ErrLost) {
			break
		}
	}
	if err == nil || ctx.Err() != nil {
		return nil //nolint:nilerr // it ended because it was told to
	}
	if !errors.Is(err, errAway) {
		k.report(k.State().Held, []routing.Problem{routing.ProblemOf(NotWritten, routing.Warning, "", fmt.Errorf("what this host forwards may be answered on another link than it was asked: %w", err))})
	}
	return err
}

// errAway says that the table is restored later.
var errAway = errors.New("somebody keeps removing the nftables table")

func (k *Keeper) try(ctx context.Context, s *reconcile.Snapshot) error {
	held, generation, err := k.Table.Read(ctx)
	if errors.Is(err, nftables.ErrUnsupported) {
		return k.without(ctx, s, err)
	}
	if err != nil {
		return fmt.Errorf("reading the nftables table: %w", err)
	}
	marked := marks(held)
	if s == nil {
		k.publish(marked, routing.ByFamily[bool]{len(marked[0]) > 0, len(marked[1]) > 0})
		return nil
	}
	host, decided, err := k.decide(ctx, s, marked)
	if err != nil {
		return err
	}
	complete := s.Report.Ready && s.Report.Waiting == ""
	facts := FactsOf(decided, host, s)
	planned, problems := answers.Plan(facts)
	planned = without(planned, missing(s))
	ops := answers.Diff(planned, held, func(answers.Op) bool { return complete })
	if away, is := k.repair(ctx, held); is {
		k.report(held, append(problems, away))
		return errAway
	}
	for _, phase := range []answers.Phase{answers.BeforeRules, answers.AfterRules, answers.Leftovers} {
		todo := answers.Of(ops, phase)
		if phase == answers.AfterRules && complete {
			// No packet is marked for an address that goes, and the fence still has it.
			problems = append(problems, k.forgotten(ctx, held, planned, ops)...)
		}
		if len(todo) == 0 {
			continue
		}
		if generation, err = k.Table.Write(ctx, todo, generation); err != nil {
			return fmt.Errorf("writing the nftables table, %s: %w", phase, err)
		}
		problems = append(problems, k.bound(ctx, s, facts.Links, todo)...)
	}
	if len(ops) > 0 {
		if held, _, err = k.Table.Read(ctx); err != nil {
			return fmt.Errorf("reading the nftables table: %w", err)
		}
		marked = marks(held)
	}
	k.publish(marked, routing.ByFamily[bool]{decided[0].Answers || len(marked[0]) > 0, decided[1].Answers || len(marked[1]) > 0})
	k.enforced = planned
	k.say(ctx, decided)
	k.report(held, problems)
	return nil
}

// decide decides about both families.
func (k *Keeper) decide(ctx context.Context, s *reconcile.Snapshot, marked routing.ByFamily[map[uint8]struct{}]) (host Host, decided routing.ByFamily[Decision], err error) {
	if host, err = k.Host(ctx, s); err != nil {
		return host, decided, err
	}
	for i, f := range routing.Families() {
		decided[i] = Decide(k.Config, f, host, s, len(marked[i]) > 0)
	}
	return host, decided, nil
}

// without is what is left where the kernel has no nf_tables, or not all that the table needs.
func (k *Keeper) without(ctx context.Context, s *reconcile.Snapshot, lacks error) error {
	k.publish(routing.ByFamily[map[uint8]struct{}]{}, routing.ByFamily[bool]{})
	if s == nil {
		return nil
	}
	_, decided, err := k.decide(ctx, s, routing.ByFamily[map[uint8]struct{}]{})
	if err != nil {
		return err
	}
	var problems []routing.Problem
	if decided[0].Answers || decided[1].Answers {
		problems = []routing.Problem{{
			Code: NotWritten, Severity: routing.Warning,
			Text: fmt.Sprintf("what this host forwards is answered as main says, and not on the link on which it was asked: %v", lacks),
			Fix:  "use a kernel with nf_tables, nft_ct and nf_conntrack, as Debian's, or set forwarded = \"no\" in [answers]",
		}}
	}
	for i := range decided {
		decided[i].Answers, decided[i].Fence = false, false
	}
	k.say(ctx, decided)
	k.report(answers.Held{}, problems)
	return nil
}

// marks are the numbers that packets are marked with, by family.
func marks(held answers.Held) (out routing.ByFamily[map[uint8]struct{}]) {
	for _, e := range held.Elements {
		if e.Element.Number == 0 {
			continue
		}
		f := routing.FamilyOf(e.Element.Address)
		if out.In(f) == nil {
			out.Set(f, map[uint8]struct{}{})
		}
		out.In(f)[e.Element.Number] = struct{}{}
	}
	return out
}

// without leaves out of a table what marks packets with some numbers.
func without(t answers.Table, numbers routing.ByFamily[map[uint8]struct{}]) answers.Table {
	t.Elements = slices.DeleteFunc(t.Elements, func(e answers.Element) bool {
		_, is := numbers.In(routing.FamilyOf(e.Address))[e.Number]
		return is && e.Number != 0
	})
	return t
}

// repair reports whether something that somebody else took away must wait, and logs what does not.
func (k *Keeper) repair(ctx context.Context, held answers.Held) (away routing.Problem, waits bool) {
	// What was written last must stand still.
	lost := answers.Diff(k.enforced, held, func(answers.Op) bool { return false })
	if !slices.ContainsFunc(lost, func(o answers.Op) bool { return o.Phase == answers.AfterRules }) {
		return away, false
	}
	k.mu.Lock()
	by := cmp.Or(k.by, "another program")
	k.mu.Unlock()
	if !k.Repairs.Allow() {
		return routing.Problem{
			Code: Removed, Severity: routing.Warning, Object: "table inet multihomed",
			Text: by + " keeps removing the nftables table that marks forwarded packets: it is restored later, and until then they may be answered on another link than they were asked",
			Fix:  "let it flush its own tables instead of the whole ruleset, or set forwarded = \"no\" in [answers]",
		}, true
	}
	k.mu.Lock()
	k.by = ""
	k.mu.Unlock()
	k.Logger.LogAttrs(ctx, event.LevelNotice, "nftables table restored", event.Is(event.Repaired), slog.String("removed_by", by))
	return away, false
}

// forgotten deletes the tracked connections that are translated to addresses which the table is to
// have no more. The fence stands until then: what they translate would leave by another link.
func (k *Keeper) forgotten(ctx context.Context, held answers.Held, planned answers.Table, ops []answers.Op) []routing.Problem {
	if k.Config.OnDead != config.Reset || len(ops) == 0 {
		return nil
	}
	stay := map[netip.Addr]struct{}{}
	for _, e := range planned.Elements {
		stay[e.Address] = struct{}{}
	}
	var gone []netip.Addr
	for _, e := range held.Elements {
		if _, stays := stay[e.Element.Address]; !stays {
			gone = append(gone, e.Element.Address)
		}
	}
	slices.SortFunc(gone, netip.Addr.Compare)
	gone = slices.Compact(gone)
	if len(gone) == 0 {
		return nil
	}
	n, err := k.Forget(ctx, gone...)
	if err != nil {
		return []routing.Problem{routing.ProblemOf(NotForgotten, routing.Warning, "", fmt.Errorf("deleting the tracked connections of %s, which has gone: %w", list(gone), err))}
	}
	if n > 0 {
		k.Logger.LogAttrs(ctx, slog.LevelInfo, fmt.Sprintf("%s gone: %d tracked connections deleted, so that they begin anew", list(gone), n)) //nolint:sloglint // the sentence is the event
	}
	return nil
}

// bound deletes the tracked connections of clients that have just been bound to one link, and have the
// address of another one: the fence stops them there, and they would hang for as long as the client
// goes on sending.
func (k *Keeper) bound(ctx context.Context, s *reconcile.Snapshot, links []answers.Link, written []answers.Op) []routing.Problem {
	var problems []routing.Problem
	for _, o := range written {
		r := o.Rule
		if o.Verb != answers.AddRule || r.Decision != answers.Bound || r.IIF == "" && !r.OriginalSource.IsValid() {
			continue
		}
		var others []netip.Addr
		for _, l := range links {
			for _, from := range l.Sources {
				if l.Name != r.NotOIF {
					others = append(others, from.Address)
				}
			}
		}
		by := 0
		for _, i := range s.Interfaces {
			if i.Facts.Name == r.IIF {
				by = i.Facts.Index
			}
		}
		if len(others) == 0 || r.IIF != "" && by == 0 {
			continue
		}
		n, err := k.ForgetClients(ctx, func(client netip.Addr, device int) bool {
			return r.IIF != "" && device == by || r.OriginalSource.IsValid() && r.OriginalSource.Contains(client)
		}, others...)
		name := cmp.Or(r.IIF, r.OriginalSource.String())
		if err != nil {
			problems = append(problems, routing.ProblemOf(NotForgotten, routing.Warning, "", fmt.Errorf("deleting the tracked connections of %s, which is bound to a link now: %w", name, err)))
		}
		if n > 0 {
			k.Logger.LogAttrs(ctx, slog.LevelInfo, fmt.Sprintf("%s bound: %d tracked connections deleted, so that they begin anew", name, n)) //nolint:sloglint // the sentence is the event
		}
	}
	return problems
}

// mostListed bounds the addresses of a line.
const mostListed = 8

func list(all []netip.Addr) string {
	words := make([]string, 0, mostListed)
	for _, a := range all[:min(len(all), mostListed)] {
		words = append(words, a.String())
	}
	if more := len(all) - mostListed; more > 0 {
		return strings.Join(words, ", ") + fmt.Sprintf(" and %d more", more)
	}
	return strings.Join(words, ", ")
}

// publish tells the loop.
func (k *Keeper) publish(marked routing.ByFamily[map[uint8]struct{}], families routing.ByFamily[bool]) {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := routing.Answers{Families: families, Mask: k.Config.MarkMask, Diverted: marked}
	if k.known && now.Equal(&k.facts) {
		return
	}
	k.known, k.facts = true, now
	k.changed.Give()
}

// say logs what is on from now on.
func (k *Keeper) say(ctx context.Context, decided routing.ByFamily[Decision]) {
	before := k.State()
	for i, f := range routing.Families() {
		now := decided[i]
		if now.Answers == before.Families[i].Answers {
			continue
		}
		text := fmt.Sprintf("forwarded %s packets are answered on the link on which they were asked", f.Name())
		if !now.Answers {
			text = fmt.Sprintf("forwarded %s packets are answered as main says", f.Name())
		}
		k.Logger.LogAttrs(ctx, event.LevelNotice, text, slog.String("family", f.String()), slog.String("reason", now.Why.Sentence())) //nolint:sloglint // one of four sentences
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.state.Decided, k.state.Families = true, decided
}

// report tells what is wrong, if that is news.
func (k *Keeper) report(held answers.Held, problems []routing.Problem) {
	k.mu.Lock()
	news := !slices.Equal(problems, k.state.Problems)
	k.state.Held, k.state.Problems = held, problems
	k.mu.Unlock()
	if news {
		k.Problems(problems)
	}
}

package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"golang.org/x/time/rate"

	"multihomed/internal/answering"
	table "multihomed/internal/answers"
	"multihomed/internal/config"
	"multihomed/internal/connections"
	"multihomed/internal/escape"
	"multihomed/internal/event"
	"multihomed/internal/netconf"
	"multihomed/internal/news"
	"multihomed/internal/nftables"
	"multihomed/internal/status"
	"multihomed/routing"
	"multihomed/routing/answers"
	"multihomed/routing/reconcile"
)

// answered is the part that lets forwarded packets be answered on the link on which they were asked.
type answered struct {
	log    *slog.Logger
	keeper *answering.Keeper
	// conn is nil where the kernel has no nf_tables.
	conn *nftables.Conn
	// needs are the snapshots to follow, nil for a table that is only read; again asks for one more.
	needs *news.Slot[*reconcile.Snapshot]
	again news.Signal
	// seen is what the last snapshot was taken for; it is the loop's.
	seen needed
}

// needed says what the table depends on.
type needed struct{ structure, otherRules uint64 }

// withoutTables stands for the table where the kernel has no nf_tables.
type withoutTables struct{ err error }

func (w withoutTables) Read(context.Context) (answers.Held, nftables.Generation, error) {
	return answers.Held{}, 0, w.err
}

func (w withoutTables) Write(context.Context, []answers.Op, nftables.Generation) (nftables.Generation, error) {
	return 0, w.err
}

// openAnswers opens what answers need. It is there without nf_tables, too, and says so where
// somebody needs it.
func openAnswers(cfg config.Config, log *slog.Logger, problems func([]routing.Problem), isOff func() bool) (*answered, error) {
	a := &answered{log: log, needs: news.NewSlot[*reconcile.Snapshot](), again: news.NewSignal()}
	o := answering.Options{
		Logger: log, Config: cfg.Answers, Problems: problems,
		Forget: func(ctx context.Context, all ...netip.Addr) (int, error) {
			return new(connections.Flows).Delete(ctx, all...)
		},
		ForgetClients: func(ctx context.Context, is func(netip.Addr, int) bool, all ...netip.Addr) (int, error) {
			return new(connections.Flows).DeleteClients(ctx, is, all...)
		},
		Repairs: rate.NewLimiter(rate.Limit(cfg.RepairsPerSecond), cfg.RepairBurst),
		Host: func(ctx context.Context, s *reconcile.Snapshot) (answering.Host, error) {
			return answering.ReadHost(ctx, s, a.translates, isOff())
		},
	}
	var err error
	switch a.conn, err = nftables.Open(); {
	case err == nil:
		o.Table = table.NewStore(a.conn)
	case errors.Is(err, nftables.ErrUnsupported):
		o.Table = withoutTables{err}
	default:
		return nil, err
	}
	a.keeper = answering.New(o)
	a.needs.Put(nil)
	return a, nil
}

func (a *answered) translates(ctx context.Context) (nftables.Translation, error) {
	if a.conn == nil {
		return nftables.Translation{}, nftables.ErrUnsupported
	}
	return a.conn.Translates(ctx)
}

func (a *answered) close() error {
	if a.conn == nil {
		return nil
	}
	return a.conn.Close()
}

// afterPass is called by the loop when nothing is left to do.
func (a *answered) afterPass(l *reconcile.Loop) {
	if seen := (needed{l.Structure(), l.OtherRules()}); seen != a.seen && (a.keeper.Cares() || l.IsBound()) {
		a.seen = seen
		a.needs.Put(l.Current())
	}
}

// tasks are those of answers.
func (a *answered) tasks(l *reconcile.Loop) []task {
	out := []task{
		{name: "answers", run: func(ctx context.Context) error { return a.needs.Follow(ctx, retryEvery, a.keeper.Keep) }},
		{name: "forwarding", run: func(ctx context.Context) error { return netconf.Watch(ctx, a.again.Give) }},
		{name: "facts of answers", run: always(func(ctx context.Context) { a.lookAgain(ctx, l) })},
	}
	if a.conn != nil {
		out = append(out, task{name: "nftables", run: a.watch})
	}
	return out
}

// lookAgain takes a snapshot after changes of the host that are none of links, and of those that
// nobody announces: sysctls, and rules of iptables-legacy.
func (a *answered) lookAgain(ctx context.Context, l *reconcile.Loop) {
	unannounced := time.NewTicker(lookEvery)
	defer unannounced.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-a.again:
		case <-unannounced.C:
		}
		// Put in the loop's goroutine, as after a pass: an older snapshot never replaces a newer one.
		if _, err := l.Snapshot(ctx, func() { a.needs.Put(l.Current()) }); err != nil {
			return // It fails only with ctx.
		}
	}
}

// watch hears what others do with nf_tables. Where that cannot be heard, the table is read once a
// minute.
func (a *answered) watch(ctx context.Context) error {
	w, err := a.conn.Watch(ctx, table.TableID)
	if ctx.Err() != nil {
		return nil
	}
	if err != nil {
		a.log.LogAttrs(ctx, event.LevelNotice, "changes of nf_tables are not heard, looking once a minute", slog.String("error", err.Error()))
		return nil
	}
	defer closing(a.log, "notifications of nf_tables", w.Close)
	a.again.Give() // What happened before is not told.
	for {
		t, err := w.Next(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, nftables.ErrLost):
			a.again.Give()
			continue
		case err != nil:
			return fmt.Errorf("hearing of changes of nf_tables: %w", err)
		case t.Own:
			continue
		}
		if t.All > 0 {
			a.keeper.Removed(fmt.Sprintf("%s (process %d)", escape.Text(t.Program), t.PID))
		}
		if t.All > 0 || t.Translation {
			a.again.Give()
		}
	}
}

// marks reports whether packets of a family are marked with the link on which they are answered.
func (a *answered) marks(f routing.Family) bool {
	facts, known := a.keeper.Answers()
	return known && len(facts.Diverted.In(f)) > 0
}

// state is that of the keeper, with counters that are read anew.
func (a *answered) state(ctx context.Context) answering.State {
	s := a.keeper.State()
	if s.Held.Exists {
		if now, _, err := a.keeper.Table.Read(ctx); err == nil {
			s.Held = now
		}
	}
	return s
}

// answersStatus is what status says of answers, nil until it is known.
func answersStatus(s answering.State) *status.Answers {
	if !s.Decided {
		return nil
	}
	out := &status.Answers{}
	for i, f := range routing.Families() {
		d := s.Families[i]
		one := status.AnsweredFamily{Family: f.String(), Answers: d.Answers, Fence: d.Fence, Reason: string(d.Why), Why: d.Why.Sentence()}
		for _, e := range s.Held.Elements {
			if e.Element.Number != 0 && routing.FamilyOf(e.Element.Address) == f {
				one.Marked++
			}
		}
		out.Families = append(out.Families, one)
	}
	for _, r := range s.Held.Rules {
		if r.Origin == answers.Unaltered && r.Rule.Action == answers.ActionDrop && r.Rule.Decision != answers.Bound {
			out.Dropped += r.Packets
		}
	}
	return out
}

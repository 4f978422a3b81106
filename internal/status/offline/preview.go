package offline

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"log/slog"
	"path/filepath"
	"slices"
	"time"

	"github.com/vishvananda/netlink"

	"multihomed/allocator"
	"multihomed/internal/answering"
	table "multihomed/internal/answers"
	"multihomed/internal/cleanup"
	"multihomed/internal/config"
	"multihomed/internal/escape"
	"multihomed/internal/failover"
	"multihomed/internal/kerneltables"
	"multihomed/internal/nftables"
	"multihomed/internal/preview"
	"multihomed/internal/rttables"
	"multihomed/internal/status"
	"multihomed/internal/status/socket"
	"multihomed/internal/status/view"
	"multihomed/routing"
	"multihomed/routing/answers"
	"multihomed/routing/kernel"
	"multihomed/routing/reconcile"
)

// Preview reads the host and returns what a pass of the daemon would change with a configuration. Its
// directories must be those in which the daemon works, if one runs. Preview changes nothing: table
// numbers are given as the daemon would give them, and are not kept. What cannot be read is named in
// the facts; nothing is deleted then that may be needed. An error says that the kernel cannot be read.
//
// If a daemon runs and there are changes, it was probably in the middle of them, so Preview reads once
// more.
func Preview(ctx context.Context, cfg config.Config) (preview.Facts, error) {
	facts, running, err := look(ctx, cfg)
	if err != nil || !running || len(facts.Ops)+len(facts.Answers) == 0 {
		return facts, err
	}
	timer := time.NewTimer(breath)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
		return facts, context.Cause(ctx)
	}
	facts, _, err = look(ctx, cfg)
	return facts, err
}

// breath is how long a running daemon may take to finish a pass, which takes a thousandth of it.
const breath = 200 * time.Millisecond

func look(ctx context.Context, cfg config.Config) (facts preview.Facts, running bool, err error) {
	p := &previewing{reading: reading{cfg: cfg}}
	defer p.closeMirror()
	facts, err = p.preview(ctx)
	return facts, p.running, err
}

// A previewing is a host whose changes are being planned.
type previewing struct {
	reading
	leases *allocator.Allocator
	names  rttables.Names
	// past are the earlier configurations.
	past  []cleanup.Era
	facts preview.Facts
}

func (p *previewing) unknown(format string, args ...any) {
	if text := fmt.Sprintf(format, args...); !slices.Contains(p.facts.Unknown, text) {
		p.facts.Unknown = append(p.facts.Unknown, text)
	}
}

func (p *previewing) preview(ctx context.Context) (preview.Facts, error) {
	var err error
	p.readEras()
	p.readDaemon()
	p.readManager(ctx)
	if p.names, err = rttables.Load(); err != nil {
		p.unknown("names of routing tables, so a link may get a number that has a name: %v", err)
	}
	if err := p.openTrial(ctx); err != nil {
		return p.facts, err
	}
	judged, err := p.judge(ctx)
	if err != nil {
		return p.facts, err
	}
	last, err := p.foresee(ctx, judged)
	if err != nil {
		return p.facts, err
	}
	if err := p.gather(ctx, last); err != nil {
		return p.facts, err
	}
	p.tell(last)
	return p.facts, nil
}

func (p *previewing) readEras() {
	eras, err := cleanup.ReadEras(p.cfg.StateDir)
	if err != nil {
		p.unknown("earlier configurations, so their routes may stay: %v", err)
	}
	p.past = slices.DeleteFunc(eras, func(e cleanup.Era) bool { return e == cleanup.EraOf(p.cfg.RoutingPolicy()) })
}

// openTrial reads the leases. Where they cannot be read, the kernel tells most of them.
func (p *previewing) openTrial(ctx context.Context) error {
	o := allocator.Options{
		Path: filepath.Join(p.cfg.StateDir, allocator.DefaultName), Range: p.cfg.Tables,
		Standing: func(leased func(routing.TableID) bool) ([]allocator.Standing, error) {
			return kerneltables.Find(ctx, p.cfg.Tables, leased)
		},
	}
	var err error
	if p.leases, err = allocator.OpenTrial(ctx, o); err == nil {
		return nil
	}
	if errors.Is(err, allocator.ErrUnreadable) {
		p.unknown("leases, so links may get other table numbers: this user may not read %s; to fix: run it as root", o.Path)
	} else {
		p.unknown("leases, so links may get other table numbers: %v", err)
	}
	o.Path = ""
	if p.leases, err = allocator.OpenTrial(ctx, o); err != nil {
		return fmt.Errorf("choosing table numbers: %w", err)
	}
	return nil
}

func (p *previewing) closeMirror() {
	if p.mirror != nil {
		p.mirror.Close()
	}
}

// again makes the first pass of a loop with a mirror of its own, which is kept until the next one.
func (p *previewing) again(ctx context.Context, f routing.Failover, a reconcile.Answers) (planned, error) {
	p.closeMirror()
	var err error
	if p.mirror, err = kernel.Open(kernel.Config{Tables: p.cfg.Tables, Interest: func(string) bool { return false }}); err != nil {
		return planned{}, err
	}
	moved := regrouping{Mirror: p.mirror, former: map[uint32]bool{}, group: p.cfg.UplinkGroup}
	for _, e := range p.past {
		moved.former[e.UplinkGroup] = e.UplinkGroup != moved.group
	}
	return p.plan(ctx, planning{leases: p.leases, reserved: p.names.Lookup, failover: f, answers: a, seen: reconcile.MirrorOf(moved)})
}

// A regrouping is a mirror of the kernel after [cleanup.Regroup]: else the group of an earlier
// configuration would pass for one of the administrator.
type regrouping struct {
	*kernel.Mirror
	former map[uint32]bool
	group  uint32
}

func (m regrouping) View(look func(regrouped)) {
	m.Mirror.View(func(k *kernel.State) { look(regrouped{k, m}) })
}

type regrouped struct {
	*kernel.State
	by regrouping
}

func (s regrouped) moved(group uint32) uint32 {
	if s.by.former[group] {
		return s.by.group
	}
	return group
}

func (s regrouped) Link(index int) (routing.Interface, bool) {
	l, ok := s.State.Link(index)
	l.Group = s.moved(l.Group)
	return l, ok
}

func (s regrouped) LinkFacts(index int) (routing.Interface, bool) {
	l, ok := s.State.LinkFacts(index)
	l.Group = s.moved(l.Group)
	return l, ok
}

func (s regrouped) Group(index int) (uint32, bool) {
	group, ok := s.State.Group(index)
	return s.moved(group), ok
}

func (s regrouped) Groups() iter.Seq2[int, uint32] {
	return func(yield func(int, uint32) bool) {
		for index, group := range s.State.Groups() {
			if !yield(index, s.moved(group)) {
				return
			}
		}
	}
}

// judge finds the facts of failover: what the running daemon says of the uplinks; else what a daemon
// knows that starts.
func (p *previewing) judge(ctx context.Context) (routing.Failover, error) {
	standing := failover.FactsOf(p.cfg)
	standing.Frozen = true
	first, err := p.again(ctx, standing, reconcile.StandingAnswers{})
	if err != nil {
		return standing, err
	}
	facts := failover.FactsOfUplinks(p.cfg, failover.Gather(p.cfg, first.snapshot, first.owners.Known).Uplinks)
	if !facts.Enabled {
		return facts, nil
	}
	if !p.running {
		facts.Unjudged = routing.ByFamily[bool]{true, true}
		return facts, nil
	}
	asked, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	answer, err := socket.Ask(asked, p.cfg.RuntimeDir, false)
	if err != nil || answer.Failover == nil {
		p.unknown("which uplinks work: multihomed runs, but %s; failover stays as it is", silence(err))
		facts.Frozen = true
		return facts, nil
	}
	for _, u := range answer.Failover.Uplinks {
		f := routing.IPv4
		if u.Family == routing.IPv6.String() {
			f = routing.IPv6
		}
		switch index := indexOf(first.snapshot, u.Interface); {
		case index == 0:
		case u.State.Dead():
			if facts.Dead.In(f) == nil {
				facts.Dead.Set(f, map[int]struct{}{})
			}
			facts.Dead.In(f)[index] = struct{}{}
		case u.State == status.HealthUnknown:
			facts.Unjudged.Set(f, true)
		}
	}
	return facts, nil
}

// silence says why the daemon said nothing of uplinks.
func silence(err error) string {
	if err == nil {
		return "does not say it yet"
	}
	return fmt.Sprintf("does not answer (%v)", err)
}

// indexOf is the index of an interface by the name that the status has, 0 if there is none.
func indexOf(s *reconcile.Snapshot, name string) int {
	for _, i := range s.Interfaces {
		if escape.Name(i.Facts.Name) == name {
			return i.Facts.Index
		}
	}
	return 0
}

// foresee makes the last plan, and the changes of the nft table.
func (p *previewing) foresee(ctx context.Context, judged routing.Failover) (last planned, err error) {
	o := answering.Options{Logger: slog.New(slog.DiscardHandler), Config: p.cfg.Answers}
	conn, err := nftables.Open()
	if err == nil {
		defer conn.Close()
		o.Table = table.NewStore(conn)
		o.Host = func(ctx context.Context, s *reconcile.Snapshot) (answering.Host, error) {
			return answering.ReadHost(ctx, s, conn.Translates, last.owners.HostOff())
		}
		var seen answering.Foreseen
		seen, err = answering.Foresee(ctx, o, func(ctx context.Context, a reconcile.Answers) (*reconcile.Snapshot, error) {
			last, err = p.again(ctx, judged, a)
			return last.snapshot, err
		})
		if err == nil {
			p.facts.Answers = seen.Ops
			return last, nil
		}
	}
	if ctx.Err() != nil {
		return last, context.Cause(ctx)
	}
	switch {
	case errors.Is(err, nftables.ErrUnsupported):
	case errors.Is(err, fs.ErrPermission):
		p.unknown("the nft table, which this user may not read; to fix: run it as root")
	default:
		p.unknown("the nft table, and whether this host answers forwarded packets by link: %v", err)
	}
	return p.again(ctx, judged, reconcile.StandingAnswers{})
}

// gather collects what the commands need.
func (p *previewing) gather(ctx context.Context, last planned) error {
	s, policy := last.snapshot, p.cfg.RoutingPolicy()
	v := view.Of(p.cfg, s)
	v.Running = p.running
	p.facts.Ops = v.Unplanned()
	p.facts.Names, p.facts.Profiles = map[int]string{}, map[int]string{}
	for _, i := range s.Interfaces {
		p.facts.Names[i.Facts.Index] = i.Facts.Name
		if i.Claim.Profile != "" {
			p.facts.Profiles[i.Facts.Index] = i.Claim.Profile
		}
	}
	p.mirror.View(func(k *kernel.State) {
		p.facts.Regroup = cleanup.Regroup(k, p.past, policy)
		p.facts.Former = formers(k, policy, p.facts.Ops)
	})
	if s.Report.Waiting == "" {
		var err error
		if p.facts.Outdated, err = outdated(ctx, p.past, policy); err != nil {
			return err
		}
	}
	return p.alias(s)
}

// formers finds what stands where routes are replaced.
func formers(k *kernel.State, policy routing.Policy, ops []routing.Op) map[routing.RouteKey]preview.Former {
	out := map[routing.RouteKey]preview.Former{}
	for _, op := range ops {
		if op.Verb != routing.ReplaceRoute {
			continue
		}
		key := op.Route.Key()
		var f preview.Former
		f.Route, f.Stands = k.Route(key)
		beside := 0
		for _, r := range k.OurRoutes(op.Route.Table) {
			o := r.Key()
			if o.Gateway, o.Device = key.Gateway, key.Device; o == key {
				beside++
			}
		}
		_, foreign := k.ForeignAt(key)
		failover, has := policy.FailoverTable()
		switch {
		case foreign:
		case has && op.Route.Table == failover:
			f.Replace = true
		default:
			f.Replace = op.Route.Family == routing.IPv6 && beside == 1 && op.Route.Weight == 0
		}
		out[key] = f
	}
	return out
}

// outdated are our routes in the tables of earlier configurations.
func outdated(ctx context.Context, past []cleanup.Era, policy routing.Policy) (ops []routing.Op, err error) {
	for _, e := range past {
		if err := func() error {
			mirror, err := kernel.Open(kernel.Config{Tables: e.Tables(), Interest: func(string) bool { return false }})
			if err != nil {
				return err
			}
			defer mirror.Close()
			if err := mirror.Sync(ctx); err != nil {
				return err
			}
			mirror.View(func(k *kernel.State) {
				for _, op := range cleanup.Outdated(k, policy) {
					if !slices.Contains(ops, op) {
						ops = append(ops, op)
					}
				}
			})
			return nil
		}(); err != nil {
			return nil, fmt.Errorf("reading routes of an earlier configuration: %w", err)
		}
	}
	slices.SortStableFunc(ops, func(a, b routing.Op) int {
		return int(a.Route.Table) - int(b.Route.Table)
	})
	return ops, nil
}

// alias reads whether the loopback interface has its second name, and finds whether rules need it.
func (p *previewing) alias(s *reconcile.Snapshot) error {
	const loopback = 1
	link, err := netlink.LinkByIndex(loopback)
	if err != nil {
		return fmt.Errorf("reading the loopback interface: %w", err)
	}
	p.facts.Alias = slices.Contains(link.Attrs().AltNames, routing.LoopbackAlias)
	gone := map[routing.Rule]bool{}
	for _, op := range p.facts.Ops {
		gone[op.Rule] = op.Verb == routing.DeleteRule
	}
	p.mirror.View(func(k *kernel.State) {
		for r := range k.Rules() {
			p.facts.KeepAlias = p.facts.KeepAlias || r.IIF == routing.LoopbackAlias && !gone[r]
		}
	})
	for r := range s.Rules() {
		p.facts.KeepAlias = p.facts.KeepAlias || r.Rule.IIF == routing.LoopbackAlias
	}
	return nil
}

// tell says what the plan lacks.
func (p *previewing) tell(last planned) {
	s := last.snapshot
	switch {
	case p.managerFault != "" && !p.alone:
		p.unknown("all links, because NetworkManager does not answer; nothing is deleted that may be needed")
	case s.Report.Waiting != "":
		p.unknown("all links: %s; nothing is deleted that may be needed", s.Report.Waiting)
	}
	for _, text := range p.notes {
		p.unknown("%s", text)
	}
	if len(p.unsure) > 0 {
		p.unknown("profiles of NetworkManager, which this user may not read; to fix: run it as root")
	}
	if s.Unread > 0 {
		p.unknown("%d messages of the kernel, the last because of: %v", s.Unread, s.UnreadFault)
	}
	for _, problem := range s.Report.Problems {
		if problem.Code == routing.NoTable {
			p.unknown("%s", problem.String())
		}
	}
	hidden := func(format string, args ...any) {
		p.facts.Hidden = append(p.facts.Hidden, fmt.Sprintf(format, args...))
	}
	if len(p.cfg.Binds) > 0 || len(s.Bindings) > 0 {
		hidden("programs of the kernel (BPF) that bind control groups and users to links, and lead their DNS queries")
	}
	if p.cfg.DNS.ServersFile != "" {
		hidden("the DNS servers in %s", p.cfg.DNS.ServersFile)
	}
	if p.cfg.MoveRoutes {
		hidden("routes of ifupdown that leave main, because move_routes is set")
	}
	if p.cfg.Failover.Enabled && p.cfg.Failover.MPTCP == config.MPTCPAuto {
		hidden("endpoints of Multipath TCP on uplinks that NetworkManager does not serve")
	}
	if slices.ContainsFunc(p.facts.Answers, func(o answers.Op) bool { return o.Verb == answers.DeleteElement && o.Element.Number != 0 }) {
		hidden("tracked connections of addresses that go, which are forgotten")
	}
}

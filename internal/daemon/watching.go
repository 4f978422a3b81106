package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"

	"multihomed/internal/config"
	"multihomed/internal/connections"
	"multihomed/internal/failover"
	"multihomed/internal/handoff"
	"multihomed/internal/prober/client"
	"multihomed/internal/status/view"
	"multihomed/routing"
	"multihomed/routing/reconcile"
)

// watch makes the part that watches the uplinks. A stand-in does not stay to judge: what
// stands in table F stays as it is.
func (p *parts) watch(cfg config.Config, more extras) reconcile.Failover {
	if !more.watches {
		facts := failover.FactsOf(cfg)
		facts.Frozen = true
		return reconcile.StandingFailover(facts)
	}
	p.uplinks = failover.New(failover.Options{
		Logger: p.log, Config: cfg, Look: func(ctx context.Context) (failover.Facts, error) { return p.uplinkFacts(ctx, cfg) },
		Dial:   func() failover.Prober { return client.New(cfg.Failover.Prober) },
		Memory: failover.File{Directory: cfg.RuntimeDir}, Archive: failover.AnsweredFile{Directory: cfg.StateDir}, Ends: &ends{endpoints: connections.Endpoints{Directory: cfg.RuntimeDir}, answered: func(f routing.Family) bool { return p.answers.marks(f) }}, Before: more.uplinks, Judged: more.judged,
	})
	return p.uplinks
}

// lookedAt says what the facts of the uplinks depend on.
type lookedAt struct{ structure, owners uint64 }

// uplinkFacts asks the loop for what the controller must know of the host.
func (p *parts) uplinkFacts(ctx context.Context, cfg config.Config) (facts failover.Facts, err error) {
	_, err = p.loop.Snapshot(ctx, func() {
		facts = failover.Gather(cfg, p.loop.Current(), p.owners.Known)
	})
	return facts, err
}

// settleUplinks waits, for at most followTime, until who watches the uplinks knows those of now: after
// a change it is a moment behind.
func (p *parts) settleUplinks(ctx context.Context) {
	if p.uplinks == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, followTime)
	defer cancel()
	p.uplinks.Settled(ctx)
}

// deadUplinks are those that do not work.
func (p *parts) deadUplinks() (dead routing.ByFamily[map[int]struct{}]) {
	if p.uplinks != nil {
		dead = p.uplinks.Dead()
	}
	return dead
}

// emptyFailover empties table F at a stop, because nobody judges afterwards.
func (p *parts) emptyFailover(ctx context.Context) {
	if p.uplinks == nil || p.loop == nil {
		return
	}
	if err := p.loop.EmptyFailover(ctx); err != nil {
		p.log.LogAttrs(ctx, slog.LevelWarn, "unbound traffic may not follow main", slog.String("error", err.Error()))
	}
}

// carryOut carries out an order of an administrator about an uplink.
func (p *parts) carryOut(m handoff.Message) {
	if err := p.obey(m.Failover, m.Interface); err != nil {
		m.Refuse(err.Error())
		return
	}
	m.Acknowledge()
}

// obey carries out an order about an uplink.
func (p *parts) obey(order handoff.Order, name string) error {
	switch {
	case p.uplinks == nil:
		return failover.ErrOff
	case order == handoff.TestFailover:
		return p.uplinks.Test(name)
	case order == handoff.ResetFailover:
		return p.uplinks.Reset(name)
	default:
		return fmt.Errorf("this version does not know the order %q", order)
	}
}

// failoverView is what status shows of the uplinks, nil if nobody watches them.
func (p *parts) failoverView(cfg config.Config) (*view.Failover, uint64) {
	if p.uplinks == nil {
		return nil, 0
	}
	s := p.uplinks.State()
	f := &view.Failover{Enabled: cfg.Failover.Enabled, Prober: s.Prober, ProberFix: s.ProberFix}
	for _, l := range s.Links {
		f.Uplinks = append(f.Uplinks, view.Uplink(l))
	}
	return f, s.Generation
}

// ends closes connections of dead links. Its sockets are opened when they are needed. It is
// for one goroutine.
type ends struct {
	sockets *connections.Sockets
	flows   connections.Flows
	// endpoints have a goroutine of their own.
	endpoints connections.Endpoints
	// answered reports whether translated connections of a family stay on their link.
	answered func(routing.Family) bool
}

func (e *ends) Follow(ctx context.Context, wanted []connections.Endpoint) (added, removed int, err error) {
	return e.endpoints.Follow(ctx, wanted)
}

func (e *ends) Close(ctx context.Context, d connections.Dead) (connections.Closed, error) {
	if e.sockets == nil {
		s, err := connections.OpenSockets()
		if err != nil {
			return connections.Closed{}, err
		}
		e.sockets = s
	}
	closed, err := e.sockets.Close(ctx, d)
	// A death is rare: nothing is kept open for the next one.
	err = errors.Join(err, e.sockets.Shut())
	e.sockets = nil
	return closed, err
}

func (e *ends) Delete(ctx context.Context, addresses ...netip.Addr) (int, error) {
	return e.flows.Delete(ctx, addresses...)
}

func (e *ends) DeleteStrays(ctx context.Context, device int, addresses ...netip.Addr) (int, error) {
	// Where answers are on, none of them leaves by another link.
	addresses = slices.DeleteFunc(slices.Clone(addresses), func(a netip.Addr) bool { return e.answered(routing.FamilyOf(a)) })
	return e.flows.DeleteStrays(ctx, device, addresses...)
}

package kernel

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"multihomed/internal/nlmsg"
	"multihomed/routing"
	"multihomed/routing/lookup"
)

// A Consultation is what a lookup depends on, and the kernel's answer at the same time.
type Consultation struct {
	Facts *lookup.Facts
	// Verdict and Steps are the simulation's answer to Flow.Question().
	Verdict lookup.Verdict
	Steps   []lookup.Step
	// Answer is the kernel's. Without Asked there is none, because the kernel cannot be asked
	// ([lookup.Flow.Answerable]), or had better not ([lookup.Flow.HurtsKernel]).
	Answer lookup.Answer
	Asked  bool
	// Difference says where the two differ, empty if they agree ([lookup.Host.Disagree]).
	Difference string
	// Again is the flow of the second lookup of a socket, which has the source that the first one chose,
	// and what came of it; zero where there is none ([lookup.Flow.Again]).
	Again *Consultation
	// Flow is what was asked for.
	Flow lookup.Flow
}

// ErrUnsettled says that rules or routes changed all the time while they were read.
var ErrUnsettled = errors.New("rules or routes keep changing")

// tries is how often Consult begins again.
const tries = 10

// errChanged says that something was changed while it was read.
var errChanged = errors.New("changed while it was read")

// Consult reads what a flow depends on, asks the kernel, and makes sure that nothing of it
// changed meanwhile: a change begins everything anew. So does a difference, once: it may
// be that of a change that the kernel has not announced yet. A difference that stays is returned. The
// error is ErrUnsettled after some tries, or one of the socket. It needs no privileges.
//
// also are more destinations whose routes the facts shall have.
func (r *Reader) Consult(ctx context.Context, f lookup.Flow, also ...netip.Addr) (*Consultation, error) {
	f.To, f.From = f.To.Unmap().WithZone(""), f.From.Unmap().WithZone("")
	var differing *Consultation
	for range tries {
		c, err := r.consult(ctx, f, also)
		switch {
		case errors.Is(err, errChanged):
		case err != nil:
			return nil, err
		case c.differs() && (differing == nil || differing.Difference != c.Difference):
			differing = c
		default:
			return c, nil
		}
	}
	if differing != nil {
		return differing, nil
	}
	return nil, fmt.Errorf("reading rules and routes: %w: each of %d tries met a change", ErrUnsettled, tries)
}

func (c *Consultation) differs() bool {
	return c.Difference != "" || c.Again != nil && c.Again.Difference != ""
}

func (r *Reader) consult(ctx context.Context, f lookup.Flow, also []netip.Addr) (c *Consultation, err error) {
	w, err := watchChanges(routing.FamilyOf(f.To))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, w.socket.Close()) }()
	w.to = append([]netip.Addr{f.To}, also...)
	if f.From.IsValid() {
		w.to = append(w.to, f.From) // Whether it is local, and for the way back.
	}
	facts, s, err := r.facts(ctx, routing.FamilyOf(f.To), w.to, w.settled)
	if err != nil {
		return nil, err
	}
	r.beforeAsking()
	known := indexesOf(facts.Interfaces)
	if c, err = r.confront(ctx, known, facts, f); err != nil {
		return nil, err
	}
	c = c.reconsidered()
	facts = c.Facts
	if again, is := f.Again(c.Answer); is && c.Asked {
		// It is an address of this host, most likely, but the facts may not say so yet.
		w.to = append(w.to, again.From)
		if facts, err = r.withSource(ctx, s, facts, again.From, w.settled); err != nil {
			return nil, err
		}
		c.Facts = facts
		if c.Again, err = r.confront(ctx, known, facts, again); err != nil {
			return nil, err
		}
	}
	// Whatever was under way has been announced after this.
	if err := r.loader.requests.barrier(ctx); err != nil {
		return nil, err
	}
	return c, w.settled()
}

// reconsidered is the consultation with other facts that are possible, if only with them the simulation says what the
// kernel said. The kernel is not asked again: by other facts, the question may harm it.
func (c *Consultation) reconsidered() *Consultation {
	if c.Difference == "" {
		return c
	}
	question := c.Flow.Question()
	for _, other := range c.Facts.Otherwise() {
		host, out := other.Host(), *c
		out.Facts = other
		out.Verdict, out.Steps = host.Trace(question)
		if out.Difference = host.Disagree(out.Verdict, question, c.Answer); out.Difference == "" {
			return &out
		}
	}
	return c
}

// withSource adds the local routes that contain an address.
func (r *Reader) withSource(ctx context.Context, s *State, f *lookup.Facts, from netip.Addr, often func() error) (*lookup.Facts, error) {
	out := *f
	out.Tables = maps.Clone(f.Tables)
	tables := []routing.TableID{routing.TableLocal}
	for _, i := range f.Interfaces {
		if i.Table != 0 {
			tables = append(tables, i.Table)
		}
	}
	for _, t := range tables {
		more, err := r.candidates(ctx, s, routeQuestion{family: f.Family, table: t, kind: routing.RouteLocal}, []netip.Addr{from}, often)
		if err != nil {
			return nil, err
		}
		for _, c := range more {
			if !slices.Contains(out.Tables[t], c) {
				out.Tables[t] = append(slices.Clip(out.Tables[t]), c)
			}
		}
	}
	return &out, nil
}

// confront asks the simulation and the kernel.
func (r *Reader) confront(ctx context.Context, known indexes, facts *lookup.Facts, f lookup.Flow) (*Consultation, error) {
	host := facts.Host()
	c := &Consultation{Facts: facts, Flow: f}
	question := f.Question()
	c.Verdict, c.Steps = host.Trace(question)
	if f.HurtsKernel(c.Verdict) {
		return c, nil
	}
	label := slices.ContainsFunc(facts.Rules, func(r routing.Rule) bool { return r.FlowLabel.Set })
	var err error
	switch c.Answer, err = r.ask(ctx, known, f, label); {
	case errors.Is(err, ErrNoQuestion):
		return c, nil
	case err != nil:
		return nil, err
	}
	c.Asked = true
	c.Difference = host.Disagree(c.Verdict, question, c.Answer)
	return c, nil
}

// A changeWatch hears of changes that a lookup may depend on.
type changeWatch struct {
	socket *socket
	family routing.Family
	to     []netip.Addr
	buffer []byte
}

func watchChanges(f routing.Family) (*changeWatch, error) {
	groups := []int{
		unix.RTNLGRP_LINK, unix.RTNLGRP_NEXTHOP,
		unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV4_IFADDR,
	}
	if f == routing.IPv6 {
		groups = []int{
			unix.RTNLGRP_LINK, unix.RTNLGRP_NEXTHOP,
			unix.RTNLGRP_IPV6_RULE, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_IPV6_IFADDR,
		}
	}
	s, err := openSocket(requestReceiveBuffer, groups...)
	if err != nil {
		return nil, err
	}
	return &changeWatch{socket: s, family: f, buffer: make([]byte, bufferSize)}, nil
}

// settled returns errChanged if something was announced since it was asked last that concerns one
// of the addresses, or if announcements were lost.
func (w *changeWatch) settled() error {
	for {
		n, err := w.socket.tryReceive(w.buffer)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return nil
		case lost(err):
			return errChanged
		case err != nil:
			return fmt.Errorf("hearing of changes: %w", err)
		}
		for rest := w.buffer[:n]; len(rest) > 0; {
			var h nlmsg.Header
			var payload []byte
			if h, payload, rest, err = nlmsg.Next(rest); err != nil {
				return fmt.Errorf("hearing of changes: %w", err)
			}
			if w.concerns(h.Kind, payload) {
				return errChanged
			}
		}
	}
}

func (w *changeWatch) concerns(kind uint16, payload []byte) bool {
	if kind != unix.RTM_NEWROUTE && kind != unix.RTM_DELROUTE {
		return true
	}
	h, err := peekRoute(payload)
	return err != nil || h.key.family == w.family && h.flags&routeCloned == 0 && slices.ContainsFunc(w.to, h.key.destination.Contains)
}

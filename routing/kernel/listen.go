package kernel

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"multihomed/internal/nlmsg"
	"multihomed/routing"
)

const (
	// listenerReceiveBuffer is what may be announced while a listener does something else. An ordinary
	// user gets net.core.rmem_max at most.
	listenerReceiveBuffer = 8 << 20
	// mostAtOnce bounds a burst: who asked for a change is looked up once for each, while the process
	// that did is still there.
	mostAtOnce = 256
	// addressOrigin is IFA_PROTO of linux/if_addr.h.
	addressOrigin = 11
)

// A Listener passes on the announcements of the kernel one by one, for those who show what happens. It
// keeps nothing; a [Mirror] says what is.
type Listener struct {
	events   *socket
	requests *requester
	buf      []byte
	heard    []routing.Announcement
}

// Listen subscribes to interfaces, addresses, rules and routes of the current network namespace. Any
// user may. A receiveBuffer of 0 is the usual one, in bytes.
func Listen(receiveBuffer int) (*Listener, error) {
	if receiveBuffer == 0 {
		receiveBuffer = listenerReceiveBuffer
	}
	events, err := openSocket(receiveBuffer,
		unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR,
		unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV6_RULE)
	if err != nil {
		return nil, err
	}
	requests, err := newRequester()
	if err != nil {
		return nil, errors.Join(err, events.Close())
	}
	return &Listener{events: events, requests: requests, buf: make([]byte, bufferSize)}, nil
}

// Close ends the subscription. Run must have returned.
func (l *Listener) Close() error { return errors.Join(l.events.Close(), l.requests.close()) }

// Interfaces reads all interfaces with their addresses, by index.
func (l *Listener) Interfaces(ctx context.Context) ([]routing.Interface, error) {
	s := newState(routing.Ownership{}, func(string) bool { return false })
	from := loader{requests: l.requests}
	if err := from.links(ctx, s, s); err != nil {
		return nil, err
	}
	for _, f := range routing.Families() {
		if err := from.addresses(ctx, s, f); err != nil {
			return nil, err
		}
	}
	out := make([]routing.Interface, 0, len(s.links))
	for _, index := range s.Indexes() {
		facts, _ := s.LinkFacts(index)
		out = append(out, facts)
	}
	return out, nil
}

// Run calls take with what the kernel announces, in its order, until ctx ends; then it returns nil. The
// slice is used again. If lost is true, announcements before these were lost, because they came faster
// than they were read.
func (l *Listener) Run(ctx context.Context, take func(heard []routing.Announcement, lost bool)) error {
	defer l.events.Interruptible(ctx)()
	for {
		lost, err := l.burst()
		if err != nil {
			return fmt.Errorf("listening to the kernel: %w", err)
		}
		if len(l.heard) > 0 || lost {
			take(l.heard, lost)
			if ctx.Err() != nil {
				return nil
			}
			continue
		}
		if err := l.events.wait(); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("waiting for the kernel: %w", err)
		}
	}
}

// burst reads what has been announced, without waiting.
func (l *Listener) burst() (overrun bool, err error) {
	clear(l.heard)
	l.heard = l.heard[:0]
	for range mostAtOnce {
		n, err := l.events.tryReceive(l.buf)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return overrun, nil
		case err == nil:
		case lost(err):
			overrun = true
			continue
		default:
			return overrun, err
		}
		for rest := l.buf[:n]; len(rest) > 0; {
			var h nlmsg.Header
			var payload []byte
			if h, payload, rest, err = nlmsg.Next(rest); err != nil {
				overrun = true // What it said is not known.
				break
			}
			if one, told := readAnnouncement(h, payload); told {
				l.heard = append(l.heard, one)
			}
		}
	}
	return overrun, nil
}

// readAnnouncement reads an announcement. What is of another kind or family, or cannot be read, is none; nor
// are entries of the route cache and the kernel's own routes in local, which follow the addresses.
func readAnnouncement(h nlmsg.Header, payload []byte) (routing.Announcement, bool) {
	out := routing.Announcement{Port: h.Port, Replaced: h.Flags&unix.NLM_F_REPLACE != 0}
	switch h.Kind {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		m, err := decodeLink(payload)
		if err != nil || m.bridge || !m.info {
			return out, false
		}
		out.Kind, out.Gone = routing.AnnouncedInterface, h.Kind == unix.RTM_DELLINK
		out.Interface = routing.Interface{
			Index: m.index, Name: m.name, Up: m.flags&unix.IFF_UP != 0, Carrier: m.flags&unix.IFF_LOWER_UP != 0, Running: m.flags&unix.IFF_RUNNING != 0,
			Group: m.group.Value, Kind: m.kind, Master: int(m.master.Value), MTU: m.mtu.Value,
		}
		return out, true
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		m, err := decodeAddress(payload)
		if err != nil || m.family == 0 {
			return out, false
		}
		out.Kind, out.Gone = routing.AnnouncedAddress, h.Kind == unix.RTM_DELADDR
		out.Device, out.Address = m.index, m.address
		for a := (nlmsg.Attributes{Rest: payload[unix.SizeofIfAddrmsg:]}); a.Next(); {
			if a.Kind == addressOrigin {
				out.Origin = routing.Origin(a.Uint8())
			}
		}
		return out, true
	case unix.RTM_NEWRULE, unix.RTM_DELRULE:
		if len(payload) == 0 || !knownFamily(payload[0]) {
			return out, false
		}
		r, err := decodeRule(payload)
		out.Kind, out.Gone, out.Rule = routing.AnnouncedRule, h.Kind == unix.RTM_DELRULE, r
		return out, err == nil
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		head, err := peekRoute(payload)
		if err != nil || !knownFamily(byte(head.key.family)) || head.flags&routeCloned != 0 || head.key.table == routing.TableLocal || !shown(head.kind) {
			return out, false
		}
		a, err := decodeRoute(payload)
		if err != nil {
			return out, false
		}
		out.Kind, out.Gone = routing.AnnouncedRoute, h.Kind == unix.RTM_DELROUTE
		for _, l := range a.legs {
			out.Routes = append(out.Routes, l.route)
		}
		return out, true
	default:
		return out, false
	}
}

// shown leaves out what the kernel keeps for addresses: local, broadcast, anycast and multicast.
func shown(t routing.RouteType) bool {
	return slices.Contains([]routing.RouteType{unix.RTN_UNICAST, unix.RTN_BLACKHOLE, unix.RTN_UNREACHABLE, unix.RTN_PROHIBIT, unix.RTN_THROW}, t)
}

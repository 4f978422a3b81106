package e2e_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"multihomed/test/lab"
)

// A monitor records the announcements of the kernel and their times: changes of the host and
// reactions of the daemon. It contains no code of the product.
type monitor struct {
	tb      testing.TB
	mu      sync.Mutex
	seen    []event
	marks   int
	changed chan struct{}
}

// An event is one announcement, or a mark of the test.
type event struct {
	at   time.Time
	text string
	// own says that a program wrote or deleted an object of multihomed's.
	own bool
	// barrier events belong to no process.
	barrier bool
}

func newMonitor(tb testing.TB) *monitor {
	tb.Helper()
	s, err := nl.Subscribe(unix.NETLINK_ROUTE,
		unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE,
		unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV6_RULE)
	if err != nil {
		tb.Fatal(err)
	}
	if err := s.SetReceiveBufferSize(256<<20, true); err != nil {
		tb.Fatal(err)
	}
	// Receive has no other way to be ended than a time after which it looks.
	if err := s.SetReceiveTimeout(&unix.Timeval{Usec: 100_000}); err != nil {
		tb.Fatal(err)
	}
	m := &monitor{tb: tb, changed: make(chan struct{})}
	ended, done := make(chan struct{}), make(chan struct{})
	tb.Cleanup(func() {
		close(ended)
		<-done
		s.Close()
	})
	go func() {
		defer close(done)
		for {
			messages, _, err := s.Receive()
			select {
			case <-ended:
				return
			default:
			}
			if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
				continue
			}
			if err != nil {
				tb.Errorf("the monitor lost announcements: %v", err)
				return
			}
			now := time.Now()
			for _, msg := range messages {
				e := describe(msg.Header, msg.Data)
				e.at = now
				m.add(e)
			}
		}
	}()
	return m
}

func (m *monitor) add(e event) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.seen = append(m.seen, e)
	close(m.changed)
	m.changed = make(chan struct{})
}

// nlaTypeMask is NLA_TYPE_MASK of linux/netlink.h.
const nlaTypeMask = 0x3fff

// barrierPrefix marks lo while the monitor catches up.
const barrierPrefix = "barrier-"

func describe(h syscall.NlMsghdr, data []byte) event {
	verb := "+"
	switch h.Type {
	case unix.RTM_DELLINK, unix.RTM_DELADDR, unix.RTM_DELROUTE, unix.RTM_DELRULE:
		verb = "-"
	}
	attribute := func(header int, wanted uint16) []byte {
		for rest := data[min(header, len(data)):]; len(rest) >= 4; {
			size := int(binary.NativeEndian.Uint16(rest))
			if size < 4 || size > len(rest) {
				break
			}
			if binary.NativeEndian.Uint16(rest[2:])&nlaTypeMask == wanted {
				return rest[4:size]
			}
			rest = rest[min((size+3)&^3, len(rest)):]
		}
		return nil
	}
	word := func(wanted uint16) uint32 {
		if b := attribute(unix.SizeofRtMsg, wanted); len(b) >= 4 {
			return binary.NativeEndian.Uint32(b)
		}
		return 0
	}
	// A deletion by the kernel itself (with a link, for example) comes from port 0.
	by := h.Pid != 0 || verb == "+"
	switch h.Type {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		name := strings.TrimRight(string(attribute(unix.SizeofIfInfomsg, unix.IFLA_IFNAME)), "\x00")
		alias := strings.TrimRight(string(attribute(unix.SizeofIfInfomsg, unix.IFLA_IFALIAS)), "\x00")
		return event{text: fmt.Sprintf("%slink %s %s", verb, name, alias), barrier: name == "lo" && strings.HasPrefix(alias, barrierPrefix)}
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		return event{text: fmt.Sprintf("%saddress %x on %d", verb, attribute(unix.SizeofIfAddrmsg, unix.IFA_ADDRESS), binary.NativeEndian.Uint32(data[4:]))}
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		return event{
			own: data[5] == lab.Ours && by,
			text: fmt.Sprintf("%sroute family %d table %d %x/%d dev %d protocol %d port %d", verb, data[0], word(unix.RTA_TABLE),
				attribute(unix.SizeofRtMsg, unix.RTA_DST), data[1], word(unix.RTA_OIF), data[5], h.Pid),
		}
	default:
		protocol := attribute(unix.SizeofRtMsg, unix.FRA_PROTOCOL)
		return event{
			own: len(protocol) == 1 && protocol[0] == lab.Ours && by,
			text: fmt.Sprintf("%srule family %d priority %d table %d from %x port %d", verb, data[0], word(unix.FRA_PRIORITY),
				word(unix.FRA_TABLE), attribute(unix.SizeofRtMsg, unix.FRA_SRC), h.Pid),
		}
	}
}

// barrier waits until the monitor has all that was announced before, and returns
// how many events there are.
func (m *monitor) barrier() int {
	m.tb.Helper()
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		m.tb.Fatal(err)
	}
	m.marks++
	alias := fmt.Sprintf("%s%d", barrierPrefix, m.marks)
	m.mu.Lock()
	read := len(m.seen)
	m.mu.Unlock()
	if err := netlink.LinkSetAlias(lo, alias); err != nil {
		m.tb.Fatal(err)
	}
	deadline := time.NewTimer(20 * time.Second)
	defer deadline.Stop()
	for {
		m.mu.Lock()
		n, changed := len(m.seen), m.changed
		// Each event is read once: a flood of a hundred thousand must not make this quadratic.
		seen := slices.ContainsFunc(m.seen[read:], func(e event) bool { return e.barrier && strings.HasSuffix(e.text, " "+alias) })
		m.mu.Unlock()
		if seen {
			return n
		}
		read = n
		select {
		case <-changed:
		case <-deadline.C:
			m.tb.Fatal("the monitor does not see its barrier")
		}
	}
}

// mark is an event that the kernel does not announce.
func (m *monitor) mark(text string) { m.add(event{at: time.Now(), text: "=== " + text}) }

func (m *monitor) from(n int) []event {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.seen[n:])
}

// quiet returns an error if anything was announced since an event, and how many events there are.
func (m *monitor) quiet(n int) (int, error) {
	m.tb.Helper()
	now := m.barrier()
	for _, e := range m.from(n)[:now-n] {
		if !e.barrier {
			return now, fmt.Errorf("meanwhile: %s", e.text)
		}
	}
	return now, nil
}

// unprovoked returns what was written since an event although nothing had
// happened to the host since.
func (m *monitor) unprovoked(n int) []event {
	events := m.from(n)
	end := slices.IndexFunc(events, func(e event) bool { return !e.own && !e.barrier })
	if end < 0 {
		end = len(events)
	}
	return slices.DeleteFunc(events[:end], func(e event) bool { return !e.own })
}

// lag returns the longest time between a change of the host and what was written
// because of it.
func (m *monitor) lag(n int) (longest time.Duration, after, written event) {
	var cause event
	for _, e := range m.from(n) {
		switch {
		case e.barrier:
		case !e.own:
			cause = e
		case cause.at.IsZero():
		default:
			if d := e.at.Sub(cause.at); d > longest {
				longest, after, written = d, cause, e
			}
		}
	}
	return longest, after, written
}

func (m *monitor) text(n int) string {
	var b strings.Builder
	for _, e := range m.from(n) {
		flag := " "
		if e.own {
			flag = "*"
		}
		fmt.Fprintf(&b, "%s %s %s\n", e.at.Format("05.000000"), flag, e.text)
	}
	return b.String()
}

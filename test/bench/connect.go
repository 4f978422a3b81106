package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"time"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"multihomed/test/lab"
)

// A ConnectRow is what the ladder costs each connect(2) of a UDP socket to an
// address behind the default: nanoseconds of CPU for a connect and its
// dissolution. IPv4.
type ConnectRow struct {
	Links int    `json:"links"`
	Owner string `json:"owner"`
	// None is with the rules of the kernel alone, Now with ours, and Version1 with
	// those that version 1 made for the same links.
	None     Connect `json:"none"`
	Version1 Connect `json:"version1"`
	Now      Connect `json:"now"`
}

// A Connect is one ladder.
type Connect struct {
	Rules int `json:"rules"`
	// Unbound is a socket without an address, Bound one with the last link's.
	Unbound Series `json:"unbound_ns"`
	Bound   Series `json:"bound_ns"`
}

// connects measures connects with no ladder, with version 1's and with ours. All
// three are measured in each round, the tables stand all the time.
func (b *bench) connects(ctx context.Context, report *Report) error {
	b.progress("%d links: connects", len(b.links))
	if err := b.flush(ctx); err != nil {
		return err
	}
	if report.NoRules.Runs == 0 {
		if err := b.withoutRules(report); err != nil {
			return err
		}
	}
	b.watch.reset()
	if _, _, err := b.start(ctx); err != nil {
		return err
	}
	events, err := b.settled(ctx, func(events []event) error { return whole(len(b.links), events) })
	if err != nil {
		return err
	}
	if err := b.stop(ctx); err != nil {
		return err
	}
	var now []message
	for _, m := range replay(events) {
		if m.kind == unix.RTM_NEWRULE {
			now = append(now, m)
		}
	}
	before, err := b.version1(now)
	if err != nil {
		return err
	}
	if err := b.send.batched(undo(now)); err != nil {
		return fmt.Errorf("taking the rules away: %w", err)
	}
	row := ConnectRow{Links: len(b.links), Owner: b.owner.String()}
	ladders := []struct {
		connect *Connect
		rules   []message
		unbound []time.Duration
		bound   []time.Duration
	}{{connect: &row.None}, {connect: &row.Version1, rules: before}, {connect: &row.Now, rules: now}}
	from := b.links[len(b.links)-1].address.Addr()
	for range b.starts {
		for i := range ladders {
			l := &ladders[i]
			if err := b.send.batched(l.rules); err != nil {
				return fmt.Errorf("making rules: %w", err)
			}
			unbound, err := connectsFrom(netip.IPv4Unspecified(), b.connect)
			if err != nil {
				return err
			}
			bound, err := connectsFrom(from, b.connect)
			if err != nil {
				return err
			}
			l.unbound, l.bound = append(l.unbound, unbound), append(l.bound, bound)
			if err := b.send.batched(undo(l.rules)); err != nil {
				return fmt.Errorf("taking the rules away: %w", err)
			}
		}
	}
	for _, l := range ladders {
		*l.connect = Connect{Rules: len(l.rules), Unbound: nanoseconds(l.unbound), Bound: nanoseconds(l.bound)}
	}
	report.Connects = append(report.Connects, row)
	_, err = b.settled(ctx, nothing)
	return err
}

// withoutRules measures in a new network namespace: once any rule was added, a
// rule, the kernel goes through the list of rules for good, also when the rule has
// gone (fib_has_custom_rules of include/net/ip_fib.h).
func (b *bench) withoutRules(report *Report) error {
	ns, err := b.host.NewNamespace("norules")
	if err != nil {
		return err
	}
	l := linkAt(0)
	const peer = "peer"
	cable := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: l.name}, PeerName: peer}
	if err := ns.Netlink().LinkAdd(cable); err != nil {
		return fmt.Errorf("making an interface: %w", err)
	}
	for _, name := range []string{l.name, peer} {
		end, err := ns.Netlink().LinkByName(name)
		if err != nil {
			return fmt.Errorf("finding %s: %w", name, err)
		}
		if err := ns.Netlink().LinkSetUp(end); err != nil {
			return fmt.Errorf("setting %s up: %w", name, err)
		}
	}
	if err := ns.AddAddr(l.name, l.address); err != nil {
		return err
	}
	everything := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	if err := ns.AddRoute(lab.Route{Dst: everything, Via: l.gateway}, l.name); err != nil {
		return err
	}
	var all []time.Duration
	for range b.starts {
		err := ns.Do(func() error {
			t, err := connectsFrom(netip.IPv4Unspecified(), b.connect)
			all = append(all, t)
			return err
		})
		if err != nil {
			return err
		}
	}
	report.NoRules = nanoseconds(all)
	return ns.Close()
}

// connectsFrom is this thread's CPU time for one connect of a UDP socket that is
// bound to an address, and for its dissolution, by which an unbound socket loses
// the address that the route gave it. A fixed port saves the search for one.
func connectsFrom(from netip.Addr, n int) (time.Duration, error) { return connectsBy(from, 0, n) }

// connectsBy is connectsFrom for a socket with a mark, unless that is 0.
func connectsBy(from netip.Addr, mark uint32, n int) (time.Duration, error) {
	const port = 40000
	fd, err := markedSocket(mark)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: from.As4(), Port: port}); err != nil {
		return 0, fmt.Errorf("binding a socket to %v: %w", from, err)
	}
	to := &unix.SockaddrInet4{Addr: [4]byte{203, 0, 113, 1}, Port: 53}
	before, err := thisThread.read()
	if err != nil {
		return 0, err
	}
	for range n {
		if err := unix.Connect(fd, to); err != nil {
			return 0, fmt.Errorf("connecting from %v: %w", from, err)
		}
		if err := dissolve(fd); err != nil {
			return 0, err
		}
	}
	after, err := thisThread.read()
	return (after - before) / time.Duration(n), err
}

// dissolve is connect(2) with AF_UNSPEC, which package unix has no address for.
func dissolve(fd int) error {
	nobody := unix.RawSockaddr{Family: unix.AF_UNSPEC}
	_, _, errno := unix.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&nobody)), unsafe.Sizeof(nobody)) //nolint:gosec // x/sys has no address without a family
	if errno != 0 {
		return fmt.Errorf("dissolving a connection: %w", errno)
	}
	return nil
}

// nanoseconds is a series in them.
func nanoseconds(values []time.Duration) Series {
	s := series(values)
	const perMillisecond = 1e6
	return Series{Median: s.Median * perMillisecond, Min: s.Min * perMillisecond, Max: s.Max * perMillisecond, Runs: s.Runs}
}

// version1 are the rules that version 1 made where the new ones stand, in the same
// tables: see ARCHITECTURE.md of commit 0ac7c41.
func (b *bench) version1(now []message) ([]message, error) {
	const (
		known     = 9000
		asMain    = 19000
		network   = 20000
		lastThing = 91000
	)
	tables := map[netip.Addr]uint32{}
	for _, m := range now {
		source, priority, table := ruleOf(m.payload)
		if a, ok := netip.AddrFromSlice(source); ok && priority == prioritySource {
			tables[a] = table
		}
	}
	out := []message{
		rule{priority: known, table: unix.RT_TABLE_MAIN, length: 1, group: uplinkGroup}.message(),
		rule{priority: asMain, table: unix.RT_TABLE_MAIN, length: 0}.message(),
	}
	for _, l := range b.links {
		table, ok := tables[l.address.Addr()]
		if !ok {
			return nil, fmt.Errorf("no rule leads from %v to a table", l.address.Addr())
		}
		source := netip.PrefixFrom(l.address.Addr(), l.address.Addr().BitLen())
		for _, r := range []rule{
			{priority: priorityDevice, oif: l.name, table: table},
			{priority: prioritySource, from: source, table: table},
			{priority: priorityUnreachable, from: source},
			{priority: network, to: l.address.Masked(), table: table},
			{priority: lastThing, iif: "lo", table: table},
		} {
			r.length = noLength
			out = append(out, r.message())
		}
	}
	slices.SortStableFunc(out, func(a, b message) int {
		_, first, _ := ruleOf(a.payload)
		_, second, _ := ruleOf(b.payload)
		return int(first) - int(second)
	})
	return out, nil
}

// noLength says that no route is suppressed.
const noLength = -1

// rule is an IPv4 rule of our protocol; without a table it is unreachable.
type rule struct {
	priority, table, group uint32
	length                 int
	from, to               netip.Prefix
	iif, oif               string
}

func (r rule) message() message {
	const (
		toTable     = 1 // FR_ACT_TO_TBL
		unreachable = 7 // FR_ACT_UNREACHABLE
	)
	var b builder
	header := make([]byte, ruleHeaderSize)
	header[0], header[7] = unix.AF_INET, unreachable
	if r.table != 0 {
		header[7] = toTable
	}
	b.b = append(b.b, header...)
	name := func(kind uint16, s string) {
		if s != "" {
			b.attribute(kind, append([]byte(s), 0))
		}
	}
	if r.from.IsValid() {
		b.b[2] = byte(r.from.Bits())
		b.attribute(fraSrc, r.from.Addr().AsSlice())
	}
	if r.to.IsValid() {
		b.b[1] = byte(r.to.Bits())
		b.attribute(fraDst, r.to.Addr().AsSlice())
	}
	name(fraIIFName, r.iif)
	name(fraOIFName, r.oif)
	b.attribute32(fraPriority, r.priority)
	if r.table != 0 {
		b.attribute32(fraTable, r.table)
	}
	if r.length != noLength {
		b.attribute(fraSuppressLength, binary.NativeEndian.AppendUint32(nil, uint32(r.length)))
	}
	if r.group != 0 {
		b.attribute32(fraSuppressGroup, r.group)
	}
	b.attribute(fraProtocol, []byte{lab.Ours})
	return message{kind: unix.RTM_NEWRULE, flags: unix.NLM_F_CREATE | unix.NLM_F_EXCL, payload: b.b}
}

func printConnects(out io.Writer, rows []ConnectRow, none Series) {
	if len(rows) == 0 {
		return
	}
	table(out, "A connect of a UDP socket through the default and its dissolution, IPv4, nanoseconds of CPU; bound is to the last link's address",
		"links\towner\tunbound: kernel's rules alone\tversion 1\tnow\tnow/alone\tnow/version 1\tbound: kernel's rules alone\tversion 1\tnow\tnow/alone\tnow/version 1\trules of version 1\tnow\ta link",
		func(line func(...any)) {
			for _, w := range rows {
				line(w.Links, w.Owner, w.None.Unbound, w.Version1.Unbound, w.Now.Unbound,
					times(w.Now.Unbound.Median, w.None.Unbound.Median), times(w.Now.Unbound.Median, w.Version1.Unbound.Median),
					w.None.Bound, w.Version1.Bound, w.Now.Bound,
					times(w.Now.Bound.Median, w.None.Bound.Median), times(w.Now.Bound.Median, w.Version1.Bound.Median),
					w.Version1.Rules, w.Now.Rules, fmt.Sprintf("%.1f", float64(w.Now.Rules)/float64(w.Links)))
			}
		})
	fmt.Fprintf(out, "Where nobody ever added a rule, a connect takes %s ns.\n", none)
}

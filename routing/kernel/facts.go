package kernel

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"multihomed/internal/nlmsg"
	"multihomed/routing"
	"multihomed/routing/lookup"
)

// Facts reads what a lookup of one family depends on, for some destinations: the interfaces,
// all rules, and of each table that a rule or a VRF names, and of local, main and default, the
// routes that contain one of the addresses. Routes are read one by one: a million of them cost
// time, and no memory. It needs no privileges.
//
// What changes meanwhile may be half in it: see [Reader.Consult].
func (r *Reader) Facts(ctx context.Context, f routing.Family, to ...netip.Addr) (*lookup.Facts, error) {
	facts, _, err := r.facts(ctx, f, to, func() error { return nil })
	return facts, err
}

// facts is Facts; often is called again and again while routes come.
func (r *Reader) facts(ctx context.Context, f routing.Family, to []netip.Addr, often func() error) (*lookup.Facts, *State, error) {
	to = slices.Clone(to)
	for i := range to {
		to[i] = to[i].Unmap().WithZone("")
	}
	release := kernelRelease()
	out := &lookup.Facts{Family: f, Tables: map[routing.TableID][]lookup.Candidate{}, Before615: isBefore615(release), Before72: isBefore72(release)}
	s, err := r.withObjects(ctx)
	if err != nil {
		return nil, nil, err
	}
	if out.Interfaces, err = r.interfaces(ctx); err != nil {
		return nil, nil, err
	}
	var detached []string
	if out.Rules, detached, err = r.rules(ctx, f); err != nil {
		return nil, nil, err
	}
	detach(out.Interfaces, detached)
	tables := out.Asked()
	if len(tables) > manyTables {
		candidates, err := r.candidates(ctx, s, routeQuestion{family: f}, to, often)
		for _, c := range candidates {
			if _, asked := slices.BinarySearch(tables, c.Route.Table); asked {
				out.Tables[c.Route.Table] = append(out.Tables[c.Route.Table], c)
			}
		}
		return out, s, err
	}
	for _, t := range tables {
		candidates, err := r.candidates(ctx, s, routeQuestion{family: f, table: t}, to, often)
		if err != nil {
			return nil, nil, err
		}
		if len(candidates) > 0 {
			out.Tables[t] = candidates
		}
	}
	return out, s, nil
}

// manyTables is how many tables are read one by one. More are read in one dump, with whatever other tables there
// are: a dump of a small table costs more than what is in it.
const manyTables = 32

// kernelRelease is that of the running kernel (uname(2)), empty if it is unknown.
func kernelRelease() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Release[:])
}

// isBefore615 is [lookup.Host.Before615] by the release of a kernel.
func isBefore615(release string) bool {
	var major, minor int
	n, _ := fmt.Sscanf(release, "%d.%d", &major, &minor)
	return n == 2 && (major < 6 || major == 6 && minor < 15)
}

// isBefore72 is [lookup.Host.Before72] by the release of a kernel. Later releases of older series have the change too:
// these are known to.
func isBefore72(release string) bool {
	var major, minor, patch int
	n, _ := fmt.Sscanf(release, "%d.%d.%d", &major, &minor, &patch)
	switch {
	case n < 2:
		return false
	case major == 6 && minor == 12:
		return patch < 117
	case major == 6 && minor == 18:
		return patch < 44
	default:
		return major < 7 || major == 7 && minor < 2
	}
}

// rules reads the rules of a family in the kernel's order. Detached are the names by which rules know no interface.
func (r *Reader) rules(ctx context.Context, f routing.Family) (out []routing.Rule, detached []string, err error) {
	var faults []error
	err = r.loader.requests.dump(ctx, dump{
		what: "rules", kind: unix.RTM_GETRULE,
		body:    func(m *nlmsg.Builder) { m.Bytes(byte(f), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0) },
		restart: func() { out, detached, faults = out[:0], detached[:0], faults[:0] },
		each: func(payload []byte) bool {
			rule, err := decodeRule(payload)
			if err != nil {
				faults = append(faults, err)
			} else if rule.Family == f {
				out = append(out, rule)
				detached = append(detached, detachedFrom(payload, &rule)...)
			}
			return true
		},
	})
	return out, detached, errors.Join(append(faults, err)...)
}

// candidates reads the routes of a table, or of all, that contain one of the addresses.
func (r *Reader) candidates(ctx context.Context, s *State, question routeQuestion, to []netip.Addr, often func() error) ([]lookup.Candidate, error) {
	const rarely = 1 << 12
	var out []lookup.Candidate
	var faults []error
	seen := 0
	q := question.dump()
	q.restart = func() { out, faults = out[:0], faults[:0] }
	q.each = func(payload []byte) bool {
		if seen++; seen%rarely == 0 {
			if err := often(); err != nil {
				faults = append(faults, err)
				return false
			}
		}
		if !mayContain(payload, to) {
			return true
		}
		h, err := peekRoute(payload)
		switch {
		case err != nil:
			faults = append(faults, err)
		case h.key.family != question.family || question.table != 0 && h.key.table != question.table || h.flags&routeCloned != 0 ||
			!slices.ContainsFunc(to, h.key.destination.Contains):
		default:
			a, err := s.read(payload)
			if err != nil {
				faults = append(faults, err)
				return true
			}
			for _, l := range a.legs {
				out = append(out, lookup.Candidate{Route: l.route, Dead: l.dead, Nexthop: a.nexthop})
			}
		}
		return len(faults) < mostFaults
	}
	err := r.loader.requests.dump(ctx, q)
	if absent(err) {
		err = nil
	}
	if len(faults) > 0 && errors.Is(err, errBudget) {
		err = nil
	}
	return out, errors.Join(append(faults, err)...)
}

// mayContain reports whether a route's destination contains one of the addresses. It looks no
// further than it must: of a million routes it says no. What it cannot read, others must.
func mayContain(payload []byte, to []netip.Addr) bool {
	if len(payload) < unix.SizeofRtMsg || payload[1] == 0 {
		return true
	}
	for a := (nlmsg.Attributes{Rest: payload[unix.SizeofRtMsg:]}); a.Next(); {
		if a.Kind != unix.RTA_DST {
			continue
		}
		destination, err := decodePrefix(routing.Family(payload[0]), a.Value, int(payload[1]))
		return err != nil || slices.ContainsFunc(to, destination.Contains)
	}
	return true
}

// mostFaults is how many routes may be unreadable before reading them ends.
const mostFaults = 8

// Attributes of IFLA_AF_SPEC, which holds an array for each family: of IPv4 from the value 1 on,
// numbered as in linux/ip.h (inet_fill_link_af in net/ipv4/devinet.c), of IPv6 from 0 on, numbered as in
// linux/ipv6.h (inet6_fill_ifla6_attrs in net/ipv6/addrconf.c).
const (
	specInet4Conf = 1 // IFLA_INET_CONF
	specInet6Conf = 2 // IFLA_INET6_CONF

	devconf4Forwarding     = 1  // IPV4_DEVCONF_FORWARDING
	devconf4RPFilter       = 8  // IPV4_DEVCONF_RP_FILTER
	devconf4AcceptLocal    = 23 // IPV4_DEVCONF_ACCEPT_LOCAL
	devconf4SrcVMark       = 24 // IPV4_DEVCONF_SRC_VMARK
	devconf4RouteLocalnet  = 26 // IPV4_DEVCONF_ROUTE_LOCALNET
	devconf4IgnoreLinkDown = 29 // IPV4_DEVCONF_IGNORE_ROUTES_WITH_LINKDOWN
	devconf6IgnoreLinkDown = 39 // DEVCONF_IGNORE_ROUTES_WITH_LINKDOWN
	devconf6ForceForward   = 59 // DEVCONF_FORCE_FORWARDING, of Linux 6.17
)

// interfaces reads all interfaces.
func (r *Reader) interfaces(ctx context.Context) ([]lookup.Interface, error) {
	out, err := r.unaddressed(ctx)
	if err != nil {
		return nil, err
	}
	addressed := map[int]bool{}
	err = r.loader.requests.dump(ctx, dump{
		what: "addresses", kind: unix.RTM_GETADDR,
		body:    func(m *nlmsg.Builder) { m.Bytes(unix.AF_INET, 0, 0, 0, 0, 0, 0, 0) },
		restart: func() { clear(addressed) },
		each: func(payload []byte) bool {
			if a, err := decodeAddress(payload); err == nil && a.family == routing.IPv4 {
				addressed[a.index] = true
			}
			return true
		},
	})
	for i := range out {
		out[i].Config.Addressed = addressed[out[i].Index]
	}
	return out, err
}

// unaddressed reads all interfaces, and not whether they have addresses.
func (r *Reader) unaddressed(ctx context.Context) ([]lookup.Interface, error) {
	var out []lookup.Interface
	var faults []error
	all := readAllConf()
	err := r.loader.requests.dump(ctx, dump{
		what: "interfaces", kind: unix.RTM_GETLINK,
		body: func(m *nlmsg.Builder) {
			m.Bytes(make([]byte, unix.SizeofIfInfomsg)...)
			m.Attribute32(unix.IFLA_EXT_MASK, skipStatistics)
		},
		restart: func() { out, faults = out[:0], faults[:0] },
		each: func(payload []byte) bool {
			l, err := decodeLink(payload)
			switch {
			case err != nil:
				faults = append(faults, err)
			case !l.bridge:
				i := lookup.Interface{
					Index: l.index, Name: l.name, AltNames: l.others, Group: l.group.Value, Up: l.flags&unix.IFF_UP != 0, Table: l.table,
					Master: int(l.master.Value), NoCarrier: l.flags&unix.IFF_UP != 0 && l.flags&unix.IFF_LOWER_UP == 0,
				}
				if l.stands() {
					i.Lower = int(l.lower.Value)
				}
				i.Config = all.of(payload)
				out = append(out, i)
			}
			return true
		},
	})
	if err := errors.Join(append(faults, err)...); err != nil {
		return nil, err
	}
	return out, nil
}

// allConf is net.ipv4.conf.all, as far as the kernel asks it besides that of the interface
// (IN_DEV_MAXCONF and IN_DEV_ORCONF in include/linux/inetdevice.h), and net.ipv6.conf.all.forwarding, which decides
// for all interfaces (ip6_forward in net/ipv6/ip6_output.c).
type allConf struct {
	reversePath                             uint8
	markReverse, acceptLocal, routeLocalnet bool
	forwards6                               bool
}

// readAllConf reads sysctls of the network namespace of this thread. Where there is no
// /proc, they are taken to be off.
func readAllConf() (c allConf) {
	read := func(name string) uint8 {
		b, err := os.ReadFile("/proc/sys/net/" + name)
		if err != nil {
			return 0
		}
		n, err := strconv.ParseUint(string(bytes.TrimSpace(b)), 10, 8)
		if err != nil {
			return 0
		}
		return uint8(n)
	}
	is := func(name string) bool { return read(name) != 0 }
	return allConf{
		read("ipv4/conf/all/rp_filter"), is("ipv4/conf/all/src_valid_mark"), is("ipv4/conf/all/accept_local"), is("ipv4/conf/all/route_localnet"),
		is("ipv6/conf/all/forwarding"),
	}
}

// of reads IFLA_AF_SPEC of RTM_NEWLINK.
func (c allConf) of(payload []byte) (out lookup.Config) {
	out.ReversePath, out.MarkReverse, out.AcceptLocal, out.RouteLocalnet = c.reversePath, c.markReverse, c.acceptLocal, c.routeLocalnet
	out.Forwards.Set(routing.IPv6, c.forwards6)
	for a := (nlmsg.Attributes{Rest: payload[unix.SizeofIfInfomsg:]}); a.Next(); {
		if a.Kind != unix.IFLA_AF_SPEC {
			continue
		}
		for f := (nlmsg.Attributes{Rest: a.Value}); f.Next(); {
			for v := (nlmsg.Attributes{Rest: f.Value}); v.Next(); {
				switch {
				case f.Kind == unix.AF_INET && v.Kind == specInet4Conf:
					at := func(n int) uint32 { return wordAt(v.Value, n-1) }
					out.Forwards.Set(routing.IPv4, at(devconf4Forwarding) != 0)
					out.ReversePath = max(out.ReversePath, uint8(min(at(devconf4RPFilter), 2)))
					out.MarkReverse = out.MarkReverse || at(devconf4SrcVMark) != 0
					out.AcceptLocal = out.AcceptLocal || at(devconf4AcceptLocal) != 0
					out.RouteLocalnet = out.RouteLocalnet || at(devconf4RouteLocalnet) != 0
					out.IgnoreLinkDown.Set(routing.IPv4, at(devconf4IgnoreLinkDown) != 0)
				case f.Kind == unix.AF_INET6 && v.Kind == specInet6Conf:
					out.Forwards.Set(routing.IPv6, c.forwards6 || wordAt(v.Value, devconf6ForceForward) != 0)
					out.IgnoreLinkDown.Set(routing.IPv6, wordAt(v.Value, devconf6IgnoreLinkDown) != 0)
				}
			}
		}
	}
	return out
}

// wordAt is the nth number of an array, 0 if it has none.
func wordAt(b []byte, n int) uint32 {
	if len(b) < 4*(n+1) {
		return 0
	}
	return binary.NativeEndian.Uint32(b[4*n:])
}

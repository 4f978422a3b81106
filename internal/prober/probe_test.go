package prober_test

import (
	"errors"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"multihomed/internal/prober/client"
	"multihomed/internal/prober/wire"
)

// pingGroups are the groups whose members may have ping sockets (icmp(7)).
const pingGroups = "/proc/sys/net/ipv4/ping_group_range"

// TestProbes sends every kind of probe to hosts that answer, refuse, and cannot be reached, from a process
// without rights.
func TestProbes(t *testing.T) {
	w := newWorld(t)
	must(t, os.WriteFile(pingGroups, []byte("0 2147483647"), 0o644))
	p := start(t)
	c := connect(t, p.path).connected()
	if caps, uid := capabilities(t, p.cmd.Process.Pid); caps != "0000000000000000" || uid != "54321" {
		t.Errorf("the prober has capabilities %s, as user %s", caps, uid)
	}
	to := func(kind wire.Kind, target string, port uint16) wire.Probe {
		return wire.Probe{Kind: kind, Device: w.wan0, Target: netip.AddrPortFrom(addr(target), port)}
	}
	for name, p := range map[string]wire.Probe{
		"DNS": to(wire.DNS, resolver4, 53), "DNS by IPv6": to(wire.DNS, resolver6, 53),
		"TCP": to(wire.TCP, resolver4, 443), "TCP by IPv6": to(wire.TCP, resolver6, 443),
		"a reset": to(wire.TCP, resolver4, 444), "a reset by IPv6": to(wire.TCP, resolver6, 444),
		"ICMP": to(wire.ICMP, resolver4, 0), "ICMP by IPv6": to(wire.ICMP, resolver6, 0),
		"a closed port": to(wire.DNS, resolver4, 54), "a closed port by IPv6": to(wire.DNS, resolver6, 54),
	} {
		if e := c.probe(p); !isAnswered(e) {
			t.Errorf("%s: %+v", name, e.Report)
		}
	}
	// Errors that a router reports are none of the target's.
	for name, x := range map[string]struct {
		probe wire.Probe
		errno error
	}{
		"DNS, rejected": {to(wire.DNS, rejected4, 53), unix.ECONNREFUSED}, "DNS, rejected, by IPv6": {to(wire.DNS, rejected6, 53), unix.ECONNREFUSED},
		"TCP, rejected": {to(wire.TCP, rejected4, 443), unix.ECONNREFUSED}, "TCP, rejected, by IPv6": {to(wire.TCP, rejected6, 443), unix.ECONNREFUSED},
		"ICMP, rejected": {to(wire.ICMP, rejected4, 0), unix.ECONNREFUSED}, "ICMP, rejected, by IPv6": {to(wire.ICMP, rejected6, 0), unix.ECONNREFUSED},
		"DNS, no route": {to(wire.DNS, noRoute4, 53), unix.EHOSTUNREACH}, "DNS, no route, by IPv6": {to(wire.DNS, noRoute6, 53), unix.ENETUNREACH},
		"TCP, no route": {to(wire.TCP, noRoute4, 443), unix.EHOSTUNREACH}, "TCP, no route, by IPv6": {to(wire.TCP, noRoute6, 443), unix.ENETUNREACH},
		"ICMP, no route": {to(wire.ICMP, noRoute4, 0), unix.EHOSTUNREACH}, "ICMP, no route, by IPv6": {to(wire.ICMP, noRoute6, 0), unix.ENETUNREACH},
	} {
		if err := c.fails(x.probe); !errors.Is(err, x.errno) {
			t.Errorf("%s: %v, want %v", name, err, x.errno)
		}
	}
}

// TestDevices: a probe leaves by its device, with its source, whatever the routes say.
func TestDevices(t *testing.T) {
	w := newWorld(t)
	p := start(t)
	c := connect(t, p.path).connected()
	before := w.count(second4)
	probe := wire.Probe{Kind: wire.DNS, Device: w.wan1, Target: addrPort(resolver4 + ":53")}
	if e := c.probe(probe); !isAnswered(e) || w.count(second4) != before+1 {
		t.Errorf("by the second link: %+v, %d queries of it", e.Report, w.count(second4))
	}
	run(t, `ip addr add 192.0.2.3/24 dev wan0`)
	probe.Device, probe.Source = w.wan0, addr("192.0.2.3")
	if e := c.probe(probe); !isAnswered(e) || w.count("192.0.2.3") != 1 {
		t.Errorf("by the second address: %+v, %d queries of it", e.Report, w.count("192.0.2.3"))
	}
	probe.Kind, probe.Target = wire.TCP, addrPort(resolver4+":443")
	if e := c.probe(probe); !isAnswered(e) {
		t.Errorf("a connection from the second address: %+v", e.Report)
	}
	probe.Source = addr("192.0.2.4")
	if err := c.unsent(probe); !errors.Is(err, unix.EADDRNOTAVAIL) {
		t.Errorf("from an address of nobody: %v", err)
	}
	probe.Source, probe.Device = netip.Addr{}, 4711
	if err := c.unsent(probe); !errors.Is(err, unix.ENETUNREACH) && !errors.Is(err, unix.ENODEV) {
		t.Errorf("by a device that does not exist: %v", err)
	}
	// Routers announce resolvers with link-local addresses.
	var local string
	w.at(t, func() { local = linkLocal(t, "isp0") })
	e := c.probe(wire.Probe{Kind: wire.DNS, Device: w.wan0, Target: netip.AddrPortFrom(addr(local), 54)})
	if !isAnswered(e) {
		t.Errorf("to a closed port of %s: %+v", local, e.Report)
	}
	run(t, `nft add table inet f`, `nft add chain inet f out { type filter hook output priority 0; }`, `nft add rule inet f out udp dport 53 drop`)
	probe = wire.Probe{Kind: wire.DNS, Device: w.wan0, Target: addrPort(resolver4 + ":53")}
	if err := c.unsent(probe); !errors.Is(err, unix.EPERM) {
		t.Errorf("dropped by the host's own filter: %v", err)
	}
}

// TestPingForbidden: where ping sockets are forbidden, the error says what to do.
func TestPingForbidden(t *testing.T) {
	w := newWorld(t)
	must(t, os.WriteFile(pingGroups, []byte("1 0"), 0o644))
	p := start(t)
	c := connect(t, p.path).connected()
	for _, target := range []string{resolver4, resolver6} {
		err := c.unsent(wire.Probe{Kind: wire.ICMP, Device: w.wan0, Target: netip.AddrPortFrom(addr(target), 0)})
		const want = `ping sockets are forbidden: permission denied; to fix: probe by DNS or TCP, or: sysctl net.ipv4.ping_group_range="0 2147483647"`
		if !errors.Is(err, unix.EACCES) || err.Error() != want {
			t.Errorf("%s: %v", target, err)
		}
	}
}

// TestSilence: a probe that nobody answers ends with its lifetime; the prober goes on, and a ping moves the
// horizon over it.
func TestSilence(t *testing.T) {
	w := newWorld(t)
	p := start(t)
	c := connect(t, p.path).connected()
	began := time.Now()
	var open []uint64
	for _, target := range []string{silent4, silent6} {
		for _, x := range []wire.Probe{{Kind: wire.DNS, Target: addrPort("192.0.2.1:53")}, {Kind: wire.TCP, Target: addrPort("192.0.2.1:443")}} {
			x.Device, x.Target = w.wan0, netip.AddrPortFrom(addr(target), x.Target.Port())
			id, err := c.Probe(x)
			must(t, err)
			open = append(open, id)
		}
	}
	ping, err := c.Ping()
	must(t, err)
	asked := time.Now()
	for failed := 0; failed < len(open); {
		e := c.next()
		switch r := e.Report.(type) {
		case client.Pong:
			if r.ID != ping || e.Horizon.Before(began) || e.Horizon.After(time.Now()) || time.Since(asked) > wire.Lifetime {
				t.Errorf("%+v, horizon %v", r, e.Horizon)
			}
		case client.Sent:
		case client.Failed:
			failed++
			if !errors.Is(r.Err, unix.ETIMEDOUT) || r.At.Sub(began) < wire.Lifetime {
				t.Errorf("after %v: %v", r.At.Sub(began), r.Err)
			}
		default:
			t.Errorf("%T %+v", r, r)
		}
	}
	if e := c.probe(wire.Probe{Kind: wire.DNS, Device: w.wan0, Target: addrPort(resolver4 + ":53")}); !isAnswered(e) {
		t.Errorf("%+v", e.Report)
	}
}

// TestForgedAnswers: what does not repeat the identifier and the question is no answer, however much of it
// comes; what comes from elsewhere does not even arrive.
func TestForgedAnswers(t *testing.T) {
	w := newWorld(t)
	p := start(t)
	c := connect(t, p.path).connected()
	probe := wire.Probe{Kind: wire.DNS, Device: w.wan0, Target: addrPort(resolver4 + ":53")}
	forged := func(query []byte) [][]byte {
		change := func(at int, to byte) []byte {
			b := append([]byte(nil), query...)
			b[2] |= 0x80
			b[at] = to
			return b
		}
		return [][]byte{
			query, nil, query[:11], change(0, query[0]+1), change(1, query[1]+1), change(2, query[2]|0xa8), // opcode 5
			change(5, 2), change(5, 0), change(14, 1), change(16, 3), change(12, 1),
		}
	}
	w.answers(func(query []byte) [][]byte { return append(forged(query), honest(query)...) })
	if e := c.probe(probe); !isAnswered(e) {
		t.Errorf("an answer after forged ones: %+v", e.Report)
	}
	w.answers(func(query []byte) (all [][]byte) {
		for range 10 {
			all = append(all, forged(query)...)
		}
		return all
	})
	if err := c.fails(probe); !errors.Is(err, unix.EPROTO) {
		t.Errorf("forged answers: %v", err)
	}
	// A server that did not understand leaves out the question.
	w.answers(func(query []byte) [][]byte {
		b := append([]byte(nil), query[:12]...)
		b[2], b[3], b[5] = 0x80, 1, 0
		return [][]byte{b}
	})
	if e := c.probe(probe); !isAnswered(e) {
		t.Errorf("FORMERR: %+v", e.Report)
	}
}

func (w *world) count(source string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.sources[addr(source)]
}

package lab_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"multihomed/test/lab"
	"multihomed/test/lab/labtest"
)

// wired is a host without NetworkManager on one provider behind a wire.
func wired(t *testing.T) (*lab.Host, *lab.ISP, *lab.Wire) {
	t.Helper()
	host := labtest.NewHost(t, lab.HostConfig{NoBus: true, FastDAD: true})
	cfg := lab.DefaultISP(0)
	cfg.Wire, cfg.Resolver, cfg.NoDHCP, cfg.NoRA = true, true, true, true
	isp := labtest.NewISP(t, host, cfg)
	configure(t, host, isp)
	return host, isp, isp.Link().Wire()
}

func configure(t *testing.T, host *lab.Host, isp *lab.ISP) {
	t.Helper()
	ctx, dev := t.Context(), isp.Link().Name()
	must(t, isp.Link().SetUp(true))
	for _, gw := range []netip.Prefix{isp.Config().IPv4, isp.Config().IPv6} {
		must(t, host.AddAddr(dev, netip.PrefixFrom(gw.Addr().Next(), gw.Bits()).String()))
		_, err := host.IP(ctx, "route", "add", "default", "via", gw.Addr().String(), "dev", dev)
		must(t, err)
	}
}

// answered says who answers a few questions over the wire, in a fixed order.
func answered(t *testing.T, host *lab.Host, isp *lab.ISP) string {
	t.Helper()
	type question struct {
		name string
		ask  func(context.Context) error
	}
	var questions []question
	for _, f := range []lab.Family{lab.IPv4, lab.IPv6} {
		gateway, resolver := isp.Config().IPv4.Addr(), isp.Resolver4
		if f == lab.IPv6 {
			gateway, resolver = isp.Config().IPv6.Addr(), isp.Resolver6
		}
		questions = append(questions,
			question{"gateway", func(ctx context.Context) error {
				_, err := host.Ping(ctx, lab.From{}, gateway)
				return err
			}},
			question{"udp", func(ctx context.Context) error {
				_, err := lab.DialUDP(ctx, lab.From{}, lab.InternetAddr(f))
				return err
			}},
			question{"tcp", func(ctx context.Context) error {
				_, err := lab.DialTCP(ctx, lab.From{}, lab.InternetAddr(f))
				return err
			}},
			question{"dns", func(ctx context.Context) error { return query(ctx, "udp", resolver) }})
	}
	answers := make([]string, len(questions))
	var wg sync.WaitGroup
	for i, q := range questions {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), lab.Stretched(400*time.Millisecond))
			defer cancel()
			switch err := q.ask(ctx); {
			case err == nil:
				answers[i] = q.name + " yes"
			case errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.ENETUNREACH):
				answers[i] = q.name + " unreachable"
			default:
				answers[i] = q.name + " no"
			}
		})
	}
	wg.Wait()
	return strings.Join(answers, ", ")
}

// query asks a DNS server for the root's name servers (RFC 1035, section 4.1).
func query(ctx context.Context, network string, server netip.Addr) error {
	conn, err := (&net.Dialer{}).DialContext(ctx, network, netip.AddrPortFrom(server, 53).String())
	if err != nil {
		return err
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	_ = conn.SetDeadline(deadline)
	message := []byte{0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 1}
	ask := message
	if network == "tcp" {
		ask = append(binary.BigEndian.AppendUint16(nil, uint16(len(message))), message...)
	}
	if _, err := conn.Write(ask); err != nil {
		return err
	}
	buf := make([]byte, 512)
	n, err := conn.Read(buf)
	if err != nil {
		return err
	}
	got := buf[len(ask)-len(message) : n]
	if len(got) != len(message) || got[2]&0x80 == 0 || !bytes.Equal(got[:2], message[:2]) || got[3]&0x0f != 0 {
		return fmt.Errorf("the answer %x to %x", got, message)
	}
	return nil
}

func TestWireFaults(t *testing.T) {
	host, isp, wire := wired(t)
	both := func(s string) string { return s + ", " + s }
	whole := both("gateway yes, udp yes, tcp yes, dns yes")
	for _, c := range []struct {
		fault lab.Fault
		want  string
	}{
		{lab.NoFault, whole},
		{lab.Silent, both("gateway no, udp no, tcp no, dns no")},
		{lab.SilentOut, both("gateway no, udp no, tcp no, dns no")},
		{lab.SilentIn, both("gateway no, udp no, tcp no, dns no")},
		{lab.SilentDNS, both("gateway yes, udp yes, tcp yes, dns no")},
		{lab.NoInternet, both("gateway yes, udp no, tcp no, dns no")},
		// A soft error to UDP, which waits on (icmp_err_convert of net/ipv4/icmp.c).
		{lab.Rejecting, both("gateway yes, udp no, tcp unreachable, dns no")},
		{lab.NoFault, whole},
	} {
		wire.Break(c.fault)
		capture, err := isp.Capture()
		must(t, err)
		labtest.Eventually(t, func() error { // after a silence, hosts look for each other again
			if got := answered(t, host, isp); got != c.want {
				return fmt.Errorf("%v: %s, want %s", c.fault, got, c.want)
			}
			return nil
		})
		// The end of a connection of before may have been on its way.
		packets, err := capture.Matching(func(p lab.Packet) bool {
			return p.DstPort == lab.EchoPort && (p.Proto == unix.IPPROTO_UDP || p.Opens)
		})
		must(t, err)
		must(t, capture.Close())
		arrives := c.fault == lab.NoFault || c.fault == lab.SilentIn || c.fault == lab.SilentDNS
		if (len(packets) > 0) != arrives {
			t.Errorf("%v: %d packets to the internet arrive at the provider", c.fault, len(packets))
		}
		if link := linkState(t, "wan0"); !strings.Contains(link, "LOWER_UP") {
			t.Errorf("%v: %s", c.fault, link)
		}
	}
	for _, server := range []netip.Addr{isp.Resolver4, isp.Resolver6} {
		ctx, cancel := context.WithTimeout(t.Context(), lab.Stretched(10*time.Second))
		defer cancel()
		must(t, query(ctx, "tcp", server))
	}
}

func linkState(t *testing.T, dev string) string {
	t.Helper()
	l, err := net.InterfaceByName(dev)
	must(t, err)
	if l.Flags&net.FlagRunning != 0 {
		return "LOWER_UP"
	}
	return "no carrier"
}

func TestWireCarriesAndLoses(t *testing.T) {
	host, isp, wire := wired(t)
	ctx := t.Context()

	// A delay is no shorter than it says.
	const delay = 40 * time.Millisecond
	wire.Set(lab.Conditions{Delay: delay})
	answer, err := lab.DialUDP(ctx, lab.From{}, lab.InternetAddr4)
	must(t, err)
	if answer.RTT < 2*delay {
		t.Errorf("answered after %v over a wire of %v each way", answer.RTT, delay)
	}
	wire.Set(lab.Conditions{})

	// Large packets pass whole, and a stream in order, through either kind of connection.
	for _, dst := range []netip.Addr{lab.InternetAddr4, lab.InternetAddr6} {
		d := lab.Download{Dst: dst, Bytes: 3 << 20}
		must(t, d.Run(ctx))
		if d.Connections != 1 || !slices.Equal(d.Servers, []string{"isp0"}) {
			t.Errorf("%d connections, to %v: %v", d.Connections, d.Servers, d.Ends)
		}
	}

	// Half of the packets are lost on either way, so three quarters of the questions.
	count := func(n int) int {
		answers := 0
		conn, err := (&net.Dialer{}).DialContext(ctx, "udp", netip.AddrPortFrom(lab.InternetAddr4, lab.EchoPort).String())
		must(t, err)
		defer conn.Close()
		buf := make([]byte, 256)
		for range n {
			_, err := conn.Write([]byte("who?\n"))
			must(t, err)
			_ = conn.SetReadDeadline(time.Now().Add(lab.Stretched(20 * time.Millisecond)))
			if _, err := conn.Read(buf); err == nil {
				answers++
			}
		}
		return answers
	}
	wire.Set(lab.Conditions{Loss: 0.5})
	if n := count(200); n == 0 || n > 100 {
		t.Errorf("%d of 200 questions were answered at a loss of 50 %% each way", n)
	}
	wire.Set(lab.Conditions{Loss: 1})
	if n := count(5); n != 0 {
		t.Errorf("%d questions were answered at a loss of all", n)
	}

	// A queue delays those behind and drops what does not fit, in order.
	capture, err := isp.Capture()
	must(t, err)
	wire.Set(lab.Conditions{Rate: 1_000_000, Queue: 500 * time.Millisecond})
	const sent, port = 200, 9999
	conn, err := (&net.Dialer{}).DialContext(ctx, "udp", netip.AddrPortFrom(lab.InternetAddr4, port).String())
	must(t, err)
	defer conn.Close()
	begin := time.Now()
	for n := range sent {
		_, err := conn.Write(make([]byte, 1000+n)) // the length is its number
		must(t, err)
	}
	took := time.Since(begin)
	_, err = lab.DialUDP(ctx, lab.From{}, lab.InternetAddr4) // comes after the others
	must(t, err)
	packets, err := capture.Matching(func(p lab.Packet) bool { return p.DstPort == port })
	must(t, err)
	if len(packets) == 0 || len(packets) == sent && took < 500*time.Millisecond {
		t.Errorf("%d of %d packets passed a queue that holds 60 of them", len(packets), sent)
	}
	if !slices.IsSortedFunc(packets, func(a, b lab.Packet) int { return a.Length - b.Length }) {
		t.Error("packets overtook each other")
	}
	// Any of them may come late, but none before those in front of it have been sent.
	if last := packets[len(packets)-1].Time.Sub(begin); last < time.Duration(len(packets))*8*time.Millisecond {
		t.Errorf("%d packets of 8 ms and more passed within %v", len(packets), last)
	}
	wire.Set(lab.Conditions{})
	must(t, capture.Close())

	// The cable comes out and goes in, and the device goes and returns.
	link := isp.Link()
	must(t, link.SetCarrier(false))
	labtest.Eventually(t, func() error {
		if s := linkState(t, "wan0"); s != "no carrier" {
			return errors.New(s)
		}
		return nil
	})
	must(t, link.SetCarrier(true))
	answers := func() {
		t.Helper()
		labtest.Eventually(t, func() error {
			short, cancel := context.WithTimeout(ctx, lab.Stretched(300*time.Millisecond))
			defer cancel()
			_, err := lab.DialUDP(short, lab.From{}, lab.InternetAddr4)
			return err
		})
	}
	answers()
	must(t, link.Delete())
	must(t, link.Recreate())
	configure(t, host, isp)
	answers()
}

// TestSharedServer: the subflows of one MPTCP connection reach one server through two
// providers, and a fault of one of them does not end it.
func TestSharedServer(t *testing.T) {
	ctx := t.Context()
	host := labtest.NewHost(t, lab.HostConfig{NoBus: true, FastDAD: true})
	var isps []*lab.ISP
	for n := range 2 {
		cfg := lab.DefaultISP(n)
		cfg.Wire, cfg.NoDHCP, cfg.NoRA = true, true, true
		isp := labtest.NewISP(t, host, cfg)
		isps = append(isps, isp)
		dev, gw := isp.Link().Name(), isp.Config().IPv4
		own := gw.Addr().Next()
		must(t, isp.Link().SetUp(true))
		must(t, host.AddAddr(dev, netip.PrefixFrom(own, 24).String()))
		for _, words := range []string{
			fmt.Sprintf("route add default via %v dev %s table %d", gw.Addr(), dev, 100+n),
			fmt.Sprintf("rule add from %v lookup %d", own, 100+n),
			fmt.Sprintf("route add default via %v dev %s metric %d", gw.Addr(), dev, 100+n),
			fmt.Sprintf("mptcp endpoint add %v dev %s subflow", own, dev),
		} {
			_, err := host.IP(ctx, strings.Fields(words)...)
			must(t, err)
		}
	}
	_, err := host.IP(ctx, "mptcp", "limits", "set", "subflow", "8")
	must(t, err)
	_, err = host.NewServer("mirror", isps...)
	must(t, err)
	must(t, isps[0].ServeRange(netip.MustParsePrefix("192.0.2.0/24")))
	answer, err := lab.DialTCP(ctx, lab.From{}, netip.MustParseAddr("192.0.2.77"))
	must(t, err)
	if answer.ISP != "isp0" {
		t.Errorf("a served range is answered by %+v", answer)
	}
	captures := make([]*lab.Capture, 2)
	for n, isp := range isps {
		answer, err := lab.DialTCP(ctx, lab.From{Addr: isp.Config().IPv4.Addr().Next()}, lab.SharedAddr4)
		must(t, err)
		if answer.ISP != "mirror" {
			t.Errorf("through %s: %+v", isp.Name(), answer)
		}
		captures[n], err = isp.Capture()
		must(t, err)
	}
	// Slow enough for both to carry a part.
	for _, isp := range isps {
		isp.Link().Wire().Set(lab.Conditions{Rate: 20_000_000, Delay: time.Millisecond})
	}
	broken := false
	d := lab.Download{Dst: lab.SharedAddr4, Bytes: 6 << 20, MPTCP: true, Progress: func(n int64) {
		if n > 2<<20 && !broken {
			broken = true
			isps[0].Link().Wire().Break(lab.Silent)
		}
	}}
	must(t, d.Run(ctx))
	if d.Connections != 1 || !d.Multipath || !broken {
		t.Errorf("%d connections, MPTCP %t, broken %t: %v", d.Connections, d.Multipath, broken, d.Ends)
	}
	for n, c := range captures {
		packets, err := c.Matching(func(p lab.Packet) bool { return p.DstPort == lab.StreamPort })
		must(t, err)
		if len(packets) == 0 {
			t.Errorf("no subflow went through %s", isps[n].Name())
		}
	}
}

// TestMultipathIsForgotten: a host that closes leaves no endpoint of Multipath TCP to the next one,
// which could add none beside eight.
func TestMultipathIsForgotten(t *testing.T) {
	ctx := t.Context()
	said := func(host *lab.Host) string {
		t.Helper()
		endpoints, err := host.IP(ctx, "mptcp", "endpoint", "show")
		must(t, err)
		limits, err := host.IP(ctx, "mptcp", "limits", "show")
		must(t, err)
		return strings.TrimSpace(endpoints) + "; " + strings.Join(strings.Fields(limits), " ")
	}
	const fresh = "; add_addr_accepted 0 subflows 2"
	host, err := lab.NewHost(ctx, lab.HostConfig{NoBus: true})
	must(t, err)
	t.Cleanup(func() { must(t, host.Close()) })
	if got := said(host); got != fresh {
		t.Errorf("a new host has %q", got)
	}
	for n := range 8 {
		_, err := host.IP(ctx, "mptcp", "endpoint", "add", fmt.Sprintf("192.0.2.%d", n+1), "subflow")
		must(t, err)
	}
	_, err = host.IP(ctx, "mptcp", "limits", "set", "subflow", "8", "add_addr_accepted", "8")
	must(t, err)
	must(t, host.Close())
	if got := said(labtest.NewHost(t, lab.HostConfig{NoBus: true})); got != fresh {
		t.Errorf("the next host has %q", got)
	}
}

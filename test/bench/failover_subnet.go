package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"multihomed/test/lab"
)

// Subnet is how soon the hosts of an IPv4 subnet that two uplinks share are reached again when the
// uplink in use loses its carrier. No host of the subnet is known to the other uplink (ARP).
type Subnet struct {
	// Outage begins with the kernel's event, RTM_NEWLINK without IFF_LOWER_UP, as the bench has it. It
	// ends with the answer to the first question from which on all are answered through the other uplink.
	Outage Series `json:"outage"`
	// Failed are the questions in between that nobody answered: the median, and the most.
	Failed     float64 `json:"failed"`
	FailedMost int     `json:"failed_most"`
	// Alone is the outage with NetworkManager alone. If it did not end, Alone has no runs, and
	// AloneMore is how long it lasted at least, in milliseconds.
	Alone     Series  `json:"networkmanager"`
	AloneMore float64 `json:"networkmanager_more_than"`
}

const (
	// neighbourEvery is the time between two questions to a host of the subnet.
	neighbourEvery = 2 * time.Millisecond
	neighbourPort  = 7107
)

// subnet measures it.
func (b *bench) subnet(ctx context.Context, report *Report) error {
	b.progress("subnet: carrier lost")
	s := &Subnet{}
	err := b.onSubnet(ctx, true, func(x *exchange, neighbour netip.AddrPort) error {
		var times []time.Duration
		var failures []int
		for range x.pulls {
			d, failed, err := x.pull(ctx, neighbour, time.Minute)
			if err != nil {
				return err
			}
			times, failures = append(times, d), append(failures, failed)
			s.FailedMost = max(s.FailedMost, failed)
			if err := errors.Join(x.reconnect(ctx), x.forget(ctx), x.healthy(ctx)); err != nil {
				return err
			}
		}
		s.Outage, s.Failed = series(times), middle(failures)
		return nil
	})
	if err != nil {
		return fmt.Errorf("failover in a shared subnet: %w", err)
	}
	b.progress("subnet: NetworkManager alone, up to %v", b.alone)
	err = b.onSubnet(ctx, false, func(x *exchange, neighbour netip.AddrPort) error {
		d, _, err := x.pull(ctx, neighbour, x.bench.alone)
		switch {
		case errors.Is(err, errGaveUp):
			s.AloneMore = float64(x.bench.alone) / float64(time.Millisecond)
		case err != nil:
			return err
		default:
			s.Alone = series([]time.Duration{d})
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("failover in a shared subnet by NetworkManager alone: %w", err)
	}
	if report.Failover == nil {
		report.Failover = &Failover{}
	}
	report.Failover.Subnet = s
	return nil
}

// onSubnet runs do on a host with two links to one subnet, where a neighbour answers.
func (b *bench) onSubnet(ctx context.Context, product bool, do func(*exchange, netip.AddrPort) error) error {
	var neighbour netip.AddrPort
	// One link is not to answer ARP for the other's address: `multihomectl check` demands the same.
	cfg := lab.HostConfig{NMLogLevel: "WARN", Sysctls: []string{"net.ipv4.conf.all.arp_ignore", "1", "net.ipv4.conf.all.arp_announce", "2"}}
	return b.onHost(ctx, cfg, product, func(x *exchange) error {
		cfg := lab.DefaultISP(0)
		cfg.IPv6, cfg.Resolver = netip.Prefix{}, true
		isp, err := x.host.NewISP(ctx, cfg)
		if err != nil {
			return err
		}
		second, err := isp.AddLink(lab.LinkConfig{Name: "wan1"})
		if err != nil {
			return err
		}
		x.isps, x.links = []*lab.ISP{isp}, []*lab.Link{isp.Link(), second}
		neighbour = netip.AddrPortFrom(cfg.IPv4.Addr().Next(), neighbourPort) // below the pool of DHCP
		return isp.Namespace().AddAddr("lan", netip.PrefixFrom(neighbour.Addr(), cfg.IPv4.Bits()))
	}, func(x *exchange) error {
		answering, err := answer(ctx, x.isps[0].Namespace(), neighbour)
		if err != nil {
			return err
		}
		return errors.Join(do(x, neighbour), answering.Close())
	})
}

// answer answers each question on an address, until the socket is closed, with its number and the
// address that it came from.
func answer(ctx context.Context, ns *lab.Namespace, at netip.AddrPort) (io.Closer, error) {
	var conn *net.UDPConn
	if err := ns.Do(func() (err error) { conn, err = listenUDP(ctx, at); return err }); err != nil {
		return nil, err
	}
	go func() {
		buf := make([]byte, 64)
		for {
			n, from, err := conn.ReadFromUDPAddrPort(buf)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil || n != 4 {
				continue
			}
			// An answer that cannot be sent is a failed question.
			_, _ = conn.WriteToUDPAddrPort(append(buf[:n], from.Addr().Unmap().AsSlice()...), from)
		}
	}()
	return conn, nil
}

func listenUDP(ctx context.Context, at netip.AddrPort) (*net.UDPConn, error) {
	conn, err := (&net.ListenConfig{}).ListenPacket(ctx, "udp4", at.String())
	if err != nil {
		return nil, fmt.Errorf("listening on %v: %w", at, err)
	}
	return conn.(*net.UDPConn), nil
}

// A question is one datagram to a neighbour; one without an answer has no address in by.
type question struct {
	at, answered time.Time
	by           netip.Addr // the source that the neighbour saw
}

// Questions ask a neighbour again and again from one socket without an address, which the kernel
// routes anew each time.
type questions struct {
	conn      *net.UDPConn
	quiet     context.CancelFunc
	asks, has sync.WaitGroup

	mu  sync.Mutex
	all []question // by number
	// running is how many answers the address by had last, without another in between.
	by      netip.Addr
	running int
}

func newQuestions(ctx context.Context, dst netip.AddrPort) (*questions, error) {
	conn, err := listenUDP(ctx, netip.AddrPortFrom(netip.IPv4Unspecified(), 0))
	if err != nil {
		return nil, err
	}
	q := &questions{conn: conn}
	ctx, q.quiet = context.WithCancel(ctx)
	q.asks.Go(func() {
		ticker := time.NewTicker(neighbourEvery)
		defer ticker.Stop()
		for {
			q.ask(dst)
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
			}
		}
	})
	q.has.Go(q.read)
	return q, nil
}

func (q *questions) ask(dst netip.AddrPort) {
	q.mu.Lock()
	n := len(q.all)
	q.all = append(q.all, question{at: time.Now()})
	q.mu.Unlock()
	// The kernel's refusal leaves the question without an answer.
	_, _ = q.conn.WriteToUDPAddrPort(binary.BigEndian.AppendUint32(nil, uint32(n)), dst)
}

func (q *questions) read() {
	buf := make([]byte, 64)
	for {
		n, err := q.conn.Read(buf)
		now := time.Now()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil && n == 8 {
			q.take(binary.BigEndian.Uint32(buf), netip.AddrFrom4([4]byte(buf[4:8])), now)
		}
	}
}

func (q *questions) take(number uint32, by netip.Addr, now time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if int64(number) >= int64(len(q.all)) {
		return
	}
	q.all[number].answered, q.all[number].by = now, by
	if by != q.by {
		q.by, q.running = by, 0
	}
	q.running++
}

// from waits until the newest answers are to questions from an address.
func (q *questions) from(ctx context.Context, limit time.Duration, addr netip.Addr) error {
	const enough = 100
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	err := lab.Eventually(ctx, func() error {
		q.mu.Lock()
		defer q.mu.Unlock()
		if q.by != addr || q.running < enough {
			return fmt.Errorf("the last %d answers were to %v", q.running, q.by)
		}
		return nil
	})
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("%w to %v within %v: %w", errGaveUp, addr, limit, err)
	}
	return err
}

// stop asks no more and waits for the last answer.
func (q *questions) stop(ctx context.Context) error {
	q.quiet()
	q.asks.Wait()
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	return lab.Eventually(ctx, func() error {
		q.mu.Lock()
		defer q.mu.Unlock()
		if len(q.all) == 0 || !q.all[len(q.all)-1].by.IsValid() {
			return errors.New("the last question is not answered")
		}
		return nil
	})
}

func (q *questions) close() {
	q.quiet()
	q.asks.Wait()
	_ = q.conn.Close()
	q.has.Wait()
}

// resumed is how long after an event it took until an address had all answers, and how many questions
// failed before.
func (q *questions) resumed(addr netip.Addr, event time.Time) (time.Duration, int, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	first := len(q.all)
	for first > 0 && q.all[first-1].by == addr && !q.all[first-1].at.Before(event) {
		first--
	}
	if first == len(q.all) {
		return 0, 0, fmt.Errorf("the last question was not answered to %v", addr)
	}
	failed := 0
	for _, one := range q.all[:first] {
		if !one.by.IsValid() && !one.at.Before(event) {
			failed++
		}
	}
	return q.all[first].answered.Sub(event), failed, nil
}

// pull takes the carrier of the first link, waits until the neighbour is reached through the second
// one, and gives the carrier back.
func (x *exchange) pull(ctx context.Context, neighbour netip.AddrPort, limit time.Duration) (time.Duration, int, error) {
	var addrs [2]netip.Addr
	for n, l := range x.links {
		a, err := x.host.WaitAddr(ctx, l.Name(), lab.IPv4)
		if err != nil {
			return 0, 0, err
		}
		addrs[n] = a
	}
	if err := stranger(x.links[1], neighbour.Addr()); err != nil {
		return 0, 0, err
	}
	q, err := newQuestions(ctx, neighbour)
	if err != nil {
		return 0, 0, err
	}
	defer q.close()
	if err := q.from(ctx, time.Minute, addrs[0]); err != nil {
		return 0, 0, err
	}
	event, err := x.unplug()
	if err == nil {
		err = q.from(ctx, limit, addrs[1])
	}
	if err == nil {
		err = q.stop(ctx)
	}
	if err := errors.Join(err, x.links[0].SetCarrier(true)); err != nil {
		return 0, 0, err
	}
	return q.resumed(addrs[1], event)
}

// stranger makes a link forget the hardware address of a host, if it knows it.
func stranger(l *lab.Link, host netip.Addr) error {
	index, err := l.Index()
	if err != nil {
		return err
	}
	neighbours, err := netlink.NeighList(index, unix.AF_INET)
	if err != nil {
		return fmt.Errorf("listing the neighbours of %s: %w", l.Name(), err)
	}
	for _, n := range neighbours {
		if !n.IP.Equal(host.AsSlice()) {
			continue
		}
		if err := netlink.NeighDel(&n); err != nil {
			return fmt.Errorf("forgetting %v on %s: %w", host, l.Name(), err)
		}
	}
	return nil
}

func printSubnet(out io.Writer, s *Subnet) {
	if s == nil {
		return
	}
	table(out, fmt.Sprintf("Hosts of a shared subnet, carrier lost: from the kernel's event to the first answer through the other link, questions each %v", neighbourEvery),
		"multihomed\tfailed questions\tat most\tNetworkManager alone", func(line func(...any)) {
			line(s.Outage, s.Failed, s.FailedMost, orMore(s.Alone, s.AloneMore))
		})
}

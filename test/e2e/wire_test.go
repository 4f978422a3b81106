package e2e_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"multihomed/test/lab"
)

// A wire sends bound traffic from every address of some links all the time, and
// tells afterwards which packets left by a link that is not their source's.
//
// A packet counts only if the rules for its source existed before it was sent and after, and the
// address existed all the time: nothing can be said about the moment between a new address and its
// rule, or about a source whose rules went with the address, except how long it was.
type wire struct {
	t       testing.TB
	sources map[string][]netip.Prefix // by link: what its provider hands out
	isps    map[string]*lab.ISP
	caught  map[string]*lab.Capture
	targets map[lab.Family][]netip.Addr

	mu    sync.Mutex
	shots map[shotKey][]shot
	sent  map[string]*atomic.Int64 // by kind of sender
	refus atomic.Int64
	count atomic.Int64
	line  *timeline
	wg    sync.WaitGroup
	stop  context.CancelFunc
}

// A shotKey is what tells sockets apart on the wire. One that is bound to a
// device has the kernel choose its source, so that is no part of its key.
type shotKey struct {
	family   lab.Family
	src      netip.Addr
	from, to uint16 // ports
}

// A shot is a socket that sent: when, and whether its source's rules existed all
// the time.
type shot struct {
	begin, end    time.Time
	source, stray bool // the rules of 10000, and of 10500
	device        string
	marked        map[string]bool // which links were in the uplinks' group
}

// Destination ports tell what a socket was bound to, and tell it from those that
// had the same port of their own shortly before: packets wait for neighbours.
const (
	toAddress = 10_000
	toDevice  = 30_000
	toEnd     = 50_000
)

// next is the destination port of the next socket.
func (w *wire) next(first uint16) uint16 {
	return first + uint16(w.count.Add(1)%(toDevice-toAddress))
}

// newWire begins to send. others are destinations besides the internet.
func newWire(tb testing.TB, isps []*lab.ISP, sources map[string][]netip.Prefix, others ...netip.Addr) *wire {
	tb.Helper()
	w := &wire{
		t: tb, sources: sources, isps: map[string]*lab.ISP{}, caught: map[string]*lab.Capture{}, shots: map[shotKey][]shot{},
		targets: map[lab.Family][]netip.Addr{lab.IPv4: {lab.InternetAddr4}, lab.IPv6: {lab.InternetAddr6}},
		sent:    map[string]*atomic.Int64{},
	}
	for _, o := range others {
		f := lab.IPv4
		if o.Is6() {
			f = lab.IPv6
		}
		w.targets[f] = append(w.targets[f], o)
	}
	for _, isp := range isps {
		c, err := isp.Capture()
		if err != nil {
			tb.Fatal(err)
		}
		w.isps[isp.Link().Name()], w.caught[isp.Link().Name()] = isp, c
	}
	line, err := newTimeline(slices.Collect(maps.Keys(w.caught)))
	if err != nil {
		tb.Fatal(err)
	}
	w.line = line
	ctx, stop := context.WithCancel(tb.Context())
	w.stop = stop
	for _, kind := range []string{"address", "device", "tcp"} {
		w.sent[kind] = new(atomic.Int64)
	}
	for link := range w.caught {
		for _, f := range []lab.Family{lab.IPv4, lab.IPv6} {
			w.wg.Go(func() { w.udp(ctx, link, f) })
			w.wg.Go(func() { w.tcp(ctx, link, f) })
		}
	}
	tb.Cleanup(w.close)
	return w
}

func (w *wire) close() {
	w.stop()
	w.wg.Wait()
	_ = w.line.close()
}

// udp opens a socket for every address of a link, and one bound to the device,
// sends, and does so again.
func (w *wire) udp(ctx context.Context, link string, f lab.Family) {
	pace := time.NewTicker(2 * time.Millisecond)
	defer pace.Stop()
	before, ok := w.look(link, f)
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
			return
		case <-pace.C:
		}
		if !ok {
			before, ok = w.look(link, f)
			continue
		}
		type fired struct {
			key   shotKey
			begin time.Time
			addr  netip.Addr
		}
		var round []fired
		begin := time.Now()
		for _, a := range before.addrs {
			to := w.next(toAddress)
			if port, sent := w.fire(f, a, "", to, w.targets[f]); sent {
				round = append(round, fired{shotKey{f, a, port, to}, begin, a})
				w.sent["address"].Add(1)
			}
		}
		to := w.next(toDevice)
		if port, sent := w.fire(f, netip.Addr{}, link, to, w.targets[f][:1]); sent {
			round = append(round, fired{shotKey{family: f, from: port, to: to}, begin, netip.Addr{}})
			w.sent["device"].Add(1)
		}
		after, still := w.look(link, f)
		end, marked := time.Now(), map[string]bool{}
		for other := range w.caught {
			marked[other] = before.marked[other] && after.marked[other]
		}
		w.mu.Lock()
		for _, r := range round {
			s := shot{begin: r.begin, end: end, marked: marked}
			if r.addr.IsValid() {
				s.source = still && before.stands(r.addr, 10000) && after.stands(r.addr, 10000) && slices.Contains(after.addrs, r.addr)
				s.stray = s.source && before.stands(r.addr, 10500) && after.stands(r.addr, 10500)
			} else {
				s.device = link
				// Where the device has no address of its own, or only deprecated
				// ones, the kernel takes one of another device (inet_select_addr,
				// ipv6_dev_get_saddr), whatever the rules say.
				s.source = still && before.preferred && after.preferred && slices.Equal(before.addrs, after.addrs)
				s.stray = s.source
			}
			w.shots[r.key] = append(w.shots[r.key], s)
		}
		w.mu.Unlock()
		before, ok = after, still
	}
}

// fire sends one datagram to each target from a fresh socket.
func (w *wire) fire(f lab.Family, src netip.Addr, device string, port uint16, targets []netip.Addr) (uint16, bool) {
	fd, err := unix.Socket(int(f), unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, false
	}
	defer unix.Close(fd)
	if device != "" {
		if err := unix.BindToDevice(fd, device); err != nil {
			return 0, false
		}
	}
	if !src.IsValid() {
		src = netip.IPv6Unspecified()
		if f == lab.IPv4 {
			src = netip.IPv4Unspecified()
		}
	}
	if err := unix.Bind(fd, sockaddr(netip.AddrPortFrom(src, 0))); err != nil {
		return 0, false // the address has gone
	}
	sent := false
	for _, dst := range targets {
		if err := unix.Sendto(fd, []byte("wire\n"), unix.MSG_DONTWAIT, sockaddr(netip.AddrPortFrom(dst, port))); err != nil {
			w.refus.Add(1)
		} else {
			sent = true
		}
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		return 0, false
	}
	switch a := name.(type) {
	case *unix.SockaddrInet4:
		return uint16(a.Port), sent
	case *unix.SockaddrInet6:
		return uint16(a.Port), sent
	}
	return 0, false
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

// tcp keeps one connection open for as long as its address exists.
func (w *wire) tcp(ctx context.Context, link string, f lab.Family) {
	pace := time.NewTicker(5 * time.Millisecond)
	defer pace.Stop()
	fd := -1
	var src netip.Addr
	drop := func() {
		if fd >= 0 {
			_ = unix.Close(fd)
			fd = -1
		}
	}
	defer drop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-pace.C:
		}
		now, ok := look(link, f)
		if fd >= 0 && ok && !slices.Contains(now.addrs, src) {
			drop()
		}
		if fd < 0 {
			if !ok || len(now.addrs) == 0 {
				continue
			}
			src = now.addrs[0]
			s, err := unix.Socket(int(f), unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
			if err != nil {
				continue
			}
			fd = s
			// A packet sent just before the end must not be sent again long after.
			_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 2000)
			_ = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
			if unix.Bind(fd, sockaddr(netip.AddrPortFrom(src, 0))) != nil {
				drop()
				continue
			}
			if err := unix.Connect(fd, sockaddr(netip.AddrPortFrom(lab.InternetAddr(f), lab.EchoPort))); err != nil && !errors.Is(err, unix.EINPROGRESS) {
				drop()
			}
			continue
		}
		switch _, err := unix.Write(fd, []byte("who?\n")); {
		case err == nil:
			w.sent["tcp"].Add(1)
		case !errors.Is(err, unix.EAGAIN):
			drop()
			continue
		}
		var buf [4096]byte
		_, _ = unix.Read(fd, buf[:])
	}
}

// strays returns what left by a wrong link although it must not have, and counts
// what may have, by its reason.
func (w *wire) strays() (bad []string, excused map[string]int) {
	w.close()
	excused = map[string]int{}
	for link, c := range w.caught {
		packets, err := c.Matching(func(p lab.Packet) bool {
			owner := w.owner(p.Src)
			return owner != link && !p.Src.IsLinkLocalUnicast() && !p.Src.IsUnspecified()
		})
		if err != nil {
			w.t.Fatal(err)
		}
		for _, p := range packets {
			text, excuse := w.judge(link, p)
			if excuse == "" {
				bad = append(bad, text)
				continue
			}
			excused[excuse]++
			if os.Getenv("MULTIHOMED_E2E_VERBOSE") != "" {
				w.t.Log(excuse, strings.SplitN(text, "\n", 2)[0])
			}
		}
	}
	sort.Strings(bad)
	return bad, excused
}

// judged ends the sending and fails the test if a packet strayed, or if fewer of
// each kind were sent than prove anything.
func (w *wire) judged(least int64) {
	w.t.Helper()
	bad, excused := w.strays()
	w.t.Logf("sockets bound to an address %d, to a device %d, writes on TCP connections %d, refused by the kernel %d",
		w.sent["address"].Load(), w.sent["device"].Load(), w.sent["tcp"].Load(), w.refus.Load())
	for priority, d := range w.line.windows() {
		w.t.Logf("from a new address to its rule %d: %s", priority, quantiles(d))
	}
	for _, excuse := range slices.Sorted(maps.Keys(excused)) {
		w.t.Logf("by another link, excused: %d packets of %s", excused[excuse], excuse)
	}
	if len(bad) > 0 {
		w.t.Errorf("%d packets strayed:\n%s", len(bad), strings.Join(bad[:min(len(bad), 40)], "\n"))
	}
	for _, kind := range []string{"address", "device", "tcp"} {
		if w.sent[kind].Load() < least {
			w.t.Errorf("too little was sent to prove anything: %s %d", kind, w.sent[kind].Load())
		}
	}
}

func (w *wire) owner(a netip.Addr) string {
	for link, prefixes := range w.sources {
		for _, p := range prefixes {
			if p.Contains(a) {
				return link
			}
		}
	}
	return ""
}

// judge says why a packet is no stray one, "" if it is.
func (w *wire) judge(link string, p lab.Packet) (text, excuse string) {
	text = fmt.Sprintf("%v by %s (source of %s)", p, link, w.owner(p.Src))
	switch {
	case p.Proto == unix.IPPROTO_UDP && p.DstPort >= toAddress && p.DstPort < toDevice:
		s, found := w.shot(shotKey{p.Family, p.Src, p.SrcPort, p.DstPort}, "", p.Time)
		text += fmt.Sprintf(" [%t %s..%s: rules 10000 %t, 10500 %t, marked %v]", found, s.begin.Format("05.000000"), s.end.Format("05.000000"), s.source, s.stray, s.marked)
		switch {
		case !s.source:
			excuse = p.Family.String() + " address: " + w.line.excuse(p)
		case w.line.replaced(p.Src, s.begin, s.end):
			excuse = p.Family.String() + " address: it went and came back at once, and so did its rules"
		case !s.stray && !w.line.stopped(p.Src, p.Time):
			// Nobody knew a way yet: IPv6 came up first, without a router, and
			// DHCP has not answered.
			excuse = p.Family.String() + " address: its link was no uplink yet"
		case w.owner(p.Dst) == link && (!s.marked[link] || w.line.unmarked(link, s.begin, s.end)):
			excuse = p.Family.String() + " address: into the network of a link that was not marked yet"
		}
		return text + w.line.around(p, ""), excuse
	case p.Proto == unix.IPPROTO_UDP && p.DstPort >= toDevice && p.DstPort < toEnd:
		s, found := w.shot(shotKey{family: p.Family, from: p.SrcPort, to: p.DstPort}, link, p.Time)
		text += fmt.Sprintf(" [%t %s..%s: device with an address %t]", found, s.begin.Format("05.000000"), s.end.Format("05.000000"), s.source)
		switch {
		case !s.source:
			excuse = p.Family.String() + " device without a preferred address of its own"
		case w.line.bare(link, p.Family, s.begin, s.end):
			excuse = p.Family.String() + " device without an address for a moment: all went and came back at once"
		}
		return text + w.line.around(p, link), excuse
	}
	if !w.line.stood(p.Src, p.Time) {
		excuse = fmt.Sprintf("%v protocol %d: %s", p.Family, p.Proto, w.line.excuse(p))
	}
	return text + w.line.around(p, ""), excuse
}

// shot finds the socket that sent a packet. A packet may have waited for its
// neighbour's hardware address.
func (w *wire) shot(k shotKey, device string, at time.Time) (shot, bool) {
	shots := w.shots[k]
	for _, shot := range slices.Backward(shots) {
		if s := shot; s.device == device && !s.begin.After(at) && at.Sub(s.begin) < queued {
			return s, true
		}
	}
	return shot{}, false
}

// a sight is the routing of a link at a moment.
type sight struct {
	addrs []netip.Addr
	// preferred says that one of them is not deprecated.
	preferred bool
	rules     map[uint32][]netip.Prefix
	marked    map[string]bool
}

// look is the package's look, and which links are marked as uplinks.
func (w *wire) look(link string, f lab.Family) (sight, bool) {
	s, ok := look(link, f)
	s.marked = map[string]bool{}
	for other := range w.caught {
		b, err := os.ReadFile("/sys/class/net/" + other + "/netdev_group")
		s.marked[other] = err == nil && strings.TrimSpace(string(b)) == "28008"
	}
	return s, ok
}

func (s sight) stands(a netip.Addr, priority uint32) bool {
	return slices.ContainsFunc(s.rules[priority], func(p netip.Prefix) bool { return p.Contains(a) })
}

// look reads a link's addresses and the source rules of a family.
func look(link string, f lab.Family) (sight, bool) {
	s := sight{rules: map[uint32][]netip.Prefix{}}
	index, err := ifindex(link)
	if err != nil {
		return s, false
	}
	err = dump(unix.RTM_GETADDR, []byte{byte(f), 0, 0, 0, 0, 0, 0, 0}, func(kind uint16, b []byte) {
		if a, ok := decodeAddr(b); ok && kind == unix.RTM_NEWADDR && a.index == index && a.usable {
			s.addrs, s.preferred = append(s.addrs, a.addr), s.preferred || !a.deprecated
		}
	})
	if err != nil {
		return s, false
	}
	err = dump(unix.RTM_GETRULE, []byte{byte(f), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, func(kind uint16, b []byte) {
		if priority, from, ok := decodeSource(b); ok && kind == unix.RTM_NEWRULE {
			s.rules[priority] = append(s.rules[priority], from)
		}
	})
	return s, err == nil
}

func ifindex(link string) (int, error) {
	b, err := os.ReadFile("/sys/class/net/" + link + "/ifindex")
	if err != nil {
		return 0, err
	}
	var n int
	_, err = fmt.Sscan(string(b), &n)
	return n, err
}

// dump is a netlink dump without the library, which takes longer than the
// moments that matter here.
func dump(kind uint16, body []byte, each func(kind uint16, b []byte)) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	request := make([]byte, unix.SizeofNlMsghdr, unix.SizeofNlMsghdr+len(body))
	binary.NativeEndian.PutUint32(request[0:], uint32(unix.SizeofNlMsghdr+len(body)))
	binary.NativeEndian.PutUint16(request[4:], kind)
	binary.NativeEndian.PutUint16(request[6:], unix.NLM_F_REQUEST|unix.NLM_F_DUMP)
	if err := unix.Sendto(fd, append(request, body...), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	buf := make([]byte, 64<<10)
	for {
		n, _, err := unix.Recvfrom(fd, buf, 0)
		if err != nil {
			return err
		}
		for b := buf[:n]; len(b) >= unix.SizeofNlMsghdr; {
			size := int(binary.NativeEndian.Uint32(b))
			if size < unix.SizeofNlMsghdr || size > len(b) {
				return errors.New("a message of a wrong size")
			}
			switch kind := binary.NativeEndian.Uint16(b[4:]); kind {
			case unix.NLMSG_DONE:
				return nil
			case unix.NLMSG_ERROR:
				return fmt.Errorf("the kernel refuses a dump: %d", int32(binary.NativeEndian.Uint32(b[16:])))
			default:
				each(kind, b[unix.SizeofNlMsghdr:size])
			}
			b = b[min((size+3)&^3, len(b)):]
		}
	}
}

type addrMessage struct {
	index      int
	addr       netip.Addr
	usable     bool
	deprecated bool
}

// decodeAddr reads an address of global scope.
func decodeAddr(b []byte) (addrMessage, bool) {
	if len(b) < unix.SizeofIfAddrmsg {
		return addrMessage{}, false
	}
	m := addrMessage{index: int(binary.NativeEndian.Uint32(b[4:]))}
	flags, scope := uint32(b[2]), b[3]
	attributes(b[unix.SizeofIfAddrmsg:], func(kind uint16, v []byte) {
		switch {
		case kind == unix.IFA_LOCAL, kind == unix.IFA_ADDRESS && !m.addr.IsValid():
			m.addr, _ = netip.AddrFromSlice(v)
		case kind == unix.IFA_FLAGS:
			flags = binary.NativeEndian.Uint32(v)
		}
	})
	m.usable = scope == unix.RT_SCOPE_UNIVERSE && flags&(unix.IFA_F_TENTATIVE|unix.IFA_F_DADFAILED) == 0
	m.deprecated = flags&unix.IFA_F_DEPRECATED != 0
	return m, m.addr.IsValid()
}

// decodeSource reads a rule of ours that selects by source.
func decodeSource(b []byte) (priority uint32, from netip.Prefix, ok bool) {
	const header, fraSource, fraPriority, fraProtocol = 12, 2, 6, 21
	if len(b) < header {
		return 0, from, false
	}
	var addr netip.Addr
	protocol := byte(0)
	attributes(b[header:], func(kind uint16, v []byte) {
		switch kind {
		case fraSource:
			addr, _ = netip.AddrFromSlice(v)
		case fraPriority:
			priority = binary.NativeEndian.Uint32(v)
		case fraProtocol:
			protocol = v[0]
		}
	})
	if !addr.IsValid() || protocol != lab.Ours || (priority != 10000 && priority != 10500) {
		return 0, from, false
	}
	return priority, netip.PrefixFrom(addr, int(b[2])), true
}

func attributes(b []byte, each func(kind uint16, v []byte)) {
	for len(b) >= unix.SizeofRtAttr {
		size := int(binary.NativeEndian.Uint16(b))
		if size < unix.SizeofRtAttr || size > len(b) {
			return
		}
		each(binary.NativeEndian.Uint16(b[2:])&0x3fff, b[unix.SizeofRtAttr:size])
		b = b[min((size+3)&^3, len(b)):]
	}
}

// A timeline remembers when addresses and source rules came and went, as
// rtnetlink told.
type timeline struct {
	file  *os.File
	ended chan struct{}
	done  sync.WaitGroup
	names map[int]string // by index; read's own

	mu     sync.Mutex
	events []lineEvent
	stalls []stall
	err    error
}

// A stall is a time in which this process should have run, and did not.
type stall struct{ due, woke time.Time }

type lineEvent struct {
	at       time.Time
	priority uint32 // of a rule; 0 is an address
	prefix   netip.Prefix
	came     bool
	// link is set in the event of a link: it came into the group of uplinks,
	// or went. Then the rest is empty.
	link string
	on   string // the link of an address
}

func (e lineEvent) String() string {
	if e.link != "" {
		return fmt.Sprintf("%s %s is marked: %t", e.at.Format("05.000000"), e.link, e.came)
	}
	what, verb := "address", "came"
	if e.priority != 0 {
		what = fmt.Sprintf("rule %d", e.priority)
	}
	if !e.came {
		verb = "went"
	}
	if e.on != "" {
		verb += " on " + e.on
	}
	return fmt.Sprintf("%s %s %s %s", e.at.Format("05.000000"), what, e.prefix, verb)
}

// newTimeline begins to listen. It knows the names of links that exist, and of
// those that come.
func newTimeline(links []string) (*timeline, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20),
		unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}),
	)
	for _, group := range []int{unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV6_RULE} {
		err = errors.Join(err, unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, group))
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	l := &timeline{file: os.NewFile(uintptr(fd), "timeline"), ended: make(chan struct{}), names: map[int]string{}}
	for _, link := range links {
		index, err := ifindex(link)
		if err != nil {
			_ = unix.Close(fd)
			return nil, err
		}
		l.names[index] = link
	}
	l.done.Go(l.read)
	l.done.Go(l.watchStalls)
	return l, nil
}

func (l *timeline) close() error {
	err := l.file.Close()
	if !errors.Is(err, os.ErrClosed) {
		close(l.ended)
	}
	l.done.Wait()
	return err
}

// watchStalls notes when this process runs late, and with it read.
func (l *timeline) watchStalls() {
	const every, usual = 10 * time.Millisecond, 20 * time.Millisecond
	for {
		due := time.Now().Add(every)
		select {
		case <-l.ended:
			return
		case <-time.After(every):
		}
		if woke := time.Now(); woke.Sub(due) > usual {
			l.mu.Lock()
			l.stalls = append(l.stalls, stall{due, woke})
			l.mu.Unlock()
		}
	}
}

func (l *timeline) read() {
	buf := make([]byte, 64<<10)
	for {
		n, err := l.file.Read(buf)
		if err != nil {
			if !errors.Is(err, os.ErrClosed) {
				l.mu.Lock()
				l.err = err
				l.mu.Unlock()
			}
			return
		}
		now := time.Now()
		for b := buf[:n]; len(b) >= unix.SizeofNlMsghdr; {
			size := int(binary.NativeEndian.Uint32(b))
			if size < unix.SizeofNlMsghdr || size > len(b) {
				break
			}
			l.take(now, binary.NativeEndian.Uint16(b[4:]), b[unix.SizeofNlMsghdr:size])
			b = b[min((size+3)&^3, len(b)):]
		}
	}
}

func (l *timeline) take(now time.Time, kind uint16, b []byte) {
	e := lineEvent{at: now, came: kind == unix.RTM_NEWADDR || kind == unix.RTM_NEWRULE}
	switch kind {
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		m, ok := decodeAddr(b)
		if !ok || (e.came && !m.usable) {
			return
		}
		e.prefix, e.on = netip.PrefixFrom(m.addr, m.addr.BitLen()), l.names[m.index]
	case unix.RTM_NEWRULE, unix.RTM_DELRULE:
		priority, from, ok := decodeSource(b)
		if !ok {
			return
		}
		e.priority, e.prefix = priority, from
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		if len(b) < unix.SizeofIfInfomsg {
			return
		}
		name, group := "", uint32(0)
		attributes(b[unix.SizeofIfInfomsg:], func(kind uint16, v []byte) {
			switch kind {
			case unix.IFLA_IFNAME:
				name = strings.TrimRight(string(v), "\x00")
			case unix.IFLA_GROUP:
				group = binary.NativeEndian.Uint32(v)
			}
		})
		l.names[int(binary.NativeEndian.Uint32(b[4:]))] = name
		e.link, e.came = name, kind == unix.RTM_NEWLINK && group == 28008
	default:
		return
	}
	l.mu.Lock()
	l.events = append(l.events, e)
	l.mu.Unlock()
}

// readLate is how late rtnetlink's news may be read here while this process runs.
const readLate = 150 * time.Millisecond

// lag is how late news of a time may have been read. The caller holds mu.
func (l *timeline) lag(begin, end time.Time) time.Duration {
	longest := time.Duration(0)
	for _, s := range l.stalls {
		if s.woke.After(begin) && s.due.Before(end.Add(readLate)) {
			longest = max(longest, s.woke.Sub(s.due))
		}
	}
	return readLate + longest
}

// queued is how long the kernel keeps a packet for a neighbour that it asks for:
// when the packet was routed is not known.
const queued = 4 * time.Second

// stood reports whether a source had both its address and its rule for some time around a moment.
func (l *timeline) stood(a netip.Addr, at time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	rules, addresses, lag := 0, 0, l.lag(at, at)
	for _, e := range l.events {
		if !e.prefix.Contains(a) { // nor is there one in the event of a mark
			continue
		}
		if e.at.After(at.Add(lag)) {
			break
		}
		if !e.came && e.at.After(at.Add(-queued)) {
			return false // it went, about then
		}
		step := 1
		if !e.came {
			step = -1
		}
		switch e.priority {
		case 0:
			if e.came {
				addresses = 1 // a renewal comes too
			} else {
				addresses = 0
			}
		case 10000:
			if e.came && e.at.After(at) {
				continue
			}
			rules += step
		}
	}
	return rules > 0 && addresses > 0
}

// about are the events that may be of a time.
func (l *timeline) about(begin, end time.Time) []lineEvent {
	l.mu.Lock()
	lag := l.lag(begin, end)
	l.mu.Unlock()
	return l.between(begin.Add(-lag), end.Add(lag))
}

// between are the events of a time.
func (l *timeline) between(from, to time.Time) []lineEvent {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []lineEvent
	for _, e := range l.events {
		if e.at.After(from) && e.at.Before(to) {
			out = append(out, e)
		}
	}
	return out
}

// around tells what happened to a packet's source next to its moment, and to the
// addresses of a device.
func (l *timeline) around(p lab.Packet, device string) string {
	var near []string
	for _, e := range l.between(p.Time.Add(-2*time.Second), p.Time.Add(2*time.Second)) {
		if e.prefix.Contains(p.Src) || device != "" && e.on == device && e.prefix.Addr().Is4() == p.Src.Is4() {
			near = append(near, e.String())
		}
	}
	return "\n      " + strings.Join(near, "\n      ")
}

// excuse says what happened to a packet's source.
func (l *timeline) excuse(p lab.Packet) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var last lineEvent
	for _, e := range l.events {
		if e.at.After(p.Time) {
			break
		}
		if e.prefix.Contains(p.Src) && e.priority == 0 {
			last = e
		}
	}
	switch {
	case last.prefix.IsValid() && !last.came:
		return "its address had gone"
	case last.prefix.IsValid():
		return "its address was new, without a rule"
	default:
		return "its rule was not there yet, or no longer"
	}
}

// stopped reports whether the rule that stops a source's stray packets has existed since its source
// rule was added.
func (l *timeline) stopped(a netip.Addr, at time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	stopped := false
	for _, e := range l.events {
		if e.at.After(at) {
			break
		}
		switch {
		case !e.prefix.Contains(a):
		case e.priority == 10000:
			stopped = false
		case e.priority == 10500 && e.came:
			stopped = true
		}
	}
	return stopped
}

// replaced reports whether an address was removed around a time, with its rules, although both
// existed before and after: NetworkManager sometimes removes an address and adds it again, and the
// rules follow.
func (l *timeline) replaced(a netip.Addr, begin, end time.Time) bool {
	went := map[uint32]bool{}
	for _, e := range l.about(begin, end) {
		if !e.came && e.prefix.Contains(a) {
			went[e.priority] = true
		}
	}
	return went[0] && went[10000]
}

// bare reports whether a link may have had no address of a family around a time
// although it had the same ones before and after: one went, and one came later.
func (l *timeline) bare(link string, f lab.Family, begin, end time.Time) bool {
	went := false
	for _, e := range l.about(begin, end) {
		if e.on != link || e.prefix.Addr().Is4() != (f == lab.IPv4) {
			continue
		}
		if went && e.came {
			return true
		}
		went = went || !e.came
	}
	return false
}

// unmarked reports whether a link lost its mark, or was recreated, around a time.
func (l *timeline) unmarked(link string, begin, end time.Time) bool {
	return slices.ContainsFunc(l.about(begin, end), func(e lineEvent) bool { return e.link == link && !e.came })
}

// windows returns how long new addresses waited for their rules.
func (l *timeline) windows() map[uint32][]time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := map[uint32][]time.Duration{}
	type waiting struct{ since time.Time }
	waits := map[uint32]map[netip.Addr]waiting{10000: {}, 10500: {}}
	standing := map[uint32]map[netip.Prefix]int{10000: {}, 10500: {}}
	for _, e := range l.events {
		switch {
		case e.link != "":
		case e.priority == 0 && e.came:
			for priority, rules := range standing {
				covered := false
				for p, n := range rules {
					covered = covered || n > 0 && p.Contains(e.prefix.Addr())
				}
				if _, already := waits[priority][e.prefix.Addr()]; !covered && !already {
					waits[priority][e.prefix.Addr()] = waiting{e.at}
				}
			}
		case e.priority == 0:
			for priority := range waits {
				delete(waits[priority], e.prefix.Addr())
			}
		case e.came:
			standing[e.priority][e.prefix]++
			for a, since := range waits[e.priority] {
				if e.prefix.Contains(a) {
					out[e.priority] = append(out[e.priority], e.at.Sub(since.since))
					delete(waits[e.priority], a)
				}
			}
		default:
			standing[e.priority][e.prefix]--
		}
	}
	for p := range out {
		slices.Sort(out[p])
	}
	return out
}

func quantiles(d []time.Duration) string {
	if len(d) == 0 {
		return "none"
	}
	at := func(q float64) time.Duration {
		return d[min(len(d)-1, int(q*float64(len(d))))].Round(time.Microsecond)
	}
	return fmt.Sprintf("n=%d median %v, 90%% %v, longest %v", len(d), at(.5), at(.9), at(1))
}

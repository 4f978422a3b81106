package hosts_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"multihomed/test/lab"
)

// A Question is asked in every phase. Its text names it, its answer is the same
// text for the same outcome.
type Question interface {
	fmt.Stringer
	answer(w *world) string
}

// A Lookup asks the kernel where it would send a packet: `ip route get`. Zero
// fields are not said.
type Lookup struct {
	Dst  netip.Addr
	From netip.Addr // the source; with In, of a packet that arrives there
	Mark uint32
	UID  uint32
	In   string // the interface that the packet arrived on
	Out  string // the interface that the socket is bound to
	Prot uint8  // IPPROTO_*
}

func (q Lookup) String() string {
	s := "route get " + q.Dst.String()
	if q.From.IsValid() {
		s += " from " + q.From.String()
	}
	if q.Mark != 0 {
		s += fmt.Sprintf(" mark %#x", q.Mark)
	}
	if q.UID != 0 {
		s += fmt.Sprintf(" uid %d", q.UID)
	}
	if q.In != "" {
		s += " iif " + q.In
	}
	if q.Out != "" {
		s += " oif " + q.Out
	}
	if q.Prot != 0 {
		s += fmt.Sprintf(" ipproto %d", q.Prot)
	}
	return s
}

func (q Lookup) family() lab.Family {
	if q.Dst.Is6() {
		return lab.IPv6
	}
	return lab.IPv4
}

func (q Lookup) answer(*world) string {
	req := nl.NewNetlinkRequest(unix.RTM_GETROUTE, unix.NLM_F_REQUEST)
	msg := &nl.RtMsg{}
	msg.Family = uint8(q.family())
	msg.Dst_len = uint8(q.Dst.BitLen())
	attrs := []*nl.RtAttr{nl.NewRtAttr(unix.RTA_DST, q.Dst.AsSlice())}
	add := func(kind int, data []byte) { attrs = append(attrs, nl.NewRtAttr(kind, data)) }
	if q.From.IsValid() {
		msg.Src_len = uint8(q.From.BitLen())
		add(unix.RTA_SRC, q.From.AsSlice())
	}
	for kind, dev := range map[int]string{unix.RTA_IIF: q.In, unix.RTA_OIF: q.Out} {
		if dev == "" {
			continue
		}
		link, err := netlink.LinkByName(dev)
		if err != nil {
			return "no device " + dev
		}
		add(kind, nl.Uint32Attr(uint32(link.Attrs().Index)))
	}
	if q.Mark != 0 {
		add(unix.RTA_MARK, nl.Uint32Attr(q.Mark))
	}
	if q.UID != 0 {
		add(unix.RTA_UID, nl.Uint32Attr(q.UID))
	}
	if q.Prot != 0 {
		add(unix.RTA_IP_PROTO, []byte{q.Prot})
	}
	req.AddData(msg)
	for _, a := range attrs {
		req.AddData(a)
	}
	replies, err := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWROUTE)
	if err != nil {
		if errno, ok := errors.AsType[syscall.Errno](err); ok {
			return unix.ErrnoName(errno)
		}
		return err.Error()
	}
	if len(replies) == 0 {
		return "no reply"
	}
	return readRoute(replies[0], q.From.IsValid())
}

// types are the route types that a reply can have beside unicast.
var types = map[uint8]string{
	unix.RTN_LOCAL: "local ", unix.RTN_BROADCAST: "broadcast ", unix.RTN_ANYCAST: "anycast ", unix.RTN_MULTICAST: "multicast ",
	unix.RTN_UNREACHABLE: "unreachable ", unix.RTN_PROHIBIT: "prohibit ", unix.RTN_BLACKHOLE: "blackhole ",
}

// readRoute turns a reply into "dev wan0 via 192.0.2.1 src 192.0.2.10"; the source
// only where the question did not name one.
func readRoute(b []byte, bound bool) string {
	msg := nl.DeserializeRtMsg(b)
	attrs, err := nl.ParseRouteAttr(b[msg.Len():])
	if err != nil {
		return err.Error()
	}
	addr := func(data []byte) string {
		a, _ := netip.AddrFromSlice(data)
		return a.String()
	}
	var dev, via, src string
	for _, a := range attrs {
		switch a.Attr.Type {
		case unix.RTA_OIF:
			index := int(binary.NativeEndian.Uint32(a.Value))
			if link, err := netlink.LinkByIndex(index); err == nil {
				dev = " dev " + link.Attrs().Name
			} else {
				dev = fmt.Sprintf(" dev #%d", index)
			}
		case unix.RTA_GATEWAY:
			via = " via " + addr(a.Value)
		case unix.RTA_VIA:
			via = " via inet6 " + addr(a.Value[2:])
		case unix.RTA_PREFSRC:
			if !bound {
				src = " src " + addr(a.Value)
			}
		}
	}
	return strings.TrimSpace(types[msg.Type] + strings.TrimSpace(dev+via+src))
}

// A Dial opens a TCP connection from the host with a socket that is bound as From
// says and belongs to a user. The answer says who has seen it with which source.
type Dial struct {
	From lab.From
	UID  int
	Dst  netip.Addr
}

func (q Dial) String() string {
	s := fmt.Sprintf("TCP from %v to %v", q.From, q.Dst)
	if q.From.Mark != 0 {
		s += fmt.Sprintf(" mark %#x", q.From.Mark)
	}
	if q.UID != 0 {
		s += fmt.Sprintf(" by user %d", q.UID)
	}
	return s
}

// outcome is how a connection ended.
type outcome struct{ err error }

const (
	// nothing is the time to wait for a packet that no listener has seen.
	nothing = 700 * time.Millisecond
	// unanswered is the time to wait for an answer.
	unanswered = 3 * time.Second
)

// none says of the answer to a question that nothing came in time.
func none(answer string) bool {
	return slices.ContainsFunc([]string{unseen, noReply, noAnswer, noConnection}, func(end string) bool { return strings.HasSuffix(answer, end) })
}

// The ends of such answers.
const (
	unseen       = "nobody has seen it"
	noReply      = "no reply"
	noAnswer     = ", no answer"
	noConnection = ", but no connection"
)

func (q Dial) answer(w *world) string {
	// The end of the connection before may still be on its way.
	opens := func(p lab.Packet) bool { return p.Dst == q.Dst && p.DstPort == lab.EchoPort && p.Opens }
	before := w.count(opens)
	ctx, cancel := context.WithTimeout(w.t.Context(), lab.Stretched(unanswered))
	defer cancel()
	done := make(chan outcome, 1)
	go func() { done <- outcome{lab.OnThread(func() error { return q.dial(ctx) })} }()
	seen := w.seen(before, opens, func() bool {
		select {
		case refused := <-done: // or answered by a host that no listener observes
			done <- refused
			return true
		default:
			return false
		}
	})
	if seen == nil {
		cancel()
		if err := (<-done).err; err == nil {
			return "answered here" // by the host itself or a container
		} else if errno, ok := errors.AsType[syscall.Errno](err); ok {
			return unix.ErrnoName(errno)
		}
		return unseen
	}
	who := fmt.Sprintf("seen by %s from %v", seen.by, seen.Src)
	if _, tunnel := w.ears[seen.by].(*lab.Tun); tunnel || !q.answerable(w, seen) {
		cancel()
		<-done
		return who
	}
	if err := (<-done).err; err != nil {
		return who + noAnswer
	}
	return who + ", answered"
}

// answerable: a provider answers its own customers only.
func (q Dial) answerable(w *world, p *heard) bool {
	for _, isp := range w.isps {
		if isp.Name() == p.by {
			return isp.IPv4().Contains(p.Src) || isp.IPv6().Contains(p.Src) || w.owner(p.Src) == isp
		}
	}
	return true
}

// dial runs on a separate thread, whose user it changes: the socket belongs to the
// user that the thread has when it opens it (fsuid, credentials(7)).
func (q Dial) dial(ctx context.Context) error {
	if q.UID != 0 {
		if _, _, errno := unix.RawSyscall(unix.SYS_SETFSUID, uintptr(q.UID), 0, 0); errno != 0 {
			return errno
		}
	}
	dialer := net.Dialer{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		if cerr := c.Control(func(fd uintptr) {
			if q.From.Device != "" {
				err = unix.BindToDevice(int(fd), q.From.Device)
			}
			if q.From.Mark != 0 && err == nil {
				err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, int(q.From.Mark))
			}
		}); cerr != nil {
			return cerr
		}
		return err
	}}
	if q.From.Addr.IsValid() {
		dialer.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(q.From.Addr, 0))
	}
	conn, err := dialer.DialContext(ctx, "tcp", netip.AddrPortFrom(q.Dst, lab.EchoPort).String())
	if err != nil {
		return err
	}
	return conn.Close()
}

// A Call opens a TCP connection to the host (or to what it publishes) from an
// address behind a provider. The answer says where the host's reply was seen.
type Call struct {
	By   *lab.ISP
	Src  netip.Addr // by default the provider's own client on the internet
	Dst  netip.Addr
	Port uint16 // by default that of the host's echo server
}

func (q Call) String() string {
	return fmt.Sprintf("TCP of %v behind %s to %v", q.src(), q.By.Name(), netip.AddrPortFrom(q.Dst, q.port()))
}

func (q Call) src() netip.Addr {
	switch {
	case q.Src.IsValid():
		return q.Src
	case q.Dst.Is6():
		return q.By.Client6
	default:
		return q.By.Client4
	}
}

func (q Call) port() uint16 {
	if q.Port != 0 {
		return q.Port
	}
	return lab.EchoPort
}

func (q Call) connect(ctx context.Context) error {
	return q.By.Namespace().Do(func() error {
		dialer := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(q.src(), 0))}
		conn, err := dialer.DialContext(ctx, "tcp", netip.AddrPortFrom(q.Dst, q.port()).String())
		if err != nil {
			return err
		}
		return conn.Close()
	})
}

func (q Call) answer(w *world) string {
	src := q.src()
	reply := func(p lab.Packet) bool { return p.Src == q.Dst && p.Dst == src && p.SrcPort == q.port() }
	before := w.count(reply)
	ctx, cancel := context.WithTimeout(w.t.Context(), lab.Stretched(unanswered))
	defer cancel()
	done := make(chan outcome, 1)
	go func() { done <- outcome{q.connect(ctx)} }()
	seen := w.seen(before, reply, func() bool { return false })
	switch {
	case seen == nil:
		cancel()
		<-done
		return noReply
	case seen.by == q.By.Name():
		if err := (<-done).err; err != nil {
			return "replied by " + seen.by + noConnection
		}
		return "answered by " + seen.by
	default:
		cancel()
		<-done
		return "the reply strays by " + seen.by
	}
}

// A Fact is anything else that must stay as it is.
type Fact struct {
	Name string
	Ask  func(w *world) string
}

func (q Fact) String() string         { return q.Name }
func (q Fact) answer(w *world) string { return q.Ask(w) }

// heard is a packet and who has heard it.
type heard struct {
	lab.Packet
	by string
}

// count is how many packets each listener has heard so far that match.
func (w *world) count(match func(lab.Packet) bool) map[string]int {
	w.t.Helper()
	counts := map[string]int{}
	for name, ear := range w.ears {
		list, err := ear.Matching(match)
		w.must(err)
		counts[name] = len(list)
	}
	return counts
}

// seen waits for the first packet that matches after those counted; nil if there
// is none in time, or when over says that none can come.
func (w *world) seen(before map[string]int, match func(lab.Packet) bool, over func() bool) *heard {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), lab.Stretched(nothing))
	defer cancel()
	var first *heard
	err := lab.Eventually(ctx, func() error {
		last := over() // asked before the listeners are
		for name, ear := range w.ears {
			list, err := ear.Matching(match)
			w.must(err)
			if len(list) > before[name] {
				first = &heard{list[before[name]], name}
				return nil
			}
		}
		if last {
			return nil
		}
		return errors.New("not seen")
	})
	if err != nil && first == nil {
		return nil
	}
	return first
}

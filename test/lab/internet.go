package lab

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
)

// SharedAddr4 and SharedAddr6 are the addresses of Host.NewServer: one host that several providers
// lead to, where InternetAddr is another one behind each.
var (
	SharedAddr4 = netip.MustParseAddr("198.51.100.80")
	SharedAddr6 = netip.MustParseAddr("2001:db8:ffff::80")
)

// NewServer makes a host on the internet that all the providers lead to. It answers with its name on
// the echo port and serves the stream, also by MPTCP: the subflows of a connection end at one host,
// whichever provider they came through.
func (h *Host) NewServer(name string, isps ...*ISP) (*Namespace, error) {
	ns, err := h.NewNamespace(name)
	if err != nil {
		return nil, err
	}
	for n, isp := range isps {
		if err := connectServer(ns, isp, n); err != nil {
			return nil, fmt.Errorf("connecting server %s to %s: %w", name, isp.Name(), err)
		}
	}
	for _, a := range []netip.Addr{SharedAddr4, SharedAddr6} {
		if err := ns.AddAddr("lo", netip.PrefixFrom(a, a.BitLen())); err != nil {
			return nil, err
		}
	}
	err = ns.Do(func() error {
		open, err := listenEcho(name)
		for _, c := range open {
			h.onClose(func() error { _ = c.Close(); return nil })
		}
		return err
	})
	return ns, err
}

// connectServer lays a line between a server and a provider, with routes both ways.
func connectServer(ns *Namespace, isp *ISP, n int) error {
	near, far := "isp"+strconv.Itoa(n), "srv"
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.Flags = near, net.FlagUp
	pair := &netlink.Veth{LinkAttrs: attrs, PeerName: far, PeerNamespace: netlink.NsFd(int(isp.ns.handle))}
	if err := ns.nl.LinkAdd(pair); err != nil {
		return fmt.Errorf("creating the veth pair: %w", err)
	}
	if err := setAdmin(isp.ns.nl, far, true); err != nil {
		return err
	}
	for _, line := range []struct {
		server, provider netip.Prefix
		shared           netip.Addr
		clients          netip.Prefix
	}{
		{
			netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 19, byte(n), 2}), 30), netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 19, byte(n), 1}), 30),
			SharedAddr4, isp.IPv4(),
		},
		{
			netip.PrefixFrom(netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 0xff, 0xfd, 6: 0, 7: byte(n), 15: 2}), 64),
			netip.PrefixFrom(netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 0xff, 0xfd, 6: 0, 7: byte(n), 15: 1}), 64),
			SharedAddr6, isp.IPv6(),
		},
	} {
		if !line.clients.IsValid() {
			continue
		}
		err := errors.Join(
			ns.AddAddr(near, line.server),
			isp.ns.AddAddr(far, line.provider),
			ns.AddRoute(Route{Dst: line.clients, Via: line.provider.Addr()}, near),
			isp.ns.AddRoute(Route{Dst: netip.PrefixFrom(line.shared, line.shared.BitLen()), Via: line.server.Addr()}, far),
		)
		if err != nil {
			return err
		}
	}
	return nil
}

// ServeRange makes the provider's servers answer on every address of a prefix.
func (isp *ISP) ServeRange(p netip.Prefix) error {
	link, err := isp.ns.nl.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("finding lo: %w", err)
	}
	const local = 2 // RTN_LOCAL
	route := &netlink.Route{Dst: ipNet(p.Masked()), LinkIndex: link.Attrs().Index, Type: local, Table: 255, Scope: netlink.SCOPE_HOST}
	if err := isp.ns.nl.RouteReplace(route); err != nil {
		return fmt.Errorf("serving %v: %w", p, err)
	}
	return nil
}

// listenDNS answers DNS queries on addresses of the thread's namespace: every name exists and has no
// data (RFC 2308, section 2.2), over UDP and TCP.
func listenDNS(addrs ...netip.Addr) ([]io.Closer, error) {
	const port = 53
	var open []io.Closer
	for _, a := range addrs {
		at := netip.AddrPortFrom(a, port)
		c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
		if err != nil {
			return open, fmt.Errorf("listening for DNS: %w", err)
		}
		open = append(open, c)
		go func() {
			buf := make([]byte, 4096)
			for {
				n, from, err := c.ReadFromUDPAddrPort(buf)
				if errors.Is(err, net.ErrClosed) {
					return
				}
				if err == nil && answerDNS(buf[:n]) {
					_, _ = c.WriteToUDPAddrPort(buf[:n], from)
				}
			}
		}()
		l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(at))
		if err != nil {
			return open, fmt.Errorf("listening for DNS: %w", err)
		}
		open = append(open, l)
		go serve(l, func(c net.Conn) {
			var length [2]byte
			for {
				if _, err := io.ReadFull(c, length[:]); err != nil {
					return
				}
				query := make([]byte, binary.BigEndian.Uint16(length[:]))
				if _, err := io.ReadFull(c, query); err != nil || !answerDNS(query) {
					return
				}
				if _, err := c.Write(append(length[:], query...)); err != nil {
					return
				}
			}
		})
	}
	return open, nil
}

// answerDNS turns a query into its answer (RFC 1035, section 4.1.1).
func answerDNS(message []byte) bool {
	const header, response, available = 12, 0x80, 0x80
	if len(message) < header || message[2]&response != 0 {
		return false
	}
	message[2] |= response
	message[3] = message[3]&0x70 | available
	return true
}

// serve gives each connection to a function of its own goroutine, until the listener is closed.
func serve(l net.Listener, f func(net.Conn)) {
	for {
		c, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue
		}
		go func() {
			defer c.Close()
			f(c)
		}()
	}
}

// StreamPort is where every provider and server sends a stream without end from any position on.
const StreamPort = 7008

// streamByte is the content of the stream, the same everywhere.
func streamByte(at int64) byte { return byte(at) ^ byte(at>>8) ^ byte(at>>16) }

func fillStream(b []byte, at int64) {
	for i := range b {
		b[i] = streamByte(at + int64(i))
	}
}

// serveStream sends the server's name in a line, and then the stream from the position that the
// client wrote in one.
func serveStream(c net.Conn, name string) {
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		return
	}
	at, err := strconv.ParseInt(strings.TrimSpace(line), 10, 64)
	if err != nil {
		return
	}
	if _, err := io.WriteString(c, name+"\n"); err != nil {
		return
	}
	buf := make([]byte, 32<<10)
	for {
		fillStream(buf, at)
		if _, err := c.Write(buf); err != nil {
			return
		}
		at += int64(len(buf))
	}
}

// A Download is what a client of the stream asks for, and what became of it. The client goes on at the
// byte that it has reached when a connection ends with an error, as wget and apt do.
type Download struct {
	From  From
	Dst   netip.Addr
	Bytes int64
	// MPTCP opens multipath connections.
	MPTCP bool
	// Patience is how long a connection may be silent before the client opens another one; 0 waits
	// until the kernel ends it.
	Patience time.Duration
	// Progress is called after each read with the bytes so far.
	Progress func(bytes int64)

	// Received, Connections and Servers are the results: bytes in order and checked, how many
	// connections that took, and who served each. Multipath says that the last one was MPTCP on both
	// ends. Stall is the longest time without a byte.
	Received    int64
	Connections int
	Servers     []string
	Multipath   bool
	Stall       time.Duration
	// Ends are the errors that ended connections before the last one.
	Ends []error
}

// Run downloads until everything is there or the context ends.
func (d *Download) Run(ctx context.Context) error {
	last := time.Now()
	for d.Received < d.Bytes {
		err := d.connection(ctx, &last)
		switch {
		case err == nil:
		case ctx.Err() != nil:
			return fmt.Errorf("downloading from %v, %d of %d bytes: %w (%w)", d.Dst, d.Received, d.Bytes, err, context.Cause(ctx))
		case errors.Is(err, errCorrupt):
			return err
		default:
			d.Ends = append(d.Ends, err)
			if pause(ctx, 20*time.Millisecond) != nil {
				continue // the next attempt says so
			}
		}
	}
	return nil
}

var errCorrupt = errors.New("the stream is corrupt")

func (d *Download) connection(ctx context.Context, last *time.Time) error {
	dialer := net.Dialer{Control: d.From.control, Timeout: probeTimeout}
	if d.Patience > 0 {
		dialer.Timeout = d.Patience
	}
	if d.From.Addr.IsValid() {
		dialer.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(d.From.Addr, 0))
	}
	dialer.SetMultipathTCP(d.MPTCP)
	conn, err := dialer.DialContext(ctx, "tcp", netip.AddrPortFrom(d.Dst, StreamPort).String())
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	wait := func() {
		if d.Patience > 0 {
			_ = conn.SetReadDeadline(time.Now().Add(d.Patience))
		}
	}
	wait()
	if _, err := fmt.Fprintf(conn, "%d\n", d.Received); err != nil {
		return err
	}
	in := bufio.NewReaderSize(conn, 64<<10)
	server, err := in.ReadString('\n')
	if err != nil {
		return err
	}
	d.Connections++
	d.Servers = append(d.Servers, strings.TrimSpace(server))
	if tcp, ok := conn.(*net.TCPConn); ok {
		d.Multipath, _ = tcp.MultipathTCP()
	}
	buf, want := make([]byte, 64<<10), make([]byte, 64<<10)
	for d.Received < d.Bytes {
		wait()
		n, err := in.Read(buf[:min(int64(len(buf)), d.Bytes-d.Received)])
		if n > 0 {
			fillStream(want[:n], d.Received)
			if string(buf[:n]) != string(want[:n]) {
				return fmt.Errorf("%w between bytes %d and %d", errCorrupt, d.Received, d.Received+int64(n))
			}
			d.Received += int64(n)
			d.Stall = max(d.Stall, time.Since(*last))
			*last = time.Now()
			if d.Progress != nil {
				d.Progress(d.Received)
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

package lab

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// EchoPort is where every provider answers on UDP and TCP.
const EchoPort = 7007

// An Answer is what a server behind a provider says to a probe.
type Answer struct {
	ISP  string         // who answered
	Peer netip.AddrPort // the source address that it saw
	RTT  time.Duration  `json:"-"`
}

// listenEcho opens the servers on all addresses of the thread's namespace. They
// answer with the name and with the address that the question came from.
func listenEcho(name string) ([]io.Closer, error) {
	var open []io.Closer
	address := fmt.Sprintf(":%d", EchoPort)
	for _, network := range []string{"tcp4", "tcp6"} {
		l, err := (&net.ListenConfig{}).Listen(context.Background(), network, address)
		if err != nil {
			return open, fmt.Errorf("listening on %s: %w", network, err)
		}
		open = append(open, l)
		go serve(l, func(c net.Conn) {
			// One answer per line, so a connection can be used again.
			for in := bufio.NewScanner(c); in.Scan(); {
				if _, err := c.Write(answerTo(name, c.RemoteAddr().(*net.TCPAddr).AddrPort())); err != nil {
					return
				}
			}
		})
		stream, err := (&net.ListenConfig{}).Listen(context.Background(), network, fmt.Sprintf(":%d", StreamPort))
		if err != nil {
			return open, fmt.Errorf("listening on %s: %w", network, err)
		}
		open = append(open, stream)
		go serve(stream, func(c net.Conn) { serveStream(c, name) })
	}
	for _, network := range []string{"udp4", "udp6"} {
		lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
			return controlErr(c, func(fd int) error {
				if network == "udp4" {
					return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
				}
				return unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1)
			})
		}}
		c, err := lc.ListenPacket(context.Background(), network, address)
		if err != nil {
			return open, fmt.Errorf("listening on %s: %w", network, err)
		}
		open = append(open, c)
		go serveUDP(c.(*net.UDPConn), name)
	}
	return open, nil
}

func serveUDP(c *net.UDPConn, name string) {
	buf, oob := make([]byte, 2048), make([]byte, 256)
	for {
		_, n, _, from, err := c.ReadMsgUDPAddrPort(buf, oob)
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			continue
		}
		// The answer comes from the address that was asked.
		_, _, _ = c.WriteMsgUDPAddrPort(answerTo(name, from), replySource(oob[:n]), from)
	}
}

func answerTo(name string, peer netip.AddrPort) []byte {
	b, _ := json.Marshal(Answer{ISP: name, Peer: netip.AddrPortFrom(peer.Addr().Unmap().WithZone(""), peer.Port())})
	return append(b, '\n')
}

// replySource turns the packet information of a datagram into that of its
// answer: the address, without the interface, which routing is to find.
func replySource(oob []byte) []byte {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	for _, m := range messages {
		switch {
		case m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_PKTINFO && len(m.Data) >= unix.SizeofInet4Pktinfo:
			// struct in_pktinfo: ifindex, local address, destination.
			return unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: [4]byte(m.Data[8:12])})
		case m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_PKTINFO && len(m.Data) >= unix.SizeofInet6Pktinfo:
			return unix.PktInfo6(&unix.Inet6Pktinfo{Addr: [16]byte(m.Data[:16])})
		}
	}
	return nil
}

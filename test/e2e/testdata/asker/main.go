// Asker is a static program that asks servers: a line of output for each question among its arguments.
//
//	tcp ADDRESS:PORT   by a connection
//	udp ADDRESS:PORT   by a socket that is not connected
//	dns ADDRESS:53     a DNS query, by a socket that is not connected
//	ping ADDRESS       by a ping socket (icmp(7))
package main

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const patience = 3 * time.Second

// query asks for the A record of example. (RFC 1035, section 4.1).
const query = "\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x07example\x00\x00\x01\x00\x01"

func main() {
	for _, q := range os.Args[1:] {
		kind, address, _ := strings.Cut(q, " ")
		answer, err := ask(kind, address)
		if err != nil {
			answer = "error: " + err.Error()
		}
		fmt.Println(strings.TrimSpace(answer))
	}
}

func ask(kind, address string) (string, error) {
	switch kind {
	case "tcp":
		c, err := net.DialTimeout("tcp", address, patience)
		if err != nil {
			return "", err
		}
		if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
			return "", err
		}
		if _, err := c.Write([]byte("who?\n")); err != nil {
			return "", err
		}
		b := make([]byte, 512)
		n, err := c.Read(b)
		return string(b[:n]), err
	case "udp":
		return datagram(address, "who?\n")
	case "dns":
		answer, err := datagram(address, query)
		if err == nil {
			answer = fmt.Sprintf("answer of %d bytes", len(answer))
		}
		return answer, err
	case "ping":
		return ping(netip.MustParseAddr(address))
	}
	return "", fmt.Errorf("an unknown question %q", kind)
}

func datagram(address, question string) (string, error) {
	to := netip.MustParseAddrPort(address)
	network := "udp4"
	if to.Addr().Is6() {
		network = "udp6"
	}
	c, err := net.ListenPacket(network, ":0")
	if err != nil {
		return "", err
	}
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return "", err
	}
	if _, err := c.WriteTo([]byte(question), net.UDPAddrFromAddrPort(to)); err != nil {
		return "", err
	}
	b := make([]byte, 512)
	n, from, err := c.ReadFrom(b)
	if err != nil {
		return "", err
	}
	if from.String() != address {
		return "", fmt.Errorf("an answer of %v", from)
	}
	return string(b[:n]), nil
}

func ping(to netip.Addr) (string, error) {
	family, protocol, kind := unix.AF_INET, unix.IPPROTO_ICMP, byte(8)
	if to.Is6() {
		family, protocol, kind = unix.AF_INET6, unix.IPPROTO_ICMPV6, 128
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM, protocol)
	if err != nil {
		return "", fmt.Errorf("socket: %w", err)
	}
	var address unix.Sockaddr = &unix.SockaddrInet6{Addr: to.As16()}
	if to.Is4() {
		address = &unix.SockaddrInet4{Addr: to.As4()}
	}
	wait := unix.NsecToTimeval(patience.Nanoseconds())
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait); err != nil {
		return "", err
	}
	if err := unix.Sendto(fd, []byte{kind, 0, 0, 0, 0, 0, 0, 1}, 0, address); err != nil {
		return "", fmt.Errorf("sendto: %w", err)
	}
	n, _, err := unix.Recvfrom(fd, make([]byte, 512), 0)
	if err != nil {
		return "", fmt.Errorf("recvfrom: %w", err)
	}
	return fmt.Sprintf("pong of %d bytes", n), nil
}

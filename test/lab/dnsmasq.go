package lab

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// startDnsmasq starts the provider's DHCP and DNS server and waits until it
// listens.
func (isp *ISP) startDnsmasq(ctx context.Context) error {
	dhcp4 := isp.cfg.IPv4.IsValid() && !isp.cfg.NoDHCP
	dhcp6 := isp.cfg.IPv6.IsValid() && isp.cfg.DHCPv6 != NoDHCPv6
	if !dhcp4 && !dhcp6 {
		return nil
	}
	leases := filepath.Join(labDir, isp.cfg.Name+".leases")
	if err := os.Remove(leases); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	args := []string{
		"--keep-in-foreground", "--log-facility=-", "--conf-file=/dev/null",
		"--user=root", "--pid-file=", "--no-resolv", "--no-hosts", "--no-poll",
		"--interface=" + lan, "--except-interface=lo", "--bind-dynamic",
		"--txt-record=isp.lab," + isp.cfg.Name,
		"--dhcp-leasefile=" + leases,
		"--dhcp-authoritative", "--log-dhcp",
		"--no-ping", // which would cost every client three seconds
	}
	lease := isp.cfg.Lease
	if lease == 0 {
		lease = time.Hour
	}
	seconds := strconv.Itoa(int(lease / time.Second))
	if dhcp4 {
		args = append(args, isp.dhcp4Args(seconds)...)
	}
	if dhcp6 {
		first, last := offset(isp.cfg.IPv6, 0x1000), offset(isp.cfg.IPv6, 0x1fff)
		args = append(args, fmt.Sprintf("--dhcp-range=%v,%v,%d,%s", first, last, isp.cfg.IPv6.Bits(), seconds))
	}
	p, err := start(ProcessConfig{Path: "dnsmasq", Args: args, Namespace: isp.ns})
	if err != nil {
		return err
	}
	isp.dnsmasq = p
	if _, err := p.WaitLine(ctx, "started, version"); err != nil {
		return fmt.Errorf("starting dnsmasq: %w", err)
	}
	return nil
}

func (isp *ISP) dhcp4Args(lease string) []string {
	cfg := isp.cfg
	first, last := cfg.PoolFirst, cfg.PoolLast
	if !first.IsValid() {
		first, last = defaultPool(cfg.IPv4)
	}
	if !last.IsValid() {
		last = first
	}
	args := []string{fmt.Sprintf("--dhcp-range=%v,%v,%v,%s", first, last, netmask(cfg.IPv4), lease)}
	gateway := cfg.Gateway
	if !gateway.IsValid() {
		gateway = cfg.IPv4.Addr()
	}
	if cfg.NoRouter {
		args = append(args, "--dhcp-option=3") // dnsmasq sends itself unless told to send none
	} else {
		args = append(args, "--dhcp-option=3,"+gateway.String())
	}
	dns := cfg.DNS
	if dns == nil {
		dns = []netip.Addr{cfg.IPv4.Addr()}
		if cfg.Resolver {
			dns = []netip.Addr{isp.Resolver4}
		}
	}
	args = append(args, "--dhcp-option=6"+join(dns))
	if len(cfg.Routes) > 0 {
		var b strings.Builder
		for _, r := range cfg.Routes {
			via := r.Via
			if !via.IsValid() {
				via = netip.IPv4Unspecified() // RFC 3442: on this subnet
			}
			fmt.Fprintf(&b, ",%v,%v", r.Dst, via)
		}
		args = append(args, "--dhcp-option=121"+b.String())
	}
	if cfg.Renew > 0 {
		t1 := int(max(cfg.Renew, time.Second) / time.Second)
		args = append(args,
			fmt.Sprintf("--dhcp-option=58,%d", t1),
			fmt.Sprintf("--dhcp-option=59,%d", t1+1))
	}
	if cfg.MTU > 0 {
		args = append(args, fmt.Sprintf("--dhcp-option=26,%d", cfg.MTU))
	}
	for _, o := range cfg.DHCPOptions {
		args = append(args, "--dhcp-option="+o)
	}
	return args
}

// DHCPLog is what the provider's DHCP server has logged since it started.
func (isp *ISP) DHCPLog() string {
	isp.mu.Lock()
	defer isp.mu.Unlock()
	if isp.dnsmasq == nil {
		return ""
	}
	return isp.dnsmasq.Log()
}

// WaitDHCP waits for a line of the DHCP server's log, such as "DHCPACK(lan)",
// among those it writes from now on.
func (isp *ISP) WaitDHCP(ctx context.Context, substring string) (string, error) {
	isp.mu.Lock()
	p := isp.dnsmasq
	isp.mu.Unlock()
	if p == nil {
		return "", fmt.Errorf("provider %s has no DHCP server", isp.cfg.Name)
	}
	return p.WaitLineAfter(ctx, len(p.Lines()), substring)
}

func join(addrs []netip.Addr) string {
	var b strings.Builder
	for _, a := range addrs {
		b.WriteString("," + a.String())
	}
	return b.String()
}

func netmask(p netip.Prefix) netip.Addr {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], uint32(uint64(0xffffffff)<<(32-p.Bits())))
	return netip.AddrFrom4(b)
}

// offset is the n-th address of a prefix.
func offset(p netip.Prefix, n uint32) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	tail := b[len(b)-4:]
	binary.BigEndian.PutUint32(tail, binary.BigEndian.Uint32(tail)+n)
	a, _ := netip.AddrFromSlice(b)
	return a
}

func defaultPool(p netip.Prefix) (first, last netip.Addr) {
	if p.Bits() <= 24 {
		return offset(p, 100), offset(p, 199)
	}
	first = p.Addr().Next()
	last = offset(p, 1<<(32-p.Bits())-2)
	if last.Less(first) { // the provider has the last address
		return p.Masked().Addr().Next(), p.Addr().Prev()
	}
	return first, last
}

// Package dnsmasq writes a servers file for the administrator's dnsmasq (servers-file in
// dnsmasq(8)), so that queries to a link's DNS server leave by that link and from its
// address.
//
// For IPv4 and IPv6 alike, @interface makes dnsmasq use IP_UNICAST_IF and not
// SO_BINDTODEVICE for datagrams, and @source binds. All of it was tried with
// dnsmasq 2.89, 2.90 and 2.91, from a servers file:
//
//   - A line that it does not accept is logged and skipped, at the start as well
//     as on SIGHUP: a link-local server on an interface that does not exist, a
//     source of the other family, a zone behind a source.
//   - A line with an interface or a source that is not there is kept. It costs a
//     logged error per query, and the next server is asked.
//   - A link-local server needs its zone; @interface alone sends into the void.
//   - The file is first read after the pid file was written, and then only on
//     SIGHUP, as the user that dnsmasq has become.
package dnsmasq

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"multihomed/internal/dnsname"
	"multihomed/routing"
)

// A Server is a DNS server of one link.
type Server struct {
	Interface string
	Address   netip.Addr
	// Source is the link's address that the query carries; invalid for none.
	Source netip.Addr
	// Domains that this server is for.
	Domains []string
	// OnlyDomains says that the server is asked for nothing else.
	OnlyDomains bool
	// Dead says that its link does not work: it is in the file as a comment alone, for the next
	// process, and for who wonders where it is.
	Dead bool
}

// deadMark begins the line of a server whose link does not work.
const deadMark = "# dead: "

const header = `# Written by multihomed, and written again whenever a link changes.
`

// render returns the servers file: sorted, each line once. It leaves out what cannot be
// written, and returns it as errors.
func render(servers []Server) ([]byte, []error) {
	var (
		lines []line
		errs  []error
	)
	for _, s := range servers {
		l, err := s.line()
		if err != nil {
			errs = append(errs, fmt.Errorf("leaving out DNS server %q of interface %q: %w", s.Address, s.Interface, err))
			continue
		}
		if !s.OnlyDomains {
			lines = append(lines, l)
		}
		for _, d := range s.Domains {
			if l.domain, err = dnsname.Parse(d); err != nil {
				errs = append(errs, fmt.Errorf("leaving out a domain of DNS server %q of interface %q: %w", s.Address, s.Interface, err))
				continue
			}
			lines = append(lines, l)
		}
	}
	slices.SortFunc(lines, line.compare)
	var b bytes.Buffer
	b.WriteString(header)
	for _, l := range slices.Compact(lines) {
		b.WriteString(l.String())
	}
	return b.Bytes(), errs
}

// A line is what dnsmasq reads as one server. It has one domain at most:
// dnsmasq cuts lines at 1024 bytes (MAXDNAME in dns-protocol.h).
type line struct {
	domain, name    string
	address, source netip.Addr
	dead            bool
}

func (l line) compare(o line) int {
	return cmp.Or(compareBool(l.dead, o.dead), strings.Compare(l.domain, o.domain), strings.Compare(l.name, o.name),
		l.address.Compare(o.address), l.source.Compare(o.source))
}

// compareBool puts false first.
func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	default:
		return 1
	}
}

func (l line) String() string {
	var b strings.Builder
	if l.dead {
		b.WriteString(deadMark)
	}
	b.WriteString("server=")
	if l.domain != "" {
		b.WriteString("/" + l.domain + "/")
	}
	b.WriteString(l.address.String())
	if l.address.IsLinkLocalUnicast() && l.address.Is6() {
		b.WriteString("%" + l.name)
	}
	b.WriteString("@" + l.name)
	if l.source.IsValid() {
		b.WriteString("@" + l.source.String())
	}
	b.WriteByte('\n')
	return b.String()
}

// line is the server without a domain.
func (s Server) line() (line, error) {
	none := line{}
	if err := checkInterface(s.Interface); err != nil {
		return none, err
	}
	address, err := s.unzoned(s.Address)
	if err != nil {
		return none, err
	}
	l := line{name: s.Interface, address: address, dead: s.Dead}
	if !s.Source.IsValid() {
		return l, nil
	}
	source, err := s.unzoned(s.Source)
	switch {
	case err != nil:
		return none, fmt.Errorf("source: %w", err)
	case source.Is4() != address.Is4():
		return none, fmt.Errorf("source: %v is of the other family", source)
	case source.Is6() && source.IsLinkLocalUnicast():
		// dnsmasq cannot bind to one: it takes no zone there. For a link-local server
		// the kernel picks it itself; for others it is useless.
		if !address.IsLinkLocalUnicast() {
			return none, fmt.Errorf("source: %v does not leave the link", source)
		}
		return l, nil
	}
	l.source = source
	return l, nil
}

// unzoned checks an address and removes its zone, which must be the link.
func (s Server) unzoned(a netip.Addr) (netip.Addr, error) {
	bare := a.WithZone("")
	switch {
	case !a.IsValid():
		return a, errors.New("the address is missing")
	case a.Is4In6() || !routing.IsHostAddress(a):
		return a, fmt.Errorf("%q is not the address of a host", a)
	case a.Zone() != "" && (a.Zone() != s.Interface || !bare.IsLinkLocalUnicast()):
		return a, fmt.Errorf("%q is not on the interface", a)
	}
	return bare, nil
}

// checkInterface refuses valid interface names that mean something to dnsmasq, or to its
// parser of configuration files.
func checkInterface(name string) error {
	if err := routing.CheckInterfaceName(name); err != nil {
		return err
	}
	if !dnsname.Plain(name) {
		return errors.New("the file can name interfaces of letters, digits and - . _ only; to fix: rename it")
	}
	if _, err := netip.ParseAddr(name); err == nil {
		return errors.New("the interface has the name of an address; to fix: rename it")
	}
	return nil
}

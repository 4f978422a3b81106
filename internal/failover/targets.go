package failover

import (
	"net/netip"
	"slices"

	"multihomed/internal/config"
	"multihomed/internal/health"
	"multihomed/internal/prober/wire"
	"multihomed/routing"
)

// A question is how a target is asked.
type question struct {
	kind wire.Kind
	to   netip.AddrPort
}

// Without own targets, a link's DNS servers are asked, at most mostServers. With fewer than
// enough behind the link, those of other uplinks come in addition, which costs nobody a
// judgement: one that never answers does not count.
const (
	mostServers = 4
	enough      = 2
)

// targetsOf are the targets of an uplink, and how they are asked, by name.
func targetsOf(cfg config.Failover, u *Uplink, all []Uplink) (targets []health.Target, how map[string]question) {
	how = map[string]question{}
	add := func(t config.Target) {
		a := t.Address.Addr()
		q := question{to: t.Address}
		switch t.Probe {
		case config.ProbeTCP:
			q.kind = wire.TCP
		case config.ProbeICMP:
			q.kind = wire.ICMP
		case config.ProbeDNS, config.ProbeAuto:
			q.kind = wire.DNS
		case config.ProbeCarrier:
			return
		}
		if _, twice := how[t.String()]; twice || slices.Contains(u.Addresses, a) || routing.FamilyOf(a) != u.Family {
			return
		}
		how[t.String()] = q
		targets = append(targets, health.Target{Name: t.String(), OnLink: u.isNear(a)})
	}
	if cfg.Probe == config.ProbeCarrier {
		return nil, nil
	}
	if len(cfg.Targets) > 0 {
		for _, t := range cfg.Targets {
			add(t)
		}
		return targets, how
	}
	behind := 0
	for _, near := range []bool{false, true} {
		for _, s := range u.Servers {
			if u.isNear(s) != near || len(targets) >= mostServers || !askable(s) {
				continue
			}
			add(serverOf(cfg.Probe, s))
			if !near {
				behind++
			}
		}
	}
	for i := range all {
		o := &all[i]
		if o.Family != u.Family || o.Index == u.Index {
			continue
		}
		for _, s := range o.Servers {
			// A private address is somebody else's behind another link.
			if behind < enough && !o.isNear(s) && !u.isNear(s) && askable(s) && !s.IsPrivate() && !shared.Contains(s) {
				add(serverOf(cfg.Probe, s))
				behind++
			}
		}
	}
	return targets, how
}

// shared is the address space between providers and their customers (RFC 6598).
var shared = netip.MustParsePrefix("100.64.0.0/10") //nolint:gochecknoglobals // a constant in all but name

func askable(a netip.Addr) bool {
	return a.IsValid() && !a.IsLoopback() && !a.IsUnspecified() && !a.IsMulticast()
}

// serverOf is a DNS server as a target.
func serverOf(p config.Probe, a netip.Addr) config.Target {
	t := config.Target{Probe: p, Address: netip.AddrPortFrom(a.WithZone(""), dnsPort)}
	switch p {
	case config.ProbeICMP:
		t.Address = netip.AddrPortFrom(a.WithZone(""), 0)
	case config.ProbeAuto:
		t.Probe = config.ProbeDNS
	case config.ProbeDNS, config.ProbeTCP, config.ProbeCarrier:
	}
	return t
}

const dnsPort = 53

package daemon

import (
	"context"
	"iter"
	"log/slog"
	"net/netip"
	"slices"

	"multihomed/internal/config"
	"multihomed/internal/dnsmasq"
	"multihomed/internal/event"
	"multihomed/internal/owners"
	"multihomed/routing"
)

// names keeps the file of DNS servers for dnsmasq. Only the loop's goroutine may
// use it.
type names struct {
	owners *owners.Owners
	log    *slog.Logger
	fault  func(code routing.Code, err error)
	// file is nil if there is none.
	file *dnsmasq.File
	last []dnsmasq.Server
	// written says that last was written by this process.
	written bool
	// failed is what kept the file from being in force.
	failed error
}

func newNames(cfg config.DNS, log *slog.Logger, owners *owners.Owners, fault func(code routing.Code, err error)) *names {
	n := &names{owners: owners, log: log, fault: fault}
	if cfg.ServersFile != "" {
		n.file = dnsmasq.New(cfg.ServersFile, cfg.PIDFile, log)
	}
	return n
}

// settled is called when the routing of all links stands, so that a server is
// only named when queries can reach it.
func (n *names) settled(ctx context.Context, plans iter.Seq[routing.LinkPlan], said func(index int) string) {
	// Where all is off the servers stay named: dnsmasq would have none.
	if n.file == nil || n.owners.HostOff() {
		return
	}
	var all []dnsmasq.Server
	for plan := range plans {
		all = append(all, servers(plan, n.owners.Names(said(plan.Link.Index)))...)
	}
	all = append(all, n.unheard(ctx)...)
	if n.failed == nil && n.written && slices.EqualFunc(all, n.last, sameServer) {
		return
	}
	n.last, n.written = append([]dnsmasq.Server{}, all...), true
	n.failed = n.file.Update(ctx, all)
	n.fault(namesFault, n.failed)
}

// unheard are the servers of interfaces of which nobody has said anything yet. What
// was known before stays: as long as NetworkManager is away, and over a restart of ours.
func (n *names) unheard(ctx context.Context) []dnsmasq.Server {
	if n.last == nil {
		before, err := n.file.Read()
		if err != nil {
			n.log.LogAttrs(ctx, event.LevelNotice, "earlier DNS servers unknown", slog.String("error", err.Error()))
		}
		n.last = before
	}
	var out []dnsmasq.Server
	for _, s := range n.last {
		if !n.owners.HasNames(s.Interface) {
			out = append(out, s)
		}
	}
	return out
}

func sameServer(a, b dnsmasq.Server) bool {
	return a.Interface == b.Interface && a.Address == b.Address && a.Source == b.Source &&
		a.OnlyDomains == b.OnlyDomains && slices.Equal(a.Domains, b.Domains)
}

// servers are the DNS servers of a link, each with the address of the link that
// its queries carry.
func servers(plan routing.LinkPlan, known map[routing.Family]owners.Names) []dnsmasq.Server {
	var all []dnsmasq.Server
	for _, f := range routing.Families() {
		names := known[f]
		for _, a := range names.Servers {
			s := dnsmasq.Server{Interface: plan.Link.Name, Address: a}
			// Where nothing leads any further, a server that is for some domains
			// is for no others. The domains that a provider names are to complete names
			// with: "com" would hand all of it to that provider.
			if plan.Role() == routing.Local {
				s.Domains, s.OnlyDomains = names.Domains, len(names.Domains) > 0
			}
			if s.Source = sourceOf(plan, f, a); !s.Source.IsValid() && !a.IsLinkLocalUnicast() {
				continue // The link cannot be used with this family at the moment.
			}
			all = append(all, s)
		}
	}
	return all
}

// sourceOf picks the address of a link that a query to a server carries: one in
// the server's network, else the one that the link's default route names, else
// the first that is in use.
func sourceOf(plan routing.LinkPlan, f routing.Family, server netip.Addr) netip.Addr {
	var preferred netip.Addr
	for _, r := range plan.Routes {
		if r.Route.Family == f && r.Route.IsDefault() && r.Route.PreferredSource.IsValid() {
			preferred = r.Route.PreferredSource
			break
		}
	}
	var best netip.Addr
	rank := 0
	for _, a := range plan.Link.Addresses {
		address := a.Prefix.Addr()
		key, takesPart := routing.KeyOf(plan.Link, address)
		if _, leased := plan.Link.Tables[key]; !takesPart || !leased || key.Family != f || a.Tentative || a.Deprecated {
			continue
		}
		now := 1
		switch {
		case key.Prefix.Contains(server):
			now = 5
		case address == preferred:
			now = 4
		case !a.Temporary && !address.IsPrivate():
			now = 3
		case !address.IsPrivate():
			now = 2
		}
		if now > rank {
			best, rank = address, now
		}
	}
	return best
}

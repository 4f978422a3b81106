package dnsmasq

import (
	"context"
	"log/slog"
	"net/netip"
	"slices"

	"multihomed/internal/event"
	"multihomed/internal/owners"
	"multihomed/routing"
	"multihomed/routing/reconcile"
)

// A Pass is the result of a reconcile pass for DNS: the links with their complete routing, so
// that a server is only named when queries can reach it, and the servers that their owners
// know.
type Pass struct {
	Snapshot *reconcile.Snapshot
	DNS      *owners.DNS
	// Dead are the uplinks that do not work in a family, by interface index.
	Dead routing.ByFamily[map[int]struct{}]
}

// A Keeper keeps the servers file in step with the links. It is for one goroutine.
type Keeper struct {
	log  *slog.Logger
	file *File
	last []Server
	// written says that last was written by this process.
	written bool
	// failed is the error of the last update.
	failed error
}

// NewKeeper returns the keeper of a file.
func NewKeeper(file *File, log *slog.Logger) *Keeper { return &Keeper{log: log, file: file} }

// Keep writes the servers of all links. After an error the next Keep tries again, even with
// the same servers.
func (k *Keeper) Keep(ctx context.Context, p Pass) error {
	var all []Server
	for _, i := range p.Snapshot.Interfaces {
		if i.IsLink {
			all = append(all, servers(&i.Plan, p.DNS.Of(i.Said))...)
		}
	}
	all = append(all, k.unheard(ctx, p.DNS)...)
	p.markDead(all)
	if k.failed == nil && k.written && slices.EqualFunc(all, k.last, sameServer) {
		return nil
	}
	k.last, k.written = append([]Server{}, all...), true
	k.failed = k.file.Update(ctx, all)
	return k.failed
}

// markDead marks the servers of dead links, so that dnsmasq does not wait for their answers. If
// no other server is left for every name, it marks none: a link may work better than it seems.
func (p Pass) markDead(all []Server) {
	index := map[string]int{}
	for _, i := range p.Snapshot.Interfaces {
		index[i.Facts.Name] = i.Facts.Index
	}
	isOneLeft := false
	for i := range all {
		s := &all[i]
		_, s.Dead = p.Dead.In(routing.FamilyOf(s.Address))[index[s.Interface]]
		isOneLeft = isOneLeft || !s.Dead && !s.OnlyDomains
	}
	for i := range all {
		all[i].Dead = all[i].Dead && isOneLeft
	}
}

// unheard are the known servers of interfaces that no owner has reported yet. They stay while
// NetworkManager is away, and over a restart of ours.
func (k *Keeper) unheard(ctx context.Context, dns *owners.DNS) []Server {
	if k.last == nil {
		before, err := k.file.Read()
		if err != nil {
			k.log.LogAttrs(ctx, event.LevelNotice, "earlier DNS servers unknown", slog.String("error", err.Error()))
		}
		k.last = before
	}
	var out []Server
	for _, s := range k.last {
		if !dns.Knows(s.Interface) {
			out = append(out, s)
		}
	}
	return out
}

func sameServer(a, b Server) bool {
	return a.Interface == b.Interface && a.Address == b.Address && a.Source == b.Source &&
		a.OnlyDomains == b.OnlyDomains && a.Dead == b.Dead && slices.Equal(a.Domains, b.Domains)
}

// servers are the DNS servers of a link, each with the address of the link that
// its queries carry.
func servers(plan *routing.LinkPlan, known map[routing.Family]owners.Resolvers) []Server {
	var all []Server
	for _, f := range routing.Families() {
		resolvers := known[f]
		for _, a := range resolvers.Servers {
			s := Server{Interface: plan.Link.Name, Address: a}
			// A server of a local link with domains is asked for these only: nothing leads
			// further from there. The domains of an uplink are search domains: the domain
			// "com" would send all of it to that provider.
			if plan.Role() == routing.Local {
				s.Domains, s.OnlyDomains = resolvers.Domains, len(resolvers.Domains) > 0
			}
			if s.Source = sourceOf(plan, f, a); !s.Source.IsValid() && !a.IsLinkLocalUnicast() {
				continue // The link has no usable address of this family now.
			}
			all = append(all, s)
		}
	}
	return all
}

// sourceOf picks the source address of queries to a server: one in the server's network, else
// that of the link's default route, else the first usable one.
func sourceOf(plan *routing.LinkPlan, f routing.Family, server netip.Addr) netip.Addr {
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

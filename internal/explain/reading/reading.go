// Package reading reads what package explain needs from this host. It needs no privileges, and
// neither the daemon nor NetworkManager.
package reading

import (
	"context"
	"errors"
	"maps"
	"net"
	"net/netip"
	"os/user"
	"slices"
	"strconv"
	"time"

	"multihomed/internal/config"
	"multihomed/internal/escape"
	"multihomed/internal/explain"
	"multihomed/internal/status"
	"multihomed/nm"
	"multihomed/routing"
	"multihomed/routing/kernel"
	"multihomed/routing/lookup"
)

const (
	// mostOfTable is how many routes of a table a snapshot has; of larger ones it has those to the
	// destination.
	mostOfTable = 5000
	// mostOfAll bounds all routes of a snapshot.
	mostOfAll = 100_000
)

// Host reads what a flow depends on, and the kernel's answer at the same time. Whole says that routes to
// other destinations are wanted, too. It fails if the kernel cannot be read, or if rules or
// routes change all the time.
func Host(ctx context.Context, flow lookup.Flow, whole bool) (*explain.Snapshot, error) {
	reader, err := kernel.OpenReader()
	if err != nil {
		return nil, err
	}
	defer func() { _ = reader.Close() }() // It was only read from.
	c, err := reader.Consult(ctx, flow)
	if err != nil {
		return nil, err
	}
	addresses, err := reader.Addresses(ctx, routing.FamilyOf(flow.To))
	if err != nil {
		return nil, err
	}
	consulted := []netip.Addr{flow.To, flow.From}
	if !c.Asked && !flow.From.IsValid() {
		// The kernel does not say which address the socket gets: any may be looked up.
		also := some(addresses)
		consulted = append(consulted, also...)
		if c, err = reader.Consult(ctx, flow, also...); err != nil {
			return nil, err
		}
	}
	s := &explain.Snapshot{Taken: time.Now().UTC().Format(time.RFC3339), Question: flow}
	f := &s.Facts
	f.Facts, f.Users = *c.Facts, map[uint32]string{}
	for one := c; one != nil; one = one.Again {
		if one.Asked {
			f.Answers = append(f.Answers, explain.Asked{Flow: one.Flow, Answer: one.Answer})
		}
	}
	f.Addresses = addresses
	name(f, flow.UID)
	s.Partial = map[routing.TableID]bool{}
	for _, t := range f.Asked() {
		s.Partial[t] = true
	}
	if whole {
		return s, wholeTables(ctx, reader, s, consulted)
	}
	return s, nil
}

// mostAddresses is how many addresses are looked up besides the destination.
const mostAddresses = 256

// some are addresses of this host.
func some(all map[int][]netip.Prefix) []netip.Addr {
	var out []netip.Addr
	for _, index := range slices.Sorted(maps.Keys(all)) {
		for _, p := range all[index] {
			out = append(out, p.Addr())
		}
	}
	return out[:min(len(out), mostAddresses)]
}

// name finds the name of a user.
func name(f *explain.Facts, uid uint32) {
	if u, err := user.LookupId(strconv.FormatUint(uint64(uid), 10)); err == nil {
		f.Users[uid] = u.Username
	}
}

// NameUsers finds the names of users by which rules select one user.
func NameUsers(f *explain.Facts) {
	for _, r := range f.Rules {
		if r.UIDs.Set && r.UIDs.First == r.UIDs.Last {
			if _, known := f.Users[r.UIDs.First]; !known {
				name(f, r.UIDs.First)
			}
		}
	}
}

// wholeTables adds the routes to other destinations of tables that are small. What leads to the addresses that were
// consulted stays as it was when the kernel answered.
func wholeTables(ctx context.Context, reader *kernel.Reader, s *explain.Snapshot, consulted []netip.Addr) error {
	f := &s.Facts
	left := mostOfAll
	for _, t := range f.Asked() {
		all, partial, err := reader.Candidates(ctx, f.Family, t, min(mostOfTable, left))
		if err != nil {
			return err
		}
		if partial {
			continue
		}
		delete(s.Partial, t)
		isConsulted := func(c lookup.Candidate) bool { return slices.ContainsFunc(consulted, c.Route.Destination.Contains) }
		known := make([]lookup.Candidate, 0, len(all))
		for _, c := range f.Tables[t] {
			if isConsulted(c) {
				known = append(known, c)
			}
		}
		f.Tables[t] = append(known, slices.DeleteFunc(all, isConsulted)...)
		left -= len(f.Tables[t])
	}
	return nil
}

// Names are the escaped names of the interfaces of this host, for the completion of a shell.
func Names() []string {
	interfaces, err := net.Interfaces()
	if err != nil {
		return nil
	}
	out := make([]string, 0, len(interfaces))
	for _, i := range interfaces {
		out = append(out, escape.Name(i.Name))
	}
	return out
}

// Check reports whether a question can be asked: a link-local address needs a device.
func Check(flow lookup.Flow) error {
	needs := func(a netip.Addr) bool { return a.Is6() && a.IsLinkLocalUnicast() }
	if needs(flow.To) && flow.OIF == "" && flow.IIF == "" {
		return errors.New("a link-local address is on a device: add %DEVICE to it, or --oif DEVICE")
	}
	return nil
}

// Annotate adds what multihomed says of its rules.
func Annotate(f *explain.Facts, told *status.Status, cfg config.Config) {
	f.Notes = explain.NotesOf(told)
	for name, l := range f.Notes.Links {
		device := nm.Device{Name: escape.Original(name), ProfileID: escape.Original(l.Profile)}
		if place, named := cfg.Failover.Preference(device); named {
			l.Preferred = place + 1
		}
		l.Weight = cfg.Share.WeightOf(device)
		f.Notes.Links[name] = l
	}
	NameUsers(f)
}

// Package gather reads the facts of a host for package doctor: rules and routes, parameters of the
// kernel, the firewall, files of other programs. It changes nothing, sends no packets, and does not
// fail: what it cannot read it names.
package gather

import (
	"bufio"
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"multihomed/internal/connections"
	"multihomed/internal/doctor"
	"multihomed/internal/escape"
	"multihomed/internal/status"
	"multihomed/internal/status/view"
	"multihomed/routing"
	"multihomed/routing/kernel"
	"multihomed/routing/lookup"
)

// Bounds of what is read.
const (
	// mostRoutes is how many routes of a table are read; longer ones count as unknown.
	mostRoutes = 20_000
	// mostTables is how many tables are read; the others count as unknown.
	mostTables = 256
	// mostBytes of a file.
	mostBytes = 1 << 20
	// mostSockets of a process.
	mostSockets = 4096
)

// A Source is what is known of a host already.
type Source struct {
	// Interfaces are all of the host, Links the names of the links.
	Interfaces []routing.Interface
	Links      []string
	// Mixed are the rules of priorities that ours share with others, in the order of the kernel.
	Mixed map[routing.Family]map[routing.Priority][]routing.Rule
	// NamedBy says which interfaces named a DNS server.
	NamedBy map[netip.Addr][]string
	// PID is the daemon's process, 0 if it is not known.
	PID int
}

// Of takes everything from a view.
func Of(v *view.View) Source {
	s := Source{Mixed: v.Mixed(), NamedBy: map[netip.Addr][]string{}, PID: v.Daemon.PID}
	for _, i := range v.Links {
		s.Interfaces = append(s.Interfaces, i)
	}
	for plan := range v.Planner.Links() {
		s.Links = append(s.Links, plan.Link.Name)
	}
	for name, d := range v.NM.Devices {
		for _, f := range routing.Families() {
			for _, a := range d.DNS[f].Servers {
				if !slices.Contains(s.NamedBy[a], name) {
					s.NamedBy[a] = append(s.NamedBy[a], name)
				}
			}
		}
	}
	return s
}

// Beside takes the links from a status, and the interfaces and the order of rules from the kernel. It
// asks no NetworkManager, so who named the DNS servers is not known.
func Beside(st status.Status) (Source, error) {
	s := Source{Mixed: map[routing.Family]map[routing.Priority][]routing.Rule{}, PID: st.Daemon.PID}
	for _, l := range st.Links {
		s.Links = append(s.Links, escape.Original(l.Interface))
	}
	tables := routing.TableRange{First: routing.TableID(st.Tables.First), Last: routing.TableID(st.Tables.Last)}
	mirror, err := kernel.Open(kernel.Config{Tables: tables, Interest: func(string) bool { return false }})
	if err != nil {
		return s, fmt.Errorf("reading the kernel: %w", err)
	}
	defer mirror.Close()
	mirror.View(func(k *kernel.State) {
		for _, index := range k.Indexes() {
			if i, exists := k.Link(index); exists {
				s.Interfaces = append(s.Interfaces, i)
			}
		}
		for r := range k.Rules() {
			if s.Mixed[r.Family] == nil {
				s.Mixed[r.Family] = map[routing.Priority][]routing.Rule{}
			}
			if _, known := s.Mixed[r.Family][r.Priority]; !known {
				s.Mixed[r.Family][r.Priority] = k.RuleOrder(r.Family, r.Priority)
			}
		}
	})
	return s, nil
}

// A reading is a host that is being read.
type reading struct {
	root   fs.FS
	source Source
	doctor.Host
}

// Read reads the rest of a host. Root is its root directory.
func Read(ctx context.Context, s Source, root fs.FS) doctor.Host {
	r := &reading{root: root, source: s}
	r.Interfaces = s.Interfaces
	slices.SortFunc(r.Interfaces, func(a, b routing.Interface) int { return cmp.Compare(a.Index, b.Index) })
	r.parameters()
	if err := r.rules(ctx); err != nil {
		r.miss(err.Error(), doctor.LocalRule, doctor.MainSource, doctor.SourceSpecific, doctor.FirewallMark, doctor.StrictMarks, doctor.Resolver)
	}
	r.filter(ctx)
	r.neighbors()
	r.entries6()
	r.options()
	r.multipath(ctx)
	r.resolvers()
	r.agents()
	r.daemon()
	return r.Host
}

// miss says that something was not looked at.
func (r *reading) miss(why string, codes ...routing.Code) {
	r.Unlooked = append(r.Unlooked, doctor.Unlooked{Codes: codes, Why: why})
}

// text is a file of the host, bounded. A file that does not exist is empty.
func (r *reading) text(path string) ([]byte, error) {
	f, err := r.root.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		if e, is := errors.AsType[*fs.PathError](err); is {
			err = e.Err // It names the path without its root.
		}
		return nil, fmt.Errorf("reading /%s: %w", path, err)
	}
	defer func() { _ = f.Close() }() // It was only read.
	data, err := io.ReadAll(io.LimitReader(f, mostBytes+1))
	if err != nil {
		return nil, fmt.Errorf("reading /%s: %w", path, err)
	}
	if len(data) > mostBytes {
		return nil, fmt.Errorf("/%s has more than %d bytes", path, mostBytes)
	}
	return data, nil
}

// parameters reads what the patterns need of /proc/sys. What does not exist is not set.
func (r *reading) parameters() {
	r.Parameters = map[string]int{}
	devices := append([]string{"all"}, r.source.Links...)
	names4 := []string{"rp_filter", "src_valid_mark", "arp_ignore", "arp_announce", "ignore_routes_with_linkdown"}
	names6 := []string{"forwarding", "accept_ra"}
	common := []string{
		"net/ipv4/ip_forward", "net/ipv4/nexthop_compat_mode", "net/ipv6/route/max_size",
		"net/ipv4/neigh/default/gc_thresh3", "net/ipv6/neigh/default/gc_thresh3",
	}
	names := append(make([]string, 0, len(common)+len(devices)*(len(names4)+len(names6))), common...)
	for _, device := range devices {
		for _, key := range names4 {
			names = append(names, "net/ipv4/conf/"+device+"/"+key)
		}
		for _, key := range names6 {
			names = append(names, "net/ipv6/conf/"+device+"/"+key)
		}
	}
	unread, unnamed := 0, 0
	for _, name := range names {
		if !fs.ValidPath("proc/sys/" + name) {
			unnamed++
			continue
		}
		text, err := r.text("proc/sys/" + name)
		if err != nil {
			unread++
			continue
		}
		if n, err := strconv.Atoi(strings.TrimSpace(string(text))); err == nil {
			r.Parameters[name] = n
		}
	}
	if unnamed > 0 {
		r.miss(fmt.Sprintf("%d parameters of interfaces cannot be read, because their names are no UTF-8", unnamed), doctor.StrictMarks, doctor.AcceptRA, doctor.LinkdownRoutes)
	}
	if unread > 0 {
		r.miss(fmt.Sprintf("%d parameters of the kernel cannot be read", unread), doctor.StrictMarks, doctor.AcceptRA, doctor.LinkdownRoutes, doctor.NeighborTable, doctor.RouteLimit6, doctor.NexthopCompat)
	}
}

// rules reads the rules, and the tables that they may lead to.
func (r *reading) rules(ctx context.Context) error {
	all, err := kernel.ReadRules(ctx)
	if err != nil {
		return fmt.Errorf("reading rules: %w", err)
	}
	reader, err := kernel.OpenReader()
	if err != nil {
		return fmt.Errorf("reading routes: %w", err)
	}
	defer func() { _ = reader.Close() }() // It was only read from.
	r.Rules, r.Tables, r.Partial = map[routing.Family][]routing.Rule{}, map[routing.Family]map[routing.TableID][]routing.Route{}, map[routing.Family]map[routing.TableID]bool{}
	for _, f := range routing.Families() {
		tables := []routing.TableID{routing.TableLocal, routing.TableMain}
		for _, rule := range r.ordered(f, all) {
			r.Rules[f] = append(r.Rules[f], rule)
			if rule.Action == routing.ActionLookup && rule.Table != 0 && !slices.Contains(tables, rule.Table) && len(tables) <= mostTables {
				tables = append(tables, rule.Table)
			}
		}
		if r.Tables[f], r.Partial[f], err = reader.Tables(ctx, f, tables, mostRoutes); err != nil {
			return fmt.Errorf("reading routes: %w", err)
		}
		for _, rule := range r.Rules[f] {
			if rule.Table != 0 && !slices.Contains(tables, rule.Table) {
				r.Partial[f][rule.Table] = true
			}
		}
		if r.Partial[f][routing.TableMain] {
			r.miss(fmt.Sprintf("the table main of %s has more than %d routes", f, mostRoutes), doctor.MainSource, doctor.SourceSpecific, doctor.FirewallMark, doctor.StrictMarks, doctor.Resolver)
		}
	}
	for _, i := range r.Interfaces {
		r.Names = append(r.Names, lookup.Interface{Index: i.Index, Name: i.Name})
	}
	if err := reader.Name(ctx, r.Names, all); err != nil {
		return fmt.Errorf("reading names of interfaces: %w", err)
	}
	return nil
}

// ordered are the rules of a family by priority; where ours and those of others share one, the view
// knows the kernel's order.
func (r *reading) ordered(f routing.Family, all []routing.Rule) []routing.Rule {
	mixed := r.source.Mixed[f]
	out := slices.DeleteFunc(slices.Clone(all), func(rule routing.Rule) bool { return rule.Family != f })
	slices.SortStableFunc(out, func(a, b routing.Rule) int {
		if c := cmp.Compare(a.Priority, b.Priority); c != 0 {
			return c
		}
		order := mixed[a.Priority]
		return cmp.Compare(slices.Index(order, a), slices.Index(order, b))
	})
	return out
}

// neighbors counts what the kernel may throw out: entries of the administrator stay.
func (r *reading) neighbors() {
	r.Neighbors = map[routing.Family]int{}
	for f, number := range map[routing.Family]int{routing.IPv4: unix.AF_INET, routing.IPv6: unix.AF_INET6} {
		list, err := netlink.NeighList(0, number)
		if err != nil {
			r.miss(fmt.Sprintf("reading %s neighbors: %v", f, err), doctor.NeighborTable)
			continue
		}
		for _, n := range list {
			if n.State&(netlink.NUD_PERMANENT|netlink.NUD_NOARP) == 0 {
				r.Neighbors[f]++
			}
		}
	}
}

// entries6 reads how many destination entries IPv6 has (rt6_stats_seq_show in net/ipv6/route.c).
func (r *reading) entries6() {
	text, err := r.text("proc/net/rt6_stats")
	if err != nil {
		r.miss(err.Error(), doctor.RouteLimit6)
		return
	}
	const column, hex = 5, 16
	if fields := strings.Fields(string(text)); len(fields) > column {
		n, err := strconv.ParseInt(fields[column], hex, 32)
		if err == nil {
			r.Entries6 = int(n)
		}
	}
}

// options reads which options the kernel was built without.
func (r *reading) options() {
	text, where := r.kernelConfig()
	if text == nil {
		r.miss("how the kernel was built cannot be read: there is neither "+where+" nor /proc/config.gz", doctor.KernelOption)
		return
	}
	set := map[string]bool{}
	for line := range bytes.Lines(text) {
		if name, value, found := strings.Cut(strings.TrimSpace(string(line)), "="); found && (value == "y" || value == "m") {
			set[name] = true
		}
	}
	for _, name := range doctor.Options() {
		if !set[name] {
			r.Missing = append(r.Missing, name)
		}
	}
}

// kernelConfig is the configuration of the running kernel, nil if it cannot be read.
func (r *reading) kernelConfig() (text []byte, where string) {
	release, _ := r.text("proc/sys/kernel/osrelease")
	where = "boot/config-" + strings.TrimSpace(string(release))
	if fs.ValidPath(where) {
		if text, err := r.text(where); err == nil && text != nil {
			return text, "/" + where
		}
	}
	packed, err := r.text("proc/config.gz")
	if err != nil || packed == nil {
		return nil, "/" + where
	}
	reader, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		return nil, "/" + where
	}
	text, err = io.ReadAll(io.LimitReader(reader, mostBytes))
	if err != nil || len(text) == 0 {
		return nil, "/" + where
	}
	return text, "/proc/config.gz"
}

func (r *reading) multipath(ctx context.Context) {
	endpoints, subflows, err := connections.PathLimits(ctx)
	if err != nil {
		r.miss(err.Error(), doctor.MPTCPLimits)
		return
	}
	for _, e := range endpoints {
		r.Endpoints = append(r.Endpoints, e.Address)
	}
	r.Subflows = subflows
}

// resolvers reads resolv.conf(5), and who named each server.
func (r *reading) resolvers() {
	text, err := r.text("etc/resolv.conf")
	if err != nil {
		r.miss(err.Error(), doctor.Resolver)
		return
	}
	for line := range bytes.Lines(text) {
		words := strings.Fields(string(line))
		if len(words) < 2 || words[0] != "nameserver" {
			continue
		}
		if a, err := netip.ParseAddr(words[1]); err == nil && !slices.Contains(r.Nameservers, a) {
			r.Nameservers = append(r.Nameservers, a)
		}
	}
	r.NamedBy = r.source.NamedBy
}

// daemon reads what the kernel says of the daemon's sockets.
func (r *reading) daemon() {
	pid := r.source.PID
	if pid == 0 {
		return
	}
	dropped, err := r.dropped("proc/" + strconv.Itoa(pid))
	switch {
	case errors.Is(err, fs.ErrPermission):
		r.miss("which sockets multihomed has can only be read by root", doctor.SocketOverrun)
	case err != nil:
		r.miss(err.Error(), doctor.SocketOverrun)
	default:
		r.Dropped = dropped
	}
}

// dropped sums up what the kernel could not deliver to the netlink sockets of a process
// (netlink_native_seq_show in net/netlink/af_netlink.c).
func (r *reading) dropped(directory string) (int, error) {
	files, err := fs.ReadDir(r.root, directory+"/fd")
	if err != nil {
		return 0, fmt.Errorf("listing the files of a process: %w", err)
	}
	own := map[string]bool{}
	for _, f := range files[:min(len(files), mostSockets)] {
		target, err := fs.ReadLink(r.root, directory+"/fd/"+f.Name())
		if err != nil {
			continue // It has just been closed.
		}
		if inode, is := strings.CutPrefix(target, "socket:["); is {
			own[strings.TrimSuffix(inode, "]")] = true
		}
	}
	f, err := r.root.Open(directory + "/net/netlink")
	if err != nil {
		return 0, fmt.Errorf("listing netlink sockets: %w", err)
	}
	defer func() { _ = f.Close() }() // It was only read.
	total := 0
	for lines := bufio.NewScanner(io.LimitReader(f, mostBytes)); lines.Scan(); {
		const drops, inode = 8, 9 // sk Eth Pid Groups Rmem Wmem Dump Locks Drops Inode
		if fields := strings.Fields(lines.Text()); len(fields) > inode && own[fields[inode]] {
			n, _ := strconv.Atoi(fields[drops])
			total += n
		}
	}
	return total, nil
}

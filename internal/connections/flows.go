package connections

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// ErrNoConntrack says that the kernel tracks connections and cannot delete entries.
var ErrNoConntrack = errors.New("the kernel cannot list tracked connections (CONFIG_NF_CT_NETLINK)")

// Flows deletes conntrack entries. Its zero value is ready. Its methods may be called by several
// goroutines; they wait for each other.
type Flows struct {
	mu sync.Mutex
	// oneByOne is set once a kernel has refused to delete by a filter (before Linux 6.8).
	oneByOne bool
}

// Delete deletes the conntrack entries with source NAT to one of the addresses: of connections that
// this host forwards, and that have the address of a dead link. Their next packet gets a new entry,
// with the address of the link that it leaves by now, and the peer answers with a reset. Otherwise
// `snat to` keeps the dead link's address on packets that leave by the other link, for hours.
//
// Call it after the switch. It returns how many entries were deleted: for IPv4 and since Linux 6.8 one
// request deletes all in some milliseconds, and does not count them, so the number is by how much the
// table shrank. Where the kernel tracks nothing, or translates nothing, there is nothing to do and no
// error; nf_conntrack is not loaded to find that out. Where it translates, the kernel may load
// nf_conntrack_netlink for the request.
func (f *Flows) Delete(ctx context.Context, addresses ...netip.Addr) (deleted int, err error) {
	return f.delete(ctx, f.deleteOf, addresses)
}

// DeleteStrays deletes of the entries with source NAT to one of the addresses of a link, those whose
// next packet would leave by another one. It is for a link that works and that traffic leaves: what a
// rule keeps there is not touched. For each entry the kernel is asked for the route, so that this
// takes longer than Delete. It sees the mark of the entry as that of its packets.
func (f *Flows) DeleteStrays(ctx context.Context, device int, addresses ...netip.Addr) (deleted int, err error) {
	routes, err := dial(unix.NETLINK_ROUTE)
	if err != nil {
		return 0, err
	}
	defer routes.close()
	from := map[netip.Addr]Route{}
	return f.delete(ctx, func(dump, change *connection, address netip.Addr) (int, error) {
		return eachOf(dump, change, address, func(entry *flow) bool { return ctx.Err() == nil && strays(routes, from, entry, device) })
	}, addresses)
}

// DeleteClients deletes of the entries with source NAT to one of the addresses those of some clients,
// which have been bound to another link. Is is asked for each client, with the interface behind which
// the kernel knows it, 0 if it knows none.
func (f *Flows) DeleteClients(ctx context.Context, is func(client netip.Addr, device int) bool, addresses ...netip.Addr) (deleted int, err error) {
	routes, err := dial(unix.NETLINK_ROUTE)
	if err != nil {
		return 0, err
	}
	defer routes.close()
	from := map[netip.Addr]Route{}
	return f.delete(ctx, func(dump, change *connection, address netip.Addr) (int, error) {
		return eachOf(dump, change, address, func(entry *flow) bool {
			if ctx.Err() != nil {
				return false
			}
			back, _ := wayTo(routes, from, entry.client)
			return is(entry.client, back.Device)
		})
	}, addresses)
}

// wayTo is the route to a client, which is asked for once, and whether there is an answer.
func wayTo(routes *connection, known map[netip.Addr]Route, client netip.Addr) (Route, bool) {
	back, is := known[client]
	if !is {
		var err error
		if back, err = ask(routes, question{peer: client}); err != nil {
			return Route{}, false
		}
		known[client] = back
	}
	return back, true
}

// strays reports whether the next packet of a client leaves by another device. From are the routes to
// the clients: by these their packets come. Where the kernel knows no route nothing strays.
func strays(routes *connection, from map[netip.Addr]Route, f *flow, device int) bool {
	back, known := wayTo(routes, from, f.client)
	if !known {
		return false
	}
	q := question{source: f.client, peer: f.peer, port: f.port, protocol: f.protocol, mark: f.mark}
	if back.Type != unix.RTN_LOCAL {
		q.from = back.Device
	}
	way, err := ask(routes, q)
	return err == nil && !back.Unreachable && !way.Unreachable && way.Device != 0 && way.Device != device
}

// delete deletes with a function for one address.
func (f *Flows) delete(ctx context.Context, of func(dump, change *connection, address netip.Addr) (int, error), addresses []netip.Addr) (deleted int, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if some, err := translates(); err != nil || !some {
		return 0, err
	}
	dump, err := dial(unix.NETLINK_NETFILTER)
	if err != nil {
		return 0, err
	}
	defer dump.close()
	change, err := dial(unix.NETLINK_NETFILTER)
	if err != nil {
		return 0, err
	}
	defer change.close()
	for _, a := range addresses {
		if ctx.Err() != nil {
			return deleted, context.Cause(ctx)
		}
		n, err := of(dump, change, a.Unmap().WithZone(""))
		deleted += n
		if err != nil {
			return deleted, fmt.Errorf("deleting tracked connections that are translated to %s: %w", a, err)
		}
	}
	return deleted, nil
}

func (f *Flows) deleteOf(dump, change *connection, address netip.Addr) (int, error) {
	if !f.oneByOne && canFilter(address) {
		before, err := tracked()
		if err != nil {
			return 0, err
		}
		err = change.do(deletion(change, address, selection(address)...))
		if err == nil {
			after, err := tracked()
			return max(0, before-after), err
		}
		if !refused(err) {
			return 0, err
		}
		f.oneByOne = true
	}
	return eachOf(dump, change, address, func(*flow) bool { return true })
}

// refused reports whether the kernel does not know such a request.
func refused(err error) bool { return errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) }

// eachOf deletes the wanted entries of an address one by one, while they are listed.
func eachOf(dump, change *connection, address netip.Addr, wanted func(*flow) bool) (n int, err error) {
	var failed error
	err = list(dump, address, func(f *flow) {
		if !wanted(f) {
			return
		}
		attributes := []nl.NetlinkRequestData{nl.NewRtAttr(unix.NLA_F_NESTED|nl.CTA_TUPLE_ORIG, f.original)}
		if f.id != nil {
			attributes = append(attributes, nl.NewRtAttr(nl.CTA_ID, f.id))
		}
		if f.zone != nil {
			attributes = append(attributes, nl.NewRtAttr(nl.CTA_ZONE, f.zone))
		}
		switch err := change.do(deletion(change, address, attributes...)); {
		case err == nil:
			n++
		case errors.Is(err, unix.ENOENT): // It has just ended.
		case failed == nil:
			failed = err
		}
	})
	return n, errors.Join(err, failed)
}

// list calls f with each entry of an address. The kernel filters by address since Linux 5.8, by status
// since 5.16.
func list(dump *connection, address netip.Addr, f func(*flow)) error {
	ask := func(attributes ...nl.NetlinkRequestData) error {
		req := dump.request(unix.NFNL_SUBSYS_CTNETLINK<<8|nl.IPCTNL_MSG_CT_GET, unix.NLM_F_DUMP)
		req.AddData(&nl.Nfgenmsg{NfgenFamily: familyOf(address), Version: nl.NFNETLINK_V0})
		for _, a := range attributes {
			req.AddData(a)
		}
		return dump.each(req, 0, func(b []byte) {
			if entry, ok := decodeFlow(b); ok && entry.hangs(address) {
				f(&entry)
			}
		})
	}
	err := ask(selection(address)...)
	if refused(err) {
		err = ask()
	}
	if refused(err) {
		err = ErrNoConntrack
	}
	return err
}

// deletion is a request to delete. Version 1 makes the family count, too.
func deletion(conn *connection, address netip.Addr, attributes ...nl.NetlinkRequestData) *nl.NetlinkRequest {
	req := conn.request(unix.NFNL_SUBSYS_CTNETLINK<<8|nl.IPCTNL_MSG_CT_DELETE, unix.NLM_F_ACK)
	req.AddData(&nl.Nfgenmsg{NfgenFamily: familyOf(address), Version: 1})
	for _, a := range attributes {
		req.AddData(a)
	}
	return req
}

func familyOf(a netip.Addr) uint8 {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// Files of proc(5).
const (
	countFile   = "/proc/sys/net/netfilter/nf_conntrack_count"
	modulesFile = "/proc/modules"
)

// tracked is how many connections the kernel tracks in this network namespace, 0 if none.
func tracked() (int, error) {
	data, err := os.ReadFile(countFile)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("asking how many connections are tracked: %w", err)
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil {
		return 0, fmt.Errorf("reading how many connections are tracked: %w", err)
	}
	return n, nil
}

// translates reports whether this network namespace may have entries with NAT. A request to the
// kernel would load nf_conntrack where it is missing, and with it a table that costs every packet.
func translates() (bool, error) {
	if n, err := tracked(); err != nil || n == 0 {
		return false, err
	}
	// A kernel without modules has no such file.
	modules, err := os.ReadFile(modulesFile)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, fmt.Errorf("asking whether the kernel translates addresses: %w", err)
	}
	return mayTranslate(string(modules)), nil
}

// mayTranslate decides by the list of modules: where nf_conntrack is one, nf_nat is one, too.
func mayTranslate(modules string) bool {
	tracks, translates := false, false
	for line := range strings.Lines(modules) {
		name, _, _ := strings.Cut(line, " ")
		tracks = tracks || name == "nf_conntrack"
		translates = translates || name == "nf_nat"
	}
	return translates || !tracks
}

package connections

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"multihomed/internal/fsutil"
	"multihomed/internal/ownership"
)

// EndpointsFile is the name of the file in the runtime directory that has the endpoints that we made:
// the kernel does not say who made one.
const EndpointsFile = "mptcp.json"

// maxEndpointsFile bounds it, in bytes.
const maxEndpointsFile = 64 << 10

// enabledFile is the sysctl that switches Multipath TCP on; it is missing where the kernel lacks it.
const enabledFile = "/proc/sys/net/mptcp/enabled"

// Constants of include/uapi/linux/mptcp_pm.h.
const (
	pmFamily  = "mptcp_pm"
	pmVersion = 1

	pmAdd    = 1 // MPTCP_PM_CMD_ADD_ADDR
	pmDelete = 2 // MPTCP_PM_CMD_DEL_ADDR
	pmGet    = 3 // MPTCP_PM_CMD_GET_ADDR

	pmAddress = 1 // MPTCP_PM_ATTR_ADDR

	pmAddrFamily = 1 // MPTCP_PM_ADDR_ATTR_FAMILY
	pmAddrID     = 2
	pmAddr4      = 3
	pmAddr6      = 4
	pmAddrFlags  = 6
	pmAddrDevice = 7

	pmFlagSubflow = 1 << 1 // MPTCP_PM_ADDR_FLAG_SUBFLOW
)

// Endpoints keeps the endpoints of Multipath TCP of links that NetworkManager does not serve, so that
// a connection goes on by another link when one dies. It never announces an address to peers (signal)
// and never changes the limits: both are the administrator's. One process at a time uses it: who
// holds the lock of multihomed.
type Endpoints struct {
	// Directory is the runtime directory.
	Directory string
}

// Follow makes the kernel have the endpoints that are wanted, of [WantedEndpoints], and takes away
// those of ours that are not. Call it after a link's ladder stands, or its subflows would leave by
// another link; with nothing, when no link is served or `mptcp` is off; and whenever addresses
// changed: the kernel keeps the endpoint of an address that has gone. A second call does nothing.
//
// Where Multipath TCP is missing or switched off (net.mptcp.enabled), nothing is wanted. A stop of
// the daemon leaves them, as it leaves rules and routes. Ending an endpoint ends the subflows from it,
// but not their connections.
func (e Endpoints) Follow(ctx context.Context, wanted []Endpoint) (added, removed int, err error) {
	noted := e.noted()
	if len(wanted) == 0 && len(noted) == 0 {
		return 0, 0, nil
	}
	if enabled, err := multipath(); err != nil {
		return 0, 0, err
	} else if !enabled {
		wanted = nil
		if len(noted) == 0 {
			return 0, 0, nil
		}
	}
	return e.change(ctx, func(kernel []Endpoint) (add, remove, keep []Endpoint) { return planEndpoints(kernel, noted, wanted) })
}

// Remove takes away the endpoints that we made, of a device or, with 0, of all. It is for flush, off
// and the removal of the package, and needs neither configuration nor database. It needs no right
// if there are none.
func (e Endpoints) Remove(ctx context.Context, device int) (removed int, err error) {
	noted := e.noted()
	wanted := slices.DeleteFunc(slices.Clone(noted), func(n Endpoint) bool { return device == 0 || n.Device == device })
	if len(noted) == len(wanted) {
		return 0, nil
	}
	_, removed, err = e.change(ctx, func(kernel []Endpoint) (add, remove, keep []Endpoint) {
		_, remove, keep = planEndpoints(kernel, noted, wanted)
		return nil, remove, keep
	})
	return removed, err
}

// Left returns the endpoints that we made and that the kernel still has, of a device or, with 0, of
// all. It needs no rights.
func (e Endpoints) Left(ctx context.Context, device int) ([]Endpoint, error) {
	noted := slices.DeleteFunc(e.noted(), func(n Endpoint) bool { return device != 0 && n.Device != device })
	if len(noted) == 0 {
		return nil, nil
	}
	pm, err := openPM(ctx)
	if err != nil || pm == nil {
		return nil, err
	}
	defer pm.close()
	kernel, err := pm.list()
	return slices.DeleteFunc(kernel, func(k Endpoint) bool { return !slices.Contains(noted, k) }), err
}

func (e Endpoints) change(ctx context.Context, plan func(kernel []Endpoint) (add, remove, keep []Endpoint)) (added, removed int, err error) {
	pm, err := openPM(ctx)
	if err != nil {
		return 0, 0, err
	}
	if pm == nil {
		return 0, 0, e.note(nil)
	}
	defer pm.close()
	kernel, err := pm.list()
	if err != nil {
		return 0, 0, err
	}
	add, remove, keep := plan(kernel)
	if len(add)+len(remove) == 0 {
		return 0, 0, e.noteIfChanged(keep)
	}
	// Noted before they are made: whoever is killed in between leaves none behind.
	if err := e.note(slices.Concat(keep, remove, add)); err != nil {
		return 0, 0, err
	}
	var errs []error
	for _, r := range remove {
		if err := pm.remove(r); err != nil && !errors.Is(err, unix.EINVAL) { // EINVAL: it has gone.
			errs = append(errs, err)
			keep = append(keep, r)
		} else {
			removed++
		}
	}
	for _, a := range add {
		if err := pm.add(a); err != nil {
			errs = append(errs, err)
		} else {
			added++
			keep = append(keep, a)
		}
	}
	return added, removed, errors.Join(append(errs, e.note(keep))...)
}

// noted are the endpoints that we made, as far as is known: what cannot be read is lost, and what
// stays in the kernel serves its address.
func (e Endpoints) noted() []Endpoint {
	data, err := fsutil.ReadFile(filepath.Join(e.Directory, EndpointsFile), maxEndpointsFile)
	var out []Endpoint
	if err != nil || json.Unmarshal(data, &out) != nil {
		return nil
	}
	return out
}

func (e Endpoints) noteIfChanged(endpoints []Endpoint) error {
	if slices.Equal(e.noted(), endpoints) {
		return nil
	}
	return e.note(endpoints)
}

func (e Endpoints) note(endpoints []Endpoint) error {
	path := filepath.Join(e.Directory, EndpointsFile)
	if len(endpoints) == 0 {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("forgetting the endpoints of Multipath TCP: %w", err)
		}
		return nil
	}
	data, err := json.Marshal(endpoints)
	if err != nil {
		return fmt.Errorf("encoding the endpoints of Multipath TCP: %w", err)
	}
	if err := ownership.WriteFile(path, append(data, '\n'), 0o644); err != nil {
		return fmt.Errorf("noting the endpoints of Multipath TCP: %w", err)
	}
	return nil
}

// multipath reports whether Multipath TCP is on in this network namespace.
func multipath() (bool, error) {
	data, err := os.ReadFile(enabledFile)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("asking whether Multipath TCP is on: %w", err)
	}
	return strings.TrimSpace(string(data)) == "1", nil
}

// A pathManager is the kernel's path manager of Multipath TCP, by generic netlink.
type pathManager struct {
	*connection

	family int
}

// openPM returns nil if the kernel has none.
func openPM(ctx context.Context) (*pathManager, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	conn, err := dial(unix.NETLINK_GENERIC)
	if err != nil {
		return nil, err
	}
	family, err := conn.family(pmFamily)
	if err == nil {
		return &pathManager{conn, family}, nil
	}
	conn.close()
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	return nil, fmt.Errorf("looking for the path manager of Multipath TCP: %w", err)
}

func (p *pathManager) command(command uint8, flags int) *nl.NetlinkRequest {
	req := p.request(p.family, flags)
	req.AddData(genericHeader{command, pmVersion})
	return req
}

func (p *pathManager) add(e Endpoint) error {
	req := p.command(pmAdd, unix.NLM_F_ACK)
	req.AddData(e.attribute())
	if err := p.do(req); err != nil {
		return fmt.Errorf("adding %s to the endpoints of Multipath TCP: %w", e.Address, err)
	}
	return nil
}

func (p *pathManager) remove(e Endpoint) error {
	req := p.command(pmDelete, unix.NLM_F_ACK)
	req.AddData(e.attribute())
	if err := p.do(req); err != nil {
		return fmt.Errorf("taking %s from the endpoints of Multipath TCP: %w", e.Address, err)
	}
	return nil
}

func (p *pathManager) list() (out []Endpoint, err error) {
	err = p.each(p.command(pmGet, unix.NLM_F_DUMP), 0, func(b []byte) {
		if e, ok := decodeEndpoint(b); ok {
			out = append(out, e)
		}
	})
	if err != nil {
		return nil, fmt.Errorf("listing the endpoints of Multipath TCP: %w", err)
	}
	return out, nil
}

func (e Endpoint) attribute() *nl.RtAttr {
	kind := pmAddr6
	if e.Address.Is4() {
		kind = pmAddr4
	}
	out := nl.NewRtAttr(unix.NLA_F_NESTED|pmAddress, nil)
	out.AddRtAttr(pmAddrFamily, binary.NativeEndian.AppendUint16(nil, uint16(familyOf(e.Address))))
	out.AddRtAttr(pmAddrID, []byte{e.ID})
	out.AddRtAttr(kind, e.Address.AsSlice())
	out.AddRtAttr(pmAddrFlags, nl.Uint32Attr(pmFlagSubflow))
	out.AddRtAttr(pmAddrDevice, nl.Uint32Attr(uint32(e.Device))) //nolint:gosec // an interface index
	return out
}

// decodeEndpoint reads an answer of the path manager, after its struct genlmsghdr. The flags do not
// matter: an administrator may change those of ours.
func decodeEndpoint(b []byte) (e Endpoint, ok bool) {
	for _, o := range genericAttributes(b) {
		if o.Attr.Type&nl.NLA_TYPE_MASK != pmAddress {
			continue
		}
		inner, err := nl.ParseRouteAttr(o.Value)
		if err != nil {
			return e, false
		}
		for _, a := range inner {
			switch kind := a.Attr.Type & nl.NLA_TYPE_MASK; {
			case kind == pmAddrID && len(a.Value) == 1:
				e.ID = a.Value[0]
			case kind == pmAddr4 && len(a.Value) == 4, kind == pmAddr6 && len(a.Value) == 16:
				e.Address, _ = netip.AddrFromSlice(a.Value)
			case kind == pmAddrDevice && len(a.Value) == 4:
				e.Device = int(int32(binary.NativeEndian.Uint32(a.Value))) //nolint:gosec // s32 in the kernel
			}
		}
	}
	return e, e.ID != 0 && e.Address.IsValid()
}

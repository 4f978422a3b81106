package kernel

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"multihomed/internal/nlmsg"
	"multihomed/routing"
)

// nexthopHighWeightAt is where struct nexthop_grp of linux/nexthop.h has weight_high,
// which unix.NexthopGrp calls Resvd1.
const nexthopHighWeightAt = 5

// A nexthop is an object that routes can lead to by its number: one way, or a
// group of others (struct nhmsg). With net.ipv4.nexthop_compat_mode off, a route
// names nothing but the number.
type nexthop struct {
	id            uint32
	device        int
	gateway       netip.Addr
	onLink        bool
	encapsulation string
	encapType     uint16
	members       []nexthopMember
}

type nexthopMember struct {
	id     uint32
	weight uint16
}

func (n *nexthop) equal(o *nexthop) bool {
	return n.device == o.device && n.gateway == o.gateway && n.onLink == o.onLink && n.encapType == o.encapType &&
		n.encapsulation == o.encapsulation && slices.Equal(n.members, o.members)
}

func decodeNexthop(b []byte) (*nexthop, error) {
	if len(b) < unix.SizeofNhmsg {
		return nil, fmt.Errorf("reading a nexthop object: %w", nlmsg.ErrTruncated)
	}
	n := &nexthop{onLink: binary.NativeEndian.Uint32(b[4:])&unix.RTNH_F_ONLINK != 0}
	for a := (nlmsg.Attributes{Rest: b[unix.SizeofNhmsg:]}); a.Next(); {
		var err error
		switch a.Kind {
		case unix.NHA_ID:
			n.id = a.Uint32()
		case unix.NHA_OIF:
			n.device = int(int32(a.Uint32())) //nolint:gosec // an interface index is an int
		case unix.NHA_GATEWAY:
			n.gateway, err = decodeAddr(routing.Family(b[0]), a.Value)
		case unix.NHA_ENCAP_TYPE:
			n.encapType = a.Uint16()
		case unix.NHA_ENCAP:
			n.encapsulation = string(a.Value)
		case unix.NHA_GROUP:
			for m := a.Value; len(m) >= unix.SizeofNexthopGrp; m = m[unix.SizeofNexthopGrp:] {
				// The weight is one less than it counts, its high byte is new in 6.13.
				n.members = append(n.members, nexthopMember{
					binary.NativeEndian.Uint32(m), (uint16(m[4]) | uint16(m[nexthopHighWeightAt])<<8) + 1,
				})
			}
		}
		if err != nil {
			return nil, fmt.Errorf("reading a nexthop object: %w", err)
		}
	}
	return n, nil
}

// nexthops reads all objects. A kernel before 5.3 has none.
func (l loader) nexthops(ctx context.Context, s *State) error {
	found := map[uint32]*nexthop{}
	err := fill(ctx, l.requests, s, dump{
		what: "nexthop objects", kind: unix.RTM_GETNEXTHOP,
		body: func(m *nlmsg.Builder) { m.Bytes(make([]byte, unix.SizeofNhmsg)...) },
	}, decodeNexthop, func(n *nexthop) { found[n.id] = n })
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL) {
		return nil
	}
	if err != nil {
		return err
	}
	old := s.nexthops
	s.nexthops = found
	for id, o := range old {
		if n := found[id]; n == nil || !n.equal(o) {
			s.nexthopTouched(old, id)
			s.nexthopTouched(found, id)
		}
	}
	for id := range found {
		if old[id] == nil {
			s.nexthopTouched(found, id)
		}
	}
	return nil
}

// nexthopChanged takes an announcement in. What happens to the routes of an
// object is announced only in part (nexthop_compat_mode, __remove_nexthop_fib).
func (s *State) nexthopChanged(kind uint16, payload []byte) error {
	n, err := decodeNexthop(payload)
	if err != nil {
		return err
	}
	s.events[classNexthops]++
	s.changes.Unbound = true
	s.doubtOthers()
	s.nexthopTouched(s.nexthops, n.id)
	if kind == unix.RTM_DELNEXTHOP {
		delete(s.nexthops, n.id)
	} else {
		s.nexthops[n.id] = n
	}
	s.nexthopTouched(s.nexthops, n.id)
	for a := range s.fib.nexthops {
		s.doubt(a)
	}
	return nil
}

// nexthopTouched questions all that an object and its groups may lead to.
func (s *State) nexthopTouched(objects map[uint32]*nexthop, id uint32) {
	devices := map[int]struct{}{}
	for _, m := range membersOf(objects, id) {
		devices[objects[m.id].device] = struct{}{}
	}
	for group, n := range objects {
		if slices.ContainsFunc(n.members, func(m nexthopMember) bool { return m.id == id }) {
			for _, m := range membersOf(objects, group) {
				devices[objects[m.id].device] = struct{}{}
			}
		}
	}
	for device := range devices {
		if s.Interested(device) {
			s.doubtDevice(routing.IPv4, device)
			s.doubtDevice(routing.IPv6, device)
		}
		for a := range s.fib.nexthops {
			s.doubts.add(a.key.family, device, a.key.table)
		}
	}
}

// membersOf lists the objects with ways that an object stands for.
func membersOf(objects map[uint32]*nexthop, id uint32) []nexthopMember {
	n := objects[id]
	switch {
	case n == nil:
		return nil
	case len(n.members) == 0:
		return []nexthopMember{{id: id}}
	}
	var out []nexthopMember
	for _, m := range n.members {
		if o := objects[m.id]; o != nil && len(o.members) == 0 {
			out = append(out, m)
		}
	}
	return out
}

// bare reports whether a route names a nexthop object and nothing more.
func (h routeHead) bare() bool { return h.nexthop != 0 && h.device == 0 && !h.legs }

// leads reports whether a route leads through an interface of interest.
func (s *State) leads(h routeHead) bool {
	if !h.bare() {
		return h.legs || s.Interested(h.device)
	}
	for _, m := range membersOf(s.nexthops, h.nexthop) {
		if s.Interested(s.nexthops[m.id].device) {
			return true
		}
	}
	return false
}

// read decodes a route and fills in the ways of its nexthop object.
func (s *State) read(payload []byte) (*alias, error) {
	a, err := decodeRoute(payload)
	if err != nil || a.nexthop == 0 || len(a.legs) != 1 || a.legs[0].route.Device != 0 {
		return a, err
	}
	members := membersOf(s.nexthops, a.nexthop)
	if len(members) == 0 {
		return a, nil
	}
	common := a.legs[0]
	a.legs = make([]leg, 0, len(members))
	for _, m := range members {
		n, l := s.nexthops[m.id], common
		l.route.Device, l.route.Gateway, l.route.OnLink = n.device, n.gateway, n.onLink
		if len(members) > 1 {
			l.route.Weight = m.weight
		}
		if n.encapType != 0 {
			l.route.Attributes = l.route.Attributes.With(func(r *routing.RareAttributes) {
				r.EncapsulationType, r.Encapsulation = n.encapType, n.encapsulation
			})
		}
		a.legs = append(a.legs, l)
	}
	return a, nil
}

// nexthopsDoubtful questions the objects themselves: they go with the carrier of
// their interface, and nobody tells (nexthop_flush_dev in net/ipv4/nexthop.c).
func (s *State) nexthopsDoubtful() {
	if len(s.nexthops) > 0 {
		s.doubts.nexthops = true
	}
}

func (s *State) nexthopLines() []string {
	out := make([]string, 0, len(s.nexthops))
	for _, id := range slices.Sorted(maps.Keys(s.nexthops)) {
		out = append(out, fmt.Sprintf("nexthop %+v", *s.nexthops[id]))
	}
	return out
}

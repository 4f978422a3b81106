package kernel_test

import (
	"encoding/binary"
	"testing"

	"golang.org/x/sys/unix"

	"multihomed/routing"
	"multihomed/routing/kernel"
)

// FuzzAnnouncements: whatever the bytes, the mirror neither panics nor loses
// the connection between its indexes.
func FuzzAnnouncements(f *testing.F) {
	message := func(kind, flags uint16, payload []byte) []byte {
		b := binary.NativeEndian.AppendUint32(nil, uint32(16+len(payload)))
		b = binary.NativeEndian.AppendUint16(b, kind)
		b = binary.NativeEndian.AppendUint16(b, flags)
		b = binary.NativeEndian.AppendUint32(b, 0)
		b = binary.NativeEndian.AppendUint32(b, 0)
		return append(b, payload...)
	}
	link := append(make([]byte, 16), 8, 0, 3, 0, 'a', 'b', 'c', 0)
	link[4], link[8] = 5, 1
	linkDown := append([]byte(nil), link...)
	linkDown[8] = 0
	address := append([]byte{2, 24, 0, 0, 5, 0, 0, 0}, 8, 0, 2, 0, 192, 0, 2, 1)
	main := route(routing.TableMain, "10.0.0.0/8", "192.0.2.1", 5)
	main.PreferredSource = addr("192.0.2.1")
	six := route(10001, "2001:db8::/32", "2001:db8::1", 5)
	seeds := [][]byte{
		message(unix.RTM_NEWLINK, 0, link),
		message(unix.RTM_NEWADDR, 0, address),
		message(unix.RTM_NEWROUTE, unix.NLM_F_EXCL, kernel.EncodeRoute(main)),
		message(unix.RTM_NEWROUTE, unix.NLM_F_REPLACE, kernel.EncodeRoute(main)),
		message(unix.RTM_NEWROUTE, 0, kernel.EncodeRoute(six)),
		message(unix.RTM_NEWRULE, 0, kernel.EncodeRule(rule(10000, "192.0.2.1/32", 10001))),
		message(unix.RTM_DELROUTE, 0, kernel.EncodeRoute(six)),
		message(unix.RTM_DELADDR, 0, address),
		message(unix.RTM_DELRULE, 0, kernel.EncodeRule(rule(10000, "192.0.2.1/32", 10001))),
		message(unix.RTM_NEWLINK, 0, linkDown),
		message(unix.RTM_DELLINK, 0, link),
		message(unix.NLMSG_ERROR, 0, make([]byte, 36)),
	}
	var all []byte
	for _, s := range seeds {
		f.Add(s)
		all = append(all, s...)
	}
	f.Add(all)
	f.Fuzz(func(t *testing.T, b []byte) {
		s := kernel.NewState(tables)
		for _, seed := range seeds[:3] {
			kernel.ApplyAny(s, seed)
		}
		kernel.ApplyAny(s, b)
		must(t, s.Consistent())
		for _, i := range s.Indexes() {
			s.Link(i)
		}
		s.Lines()
	})
}

// FuzzRule: what is read is written the same.
func FuzzRule(f *testing.F) {
	f.Add(kernel.EncodeRule(rule(10000, "192.0.2.1/32", 10001)))
	f.Add(kernel.EncodeRule(rule(10000, "2001:db8::/64", 10001)))
	all := rule(8500, "192.0.2.0/24", 77)
	all.Invert, all.Mark, all.IIF, all.IPProto = true, routing.Mark{Value: 1, Mask: 3}, "lo", 6
	all.UIDs, all.TunnelID, all.Realms = routing.UIDRange{Set: true, First: 5, Last: 7}, 9, 5
	all.SourcePorts, all.DestinationPorts = routing.PortRange{First: 1, Last: 2}, routing.PortRange{First: 16, Last: 16, Mask: 0xfff0}
	all.DSCP, all.DSCPMask, all.FlowLabel = routing.Some(8), 0x38, routing.Some(5)
	f.Add(kernel.EncodeRule(all))
	target := rule(8500, "", 0)
	target.Action, target.Goto = routing.ActionGoto, 9000
	f.Add(kernel.EncodeRule(target))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := kernel.DecodeRule(b)
		if err != nil {
			return
		}
		// What no kernel sends, and no request says.
		r.Unknown = false
		if r.Action != routing.ActionGoto {
			r.Goto = 0
		}
		again, err := kernel.DecodeRule(kernel.EncodeRule(r))
		must(t, err)
		if r != again {
			t.Errorf("%+v became %+v", r, again)
		}
	})
}

// FuzzRoute: what is read is written the same.
func FuzzRoute(f *testing.F) {
	metrics := route(10001, "10.0.0.0/8", "192.0.2.1", 5)
	metrics.Attributes = routing.RareAttributes{Congestion: "cubic", EncapsulationType: 2}.Share()
	setMetric(&metrics, unix.RTAX_MTU, 1400)
	f.Add(kernel.EncodeRoute(metrics))
	f.Add(kernel.EncodeRoute(route(10001, "2001:db8::/64", "", 5)))
	via := route(10001, "10.0.0.0/8", "fe80::1", 5)
	via.OnLink = true
	f.Add(kernel.EncodeRoute(via))
	f.Fuzz(func(t *testing.T, b []byte) {
		legs, err := kernel.DecodeRoute(b)
		if err != nil {
			return
		}
		for _, r := range legs {
			if r.Family != routing.IPv4 && r.Family != routing.IPv6 {
				continue
			}
			r.Attributes = r.Attributes.With(func(a *routing.RareAttributes) {
				if a.EncapsulationType == 0 {
					a.Encapsulation = ""
				}
			})
			again, err := kernel.DecodeRoute(kernel.EncodeRoute(r))
			must(t, err)
			if r != again[0] {
				t.Errorf("%+v became %+v", r, again[0])
			}
		}
	})
}

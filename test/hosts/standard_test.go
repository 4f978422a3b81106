package hosts_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"multihomed/test/lab"
)

// standardQuestions are asked on every host: where the host sends traffic that is bound
// to a link, to a device and to nothing, to the internet and to the networks of its
// links; and who gets the answers to what comes in.
func standardQuestions(w *world) []Question {
	questions := grid(w.outside(), w.senders())
	for _, isp := range w.isps {
		for _, f := range []lab.Family{lab.IPv4, lab.IPv6} {
			if a := w.addr(isp.Config().Link, f); a.IsValid() {
				questions = append(questions, Call{By: isp, Dst: a},
					Dial{From: lab.From{Addr: a}, Dst: lab.InternetAddr(f)})
			}
		}
	}
	return append(questions, Dial{Dst: lab.InternetAddr4}, Dial{Dst: lab.InternetAddr6})
}

// outside are the internet, and a neighbour and the router of every link.
func (w *world) outside() []netip.Addr {
	list := []netip.Addr{lab.InternetAddr4, lab.InternetAddr6}
	for _, isp := range w.isps {
		if p := isp.Config().IPv4; p.IsValid() {
			list = append(list, p.Addr(), neighbour(p))
		}
		if p := isp.Config().IPv6; p.IsValid() {
			list = append(list, neighbour(p))
		}
	}
	return list
}

// neighbour is the 77th address of a network.
func neighbour(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	b[len(b)-1] += 77
	a, _ := netip.AddrFromSlice(b)
	return a
}

// A sender is what a Lookup says beside the destination.
type sender = Lookup

// senders are the sockets of a host: unbound, bound to each address, bound to each
// device; and the same with every mark.
func (w *world) senders(marks ...uint32) []sender {
	list := []sender{{}}
	for _, isp := range w.isps {
		link := isp.Config().Link
		for _, f := range []lab.Family{lab.IPv4, lab.IPv6} {
			addrs, err := w.Addrs(link, f)
			w.must(err)
			for _, a := range addrs {
				list = append(list, sender{From: a.Addr()})
			}
		}
		list = append(list, sender{Out: link})
	}
	for _, s := range list {
		for _, mark := range marks {
			s.Mark = mark
			list = append(list, s)
		}
	}
	return list
}

// grid asks for every destination with every sender of its family.
func grid(destinations []netip.Addr, senders []sender) []Question {
	var questions []Question
	for _, dst := range destinations {
		for _, q := range senders {
			if q.From.IsValid() && q.From.Is6() != dst.Is6() {
				continue
			}
			q.Dst = dst
			questions = append(questions, q)
		}
	}
	return questions
}

func addrs(list ...string) []netip.Addr {
	var out []netip.Addr
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

// provider returns the owner of a link's address or device, or nil.
func (w *world) owner(a netip.Addr) *lab.ISP {
	for _, isp := range w.isps {
		for _, f := range []lab.Family{lab.IPv4, lab.IPv6} {
			if list, err := w.Addrs(isp.Config().Link, f); err == nil {
				for _, p := range list {
					if p.Addr() == a {
						return isp
					}
				}
			}
		}
	}
	return nil
}

// toOutside: to the internet, or to the network of any of the links.
func (w *world) toOutside(dst netip.Addr) bool {
	if w.owner(dst) != nil {
		return false // the host itself
	}
	if dst == lab.InternetAddr(lab.IPv4) || dst == lab.InternetAddr(lab.IPv6) {
		return true
	}
	for _, isp := range w.isps {
		if isp.IPv4().Contains(dst) || isp.IPv6().Contains(dst) {
			return true
		}
	}
	return slices.Contains(w.beyond, dst)
}

// by is how the kernel says that a packet leaves by a provider's link.
func (w *world) by(isp *lab.ISP, dst netip.Addr) string {
	link := isp.Config().Link
	switch {
	case isp.IPv4().Contains(dst), isp.IPv6().Contains(dst):
		return "dev " + link
	case dst.Is6():
		return "dev " + link + " via " + w.via6[link].String()
	default:
		return "dev " + link + " via " + isp.Config().IPv4.Addr().String()
	}
}

// particular are the questions that a rule may select by more than addresses.
func particular(_ *world, q Question) bool {
	switch q := q.(type) {
	case Lookup:
		return q.Mark != 0 || q.UID != 0 || q.Prot != 0
	case Dial:
		return q.From.Mark != 0 || q.UID != 0
	}
	return false
}

// nobody is a Selects for hosts whose rules have no selectors, or inverted ones.
func nobody(*world, Question) bool { return false }

// keepsItsLink is what multihomed promises on every host with two uplinks: what is
// bound to a link's address leaves by that link, in both directions, and so does
// what is bound to its device.
func keepsItsLink(selects func(*world, Question) bool) Promise {
	return Promise{
		Name: "bound traffic keeps its link",
		Of: func(w *world, q Question) bool {
			if selects(w, q) {
				return false
			}
			switch q := q.(type) {
			case Lookup:
				return q.In == "" && w.toOutside(q.Dst) &&
					(q.Out == "" && w.owner(q.From) != nil || q.Out != "" && !q.From.IsValid() && w.link(q.Out) != nil)
			case Dial:
				return w.toOutside(q.Dst) && w.owner(q.From.Addr) != nil
			case Call:
				return w.owner(q.Dst) == q.By && !q.Src.IsValid() && q.Port == 0
			}
			return false
		},
		Want: func(w *world, q Question, _, with string) string {
			var want string
			switch q := q.(type) {
			case Lookup:
				isp := w.owner(q.From)
				if isp == nil {
					isp = w.link(q.Out)
				}
				want = w.by(isp, q.Dst)
				with, _, _ = strings.Cut(with, " src ")
			case Dial:
				want = fmt.Sprintf("seen by %s from %v, answered", w.owner(q.From.Addr).Name(), q.From.Addr)
			case Call:
				want = "answered by " + q.By.Name()
			}
			if with == want {
				return ""
			}
			return want
		},
	}
}

// link is the provider behind a device.
func (w *world) link(dev string) *lab.ISP {
	for _, isp := range w.isps {
		if isp.Config().Link == dev {
			return isp
		}
	}
	return nil
}

package hosts_test

import (
	"net/netip"
	"slices"

	"multihomed/test/lab"
)

// publishedPort is published by DNAT.
const publishedPort = 7008

// publishing is the host with Docker beside whatever else it has: a bridge with a container, whose
// port is published on the addresses of all links.
func (h Host) publishing() Host {
	build, ask := h.Build, h.Ask
	h.Build = func(w *world) {
		w.publish()
		if build != nil {
			build(w)
		}
	}
	h.Ask = func(w *world) (questions []Question) {
		if ask != nil {
			questions = ask(w)
		}
		for i, link := range []string{"wan0", "wan1"} {
			questions = append(questions, Call{By: w.isps[i], Dst: w.addr(link, lab.IPv4), Port: publishedPort})
		}
		return questions
	}
	h.Promised = append(slices.Clone(h.Promised), Promise{
		Name: "a published port is answered by the provider that was asked",
		Of: func(_ *world, q Question) bool {
			c, is := q.(Call)
			return is && c.Port == publishedPort
		},
		Want: func(_ *world, q Question, _, with string) string {
			c, _ := q.(Call)
			if want := "answered by " + c.By.Name(); with != want {
				return want
			}
			return ""
		},
	})
	return h
}

func (w *world) publish() {
	w.t.Helper()
	b, err := w.NewBridge("docker0", netip.MustParsePrefix("172.17.0.1/16"))
	w.must(err)
	w.must(b.AddAddr(netip.MustParsePrefix("fd17::1/64")))
	c, err := b.Container("c0", netip.MustParsePrefix("172.17.0.2/16"))
	w.must(err)
	w.must(c.AddAddr("eth0", netip.MustParsePrefix("fd17::2/64")))
	w.must(c.AddRoute(lab.DefaultVia(netip.MustParseAddr("fd17::1")), "eth0"))
	w.nft(`table ip docker {
 chain pre { type nat hook prerouting priority -100; fib daddr type local tcp dport 7008 dnat to 172.17.0.2:7007
 }
 chain post { type nat hook postrouting priority 100; ip saddr 172.17.0.0/16 oifname != "docker0" masquerade
 }
}`)
}

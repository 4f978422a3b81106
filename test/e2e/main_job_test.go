package e2e_test

import (
	"testing"

	"multihomed/test/lab"
)

// TestTwoProviders is the main job: two providers, both families, bound sockets
// answered by their own provider, inbound connections answered on their link
// under a strict reverse path filter.
func TestTwoProviders(t *testing.T) {
	r := newRig(t, lab.HostConfig{Sysctls: []string{"net.ipv4.conf.all.rp_filter", "1", "net.ipv4.conf.default.rp_filter", "1"}}, "")
	isp0, isp1 := r.isp(lab.DefaultISP(0)), r.isp(lab.DefaultISP(1))
	r.must(r.ServeEcho())
	r.up("wan0", "wan1")
	r.start()
	for _, link := range []string{"wan0", "wan1"} {
		_, err := r.WaitAddr(t.Context(), link, lab.IPv6)
		r.must(err)
	}
	r.settled("wan0", "wan1")

	for _, isp := range []*lab.ISP{isp0, isp1} {
		for _, f := range []lab.Family{lab.IPv4, lab.IPv6} {
			r.answersOnItsLink(isp, f)
		}
	}

	r.must(r.Down(t.Context(), "wan1"))
	r.settled("wan0")
	r.up("wan1")
	r.settled("wan0", "wan1")
}

// answersOnItsLink proves with packets that traffic bound to the link's address is
// answered by the link's provider, and that a connection from behind the provider
// comes through.
func (r *rig) answersOnItsLink(isp *lab.ISP, f lab.Family) {
	r.t.Helper()
	ctx, cancel := r.patience()
	defer cancel()
	src, err := r.WaitAddr(ctx, isp.Link().Name(), f)
	r.must(err)
	for name, dial := range map[string]func() (lab.Answer, error){
		"udp":  func() (lab.Answer, error) { return lab.DialUDP(ctx, lab.From{Addr: src}, lab.InternetAddr(f)) },
		"tcp":  func() (lab.Answer, error) { return lab.DialTCP(ctx, lab.From{Addr: src}, lab.InternetAddr(f)) },
		"ping": func() (lab.Answer, error) { return r.Ping(ctx, lab.From{Addr: src}, lab.InternetAddr(f)) },
		"device": func() (lab.Answer, error) {
			return lab.DialUDP(ctx, lab.From{Device: isp.Link().Name()}, lab.InternetAddr(f))
		},
	} {
		answer, err := dial()
		r.must(err)
		if answer.ISP != isp.Name() {
			r.t.Errorf("%s over %v bound to %s of %s was answered by %s", name, f, src, isp.Link().Name(), answer.ISP)
		}
	}
	client := isp.Client4
	if f == lab.IPv6 {
		client = isp.Client6
	}
	if answer, err := isp.Call(ctx, client, src); err != nil || answer.ISP != "host" {
		r.t.Errorf("inbound TCP over %v to %s on %s: %+v, %v", f, src, isp.Link().Name(), answer, err)
	}
}

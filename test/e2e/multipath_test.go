package e2e_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"multihomed/test/lab"
)

// A transfer by MPTCP goes by slow lines until one of them breaks, so that it lasts, and ends by a fast one.
var slowLine, fastLine = lab.Conditions{Rate: 2_000_000, Delay: 2 * time.Millisecond}, lab.Conditions{Rate: 16_000_000, Delay: 2 * time.Millisecond}

// transferTime bounds it. It takes some ten seconds on an idle host.
var transferTime = lab.Stretched(2 * time.Minute)

// TestMultipathOfHooks: a link that NetworkManager does not serve has an endpoint of Multipath TCP
// for as long as it has its address, and those of NetworkManager stay as they are. A connection that has a
// subflow by it goes on when the link dies by which it began.
func TestMultipathOfHooks(t *testing.T) {
	r := newRig(t, lab.HostConfig{FastDAD: true, NMConfig: "[keyfile]\nunmanaged-devices=interface-name:wan1"}, "")
	r.install()
	var isps []*lab.ISP
	var caught []*lab.Capture
	for n := range 2 {
		cfg := lab.DefaultISP(n)
		cfg.Wire, cfg.NoRA = true, true
		var isp *lab.ISP
		if n == 0 {
			isp = r.isp(cfg, stable(n)...)
		} else {
			cfg.NoDHCP = true
			isp = r.connected(cfg)
		}
		c, err := isp.Capture()
		r.must(err)
		isps, caught = append(isps, isp), append(caught, c)
	}
	_, err := r.NewServer("mirror", isps...)
	r.must(err)
	const his, address = "wan0", "100.64.1.50"
	r.must(r.WriteInterfaces("iface wan1 inet static\n    address " + address + "/24\n    gateway 100.64.1.1\n    metric 300\n"))
	r.start()
	// of are the endpoints of a link, as `ip mptcp` shows them.
	of := func(link string) (lines []string, err error) {
		all, err := r.IP(t.Context(), "mptcp", "endpoint", "show")
		for line := range strings.Lines(all) {
			if words := strings.Fields(line); word(words, "dev") == link {
				lines = append(lines, strings.Join(words, " "))
			}
		}
		return lines, err
	}
	has := func(link string, addresses ...string) {
		t.Helper()
		r.eventually(func() error {
			lines, err := of(link)
			if err == nil && !slices.EqualFunc(lines, addresses, func(line, a string) bool {
				words := strings.Fields(line)
				return words[0] == a && slices.Contains(words, "subflow") && !slices.Contains(words, "signal")
			}) {
				err = fmt.Errorf("the endpoints of %s are %q, not of %q", link, lines, addresses)
			}
			return err
		})
	}
	r.up(his)
	has(his, r.address(his, lab.IPv4).String())
	has("wan1")
	before, err := of(his)
	r.must(err)
	untouched := func(when string) {
		t.Helper()
		if now, err := of(his); err != nil || !slices.Equal(now, before) {
			t.Errorf("%s, NetworkManager's endpoints are %q, and were %q: %v", when, now, before, err)
		}
	}

	r.ifup("wan1")
	has("wan1", address)
	untouched("after the link came up")
	r.ip("address", "del", address+"/24", "dev", "wan1")
	has("wan1")
	r.ip("address", "add", address+"/24", "brd", "+", "dev", "wan1")
	r.ip("route", "add", "default", "via", "100.64.1.1", "dev", "wan1", "metric", "300")
	has("wan1", address)
	r.ifdown("wan1")
	has("wan1")
	untouched("after the link went")
	r.ifup("wan1")
	has("wan1", address)
	ours, err := of("wan1")
	r.must(err)
	r.must(r.Down(t.Context(), his))
	has(his)
	r.up(his)
	has(his, r.address(his, lab.IPv4).String())
	if now, err := of("wan1"); err != nil || !slices.Equal(now, ours) {
		t.Errorf("ours are %q after an activation of NetworkManager's link, and were %q: %v", now, ours, err)
	}
	before, err = of(his)
	r.must(err)

	// It begins by main's best, and has a subflow of ours.
	for _, isp := range isps {
		isp.Link().Wire().Set(slowLine)
	}
	const size = 8 << 20
	d := lab.Download{Dst: lab.SharedAddr4, Bytes: size, MPTCP: true}
	began, going := make(chan struct{}), false
	d.Progress = func(n int64) {
		if n > size/20 && !going {
			going = true
			close(began)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), transferTime)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx) }()
	select {
	case <-began:
	case err := <-done:
		t.Fatalf("the transfer ended before anything broke: %v", err)
	}
	stream := func(n int) []lab.Packet {
		t.Helper()
		packets, err := caught[n].Matching(func(p lab.Packet) bool { return p.DstPort == lab.StreamPort })
		r.must(err)
		return packets
	}
	r.eventually(func() error {
		for n := range isps {
			if count := len(stream(n)); count < 10 {
				return fmt.Errorf("%d packets of the transfer go by %s", count, isps[n].Name())
			}
		}
		return nil
	})
	isps[0].Link().Wire().Break(lab.Silent)
	caught[1].Reset()
	isps[1].Link().Wire().Set(fastLine)
	r.must(<-done)
	t.Logf("%d connection, the longest stall was %v", d.Connections, d.Stall.Round(time.Millisecond))
	if d.Connections != 1 || !d.Multipath || d.Received != size {
		t.Errorf("%d connections, MPTCP %t, %d of %d bytes, ends %v", d.Connections, d.Multipath, d.Received, int64(size), d.Ends)
	}
	after := stream(1)
	for _, p := range after {
		if p.Src.String() != address {
			t.Errorf("a subflow from %v by wan1", p.Src)
			break
		}
	}
	if len(after) == 0 {
		t.Error("no packet of the transfer went by wan1 afterwards")
	}
	for n, c := range caught {
		packets, err := c.Foreign(isps[n].IPv4(), isps[n].IPv6())
		r.must(err)
		if len(packets) > 0 {
			t.Errorf("%s saw:\n%s", isps[n].Name(), lab.FormatPackets(packets))
		}
	}
	isps[0].Link().Wire().Repair()

	// Off takes ours away, and nobody else's.
	out, err := r.ctl("off")
	if err != nil {
		t.Fatalf("off: %v\n%s", err, out)
	}
	has("wan1")
	untouched("after off")
}

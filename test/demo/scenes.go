package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"time"

	"multihomed/test/lab"
)

// demo is the host, its two providers and their observed packets.
type demo struct {
	*stage
	ctx    context.Context
	bin    string
	host   *lab.Host
	isps   []*lab.ISP
	daemon *lab.Process
	prober *lab.Process
	// before is the routing of others before the daemon came.
	before string
}

func (d *demo) close() {
	if d.host == nil {
		return
	}
	if err := d.host.Close(); err != nil {
		d.fail("cleaning up: %v", err)
	}
}

func families() []lab.Family { return []lab.Family{lab.IPv4, lab.IPv6} }

// soon bounds a probe that may go unanswered.
func (d *demo) soon() (context.Context, context.CancelFunc) {
	return context.WithTimeout(d.ctx, 2*time.Second)
}

func (d *demo) buildLab() error {
	d.heading("Two providers, one host")
	d.say("A private network: a real system bus, a real NetworkManager, and two providers")
	d.say("behind veth pairs that serve DHCP (options 3, 6, 121) and router advertisements.")
	d.say("Both serve the same internet, and answer with their names. rp_filter is strict.")
	var err error
	d.host, err = lab.NewHost(d.ctx, lab.HostConfig{Sysctls: []string{
		"net.ipv4.conf.all.rp_filter", "1", "net.ipv4.conf.default.rp_filter", "1",
	}})
	if err != nil {
		return fmt.Errorf("making the lab: %w", err)
	}
	for n := range 2 {
		cfg := lab.DefaultISP(n)
		cfg.Wire, cfg.Resolver = true, true
		cfg.Routes = []lab.Route{
			{Dst: netip.MustParsePrefix("0.0.0.0/0"), Via: cfg.IPv4.Addr()},
			{Dst: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 80 + byte(n), 0, 0}), 16), Via: cfg.IPv4.Addr()},
		}
		isp, err := d.host.NewISP(d.ctx, cfg)
		if err != nil {
			return fmt.Errorf("connecting %s: %w", cfg.Name, err)
		}
		d.isps = append(d.isps, isp)
		link := isp.Link().Name()
		if err := d.host.AddProfile(d.ctx, link, link); err != nil {
			return err
		}
	}
	if err := d.host.ServeEcho(); err != nil {
		return err
	}
	for _, isp := range d.isps {
		link := isp.Link().Name()
		d.command("nmcli connection up " + link)
		if err := d.host.Up(d.ctx, link); err != nil {
			return err
		}
	}
	for _, isp := range d.isps {
		link := isp.Link().Name()
		addrs := make([]any, 0, len(families()))
		for _, f := range families() {
			addr, err := d.host.WaitAddr(d.ctx, link, f)
			if err != nil {
				return err
			}
			addrs = append(addrs, addr)
		}
		d.say("  %s of %s: %v", link, isp.Name(), fmt.Sprint(addrs...))
	}
	d.before, err = d.host.Snapshot(d.ctx)
	return err
}

func (d *demo) showProblem() error {
	d.heading("Without multihomed")
	isp := d.isps[1]
	src, err := d.host.WaitAddr(d.ctx, isp.Link().Name(), lab.IPv4)
	if err != nil {
		return err
	}
	capture, err := d.isps[0].Capture()
	if err != nil {
		return err
	}
	defer capture.Close()
	ctx, cancel := d.soon()
	defer cancel()
	answer, err := lab.DialUDP(ctx, lab.From{Addr: src}, lab.InternetAddr4)
	if err == nil {
		d.fail("a socket bound to %s (%s) was answered by %s although nothing routes it", src, isp.Link().Name(), answer.ISP)
		return nil
	}
	strays, err := capture.Matching(func(p lab.Packet) bool { return p.Src == src })
	if err != nil {
		return err
	}
	d.say("A socket bound to %s of %s asks the internet: no answer.", src, isp.Link().Name())
	d.claim(len(strays) > 0, "its packets left by %s: %s saw %d with that source", d.isps[0].Link().Name(), d.isps[0].Name(), len(strays))
	return nil
}

func (d *demo) startDaemon() error {
	d.heading("multihomed starts")
	d.command("multihomed-prober & multihomed")
	program := filepath.Join(d.bin, "multihomed")
	var err error
	if d.prober, err = d.host.StartProber(d.ctx, program); err != nil {
		return err
	}
	started := time.Now()
	d.daemon, err = d.host.Start(lab.ProcessConfig{Path: program, Notify: true})
	if err != nil {
		return fmt.Errorf("starting the daemon: %w", err)
	}
	if _, err := d.daemon.WaitNotify(d.ctx, "READY=1"); err != nil {
		return err
	}
	d.say("Ready after %d ms: it reports this to systemd when every link has its routing.", time.Since(started).Milliseconds())
	return nil
}

func (d *demo) showState() error {
	d.heading("What it did")
	d.say("One table for each link and network, and rules that choose it by source.")
	d.command("ip rule")
	rules, err := d.host.IP(d.ctx, "-4", "rule")
	if err != nil {
		return err
	}
	d.quote(rules)
	table, err := d.tableOf(d.isps[0], lab.IPv4)
	if err != nil {
		return err
	}
	d.command("ip route show table " + table)
	routes, err := d.host.IP(d.ctx, "-4", "route", "show", "table", table)
	if err != nil {
		return err
	}
	d.quote(routes)
	d.claim(strings.Contains(routes, "default via") && strings.Contains(routes, "10.80.0.0/16 via"),
		"the table has the default and the route of DHCP option 121")
	d.command("multihomectl status")
	status, err := d.ctl("status")
	d.quote(status)
	d.claim(err == nil, "multihomectl reports all routing as active")
	return nil
}

// ctl runs multihomectl and returns its output.
func (d *demo) ctl(args ...string) (string, error) {
	p, err := d.host.Start(lab.ProcessConfig{Path: filepath.Join(d.bin, "multihomectl"), Args: args})
	if err != nil {
		return "", fmt.Errorf("starting multihomectl: %w", err)
	}
	err = p.Wait(d.ctx)
	return p.Log(), err
}

// tableOf returns the number of the table that a link's device rule leads to.
func (d *demo) tableOf(isp *lab.ISP, f lab.Family) (string, error) {
	rules, err := d.host.RulesText(d.ctx, f)
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(rules) {
		words := strings.Fields(line)
		for i := range len(words) - 3 {
			if words[i] == "oif" && words[i+1] == isp.Link().Name() && words[i+2] == "lookup" {
				return words[i+3], nil
			}
		}
	}
	return "", fmt.Errorf("no rule for sockets bound to %s", isp.Link().Name())
}

func (d *demo) provePackets() error {
	d.heading("Packets prove it")
	for _, isp := range d.isps {
		for _, f := range families() {
			if err := d.prove(isp, f); err != nil {
				return err
			}
		}
	}
	return nil
}

// prove shows that one family of one link works on its own.
func (d *demo) prove(isp *lab.ISP, f lab.Family) error {
	link := isp.Link().Name()
	src, err := d.host.WaitAddr(d.ctx, link, f)
	if err != nil {
		return err
	}
	captures := map[string]*lab.Capture{}
	for _, other := range d.isps {
		if other == isp {
			continue
		}
		c, err := other.Capture()
		if err != nil {
			return err
		}
		defer c.Close()
		captures[other.Name()] = c
	}

	ctx, cancel := d.soon()
	defer cancel()
	udp, udpErr := lab.DialUDP(ctx, lab.From{Addr: src}, lab.InternetAddr(f))
	tcp, tcpErr := lab.DialTCP(ctx, lab.From{Addr: src}, lab.InternetAddr(f))
	d.claim(udpErr == nil && tcpErr == nil && udp.ISP == isp.Name() && tcp.ISP == isp.Name(),
		"bound to %s: UDP and TCP leave by %s and are answered by %s%s", src, link, isp.Name(), trouble(udpErr, tcpErr))
	device, err := lab.DialUDP(ctx, lab.From{Device: link}, lab.InternetAddr(f))
	d.claim(err == nil && device.ISP == isp.Name(), "bound to the device %s over %v: answered by %s%s", link, f, isp.Name(), trouble(err))

	client := isp.Client4
	if f == lab.IPv6 {
		client = isp.Client6
	}
	in, err := isp.Call(ctx, client, src)
	d.claim(err == nil && in.ISP == "host", "inbound TCP to %s is answered on %s%s", src, link, trouble(err))

	for name, c := range captures {
		strays, err := c.Matching(func(p lab.Packet) bool { return p.Src == src })
		if err != nil {
			return err
		}
		d.claim(len(strays) == 0, "%s saw no packet from %s", name, src)
	}
	return nil
}

func trouble(errs ...error) string {
	for _, err := range errs {
		if err != nil {
			return ": " + err.Error()
		}
	}
	return ""
}

func (d *demo) downAndUp() error {
	isp := d.isps[1]
	link := isp.Link().Name()
	d.heading("A link goes and comes back")
	table, err := d.tableOf(isp, lab.IPv4)
	if err != nil {
		return err
	}
	d.command("nmcli connection down " + link)
	if err := d.host.Down(d.ctx, link); err != nil {
		return err
	}
	d.claim(d.eventually(func() error {
		rules, err := d.host.RulesText(d.ctx, lab.IPv4)
		if err == nil && strings.Contains(rules, " "+table+" ") {
			err = fmt.Errorf("rules still lead to table %s", table)
		}
		return err
	}), "its rules are gone")
	d.command("nmcli connection up " + link)
	if err := d.host.Up(d.ctx, link); err != nil {
		return err
	}
	d.claim(d.eventually(func() error {
		again, err := d.tableOf(isp, lab.IPv4)
		if err == nil && again != table {
			err = fmt.Errorf("it has table %s now", again)
		}
		return err
	}), "it has table %s again", table)
	return d.prove(isp, lab.IPv4)
}

// dieSilently breaks the better provider under a download and a ping loop.
func (d *demo) dieSilently() error {
	const size, rate, patience = 24 << 20, 16_000_000, time.Second
	first, second := d.isps[0], d.isps[1]
	d.heading("A provider dies silently")
	d.say("Unbound traffic leaves by %s, the better default of main. A ping loop runs, and a download by a", first.Link().Name())
	d.say("client as wget or apt: it opens another connection where it stopped, after %v without a byte.", patience)
	if !d.eventually(func() error { return d.unboundBy(first) }) {
		return errors.New("unbound traffic does not leave by " + first.Link().Name())
	}
	for _, isp := range d.isps {
		isp.Link().Wire().Set(lab.Conditions{Rate: rate})
	}
	pings := d.host.NewTries(d.ctx, 50*time.Millisecond, lab.From{}, lab.InternetAddr4, "ping")
	defer pings.Stop()
	halfway, done := make(chan struct{}), make(chan error, 1)
	began := false
	download := &lab.Download{Dst: lab.InternetAddr4, Bytes: size, Patience: patience, Progress: func(n int64) {
		if n > size/4 && !began {
			began = true
			close(halfway)
		}
	}}
	go func() { done <- download.Run(d.ctx) }()
	select {
	case <-halfway:
	case err := <-done:
		return fmt.Errorf("the download ended before anything broke: %w", err)
	}
	first.Link().Wire().Break(lab.Silent)
	broken := time.Now()
	d.say("From now on %s receives and sends nothing. Its link keeps the carrier, so NetworkManager sees nothing.", first.Name())
	moved := d.eventually(func() error { return d.unboundBy(second) })
	routes, err := d.host.RoutesText(d.ctx, lab.IPv4, "main")
	if err != nil {
		return err
	}
	_, best, _ := strings.Cut(routes, "default via ") // the first of the list
	d.claim(moved && strings.HasPrefix(best, first.Config().IPv4.Addr().String()+" dev "+first.Link().Name()+" "),
		"unbound traffic leaves by %s, and main still names %s first", second.Link().Name(), first.Link().Name())
	d.command("multihomectl status")
	status, _ := d.ctl("status") // which has a warning now
	d.quote(status)
	d.claim(strings.Contains(status, fmt.Sprintf("by %s (main says %s)", second.Link().Name(), first.Link().Name())), "multihomectl says so")
	err = <-done
	d.claim(err == nil && download.Received == size && download.Servers[0] == first.Name() && download.Servers[len(download.Servers)-1] == second.Name(),
		"the download is whole, by %d connections (%s); the longest time without a byte was %v%s",
		download.Connections, strings.Join(download.Servers, ", "), download.Stall.Round(time.Millisecond), trouble(err))
	lost, out := 0, time.Duration(-1)
	for _, ping := range pings.SoFar() {
		if ping.At.After(broken) && out < 0 {
			if ping.ISP == second.Name() {
				out = ping.At.Sub(broken)
			} else {
				lost++
			}
		}
	}
	d.claim(lost > 0 && out > 0, "the ping loop goes on by %s: %d pings were lost, for %d ms", second.Name(), lost, out.Milliseconds())

	for _, isp := range d.isps {
		isp.Link().Wire().Set(lab.Conditions{})
	}
	d.say("%s works again. It must answer for ten seconds before it gets the traffic back.", first.Name())
	back := d.within(time.Minute, func() error { return d.unboundBy(first) })
	d.claim(back, "unbound traffic leaves by %s again", first.Link().Name())
	return nil
}

// unboundBy is nil if a new socket that is bound to nothing is answered through a provider.
func (d *demo) unboundBy(isp *lab.ISP) error {
	ctx, cancel := context.WithTimeout(d.ctx, 300*time.Millisecond)
	defer cancel()
	answer, err := lab.DialUDP(ctx, lab.From{}, lab.InternetAddr4)
	if err == nil && answer.ISP != isp.Name() {
		err = fmt.Errorf("unbound traffic is answered by %s", answer.ISP)
	}
	return err
}

func (d *demo) eventually(f func() error) bool { return d.within(10*time.Second, f) }

func (d *demo) within(patience time.Duration, f func() error) bool {
	ctx, cancel := context.WithTimeout(d.ctx, patience)
	defer cancel()
	if err := lab.Eventually(ctx, f); err != nil {
		d.say("%v", err)
		return false
	}
	return true
}

func (d *demo) proveMain() error {
	d.heading("What it did not do")
	// The link that came back has the second place in main again, but it may
	// have got there in another order: wait until the provider's part is whole.
	same := d.eventually(func() error {
		after, err := d.host.Snapshot(d.ctx)
		if err == nil && after != d.before {
			err = fmt.Errorf("it differs:\n%s\nbefore:\n%s", after, d.before)
		}
		return err
	})
	d.claim(same, "main, local and default tables and all other rules are unchanged, metrics included")
	return nil
}

func (d *demo) leave() error {
	d.heading("multihomed leaves")
	if err := d.daemon.Stop(d.ctx); err != nil {
		return err
	}
	left, err := d.host.Leftovers()
	if err != nil {
		return err
	}
	d.claim(len(left) > 0, "stopping it leaves the routing in place: an upgrade cuts no connection")
	d.command("multihomectl flush")
	text, err := d.ctl("flush")
	d.quote(text)
	if err != nil {
		return err
	}
	left, err = d.host.Leftovers()
	if err != nil {
		return err
	}
	d.claim(len(left) == 0, "flush removes all of it")
	return nil
}

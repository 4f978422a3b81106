package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"multihomed/internal/status"
	"multihomed/internal/status/socket"
	"multihomed/test/lab"
)

// Failover is how soon unbound IPv4 leaves a provider that fails, and what it costs to know.
type Failover struct {
	Outages []OutageRow `json:"outages"`
	Subnet  *Subnet     `json:"subnet,omitempty"`
	Costs   []CostRow   `json:"costs"`
}

// An OutageRow is one way to fail under one kind of traffic: a question each 20 ms.
type OutageRow struct {
	Fault   string `json:"fault"`
	Traffic string `json:"traffic"`
	// Outage is until the first question from which on all are answered. It begins with the fault; with
	// no traffic at that time, with the first question; at a loss of carrier, with the kernel's event.
	Outage Series `json:"outage"`
	// Failed are the questions in between, the median.
	Failed float64 `json:"failed"`
	// Alone is the outage with NetworkManager alone. If it did not end, Alone has no runs, and
	// AloneMore is how long it lasted at least, in milliseconds.
	Alone     Series  `json:"networkmanager"`
	AloneMore float64 `json:"networkmanager_more_than"`
}

// A CostRow is what the watching costs for some links: DNS queries that arrive at all their providers
// together, and CPU of the daemon and the prober together.
type CostRow struct {
	Links   int     `json:"links"`
	Traffic string  `json:"traffic"`
	Probes  float64 `json:"probes_per_minute"`
	// CPU and ProberCPU are percents of one core.
	CPU       float64 `json:"daemon_cpu_percent"`
	ProberCPU float64 `json:"prober_cpu_percent"`
	Seconds   float64 `json:"seconds"`
}

// tryEvery is the time between two questions.
const tryEvery = 20 * time.Millisecond

// An exchange is a host with several uplinks, with the programs on it.
type exchange struct {
	*bench
	host           *lab.Host
	isps           []*lab.ISP
	links          []*lab.Link // the uplinks, main's best first
	daemon, prober *lab.Process
	config         string
}

// failovers measures all of it.
func (b *bench) failovers(ctx context.Context, report *Report) error {
	report.Failover = &Failover{}
	outages := []OutageRow{
		{Fault: "provider silent", Traffic: "idle"},
		{Fault: "provider silent", Traffic: "tcp"},
		{Fault: "provider silent", Traffic: "udp"},
		{Fault: "carrier lost", Traffic: "udp and tcp"},
	}
	b.progress("failover: outages")
	err := b.onWires(ctx, 2, true, func(x *exchange) error {
		for i := range outages {
			if err := x.outages(ctx, &outages[i]); err != nil {
				return fmt.Errorf("%s, %s: %w", outages[i].Fault, outages[i].Traffic, err)
			}
		}
		return x.costs(ctx, report.Failover, "idle", "tcp", "udp")
	})
	if err != nil {
		return fmt.Errorf("failover: %w", err)
	}
	b.progress("failover: NetworkManager alone, up to %v", b.alone)
	err = b.onWires(ctx, 2, false, func(x *exchange) error {
		for i := range outages {
			if err := x.alone(ctx, &outages[i]); err != nil {
				return fmt.Errorf("%s, %s: %w", outages[i].Fault, outages[i].Traffic, err)
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("failover of NetworkManager alone: %w", err)
	}
	report.Failover.Outages = outages
	b.progress("failover: %d links", b.watched)
	err = b.onWires(ctx, b.watched, true, func(x *exchange) error { return x.costs(ctx, report.Failover, "idle", "udp") })
	if err != nil {
		return fmt.Errorf("failover with %d links: %w", b.watched, err)
	}
	return nil
}

// onWires runs do on a host with so many providers of IPv4, with the product or without it.
func (b *bench) onWires(ctx context.Context, count int, product bool, do func(*exchange) error) error {
	return b.onHost(ctx, lab.HostConfig{NMLogLevel: "WARN"}, product, func(x *exchange) error {
		for n := range count {
			cfg := lab.DefaultISP(n)
			cfg.IPv6, cfg.Resolver, cfg.Wire = netip.Prefix{}, true, count == 2
			isp, err := x.host.NewISP(ctx, cfg)
			if err != nil {
				return err
			}
			x.isps, x.links = append(x.isps, isp), append(x.links, isp.Link())
		}
		return nil
	}, do)
}

// onHost runs do on a new host when the uplinks that connect makes have IPv4, with the product or
// without it.
func (b *bench) onHost(ctx context.Context, cfg lab.HostConfig, product bool, connect, do func(*exchange) error) (err error) {
	x := &exchange{bench: b}
	if x.host, err = lab.NewHost(ctx, cfg); err != nil {
		return fmt.Errorf("making the lab: %w", err)
	}
	defer func() { err = errors.Join(err, x.host.Close()) }()
	if err := connect(x); err != nil {
		return err
	}
	for n, l := range x.links {
		if err := x.host.WriteProfile(l.Name(), l.Name(), "ipv4.method=auto", fmt.Sprintf("ipv4.route-metric=%d", 100+n), "ipv6.method=disabled"); err != nil {
			return err
		}
	}
	if err := x.host.ReloadProfiles(ctx); err != nil {
		return err
	}
	for _, l := range x.links {
		if _, err := x.host.NMCLI(ctx, "--wait", "0", "connection", "up", l.Name()); err != nil {
			return err
		}
	}
	for _, l := range x.links {
		if _, err := x.host.WaitAddr(ctx, l.Name(), lab.IPv4); err != nil {
			return err
		}
	}
	if err := x.answeredBy(ctx, 0); err != nil {
		return err
	}
	if !product {
		return do(x)
	}
	if err := x.start(ctx); err != nil {
		return err
	}
	err = do(x)
	if err != nil {
		lines := x.daemon.Lines()
		for _, line := range lines[max(0, len(lines)-20):] {
			fmt.Fprintln(os.Stderr, "daemon:", line)
		}
	}
	return err
}

// start starts prober and daemon and waits until every link is known to work. A short recovery saves
// time; what decides about a death is as by default.
func (x *exchange) start(ctx context.Context) error {
	dir, err := os.MkdirTemp("", "bench")
	if err != nil {
		return fmt.Errorf("making a directory: %w", err)
	}
	x.config = filepath.Join(dir, "multihomed.toml")
	text := fmt.Sprintf("state_dir = %q\nruntime_dir = %q\n[failover]\nprober = %q\nrecover = \"1s\"\n", dir, filepath.Join(dir, "run"), lab.ProberSocket)
	if err := os.WriteFile(x.config, []byte(text), 0o600); err != nil {
		return fmt.Errorf("writing the configuration: %w", err)
	}
	if x.prober, err = x.host.StartProber(ctx, x.options.daemon); err != nil {
		return err
	}
	x.daemon, err = x.host.Start(lab.ProcessConfig{Path: x.options.daemon, Args: []string{"-config", x.config}, Notify: true})
	if err != nil {
		return err
	}
	if _, err := x.daemon.WaitNotify(ctx, "READY=1"); err != nil {
		return err
	}
	return x.healthy(ctx)
}

// ctl runs multihomectl.
func (x *exchange) ctl(ctx context.Context, args ...string) (string, error) {
	p, err := x.host.Start(lab.ProcessConfig{
		Path: filepath.Join(filepath.Dir(x.options.daemon), "multihomectl"), Args: append([]string{"--config", x.config}, args...),
	})
	if err != nil {
		return "", err
	}
	err = p.Wait(ctx)
	return p.Log(), err
}

// status asks the daemon.
func (x *exchange) status(ctx context.Context) (*status.Status, error) {
	s, err := socket.Ask(ctx, filepath.Join(filepath.Dir(x.config), "run"), true)
	if err == nil && s.Failover == nil {
		err = errors.New("the daemon says nothing of failover")
	}
	return s, err
}

// healthy waits until status calls every uplink up.
func (x *exchange) healthy(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	return lab.Eventually(ctx, func() error {
		s, err := x.status(ctx)
		if err != nil {
			return err
		}
		up := 0
		for _, h := range s.Failover.Uplinks {
			if h.State == status.HealthUp {
				up++
			}
		}
		if up != len(x.links) {
			return fmt.Errorf("%d of %d uplinks are up", up, len(x.links))
		}
		return nil
	})
}

func (x *exchange) answeredBy(ctx context.Context, n int) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	return lab.Eventually(ctx, func() error {
		ctx, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
		defer cancel()
		a, err := lab.DialUDP(ctx, lab.From{}, lab.InternetAddr4)
		if err == nil && a.ISP != x.isps[n].Name() {
			err = fmt.Errorf("answered by %s", a.ISP)
		}
		return err
	})
}

func networks(traffic string) []string {
	switch traffic {
	case "idle":
		return []string{"udp"}
	case "udp and tcp":
		return []string{"udp", "tcp"}
	default:
		return []string{traffic}
	}
}

// fail breaks the first provider under traffic until the second one answers or the time is over, and
// repairs it. It returns the questions and the moment from which on they count.
func (x *exchange) fail(ctx context.Context, row *OutageRow, limit time.Duration) ([]lab.Try, time.Time, error) {
	carrier := row.Fault == "carrier lost"
	var tries *lab.Tries
	begin := func() {
		tries = x.host.NewTries(ctx, tryEvery, lab.From{}, lab.InternetAddr4, networks(row.Traffic)...)
	}
	if row.Traffic != "idle" {
		begin()
		if err := recent(ctx, time.Minute, tries, networks(row.Traffic), x.isps[0].Name()); err != nil {
			return nil, time.Time{}, err
		}
	}
	var after time.Time
	var err error
	if carrier {
		after, err = x.unplug()
	} else {
		x.isps[0].Link().Wire().Break(lab.Silent)
		after = time.Now()
	}
	if err == nil && row.Traffic == "idle" {
		begin()
		after = time.Now()
	}
	if err == nil {
		err = recent(ctx, limit, tries, networks(row.Traffic), x.isps[1].Name())
	}
	all := tries.Stop()
	if carrier {
		err = errors.Join(err, x.isps[0].Link().SetCarrier(true))
	} else {
		x.isps[0].Link().Wire().Repair()
	}
	return all, after, err
}

// errGaveUp says that the traffic did not move within the limit.
var errGaveUp = errors.New("nothing moved")

// recent waits until the newest questions over each network were answered by a provider.
func recent(ctx context.Context, limit time.Duration, tries *lab.Tries, over []string, isp string) error {
	const enough = 10
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	err := lab.Eventually(ctx, func() error {
		good := map[string]int{}
		for _, t := range tries.SoFar() {
			if t.ISP == isp {
				good[t.Network]++
			} else {
				good[t.Network] = 0
			}
		}
		for _, network := range over {
			if good[network] < enough {
				return fmt.Errorf("the last %d over %s were answered by %s", good[network], network, isp)
			}
		}
		return nil
	})
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("%w to %s within %v: %w", errGaveUp, isp, limit, err)
	}
	return err
}

// unplug pulls the cable of the first link and returns when the kernel said so.
func (x *exchange) unplug() (time.Time, error) {
	link := x.links[0]
	updates, done := make(chan netlink.LinkUpdate, 64), make(chan struct{})
	if err := netlink.LinkSubscribe(updates, done); err != nil {
		return time.Time{}, fmt.Errorf("watching links: %w", err)
	}
	defer close(done)
	// The clock is read beside SetCarrier, which returns later than the event comes.
	said := make(chan time.Time, 1)
	go func() {
		for u := range updates {
			if u.Attrs().Name == link.Name() && u.Attrs().RawFlags&unix.IFF_LOWER_UP == 0 {
				select {
				case said <- time.Now():
				default: // it was said before
				}
			}
		}
	}()
	if err := link.SetCarrier(false); err != nil {
		return time.Time{}, err
	}
	select {
	case at := <-said:
		return at, nil
	case <-time.After(10 * time.Second):
		return time.Time{}, errors.New("the kernel says nothing of the cable")
	}
}

// outages measures a row with the product.
func (x *exchange) outages(ctx context.Context, row *OutageRow) error {
	var times []time.Duration
	var failures []int
	for range x.deaths {
		if err := x.learned(ctx); err != nil {
			return err
		}
		if row.Traffic == "idle" {
			if err := x.quiet(ctx); err != nil {
				return err
			}
		}
		all, after, err := x.fail(ctx, row, time.Minute)
		if err != nil {
			return err
		}
		d, failed, err := worst(all, networks(row.Traffic), after)
		if err != nil {
			return err
		}
		times, failures = append(times, d), append(failures, failed)
		if err := x.back(ctx, row); err != nil {
			return err
		}
	}
	row.Outage, row.Failed = series(times), middle(failures)
	return nil
}

// learned waits until the loss of the links is known to be small: with a link that is known, fewer
// probes decide. A smoke test does not wait.
func (x *exchange) learned(ctx context.Context) error {
	if !x.learns {
		return nil
	}
	const small = 0.03
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	tries := x.host.NewTries(ctx, tryEvery, lab.From{}, lab.InternetAddr4, "udp")
	defer tries.Stop()
	return lab.Eventually(ctx, func() error {
		s, err := x.status(ctx)
		if err != nil {
			return err
		}
		for _, h := range s.Failover.Uplinks {
			if h.Interface == x.isps[0].Link().Name() && (h.Loss == nil || *h.Loss > small) {
				return fmt.Errorf("%s is not known to lose little", h.Interface)
			}
		}
		return nil
	})
}

// quiet waits until the link in use counts as idle: probes go at the slow pace. A smoke test does not
// wait.
func (x *exchange) quiet(ctx context.Context) error {
	if !x.learns {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	return lab.Eventually(ctx, func() error {
		s, err := x.status(ctx)
		if err != nil {
			return err
		}
		for _, h := range s.Failover.Uplinks {
			if h.Interval < 1000 {
				return fmt.Errorf("%s is asked each %d ms", h.Interface, h.Interval)
			}
		}
		return nil
	})
}

// back waits until the first provider has the traffic again, and lets the product forget the death.
func (x *exchange) back(ctx context.Context, row *OutageRow) error {
	if row.Fault == "carrier lost" {
		if err := x.reconnect(ctx); err != nil {
			return err
		}
	}
	if x.daemon == nil {
		return x.answeredBy(ctx, 0)
	}
	if err := x.forget(ctx); err != nil {
		return err
	}
	return errors.Join(x.answeredBy(ctx, 0), x.healthy(ctx))
}

// forget lets the product forget that the first link died.
func (x *exchange) forget(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	return lab.Eventually(ctx, func() error { // a link that comes is not known at once
		out, err := x.ctl(ctx, "failover", "reset", x.links[0].Name())
		if err != nil {
			return fmt.Errorf("forgetting a death: %w: %s", err, out)
		}
		return nil
	})
}

// reconnect lets NetworkManager bring up the link whose cable is in again.
func (x *exchange) reconnect(ctx context.Context) error {
	link := x.links[0].Name()
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	err := lab.Eventually(ctx, func() error {
		_, err := x.host.NMCLI(ctx, "connection", "up", link)
		return err
	})
	if err != nil {
		return fmt.Errorf("bringing up %s: %w", link, err)
	}
	_, err = x.host.WaitAddr(ctx, link, lab.IPv4)
	return err
}

// alone measures a row without the product.
func (x *exchange) alone(ctx context.Context, row *OutageRow) error {
	all, after, err := x.fail(ctx, row, x.bench.alone)
	switch {
	case errors.Is(err, errGaveUp):
		row.AloneMore = float64(x.bench.alone) / float64(time.Millisecond)
	case err != nil:
		return err
	default:
		d, _, err := worst(all, networks(row.Traffic), after)
		if err != nil {
			return err
		}
		row.Alone = series([]time.Duration{d})
	}
	return x.back(ctx, row)
}

// worst is the longest outage of the networks, with the failures of both.
func worst(all []lab.Try, over []string, after time.Time) (time.Duration, int, error) {
	var longest time.Duration
	failures := 0
	for _, network := range over {
		d, failed, ended := lab.Outage(all, network, after)
		if !ended {
			return 0, 0, fmt.Errorf("no question over %s was answered", network)
		}
		longest, failures = max(longest, d), max(failures, failed)
	}
	return longest, failures, nil
}

// costs measures what watching costs while nothing fails.
func (x *exchange) costs(ctx context.Context, f *Failover, traffics ...string) error {
	for _, traffic := range traffics {
		x.progress("failover: %d links, cost with %s", len(x.isps), traffic)
		row, err := x.cost(ctx, traffic)
		if err != nil {
			return fmt.Errorf("cost of %d links, %s: %w", len(x.isps), traffic, err)
		}
		f.Costs = append(f.Costs, row)
	}
	return nil
}

func (x *exchange) cost(ctx context.Context, traffic string) (row CostRow, err error) {
	row = CostRow{Links: len(x.isps), Traffic: traffic}
	switch traffic {
	case "idle":
		if err := x.quiet(ctx); err != nil {
			return row, err
		}
	case "tcp": // a connection that is acknowledged all the time
		ctx, stop := context.WithCancel(ctx)
		var download sync.WaitGroup
		x.isps[0].Link().Wire().Set(lab.Conditions{Rate: 10_000_000})
		// It never ends by itself.
		download.Go(func() { _ = (&lab.Download{Dst: lab.InternetAddr4, Bytes: 1 << 40}).Run(ctx) })
		defer func() {
			stop()
			download.Wait()
			x.isps[0].Link().Wire().Set(lab.Conditions{})
		}()
	default:
		tries := x.host.NewTries(ctx, tryEvery, lab.From{}, lab.InternetAddr4, traffic)
		defer tries.Stop()
	}
	captures := make([]*lab.Capture, len(x.isps))
	for n, isp := range x.isps {
		if captures[n], err = isp.Capture(); err != nil {
			return row, err
		}
		defer captures[n].Close()
	}
	// The traffic has begun a while ago, so that its beginning does not count.
	if err := pause(ctx, time.Second); err != nil {
		return row, err
	}
	for _, c := range captures {
		c.Reset()
	}
	begin := time.Now()
	daemon, prober := clockOf(x.daemon.Pid()), clockOf(x.prober.Pid())
	daemonBefore, err := daemon.read()
	if err != nil {
		return row, err
	}
	proberBefore, err := prober.read()
	if err != nil {
		return row, err
	}
	if err := pause(ctx, x.window); err != nil {
		return row, err
	}
	took := time.Since(begin)
	daemonAfter, err := daemon.read()
	if err != nil {
		return row, err
	}
	proberAfter, err := prober.read()
	if err != nil {
		return row, err
	}
	probes := 0
	for _, c := range captures {
		packets, err := c.Matching(func(p lab.Packet) bool { return p.DstPort == 53 })
		if err != nil {
			return row, err
		}
		probes += len(packets)
	}
	row.Seconds = took.Seconds()
	row.Probes = float64(probes) * float64(time.Minute) / float64(took)
	row.CPU = 100 * ratio(float64(daemonAfter-daemonBefore), float64(took))
	row.ProberCPU = 100 * ratio(float64(proberAfter-proberBefore), float64(took))
	return row, nil
}

func middle(values []int) float64 {
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted) / 2
	if len(sorted)%2 == 0 {
		return float64(sorted[n-1]+sorted[n]) / 2
	}
	return float64(sorted[n])
}

func printFailover(out io.Writer, f *Failover) {
	if f == nil {
		return
	}
	if len(f.Outages) > 0 {
		printOutages(out, f.Outages)
	}
	printSubnet(out, f.Subnet)
	if len(f.Costs) == 0 {
		return
	}
	table(out, "What watching costs while all providers work, IPv4",
		"links\ttraffic\tprobes a minute\tdaemon CPU %\tprober CPU %", func(line func(...any)) {
			for _, r := range f.Costs {
				line(r.Links, r.Traffic, fmt.Sprintf("%.0f", r.Probes), fmt.Sprintf("%.2f", r.CPU), fmt.Sprintf("%.2f", r.ProberCPU))
			}
		})
}

func printOutages(out io.Writer, outages []OutageRow) {
	table(out, "Unbound IPv4 leaves a provider that fails, of two: questions each 20 ms unanswered for",
		"fault\ttraffic\tmultihomed\tfailed questions\tNetworkManager alone", func(line func(...any)) {
			for _, r := range outages {
				line(r.Fault, r.Traffic, r.Outage, r.Failed, orMore(r.Alone, r.AloneMore))
			}
		})
	fmt.Fprintln(out, published)
}

// orMore is an outage, or how long it lasted at least.
func orMore(outage Series, more float64) string {
	if more > 0 {
		return "more than " + milliseconds(more)
	}
	return outage.String()
}

// published is what others say of themselves, for comparison.
const published = "Not measured: by their source, mwan3's shipped configuration takes 120 s for a silent provider, and dpinger's defaults 2 s."

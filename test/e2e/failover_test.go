package e2e_test

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"multihomed/internal/status"
	"multihomed/internal/status/socket"
	"multihomed/test/lab"
	"multihomed/test/lab/labtest"
)

// soak makes the tests of failover repeat what they do once in CI, which takes hours.
var soak = flag.Bool("soak", false, "every cell of failover ten times, ten minutes of each bad line, stops of 30 s")

// badLine is how long a bad line lasts with -soak.
const badLine = 10 * time.Minute

// quickToml is failover that returns soon. What moves traffic away is as by default.
const quickToml = "[failover]\nprober = \"" + lab.ProberSocket + "\"\nrecover = \"1s\"\nstandby = \"1s\"\n"

// tableF is the failover table.
const tableF = "10999"

var families = []lab.Family{lab.IPv4, lab.IPv6}

// A failing is a host with uplinks behind wires, with the daemon and its prober.
type failing struct {
	*rig
	isps    []*lab.ISP
	caught  []*lab.Capture
	prober  *lab.Process
	monitor *monitor
	// other is what belongs to others in the kernel's routing while all is well.
	other string
}

// newFailing has uplinks wan0 (main's best), wan1 and so on, before the daemon starts.
func newFailing(t *testing.T, host lab.HostConfig, toml string, count int, change func(n int, cfg *lab.ISPConfig)) *failing {
	t.Helper()
	f := &failing{rig: newRig(t, host, toml)}
	for n := range count {
		cfg := lab.DefaultISP(n)
		cfg.Wire, cfg.Resolver = true, true
		if change != nil {
			change(n, &cfg)
		}
		isp := f.isp(cfg, stable(n)...)
		c, err := isp.Capture()
		f.must(err)
		f.isps, f.caught = append(f.isps, isp), append(f.caught, c)
	}
	for n := range count {
		f.up(fmt.Sprintf("wan%d", n))
	}
	for n := range count {
		for _, family := range families {
			f.address(fmt.Sprintf("wan%d", n), family)
		}
	}
	return f
}

// stable are settings with which the n-th link comes back as it was: NetworkManager numbers the metrics
// of its own choice anew.
func stable(n int) []string {
	metric := strconv.Itoa(100 + 100*n)
	return []string{"ipv6.addr-gen-mode", "eui64", "ipv6.ip6-privacy", "0", "ipv4.route-metric", metric, "ipv6.route-metric", metric}
}

// begin starts prober and daemon, and returns when every uplink is known to work.
func (f *failing) begin() {
	f.t.Helper()
	f.startProber()
	f.start()
	f.well()
	var err error
	f.other, err = f.others()
	f.must(err)
}

func (f *failing) startProber() {
	f.t.Helper()
	program, err := labtest.Build("multihomed")
	f.must(err)
	f.prober, err = f.StartProber(f.t.Context(), program, "GORACE=halt_on_error=1 atexit_sleep_ms=0")
	f.must(err)
	f.t.Cleanup(func() {
		if f.t.Failed() {
			f.t.Logf("the prober's log ends:\n%s", lab.Tail(f.prober.Log(), 20))
		}
	})
}

// well waits until every uplink works, and nothing is moved.
func (f *failing) well() {
	f.t.Helper()
	f.eventuallyHealthy(func(h status.Health) error {
		if h.State != status.HealthUp {
			return fmt.Errorf("%s %s is %s: %s%s", h.Interface, h.Family, h.State, h.Why, h.NotWatched)
		}
		return nil
	})
	for _, family := range families {
		f.leavesBy(0, family)
		f.tableFHolds(family, "")
	}
}

func (f *failing) eventuallyHealthy(judge func(status.Health) error) {
	f.t.Helper()
	f.eventually(func() error {
		s, err := f.failover()
		if err != nil {
			return err
		}
		if want := 2 * len(f.isps); len(s.Failover.Uplinks) != want {
			return fmt.Errorf("%d of %d uplinks are watched", len(s.Failover.Uplinks), want)
		}
		var errs []error
		for _, h := range s.Failover.Uplinks {
			errs = append(errs, judge(h))
		}
		return errors.Join(errs...)
	})
}

// failover asks the daemon.
func (f *failing) failover() (*status.Status, error) {
	s, err := socket.Ask(f.t.Context(), f.cfg.RuntimeDir, true)
	if err != nil {
		return nil, err
	}
	if s.Failover == nil || !s.Failover.Enabled || s.Failover.Prober != "" {
		return nil, fmt.Errorf("the daemon says of failover %+v", s.Failover)
	}
	return s, nil
}

// health is what the daemon says of an uplink now.
func (f *failing) health(n int, family lab.Family) status.Health {
	f.t.Helper()
	s, err := f.failover()
	f.must(err)
	h, ok := s.Failover.Of(f.isps[n].Link().Name(), key(family))
	if !ok {
		f.t.Fatalf("the daemon does not watch wan%d in %v: %+v", n, family, s.Failover)
	}
	return h
}

// key is a family in status.
func key(f lab.Family) string { return strings.ToLower(f.String()) }

func (f *failing) state(n int, family lab.Family, want status.HealthState) {
	f.t.Helper()
	f.eventually(func() error {
		s, err := f.failover()
		if err != nil {
			return err
		}
		if h, _ := s.Failover.Of(f.isps[n].Link().Name(), key(family)); h.State != want {
			return fmt.Errorf("wan%d is %s in %v, not %s: %s", n, h.State, family, want, h.Why)
		}
		return nil
	})
}

// asked is who answers a new socket that is bound to nothing, over UDP and TCP.
func (f *failing) asked(dst netip.Addr) (string, error) {
	ctx, cancel := context.WithTimeout(f.t.Context(), lab.Stretched(300*time.Millisecond))
	defer cancel()
	u, err := lab.DialUDP(ctx, lab.From{}, dst)
	if err != nil {
		return "", err
	}
	t, err := lab.DialTCP(ctx, lab.From{}, dst)
	if err != nil {
		return "", err
	}
	if u.ISP != t.ISP {
		return u.ISP + " by UDP, " + t.ISP + " by TCP", nil
	}
	return u.ISP, nil
}

// leavesBy waits until new unbound traffic is answered through a provider.
func (f *failing) leavesBy(n int, family lab.Family) {
	f.t.Helper()
	f.eventually(func() error {
		by, err := f.asked(lab.InternetAddr(family))
		if err == nil && by != f.isps[n].Name() {
			err = fmt.Errorf("unbound %v is answered by %s, not by %s", family, by, f.isps[n].Name())
		}
		return err
	})
}

// replacedBy waits until unbound traffic of both families leaves by a provider other than main's
// best, and table F leads there.
func (f *failing) replacedBy(n int) {
	f.t.Helper()
	for _, family := range families {
		f.leavesBy(n, family)
		f.tableFHolds(family, f.isps[n].Link().Name())
	}
}

// tableFHolds waits until the failover table of a family has the default through a link, with its
// address, and nothing else; or nothing, if link is empty.
func (f *failing) tableFHolds(family lab.Family, link string) {
	f.t.Helper()
	f.eventually(func() error {
		text, err := f.RoutesText(f.t.Context(), family, tableF)
		if err != nil {
			return err
		}
		text = strings.TrimSpace(text)
		if link == "" {
			if text != "" {
				return fmt.Errorf("%v: the failover table holds %s", family, text)
			}
			return nil
		}
		addrs, err := f.Addrs(link, family)
		if err != nil {
			return err
		}
		words := strings.Fields(text)
		source, at := word(words, "src"), -1
		for i, a := range addrs {
			if a.Addr().String() == source {
				at = i
			}
		}
		if strings.Contains(text, "\n") || !strings.Contains(text, "default via ") || word(words, "dev") != link || word(words, "proto") != "150" || at < 0 {
			return fmt.Errorf("%v: the failover table holds %q, not one default through %s with one of %v", family, text, link, addrs)
		}
		return nil
	})
}

// untouched checks that nothing of others has changed.
func (f *failing) untouched(when string) {
	f.t.Helper()
	now, err := f.others()
	f.must(err)
	if now != f.other {
		f.t.Errorf("%s, what belongs to others has changed:\n%s", when, labtest.Difference(strings.Split(f.other, "\n"), strings.Split(now, "\n")))
	}
}

// strays fails if a provider saw a source of another one since the last call.
func (f *failing) strays(when string) {
	f.t.Helper()
	for n, c := range f.caught {
		packets, err := c.Foreign(f.isps[n].IPv4(), f.isps[n].IPv6())
		f.must(err)
		if len(packets) > 0 {
			f.t.Errorf("%s, %s saw:\n%s", when, f.isps[n].Name(), lab.FormatPackets(packets))
		}
		c.Reset()
	}
}

func (f *failing) wire(n int) *lab.Wire { return f.isps[n].Link().Wire() }

// reset lets the daemon forget the deaths of an uplink, which make its next recovery longer.
// reset forgets the history of a link that works, and returns when it was judged anew: what has
// never answered since is not judged by its silence.
func (f *failing) reset(link string) {
	f.t.Helper()
	f.switches("failover", "reset", link)
	f.eventually(func() error {
		s, err := f.failover()
		if err != nil {
			return err
		}
		for _, h := range s.Failover.Uplinks {
			if h.Interface == link && h.State != status.HealthUp {
				return fmt.Errorf("%s %s is %s: %s%s", link, h.Family, h.State, h.Why, h.NotWatched)
			}
		}
		return nil
	})
}

// TestFailover breaks a provider in every way, under every kind of traffic, and then in the
// ways that need more than one fault. All of it happens to one host, one after the other.
func TestFailover(t *testing.T) {
	f := newFailing(t, lab.HostConfig{FastDAD: true}, quickToml+dnsToml, 2, nil)
	f.nameserver(f.isps...)
	f.begin()
	f.monitor = newMonitor(t)
	for _, fault := range []lab.Fault{lab.Silent, lab.NoInternet, lab.Rejecting} {
		for _, traffic := range []string{"idle", "tcp", "udp"} {
			t.Run(fmt.Sprintf("%v, %s", fault, traffic), func(t *testing.T) {
				times := 1
				if *soak {
					times = 10
				}
				var outages []string
				for range times {
					outages = append(outages, f.on(t).cell(fault, traffic).Round(time.Millisecond).String())
					if t.Failed() {
						return
					}
				}
				t.Logf("unbound IPv4 was out for %s", strings.Join(outages, ", "))
			})
		}
	}
	for _, c := range []struct {
		name string
		run  func(*failing)
	}{
		{"silent in one direction", (*failing).oneDirection},
		{"a DNS server alone dies", (*failing).deadDNS},
		{"losses", (*failing).losses},
		{"uploads fill the queue", (*failing).fullQueue},
		{"other links come up", (*failing).activations},
		{"suspended", (*failing).suspended},
		{"all die", (*failing).allDie},
		{"deprecated", (*failing).notPreferred},
		{"an administrator's test", (*failing).tested},
		{"activated while dead", (*failing).activatedWhileDead},
		{"killed while moved", (*failing).killedWhileMoved},
		{"died while the daemon was away", (*failing).diedUnseen},
		{"died while failover was off", (*failing).diedWhileOff},
		{"a prober that hangs", (*failing).hangingProber},
		{"off, stop and purge", (*failing).leaves},
	} {
		t.Run(c.name, func(t *testing.T) { c.run(f.on(t)) })
	}
}

// on is the same host for a subtest.
func (f *failing) on(t *testing.T) *failing {
	t.Helper()
	r, g := *f.rig, *f
	r.t, g.rig = t, &r
	t.Cleanup(func() {
		f.daemon, f.prober = g.daemon, g.prober
		for n := range f.isps { // whatever became of this one, the next one begins with all well
			f.wire(n).Set(lab.Conditions{})
		}
	})
	return &g
}

// cell breaks the provider of main's best default and repairs it, and returns how long unbound
// IPv4 went unanswered.
func (f *failing) cell(fault lab.Fault, traffic string) time.Duration {
	f.t.Helper()
	ctx := f.t.Context()
	const every = 20 * time.Millisecond
	network := traffic
	if traffic == "idle" {
		network = "udp"
	}
	tries := map[lab.Family]*lab.Tries{}
	begin := func() {
		for _, family := range families {
			tries[family] = f.NewTries(ctx, every, lab.From{}, lab.InternetAddr(family), network)
			f.t.Cleanup(func() { tries[family].Stop() })
		}
	}
	answeredBy := func(n int) {
		f.t.Helper()
		for _, family := range families {
			f.eventually(func() error {
				all := tries[family].SoFar()
				if len(all) == 0 || all[len(all)-1].ISP != f.isps[n].Name() {
					return fmt.Errorf("%v: nothing is answered by %s", family, f.isps[n].Name())
				}
				return nil
			})
		}
	}
	if traffic != "idle" {
		begin()
		answeredBy(0)
	}
	from := f.monitor.barrier()
	f.wire(0).Break(fault)
	broken := time.Now()
	if traffic == "idle" {
		begin()
	}
	answeredBy(1)
	for _, family := range families {
		f.tableFHolds(family, "wan1")
		f.leavesBy(1, family)
	}
	f.untouched("while moved")
	s, err := f.failover()
	f.must(err)
	for _, family := range families {
		h, _ := s.Failover.Of("wan0", key(family))
		if !h.State.Dead() || h.Why == "" || h.DeathsToday < 1 {
			f.t.Errorf("%v of wan0: %+v", family, h)
		}
		if u := s.Unbound[key(family)]; u.Interface != "wan1" || u.Main != "wan0" || u.Why == "" {
			f.t.Errorf("unbound %v: %+v", family, u)
		}
	}
	f.serversHave(false, true)
	f.answeredBy(f.isps[1].Name(), lab.From{Device: "wan1"}, lab.InternetAddr4)
	// What is bound to the dead link stays there.
	short, cancel := context.WithTimeout(ctx, lab.Stretched(100*time.Millisecond))
	defer cancel()
	if a, err := lab.DialUDP(short, lab.From{Device: "wan0"}, lab.InternetAddr4); err == nil {
		f.t.Errorf("a socket bound to the dead link was answered by %s", a.ISP)
	}

	f.wire(0).Repair()
	answeredBy(0)
	f.well()
	f.serversHave(true, true)
	f.untouched("after the return")
	outage, _, _ := lab.Outage(tries[lab.IPv4].Stop(), network, broken)
	tries[lab.IPv6].Stop()
	f.strays(fault.String())
	if moves := f.moves(from); moves != "2 writes, 2 deletions" {
		f.t.Errorf("the failover tables changed by %s, not once each way:\n%s", moves, f.monitor.text(from))
	}
	f.reset("wan0")
	return outage
}

// moves counts the changes of the failover tables.
func (f *failing) moves(from int) string {
	f.monitor.barrier()
	writes, deletions := 0, 0
	for _, e := range f.monitor.from(from) {
		if !strings.Contains(e.text, tableF) || !strings.Contains(e.text, "route") {
			continue
		}
		if strings.HasPrefix(e.text, "-") {
			deletions++
		} else {
			writes++
		}
	}
	return fmt.Sprintf("%d writes, %d deletions", writes, deletions)
}

// serversHave waits until the file for dnsmasq has the servers of the links that live, and not
// those of the others.
func (f *failing) serversHave(want ...bool) {
	f.t.Helper()
	f.eventually(func() error {
		text, err := os.ReadFile(serversFile)
		if err != nil {
			return err
		}
		for n, isp := range f.isps {
			if has := strings.Contains("\n"+string(text), "\nserver="+isp.Resolver4.String()+"@"); has != want[n] {
				return fmt.Errorf("the servers of %s are in the file: %t\n%s", isp.Name(), has, text)
			}
		}
		return nil
	})
}

// unmoved waits for a number of answers to unbound traffic of both families, and fails if the
// failover tables changed meanwhile, or an uplink was called dead.
func (f *failing) unmoved(answers int) {
	f.t.Helper()
	before, from, late := f.deaths(), f.monitor.barrier(), lateness()
	var tries []*lab.Tries
	for _, family := range families {
		tries = append(tries, f.NewTries(f.t.Context(), lab.Stretched(20*time.Millisecond), lab.From{}, lab.InternetAddr(family), "udp", "tcp"))
	}
	for _, t := range tries {
		f.eventually(func() error {
			n := 0
			for _, one := range t.SoFar() {
				if one.ISP == f.isps[0].Name() {
					n++
				}
			}
			if n < answers {
				return fmt.Errorf("%d of %d answers", n, answers)
			}
			return nil
		})
		t.Stop()
	}
	stall := late()
	if moves := f.moves(from); moves != "0 writes, 0 deletions" || f.deaths() != before {
		f.t.Errorf("the failover tables changed by %s, %d deaths, while wires and servers were late by up to %v:\n%s", moves, f.deaths()-before, stall, f.monitor.text(from))
	}
}

// lateness watches how late this process is woken until the result is called, which returns the longest
// time. The process carries the packets and answers the probes: on a machine that is too busy for that,
// links fall silent.
func lateness() (longest func() time.Duration) {
	stop, result := make(chan struct{}), make(chan time.Duration)
	go func() {
		const every = 20 * time.Millisecond
		var most time.Duration
		for {
			due := time.Now().Add(every)
			select {
			case <-stop:
				result <- most.Round(time.Millisecond)
				return
			case <-time.After(every):
				most = max(most, time.Since(due))
			}
		}
	}()
	return func() time.Duration {
		close(stop)
		return <-result
	}
}

// lasting is unmoved for as long as a bad line lasts.
func (f *failing) lasting(answers int) {
	f.t.Helper()
	began, times := time.Now(), 0
	for times == 0 || *soak && time.Since(began) < badLine && !f.t.Failed() {
		f.unmoved(answers)
		times++
	}
	if f.t.Failed() {
		return
	}
	f.t.Logf("no move and no death in %v, while %d questions of each family were answered", time.Since(began).Round(time.Second), times*answers)
}

// calm does something, and fails if the failover tables changed meanwhile, or an uplink was called dead.
func (f *failing) calm(do func()) {
	f.t.Helper()
	before, from, began, late := f.deaths(), f.monitor.barrier(), time.Now(), lateness()
	do()
	stall := late()
	moves, deaths := f.moves(from), f.deaths()-before
	if moves != "0 writes, 0 deletions" || deaths != 0 {
		f.t.Errorf("the failover tables changed by %s, %d deaths, while wires and servers were late by up to %v:\n%s", moves, deaths, stall, f.monitor.text(from))
	}
	f.t.Logf("%s, %d deaths in %v; wires and servers were late by up to %v", moves, deaths, time.Since(began).Round(time.Second), stall)
}

// deaths counts those of all uplinks.
func (f *failing) deaths() int {
	f.t.Helper()
	s, err := f.failover()
	f.must(err)
	n := 0
	for _, h := range s.Failover.Uplinks {
		n += h.DeathsToday
	}
	return n
}

func (f *failing) oneDirection() {
	for _, fault := range []lab.Fault{lab.SilentIn, lab.SilentOut} {
		f.wire(0).Break(fault)
		for _, family := range families {
			f.leavesBy(1, family)
		}
		f.wire(0).Repair()
		f.well()
		f.reset("wan0")
	}
}

// deadDNS: the servers that are asked die, and the link goes on. TCP proves it.
func (f *failing) deadDNS() {
	f.wire(0).Break(lab.SilentDNS)
	ctx, stop := context.WithCancel(f.t.Context())
	f.wire(0).Set(lab.Conditions{Rate: 10_000_000, Fault: lab.SilentDNS})
	var streams sync.WaitGroup
	for _, family := range families {
		// It never ends by itself.
		streams.Go(func() { _ = (&lab.Download{Dst: lab.InternetAddr(family), Bytes: 1 << 40}).Run(ctx) })
	}
	f.lasting(200)
	stop()
	streams.Wait()
	f.wire(0).Set(lab.Conditions{})
	f.well()
}

// losses: a tenth of all packets is lost each way.
func (f *failing) losses() {
	for _, delay := range []time.Duration{0, 150 * time.Millisecond} {
		bad := lab.Conditions{Loss: 0.1, Delay: delay}
		for n := range f.isps {
			f.wire(n).Set(bad)
		}
		f.lasting(300)
	}
	for n := range f.isps {
		f.wire(n).Set(lab.Conditions{})
	}
	f.well()
	f.reset("wan0")
	f.reset("wan1")
}

// fullQueue: uploads fill the queue of a slow line, so that every answer takes two seconds.
func (f *failing) fullQueue() {
	f.wire(0).Set(lab.Conditions{Rate: 1_000_000, Queue: 2 * time.Second})
	ctx, stop := context.WithCancel(f.t.Context())
	defer stop()
	var uploads sync.WaitGroup
	for _, family := range families {
		for range 4 { // One alone takes long to fill it.
			uploads.Go(func() { upload(ctx, lab.InternetAddr(family)) })
		}
	}
	f.calm(func() {
		began := time.Now()
		for _, family := range families {
			tries := f.NewTries(ctx, 100*time.Millisecond, lab.From{}, lab.InternetAddr(family), "udp")
			f.eventually(func() error {
				late := 0
				for _, one := range tries.SoFar() {
					if one.Err != nil {
						late++
					}
				}
				if late < 30 {
					return fmt.Errorf("%d of %d questions took too long: the queue is not full", late, len(tries.SoFar()))
				}
				return nil
			})
			tries.Stop()
		}
		for *soak && time.Since(began) < badLine && !f.t.Failed() {
			f.pause(time.Second)
		}
	})
	stop()
	uploads.Wait()
	f.wire(0).Set(lab.Conditions{})
	f.well()
	f.reset("wan0")
}

// upload sends lines to an echo server as fast as they go, until ctx is done.
func upload(ctx context.Context, dst netip.Addr) {
	line := append(bytes.Repeat([]byte("x"), 32<<10), '\n')
	// The congestion control of the machine may be one that leaves queues empty. Every kernel has this one.
	dialer := net.Dialer{Control: func(_, _ string, c syscall.RawConn) error {
		var fault error
		err := c.Control(func(fd uintptr) {
			fault = unix.SetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION, "reno")
		})
		return errors.Join(err, fault)
	}}
	for ctx.Err() == nil {
		c, err := dialer.DialContext(ctx, "tcp", netip.AddrPortFrom(dst, lab.EchoPort).String())
		if err != nil {
			continue
		}
		release := context.AfterFunc(ctx, func() { _ = c.Close() })
		answers := make(chan struct{})
		go func() {
			defer close(answers)
			_, _ = io.Copy(io.Discard, c)
		}()
		for err == nil {
			_, err = c.Write(line)
		}
		release()
		_ = c.Close()
		<-answers
	}
}

// pause is time that has to pass: a bad line or a stop lasts it.
func (f *failing) pause(d time.Duration) {
	f.t.Helper()
	select {
	case <-time.After(d):
	case <-f.t.Context().Done():
		f.t.Fatal(context.Cause(f.t.Context()))
	}
}

// activations: another link is configured anew again and again, and nobody calls a link dead for it.
func (f *failing) activations() {
	f.calm(func() {
		for began, times := time.Now(), 0; times == 0 || *soak && time.Since(began) < badLine && !f.t.Failed(); times++ {
			f.up("wan1")
			for _, family := range families {
				f.address("wan1", family)
			}
		}
	})
	f.well()
}

// suspended: all programs stop, as when a machine is suspended. Nobody is judged by the time that
// passed meanwhile.
func (f *failing) suspended() {
	stopped, times := 3*time.Second, 1
	if *soak {
		stopped, times = 30*time.Second, 10
	}
	talk := f.NewTries(f.t.Context(), 50*time.Millisecond, lab.From{}, lab.InternetAddr4, "udp")
	defer talk.Stop()
	f.calm(func() {
		all := func(s syscall.Signal) {
			f.t.Helper()
			f.must(errors.Join(f.daemon.Signal(s), f.prober.Signal(s), syscall.Kill(f.NMPid(), s)))
		}
		for range times {
			all(syscall.SIGSTOP)
			f.pause(stopped)
			all(syscall.SIGCONT)
			f.well()
		}
	})
}

// allDie: where nobody lives, nothing moves; the next one that lives gets the traffic.
func (f *failing) allDie() {
	f.wire(0).Break(lab.Silent)
	for _, family := range families {
		f.leavesBy(1, family)
	}
	f.wire(1).Break(lab.Silent)
	talk := f.NewTries(f.t.Context(), 50*time.Millisecond, lab.From{}, lab.InternetAddr4, "udp")
	talk6 := f.NewTries(f.t.Context(), 50*time.Millisecond, lab.From{}, lab.InternetAddr6, "udp")
	defer talk.Stop()
	defer talk6.Stop()
	for _, family := range families {
		f.state(1, family, status.HealthDown)
		f.tableFHolds(family, "")
	}
	f.untouched("with all dead")
	f.wire(1).Repair()
	f.replacedBy(1)
	f.wire(0).Repair()
	f.well()
	f.untouched("with all alive")
	f.strays("all dead")
	f.reset("wan0")
	f.reset("wan1")
}

// notPreferred: the families are independent, and an address that is not preferred is no way out.
func (f *failing) notPreferred() {
	ra := f.isps[1].RA()
	old := ra
	old.Prefixes = append([]lab.RAPrefix(nil), ra.Prefixes...)
	for i := range old.Prefixes {
		old.Prefixes[i].Preferred = 0
	}
	f.must(f.isps[1].SendRA(old))
	f.eventually(func() error {
		out, err := f.IP(f.t.Context(), "-6", "address", "show", "dev", "wan1", "scope", "global", "deprecated")
		if err == nil && strings.TrimSpace(out) == "" {
			err = errors.New("the address of wan1 is not deprecated")
		}
		return err
	})
	f.wire(0).Break(lab.Silent)
	f.leavesBy(1, lab.IPv4)
	talk := f.NewTries(f.t.Context(), 50*time.Millisecond, lab.From{}, lab.InternetAddr6, "udp")
	defer talk.Stop()
	f.state(0, lab.IPv6, status.HealthDown)
	f.tableFHolds(lab.IPv6, "")
	f.must(f.isps[1].SendRA(ra))
	f.leavesBy(1, lab.IPv6)
	f.tableFHolds(lab.IPv6, "wan1")
	f.wire(0).Repair()
	f.well()
	f.strays("deprecated")
	f.reset("wan0")
}

// tested: an administrator declares a link dead for a while, but not the last one.
func (f *failing) tested() {
	f.switches("failover", "test", "wan0")
	for _, family := range families {
		f.leavesBy(1, family)
		if h := f.health(0, family); !h.State.Dead() || h.Tested == nil {
			f.t.Errorf("a tested link: %+v", h)
		}
	}
	if out, err := f.ctl("failover", "test", "wan1"); err == nil {
		f.t.Errorf("the last link that lives may be tested: %s", out)
	}
	if out, err := f.ctl("failover", "test", "lo"); err == nil {
		f.t.Errorf("lo may be tested: %s", out)
	}
	f.reset("wan0")
	f.well()
	f.untouched("after a test")
}

// activatedWhileDead: NetworkManager takes main's default through a dead uplink away, and puts it
// back. The traffic stays where it is, and no line says that it moved.
func (f *failing) activatedWhileDead() {
	f.wire(0).Break(lab.NoInternet)
	f.replacedBy(1)
	f.quietLog(0)
	from := len(f.daemon.Lines())
	for range 3 {
		f.up("wan0")
		for _, family := range families {
			f.address("wan0", family)
		}
		f.replacedBy(1)
	}
	for _, line := range f.quietLog(from) {
		if strings.Contains(line, "unbound") {
			f.t.Errorf("nothing moved, and the log says %s", line)
		}
	}
	f.wire(0).Repair()
	f.well()
	for _, family := range families {
		if _, err := f.daemon.WaitLineAfter(f.t.Context(), from, fmt.Sprintf("unbound %v traffic follows main again, by wan0", family)); err != nil {
			f.t.Error(err)
		}
	}
	f.untouched("after activations of a dead link")
	f.strays("activations of a dead link")
	f.reset("wan0")
}

// killedWhileMoved: daemon and prober are killed while traffic is moved. What comes up judges anew,
// and traffic never returns to the dead link meanwhile.
func (f *failing) killedWhileMoved() {
	f.wire(0).Break(lab.Silent)
	for _, family := range families {
		f.leavesBy(1, family)
	}
	from := f.monitor.barrier()
	f.kill9()
	f.must(f.prober.Kill())
	for _, family := range families {
		f.leavesBy(1, family) // by the kernel alone
	}
	f.startProber()
	f.start()
	for _, family := range families {
		f.state(0, family, status.HealthDown)
		f.state(1, family, status.HealthUp)
		f.tableFHolds(family, "wan1")
		f.leavesBy(1, family)
	}
	f.monitor.barrier()
	for _, e := range f.monitor.from(from) {
		if strings.HasPrefix(e.text, "-") && strings.Contains(e.text, tableF) && strings.Contains(e.text, "route") {
			f.t.Errorf("traffic went back to the dead link: %s", e.text)
		}
	}
	// The prober alone.
	f.must(f.prober.Kill())
	f.startProber()
	f.wire(0).Repair()
	f.well()
	f.untouched("after the kills")
	f.reset("wan0")
}

// diedUnseen: a provider dies while no daemon runs. Its link has answered the one before.
func (f *failing) diedUnseen() {
	f.must(f.daemon.Stop(f.t.Context()))
	f.wire(0).Break(lab.Silent)
	f.start()
	f.replacedBy(1)
	f.wire(0).Repair()
	f.well()
	f.untouched("after a restart")
	f.strays("a restart")
	f.reset("wan0")
}

// diedWhileOff: a provider dies while the configuration says that nobody watches.
func (f *failing) diedWhileOff() {
	f.rewrite(quickToml + "enabled = false\n" + dnsToml)
	f.must(f.daemon.Signal(syscall.SIGHUP))
	f.eventually(func() error {
		s, err := socket.Ask(f.t.Context(), f.cfg.RuntimeDir, true)
		if err == nil && (s.Failover == nil || s.Failover.Enabled) {
			err = fmt.Errorf("it is not off: %+v", s.Failover)
		}
		return err
	})
	f.wire(0).Break(lab.Silent)
	f.rewrite(quickToml + dnsToml)
	f.must(f.daemon.Signal(syscall.SIGHUP))
	f.replacedBy(1)
	f.wire(0).Repair()
	f.well()
	f.untouched("after failover was off")
	f.reset("wan0")
}

// hangingProber: nobody is judged by the silence of a prober that does not run.
func (f *failing) hangingProber() {
	deaths, from := f.deaths(), f.monitor.barrier()
	talk := f.NewTries(f.t.Context(), 50*time.Millisecond, lab.From{}, lab.InternetAddr4, "udp")
	defer talk.Stop()
	stopped := 1
	if *soak {
		stopped = 10
	}
	for range stopped {
		f.must(f.prober.Signal(syscall.SIGSTOP))
		// An activation takes longer than any judgement would.
		f.up("wan1")
		f.address("wan1", lab.IPv6)
		f.must(f.prober.Signal(syscall.SIGCONT))
		f.well()
		f.must(f.daemon.Signal(syscall.SIGSTOP))
		f.up("wan1")
		f.address("wan1", lab.IPv6)
		f.must(f.daemon.Signal(syscall.SIGCONT))
		f.well()
	}
	if moves := f.moves(from); moves != "0 writes, 0 deletions" || f.deaths() != deaths {
		f.t.Errorf("the failover tables changed by %s, %d deaths:\n%s", moves, f.deaths()-deaths, f.monitor.text(from))
	}
}

// leaves: the failover table is empty after a stop, and nothing is left after `off` and a purge.
func (f *failing) leaves() {
	f.wire(0).Break(lab.Silent)
	for _, family := range families {
		f.leavesBy(1, family)
	}
	f.switches("off")
	f.nothingStands("off")
	f.untouched("off")
	f.switches("on")
	for _, family := range families {
		f.leavesBy(1, family)
	}
	f.must(f.daemon.Stop(f.t.Context()))
	for _, family := range families {
		f.tableFHolds(family, "")
	}
	f.flush()
	f.untouched("after flush")
}

package e2e_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"multihomed/allocator"
	protocol "multihomed/allocator/wire"
	"multihomed/internal/daemon"
	"multihomed/internal/unixgram"
	"multihomed/routing"
	"multihomed/test/lab"
	"multihomed/test/lab/labtest"
)

// A leaser is a client of the table allocator.
type leaser struct {
	t    testing.TB
	conn *unixgram.Conn
	to   unixgram.Address
	n    uint32
}

func newLeaser(tb testing.TB, name string) *leaser {
	tb.Helper()
	own, err := unixgram.Abstract(name)
	if err != nil {
		tb.Fatal(err)
	}
	to, err := unixgram.Abstract("tas_socket")
	if err != nil {
		tb.Fatal(err)
	}
	conn, err := unixgram.Listen(own)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := conn.Close(); err != nil {
			tb.Error(err)
		}
	})
	return &leaser{t: tb, conn: conn, to: to}
}

// try asks once. It returns an error if there is no answer for a moment.
func (l *leaser) try(r protocol.Request) (protocol.Response, error) {
	l.n++
	r.Version, r.Transaction = 2, l.n
	datagram, refused := r.Encode()
	if refused != nil {
		return protocol.Response{}, refused
	}
	if err := l.conn.Send(l.to, datagram); err != nil {
		return protocol.Response{}, err
	}
	if err := l.conn.SetReadDeadline(time.Now().Add(500 * time.Millisecond)); err != nil {
		return protocol.Response{}, err
	}
	buffer := make([]byte, protocol.MaxResponse)
	for {
		d, err := l.conn.Receive(buffer)
		if err != nil {
			return protocol.Response{}, err
		}
		a, err := protocol.DecodeResponse(d.Payload)
		if err != nil {
			return protocol.Response{}, err
		}
		// Others are late answers to earlier requests.
		if a.Transaction == l.n {
			return a, nil
		}
	}
}

// ask asks until there is an answer.
func (l *leaser) ask(ctx context.Context, r protocol.Request) (protocol.Response, error) {
	for {
		a, err := l.try(r)
		if err == nil {
			return a, nil
		}
		if ctx.Err() != nil {
			return a, fmt.Errorf("no answer to %+v: %w", r, err)
		}
		if errors.Is(err, unixgram.ErrFull) || errors.Is(err, unixgram.ErrNobody) {
			// Nobody has seen it: come again in a moment.
			wait := time.NewTimer(2 * time.Millisecond)
			select {
			case <-ctx.Done():
			case <-wait.C:
			}
		}
	}
}

// get asks, and fails the test if it is refused.
func (l *leaser) get(r protocol.Request) protocol.Response {
	l.t.Helper()
	a := l.answer(r)
	if a.Refused != nil {
		l.t.Fatalf("%+v: %v", r, a.Refused)
	}
	return a
}

// answer asks until there is an answer, which may be a refusal.
func (l *leaser) answer(r protocol.Request) protocol.Response {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(l.t.Context(), 30*time.Second)
	defer cancel()
	a, err := l.ask(ctx, r)
	if err != nil {
		l.t.Fatal(err)
	}
	return a
}

// A crowd is many clients, each with its own keys, and the answers that they got.
type crowd struct {
	mu sync.Mutex
	// holder is who was told to have a table and has not asked to give it back.
	holder map[routing.TableID]string
	held   map[string]routing.TableID
	done   atomic.Int64
}

func (c *crowd) got(address string, t routing.TableID) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if other, ok := c.holder[t]; ok && other != address {
		return fmt.Errorf("%s got table %d, which %s holds", address, t, other)
	}
	if had, ok := c.held[address]; ok && had != t {
		return fmt.Errorf("%s held table %d and was told %d", address, had, t)
	}
	c.holder[t], c.held[address] = address, t
	return nil
}

// gives must be called before the table is given back: it may be another's
// before the answer comes.
func (c *crowd) gives(address string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.holder, c.held[address])
	delete(c.held, address)
}

// operate leases, renews and releases at random.
func (c *crowd) operate(ctx context.Context, l *leaser, client, operations int, random *rand.Rand) error {
	const keys = 12
	for range operations {
		address := netip.AddrFrom4([4]byte{10, 1, byte(client), byte(random.IntN(keys))}).String()
		r := protocol.Request{Command: protocol.Lease, Family: routing.IPv4, Interface: "wan9", Address: address}
		if random.IntN(3) == 0 {
			r.Command = protocol.Release
			c.gives(address)
		}
		a, err := l.ask(ctx, r)
		switch {
		case err != nil:
			return err
		case a.Refused != nil:
			return fmt.Errorf("%+v: %w", r, a.Refused)
		case r.Command == protocol.Lease:
			if err := c.got(address, a.Table); err != nil {
				return err
			}
		}
		c.done.Add(1)
	}
	return nil
}

// TestLeasesOfManyClientsSurviveKills is 64 clients that lease, renew and
// release 100,000 times, while the daemon is killed again and again.
func TestLeasesOfManyClientsSurviveKills(t *testing.T) {
	const clients, operations, kills = 64, 100_000, 25
	seed := *crashSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("seed: -crash-seed=%d", seed)
	r := newRig(t, lab.HostConfig{}, "log_level = \"warn\"\n")
	r.isp(lab.DefaultISP(0))
	r.up("wan0")
	r.start()
	c := &crowd{holder: map[routing.TableID]string{}, held: map[string]routing.TableID{}}
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	var all sync.WaitGroup
	failures := make(chan error, clients)
	for n := range clients {
		l := newLeaser(t, fmt.Sprint("crowd", n))
		all.Go(func() {
			if err := c.operate(ctx, l, n, operations/clients, rand.New(rand.NewPCG(seed, uint64(n)))); err != nil {
				failures <- err
				cancel()
			}
		})
	}
	finished := make(chan struct{})
	go func() {
		all.Wait()
		close(finished)
	}()
	random := rand.New(rand.NewPCG(seed, 1000))
	killed := 0
	for n := range kills {
		// Somewhere in the n-th part of the work.
		until := int64(operations)/kills*int64(n) + random.Int64N(operations/kills)
		if !c.reaches(until, finished) {
			break
		}
		r.kill9()
		r.launch()
		killed++
	}
	<-finished
	close(failures)
	for err := range failures {
		t.Error(err)
	}
	if t.Failed() {
		return
	}
	if killed < kills/2 {
		t.Errorf("killed only %d times", killed)
	}
	r.ready()
	r.kill9()
	path := filepath.Join(r.cfg.StateDir, allocator.DefaultName)
	a, err := allocator.OpenReadOnly(t.Context(), allocator.Options{Path: path, Range: r.cfg.Tables})
	r.must(err)
	live := map[string]routing.TableID{}
	tables := map[routing.TableID]string{}
	for _, l := range a.Clients() {
		if other, twice := tables[l.Table]; twice {
			t.Errorf("%v and %s have table %d", l.Key, other, l.Table)
		}
		tables[l.Table] = l.Key.String()
		if l.Live {
			live[l.Key.Address] = l.Table
		}
	}
	for _, l := range a.List() {
		if other, twice := tables[l.Table]; twice {
			t.Errorf("%v and %s have table %d", l.Key, other, l.Table)
		}
	}
	for address, table := range c.held {
		if live[address] != table {
			t.Errorf("%s was told %d and has %d", address, table, live[address])
		}
	}
	if len(live) != len(c.held) {
		t.Errorf("%d leases are live, %d were not given back", len(live), len(c.held))
	}
	t.Logf("%d requests, %d kills, %d leases at the end", c.done.Load(), killed, len(live))
}

// reaches waits until so much is done; false if it never will be.
func (c *crowd) reaches(until int64, finished <-chan struct{}) bool {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for c.done.Load() < until {
		select {
		case <-finished:
			return false
		case <-tick.C:
		}
	}
	return true
}

// leasedHost is a host with a provider whose link NetworkManager leaves alone:
// another program configured it.
func leasedHost(t *testing.T, toml string) (*rig, *lab.ISP) {
	t.Helper()
	r := newRig(t, lab.HostConfig{FastDAD: true, NMConfig: "[keyfile]\nunmanaged-devices=interface-name:wan1"}, toml)
	cfg := lab.DefaultISP(1)
	cfg.NoDHCP, cfg.NoRA = true, true
	isp := labtest.NewISP(t, r.Host, cfg)
	r.isp(lab.DefaultISP(0))
	r.up("wan0")
	for _, args := range []string{
		"link set wan1 up",
		"address add 100.64.1.7/24 dev wan1", "-6 address add 2001:db8:0:2::7/64 dev wan1",
		"route add default via 100.64.1.1 dev wan1 metric 500", "-6 route add default via 2001:db8:0:2::1 dev wan1 metric 2000",
	} {
		r.ip(strings.Fields(args)...)
	}
	r.start()
	r.settled("wan0")
	return r, isp
}

func routed(address string) protocol.Request {
	a := netip.MustParseAddr(address)
	return protocol.Request{Command: protocol.Lease, Family: routing.FamilyOf(a), Interface: "wan1", Address: address, Routing: true}
}

// TestRoutedLease is an address that NetworkManager does not know: its lease
// brings the whole ladder in both families, and it goes with the address.
func TestRoutedLease(t *testing.T) {
	r, isp := leasedHost(t, "")
	l := newLeaser(t, "hook")
	const v4, v6 = "100.64.1.7", "2001:db8:0:2::7"
	r.must(r.ServeEcho())

	// The routing exists when the client gets the answer.
	first := l.get(routed(v4))
	if err := r.ladder("wan1", lab.IPv4); err != nil {
		t.Error(err)
	}
	second := l.get(routed(v6))
	if err := r.ladder("wan1", lab.IPv6); err != nil {
		t.Error(err)
	}
	if first.Table == second.Table || first.Expires != 0 || !first.Routing {
		t.Errorf("answers %+v and %+v", first, second)
	}
	view := r.settled("wan0", "wan1")
	if n := r.table(view, "wan1", routing.IPv4); n != first.Table {
		t.Errorf("status says table %d, the client was told %d", n, first.Table)
	}
	for _, f := range []lab.Family{lab.IPv4, lab.IPv6} {
		r.answersOnItsLink(isp, f)
	}

	// It outlives the daemon, however that ends.
	r.kill9()
	r.start()
	r.settled("wan0", "wan1")
	r.must(r.daemon.Stop(t.Context()))
	r.start()
	r.settled("wan0", "wan1")
	if again := l.get(routed(v4)); again.Table != first.Table {
		t.Errorf("table %d, had %d", again.Table, first.Table)
	}

	// It ends with its release, with the address, and with the interface.
	release := routed(v4)
	release.Command = protocol.Release
	l.get(release)
	r.gone(v4)
	r.settled("wan0")
	l.get(routed(v4))
	r.ip("address", "del", v4+"/24", "dev", "wan1")
	r.settled("wan0")
	r.gone(v4)
	r.ip("link", "del", "wan1")
	labtest.Eventually(t, func() error { return r.lacks(lab.IPv6, "2001:db8:0:2::/64") })
	// The lease ends after its rules.
	labtest.Eventually(t, func() error {
		left, err := os.ReadDir(filepath.Join(r.cfg.RuntimeDir, "links"))
		if err == nil && len(left) != 0 {
			err = fmt.Errorf("left: %v", left)
		}
		return err
	})

	// What cannot be is said.
	for what, ask := range map[protocol.Code]protocol.Request{
		protocol.NoInterface: {Family: routing.IPv4, Interface: "wan1", Address: v4, Routing: true},
		protocol.BadAddress:  {Family: routing.IPv4, Interface: "wan0", Address: v4, Routing: true},
	} {
		if a := l.answer(ask); a.Refused == nil || a.Refused.Code != what {
			t.Errorf("%+v: %+v; want code %s", ask, a, what)
		}
	}
}

func (r *rig) lacks(f lab.Family, source string) error {
	rules, err := r.RulesText(r.t.Context(), f)
	if err != nil {
		return err
	}
	if strings.Contains(rules, source) {
		return fmt.Errorf("rules of %s exist:\n%s", source, rules)
	}
	return nil
}

// gone asserts that no IPv4 rule of an address exists now.
func (r *rig) gone(source string) {
	r.t.Helper()
	if err := r.lacks(lab.IPv4, source); err != nil {
		r.t.Error(err)
	}
}

// TestHeldLeaseEndsUnlessRenewed is a client that says it renews, and does not.
func TestHeldLeaseEndsUnlessRenewed(t *testing.T) {
	r, _ := leasedHost(t, "[allocator]\nlifetime = 10\n")
	l := newLeaser(t, "hook")
	hold := routed("100.64.1.7")
	hold.Hold = true
	a := l.get(hold)
	if a.Lifetime != 10 || a.Expires == 0 {
		t.Errorf("answer %+v", a)
	}
	r.settled("wan0")
	ends := time.Duration(a.Expires) * time.Second
	labtest.Eventually(t, func() error { return r.lacks(lab.IPv4, "100.64.1.7") })
	if now := allocator.Uptime(); now < ends {
		t.Errorf("it ended %v too early", ends-now)
	}
	r.settled("wan0")
}

// TestSquattedName: another process has the name when the daemon starts. The daemon reports it,
// does the rest of its work, and takes the name as soon as it can.
func TestSquattedName(t *testing.T) {
	r := newRig(t, lab.HostConfig{}, "")
	r.isp(lab.DefaultISP(0))
	name, err := unixgram.Abstract("tas_socket")
	r.must(err)
	squatter, err := unixgram.Listen(name.Padded())
	r.must(err)
	r.up("wan0")
	r.start()
	r.settled("wan0")
	labtest.Eventually(t, func() error {
		v, err := r.look()
		if err != nil {
			return err
		}
		for _, p := range v.Daemon.Problems {
			if strings.Contains(p.Text, "@tas_socket") {
				return nil
			}
		}
		return fmt.Errorf("status says %+v", v.Daemon.Problems)
	})
	// The other form of the name works meanwhile.
	newLeaser(t, "early").get(protocol.Request{Family: routing.IPv4, Interface: "wan9", Address: "10.0.0.1"})
	r.must(squatter.Close())
	old := newLeaser(t, "late")
	old.to = name.Padded()
	old.get(protocol.Request{Family: routing.IPv4, Interface: "wan9", Address: "10.0.0.1"})
	labtest.Eventually(t, func() error {
		v, err := r.look()
		if err != nil {
			return err
		}
		if len(v.Daemon.Problems) > 0 {
			return fmt.Errorf("status says %+v", v.Daemon.Problems)
		}
		return nil
	})
	labtest.Eventually(t, func() error {
		if n := strings.Count(r.daemon.Log(), "tas_socket"); n != 2 {
			return fmt.Errorf("the log tells of it %d times, want once when it comes and once when it goes:\n%s", n, r.daemon.Log())
		}
		return nil
	})
}

// TestSocketActivation: systemd made the socket, and a client asked before the daemon ran.
func TestSocketActivation(t *testing.T) {
	r := newRig(t, lab.HostConfig{}, "")
	name, err := unixgram.Abstract("tas_socket")
	r.must(err)
	// As systemd makes it: bound, and nothing else.
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	r.must(err)
	r.must(unix.Bind(fd, &unix.SockaddrUnix{Name: "@tas_socket"}))
	socket := os.NewFile(uintptr(fd), "tas_socket")
	early := newLeaser(t, "early")
	ask := protocol.Request{Version: 2, Transaction: 1, Family: routing.IPv4, Interface: "wan9", Address: "10.0.0.1"}
	datagram, refused := ask.Encode()
	if refused != nil {
		t.Fatal(refused)
	}
	r.must(early.conn.Send(name, datagram))

	program, err := labtest.Build("multihomed")
	r.must(err)
	// The process that is meant has to be named, and only it knows its number.
	cmd := exec.CommandContext(t.Context(), "sh", "-c", `LISTEN_PID=$$ LISTEN_FDS=1 exec "$@"`, "sh", program, "-config", r.path)
	cmd.ExtraFiles = []*os.File{socket}
	var log bytes.Buffer
	cmd.Stderr = &log
	cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGTERM) }
	r.must(cmd.Start())
	r.must(socket.Close())
	defer func() {
		r.must(cmd.Process.Signal(unix.SIGTERM))
		if err := cmd.Wait(); err != nil {
			t.Errorf("%v: %s", err, &log)
		}
	}()
	r.must(early.conn.SetReadDeadline(time.Now().Add(30 * time.Second)))
	d, err := early.conn.Receive(make([]byte, protocol.MaxResponse))
	r.must(err)
	if a, err := protocol.DecodeResponse(d.Payload); err != nil || a.Table != 10000 {
		t.Errorf("answer %s, %v", d.Payload, err)
	}
	// The form that systemd cannot make is there as well.
	old := newLeaser(t, "old")
	old.to = name.Padded()
	old.get(ask)
}

// TestWithoutTheRight is a daemon that may not change routing: it reports that and ends, existing
// routing stays, and no client gets a table without a rule.
func TestWithoutTheRight(t *testing.T) {
	r, _ := leasedHost(t, "")
	r.must(r.daemon.Stop(t.Context()))
	before := r.ours()
	program, err := labtest.Build("multihomed")
	r.must(err)
	r.daemon, err = r.Start(lab.ProcessConfig{
		Path: "setpriv", Args: []string{"--bounding-set", "-net_admin", "--", program, "-config", r.path}, Notify: true,
	})
	r.must(err)
	ctx, cancel := r.patience()
	defer cancel()
	exit, is := errors.AsType[*exec.ExitError](r.daemon.Wait(ctx))
	if !is || exit.ExitCode() != daemon.ExitRights || !strings.Contains(r.daemon.Log(), "CAP_NET_ADMIN; to fix: ") {
		t.Errorf("the daemon ended with %v:\n%s", exit, r.daemon.Log())
	}
	r.unharmed(before, "a daemon without the right")
	if a, err := newLeaser(t, "hook").try(routed("100.64.1.7")); !errors.Is(err, unixgram.ErrNobody) {
		t.Errorf("answer %+v, %v", a, err)
	}
	r.start()
	r.settled("wan0")
	r.gone("100.64.1.7")
}

// TestAllocatorIsReconfigured switches the service off, on under another name,
// and to fewer families, while the daemon runs.
func TestAllocatorIsReconfigured(t *testing.T) {
	r := newRig(t, lab.HostConfig{}, "")
	r.start()
	l := newLeaser(t, "client")
	ask := protocol.Request{Family: routing.IPv4, Interface: "wan9", Address: "10.0.0.1"}
	first := l.get(ask)
	base, err := os.ReadFile(r.path)
	r.must(err)
	reload := func(more string) {
		t.Helper()
		r.writeConfig(string(base) + more)
		r.must(r.daemon.Signal(unix.SIGHUP))
	}
	reload("[allocator]\nenabled = false\n")
	labtest.Eventually(t, func() error {
		if _, err := l.try(ask); !errors.Is(err, unixgram.ErrNobody) {
			return fmt.Errorf("switched off: %w", err)
		}
		return nil
	})
	reload("[allocator]\nsocket = \"other\"\nfamilies = [\"ipv4\"]\n")
	l.to, err = unixgram.Abstract("other")
	r.must(err)
	if again := l.get(ask); again.Table != first.Table {
		t.Errorf("table %d, had %d", again.Table, first.Table)
	}
	six := l.answer(protocol.Request{Family: routing.IPv6, Interface: "wan9", Address: "2001:db8::1"})
	if six.Refused == nil || six.Refused.Code != protocol.BadFamily {
		t.Errorf("a family that is not leased: %+v", six)
	}
}

package server_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"multihomed/allocator"
	"multihomed/allocator/server"
	"multihomed/allocator/wire"
	"multihomed/internal/unixgram"
	"multihomed/routing"
)

func TestAClientOfTheAncestor(t *testing.T) {
	h := newHost(t)
	h.start()
	// Its socket has an address padded to the full length, and so has the one it
	// sends to; both ways it must be exactly that address.
	name, err := unixgram.Abstract("wan0-192.168.5.113-2")
	if err != nil {
		t.Fatal(err)
	}
	conn, err := unixgram.Listen(name.Padded())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	to, err := unixgram.Abstract(h.name)
	if err != nil {
		t.Fatal(err)
	}
	for _, to := range []unixgram.Address{to.Padded(), to} {
		if err := conn.Send(to, []byte(lease("192.168.5.113"))); err != nil {
			t.Fatal(err)
		}
		if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		d, err := conn.Receive(make([]byte, 254))
		if err != nil {
			t.Fatal(err)
		}
		if want := `{"version":1,"cmd":2,"table":10000,"lease_expires":`; !strings.HasPrefix(string(d.Payload), want) {
			t.Errorf("answer %s, want %s...", d.Payload, want)
		}
		if d.From != to {
			t.Errorf("answer from %q", string(d.From))
		}
	}
}

func TestLeaseRenewRelease(t *testing.T) {
	h := newHost(t)
	h.life = 70000 * time.Second // more than 16 bits hold
	h.start()
	c := h.client(0)
	before := int64(allocator.Uptime() / time.Second)
	first := c.ask(lease("192.168.5.113"))
	after := int64(allocator.Uptime() / time.Second)
	if first.Expires < before+70000 || first.Expires > after+70000 {
		t.Errorf("expires at %d; it is %d to %d", first.Expires, before, after)
	}
	if again := c.ask(lease("192.168.5.113")); again.Table != first.Table || again.Expires < first.Expires {
		t.Errorf("renewed: %+v, was %+v", again, first)
	}
	if gone := c.ask(release("192.168.5.113")); gone != (answer{Version: 1, Command: 2}) {
		t.Errorf("released: %+v", gone)
	}
	if gone := c.ask(release("192.168.5.113")); gone != (answer{Version: 1, Command: 2}) {
		t.Errorf("released twice: %+v", gone)
	}
	// Another address gets another number while there is an unused one.
	if n := c.granted(lease("192.168.5.114")); n == first.Table {
		t.Errorf("table %d at once again", n)
	}
	if n := c.granted(lease("192.168.5.113")); n != first.Table {
		t.Errorf("table %d, had %d", n, first.Table)
	}
}

func TestFamiliesShareTheNumbers(t *testing.T) {
	h := newHost(t)
	h.start()
	c := h.client(0)
	seen := map[int]bool{}
	for _, r := range []string{
		lease("192.0.2.1"), request(0, 10, "wan0", "2001:db8::1"), request(0, 0, "wan0", "a modem"), request(0, 0, "wan0", "192.0.2.1"),
	} {
		n := c.granted(r)
		if seen[n] {
			t.Errorf("table %d twice", n)
		}
		seen[n] = true
	}
	link, err := h.a.Acquire(t.Context(), []routing.Key{{Family: routing.IPv4, Interface: "wan0", Prefix: netip.MustParsePrefix("192.0.2.0/24")}}, nil)
	for _, n := range link {
		if err != nil || seen[int(n)] {
			t.Errorf("a link got %d, %v", n, err)
		}
	}
}

func TestBadDatagrams(t *testing.T) {
	h := newHost(t)
	h.start()
	c := h.client(0)
	long := strings.Repeat("x", 46)
	for datagram, code := range map[string]string{
		"[]":                         "malformed",
		"":                           "malformed",
		"null":                       "malformed",
		`{"address":"192.0.2.1","if`: "malformed",
		strings.Repeat("[", 1000):    "malformed",
		`{"address":"` + strings.Repeat("1", 2000) + `"}`:                     "too-long",
		request(0, 0, "wan0", long):                                           "too-long",
		request(0, 2, "wan0", "192.0.2.300"):                                  "address",
		request(0, 2, "wan0", "2001:db8::1"):                                  "address",
		request(0, 2, "interface-with-a-name", "192.0.2.1"):                   "too-long",
		request(0, 3, "wan0", "192.0.2.1"):                                    "family",
		request(2, 2, "wan0", "192.0.2.1"):                                    "command",
		strings.Replace(lease("192.0.2.1"), `"version":1`, `"version":99`, 1): "version",
		`{"address":"192.0.2.1","ifname":"w","addr_family":2,"cmd":0,"version":1,"tag":"` + strings.Repeat("t", 128) + `"}`: "too-long",
	} {
		if a := c.refused(datagram, code); a.Version != 1 {
			t.Errorf("%.60s: answered in version %d, which an old client cannot read", datagram, a.Version)
		}
	}
	// What came before must not complete what comes after.
	c.granted(lease("192.0.2.1"))
	c.refused(lease("192.0.2.1")[:40], "malformed")
	if n := len(h.a.Clients()); n != 1 {
		t.Errorf("%d leases", n)
	}
}

func TestUnboundSenderGetsNoTable(t *testing.T) {
	h := newHost(t)
	h.start()
	h.unbound(0).send(lease("192.0.2.1"))
	// One socket is read in order: it has been dealt with when this is answered.
	h.client(0).granted(lease("192.0.2.2"))
	if all := h.a.Clients(); len(all) != 1 || all[0].Key.Address != "192.0.2.2" {
		t.Errorf("leases %v", all)
	}
	if h.log.count("no address to be answered at") != 1 {
		t.Error("it is not in the log")
	}
}

func TestWhoMayLease(t *testing.T) {
	h := newHost(t)
	h.allow = server.Access{Users: []string{"4001"}, Groups: []string{"daemon", "4003", "no-such-group"}}
	h.start()
	h.client(0).granted(lease("192.0.2.1"))
	h.client(4001).granted(lease("192.0.2.2"))
	h.client(4002).refused(lease("192.0.2.3"), "not-allowed")
	member := h.client(4004)
	member.gid = 4003
	member.granted(lease("192.0.2.4"))
	byName := h.client(4005)
	byName.gid = 1 // daemon, in every Debian
	byName.granted(lease("192.0.2.5"))
}

func TestALeaseIsItsOwners(t *testing.T) {
	h := newHost(t)
	h.allow = server.Access{Users: []string{"4001", "4002"}}
	h.start()
	owner, other, root := h.client(4001), h.client(4002), h.client(0)
	table := owner.granted(lease("192.0.2.1"))
	other.refused(release("192.0.2.1"), "not-yours")
	other.refused(lease("192.0.2.1"), "not-yours")
	if n := root.granted(lease("192.0.2.1")); n != table {
		t.Errorf("root renewed %d", n)
	}
	other.refused(release("192.0.2.1"), "not-yours") // It did not become root's, nor anybody's.
	owner.granted(lease("192.0.2.1"))
	if a := root.ask(release("192.0.2.1")); a.Command != 2 {
		t.Errorf("root may not release: %+v", a)
	}
	if n := other.granted(lease("192.0.2.1")); n != table {
		t.Errorf("the next owner got %d", n)
	}
}

func TestQuota(t *testing.T) {
	h := newHost(t)
	h.allow, h.quota = server.Access{Users: []string{"4001"}}, 2
	h.start()
	c := h.client(4001)
	c.granted(lease("192.0.2.1"))
	c.granted(lease("192.0.2.2"))
	c.refused(lease("192.0.2.3"), "quota")
	c.granted(lease("192.0.2.2"))
	c.ask(release("192.0.2.1"))
	c.granted(lease("192.0.2.3"))
	h.client(0).granted(lease("192.0.2.4"))
}

func TestExhausted(t *testing.T) {
	h := newHost(t)
	h.leases.Range.Last = 10003
	h.kernel.used[10001] = "rule 100 from 10.0.0.0/8"
	h.start()
	c := h.client(0)
	first := c.granted(lease("192.0.2.1"))
	c.granted(lease("192.0.2.2"))
	a := c.refused(lease("192.0.2.3"), "exhausted")
	if !strings.Contains(a.Error, "10000-10003") {
		t.Errorf("it says %q", a.Error)
	}
	c.ask(release("192.0.2.1"))
	if n := c.granted(lease("192.0.2.3")); n != first {
		t.Errorf("table %d, free was %d", n, first)
	}
}

func TestFamilyIsDisabledWithLeases(t *testing.T) {
	h := newHost(t)
	h.start()
	c := h.client(0)
	v6 := request(0, 10, "wan0", "2001:db8::1")
	table := c.granted(v6)
	h.served = []routing.Family{routing.IPv4}
	h.restart()
	c.refused(v6, "family")
	if n := c.granted(lease("192.0.2.1")); n == table {
		t.Error("the table of a lease of the other family was given away")
	}
	h.served = []routing.Family{routing.IPv4, routing.IPv6}
	h.restart()
	if n := c.granted(v6); n != table {
		t.Errorf("table %d, had %d", n, table)
	}
}

func TestRangeShrinks(t *testing.T) {
	h := newHost(t)
	h.start()
	c := h.client(0)
	for i := range 8 {
		c.granted(lease(fmt.Sprintf("192.0.2.%d", i+1)))
	}
	h.leases.Range.Last = 10003
	h.restart()
	if a := c.ask(release("192.0.2.8")); a.Command != 2 {
		t.Errorf("releasing what is outside: %+v", a)
	}
	c.ask(release("192.0.2.1"))
	if n := c.granted(lease("192.0.2.7")); n != 10000 {
		t.Errorf("table %d instead of one of the range", n)
	}
}

func TestExpiryAndReboot(t *testing.T) {
	h := newHost(t)
	h.leases.Range.Last = 10001
	var mu sync.Mutex
	uptime := 500000 * time.Second
	h.leases.Uptime = func() time.Duration {
		mu.Lock()
		defer mu.Unlock()
		return uptime
	}
	h.leases.Boot = "one"
	h.start()
	c := h.client(0)
	c.granted(lease("192.0.2.1"))
	h.restart()
	c.refused(lease("192.0.2.2"), "exhausted")
	mu.Lock()
	uptime += h.life
	mu.Unlock()
	c.granted(lease("192.0.2.2"))
	// After a reboot the clock starts at 0, and what it said before says nothing.
	mu.Lock()
	uptime = 10 * time.Second
	mu.Unlock()
	h.leases.Boot = "two"
	h.restart()
	c.granted(lease("192.0.2.3"))
	// A release of what expired long ago frees nothing, and takes nothing.
	if a := c.ask(release("192.0.2.1")); a.Command != 2 {
		t.Errorf("%+v", a)
	}
	c.refused(lease("192.0.2.1"), "exhausted")
}

func TestDatabaseIsLostWhileLeasesAreInUse(t *testing.T) {
	h := newHost(t)
	h.start()
	c := h.client(0)
	c.granted(lease("192.0.2.1"))
	table := c.granted(lease("192.0.2.2"))
	h.stop()
	// Another file; the rules that the clients set still stand.
	h.leases.Path += ".new"
	h.kernel.used[10000], h.kernel.used[10001] = "rule 10000 from 192.0.2.1", "rule 10000 from 192.0.2.2"
	h.kernel.sources = map[netip.Addr]routing.TableID{
		netip.MustParseAddr("192.0.2.1"): 10000, netip.MustParseAddr("192.0.2.2"): 10001,
	}
	h.start()
	if n := c.granted(lease("192.0.2.3")); n == 10000 || n == 10001 {
		t.Errorf("a newcomer got the table %d that a client uses", n)
	}
	if n := c.granted(lease("192.0.2.2")); n != table {
		t.Errorf("the client that uses %d got %d", table, n)
	}
	// A client of ours says so itself.
	if a := c.ask(`{"address":"192.0.2.9","ifname":"wan0","addr_family":2,"cmd":0,"version":2,"transaction":5,"table":10020}`); a.Table != 10020 || a.Transaction != 5 || a.Version != 2 || a.Lifetime != 3600 {
		t.Errorf("%+v", a)
	}
}

func TestUnknownKernelLeasesNothing(t *testing.T) {
	h := newHost(t)
	h.kernel.err = errors.New("no buffer space available")
	h.start()
	c := h.client(0)
	c.refused(lease("192.0.2.1"), "kernel")
	h.kernel.mu.Lock()
	h.kernel.err = nil
	h.kernel.mu.Unlock()
	c.granted(lease("192.0.2.1"))
}

func TestRouting(t *testing.T) {
	h := newHost(t)
	h.start()
	c := h.client(0)
	want := `{"address":"192.0.2.1","ifname":"wan0","addr_family":2,"cmd":%d,"version":2,"transaction":9,"routing":true%s}`
	if a := c.ask(fmt.Sprintf(want, 0, "")); a != (answer{Version: 2, Command: 2, Table: 10039, Transaction: 9, Routing: true}) {
		t.Errorf("until the address goes: %+v", a)
	}
	if a := c.ask(fmt.Sprintf(want, 0, `,"hold":true`)); a.Table != 10039 || a.Lifetime != 3600 || a.Expires == 0 {
		t.Errorf("until it is not renewed: %+v", a)
	}
	if a := c.ask(fmt.Sprintf(want, 1, "")); a.Command != 2 || a.Table != 0 || !a.Routing {
		t.Errorf("released: %+v", a)
	}
	if n := h.router.left(); n != 0 {
		t.Errorf("%d are left", n)
	}
	c.refused(`{"address":"x","ifname":"wan0","addr_family":0,"cmd":0,"version":2,"transaction":9,"routing":true}`, "family")

	h.router.fail(&wire.Error{Code: wire.Kernel, Text: "adding a rule: operation not permitted"})
	if a := c.refused(fmt.Sprintf(want, 0, ""), "kernel"); a.Error != "adding a rule: operation not permitted" || a.Transaction != 9 {
		t.Errorf("%+v", a)
	}
}

func TestRoutingMakesNobodyElseWait(t *testing.T) {
	h := newHost(t)
	h.router.gate = make(chan struct{})
	h.start()
	waiting := make([]*client, 0, 70)
	for i := range cap(waiting) {
		c := h.client(0)
		c.send(fmt.Sprintf(`{"address":"192.0.2.%d","ifname":"wan0","addr_family":2,"cmd":0,"version":2,"transaction":1,"routing":true}`, i+1))
		waiting = append(waiting, c)
	}
	h.client(0).granted(lease("192.0.2.1"))
	close(h.router.gate)
	busy := 0
	for _, c := range waiting {
		if c.receive().Code == "busy" {
			busy++
		}
	}
	if busy != 6 {
		t.Errorf("%d of 70 were told to come again; 64 may wait", busy)
	}
}

func TestFloodAndDeafClients(t *testing.T) {
	h := newHost(t)
	h.allow, h.quota = server.Access{Users: []string{"4001"}}, 20
	h.start()
	var flood sync.WaitGroup
	stop := make(chan struct{})
	end := sync.OnceFunc(func() {
		close(stop)
		flood.Wait()
	})
	defer end()
	for _, uid := range []uint32{4001, 4002} {
		// Neither reads its answers; one of them may not lease at all.
		for range 2 {
			c := h.client(uid)
			flood.Go(func() {
				for i := 0; ; i++ {
					select {
					case <-stop:
						return
					default:
					}
					if err := c.trySend(lease(fmt.Sprintf("10.%d.%d.1", i>>8&0xff, i&0xff))); err != nil {
						t.Errorf("flooding: %v", err)
						return
					}
				}
			})
		}
	}
	c := h.client(0)
	for range 50 {
		c.granted(lease("192.0.2.1"))
		c.ask(release("192.0.2.1"))
	}
	end()
	c.granted(lease("192.0.2.1"))
	// Each kind of trouble once, for each user, in a minute.
	for what, most := range map[string]int{"lease refused: not-allowed": 1, "did not take its answer": 2} {
		if n := h.log.count(what); n < 1 || n > most {
			t.Errorf("%q is %d times in the log, want 1 to %d", what, n, most)
		}
	}
}

func TestManyClientsAtOnce(t *testing.T) {
	h := newHost(t)
	h.leases.Range.Last = 10999
	h.start()
	var all sync.WaitGroup
	tables := make([]int, 64)
	for i := range tables {
		c := h.client(0)
		all.Go(func() {
			address := fmt.Sprintf("192.0.2.%d", i+1)
			for range 5 {
				tables[i] = c.granted(lease(address))
				c.ask(release(address))
			}
			tables[i] = c.granted(lease(address))
		})
	}
	all.Wait()
	seen := map[int]bool{}
	for _, n := range tables {
		if seen[n] {
			t.Errorf("table %d twice", n)
		}
		seen[n] = true
	}
}

// TestAnyDatagram sends what nobody would: the server answers the next request,
// and has not grown.
func TestAnyDatagram(t *testing.T) {
	const datagrams = 50_000
	h := newHost(t)
	h.leases.Range.Last = 19999
	h.start()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	models := []string{
		lease("192.0.2.1"), release("192.0.2.1"), request(0, 0, "wan0", "x"), request(0, 10, "wan0", "2001:db8::1"),
		`{"address":"192.0.2.1","ifname":"wan0","addr_family":2,"cmd":0,"version":2,"transaction":4294967295,"routing":true,"hold":true,"table":10001}`,
	}
	c := h.client(0)
	grown := func() uint64 {
		// What was sent before may still fill the queue: that refusal says to ask again.
		for c.ask(lease("192.0.2.1")).Code == "busy" {
			continue
		}
		c.granted(lease("192.0.2.1"))
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := grown()
	sender := h.client(0)
	for range datagrams {
		datagram := []byte(models[random.IntN(len(models))])
		for range random.IntN(4) {
			switch at := random.IntN(len(datagram) + 1); random.IntN(4) {
			case 0:
				datagram = datagram[:at]
			case 1:
				datagram = slices.Insert(datagram, at, byte(random.IntN(256)))
			case 2:
				datagram = slices.Insert(datagram, at, []byte(models[random.IntN(len(models))])...)
			default:
				if at < len(datagram) {
					datagram[at] = byte(random.IntN(256))
				}
			}
		}
		sender.send(string(datagram))
		// Its answers are read, so that its queue is not what stops them.
		for {
			if _, _, err := unix.Recvfrom(sender.fd, make([]byte, 2048), unix.MSG_DONTWAIT); err != nil {
				break
			}
		}
	}
	if after := grown(); after > before+8<<20 {
		t.Errorf("the heap grew from %d to %d bytes", before, after)
	}
	// Every answer was a lease of the range, or a refusal.
	for _, l := range h.a.Clients() {
		if !h.leases.Range.Contains(l.Table) {
			t.Errorf("lease %+v", l)
		}
	}
}

// TestOldNumber: a user may say which number he had, but not take somebody else's.
func TestOldNumber(t *testing.T) {
	h := newHost(t)
	h.kernel.mu.Lock()
	h.kernel.used = map[routing.TableID]string{10020: "a route of the administrator's", 10021: "its own rule"}
	h.kernel.sources = map[netip.Addr]routing.TableID{netip.MustParseAddr("192.0.2.21"): 10021}
	h.kernel.mu.Unlock()
	h.allow.Users = []string{"4001"}
	h.start()
	user, root := h.client(4001), h.client(0)
	ask := func(c *client, last, table int) int {
		t.Helper()
		return c.ask(fmt.Sprintf(`{"address":"192.0.2.%d","ifname":"wan0","addr_family":2,"cmd":0,"version":2,"transaction":5,"table":%d}`, last, table)).Table
	}
	for _, test := range []struct {
		by          *client
		last, table int
		gets        bool
	}{{user, 20, 10020, false}, {user, 22, 10021, false}, {user, 21, 10021, true}, {user, 25, 10025, true}, {root, 20, 10020, false}, {root, 30, 10020, true}} {
		if got := ask(test.by, test.last, test.table); got == 0 || got == test.table != test.gets {
			t.Errorf("uid %d, address %d, asked for %d: got %d", test.by.uid, test.last, test.table, got)
		}
	}
}

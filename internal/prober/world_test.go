package prober_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"multihomed/internal/prober"
	"multihomed/internal/prober/client"
	"multihomed/internal/prober/wire"
	"multihomed/test/lab/nettest"
)

// socketEnv makes the test's program a prober that listens at a path, or, if it is "systemd", takes the
// socket that was passed to it.
const socketEnv = "MULTIHOMED_PROBER_TEST_SOCKET"

// TestMain keeps the tests away from the machine's network.
func TestMain(m *testing.M) {
	if path, is := os.LookupEnv(socketEnv); is {
		os.Exit(proberMain(path))
	}
	if _, is := os.LookupEnv(pingEnv); is {
		os.Exit(pingMain(os.Args[1]))
	}
	os.Exit(nettest.Main(m))
}

func proberMain(path string) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if path == "systemd" {
		path = ""
		// The parent cannot know the number before.
		if err := os.Setenv("LISTEN_PID", fmt.Sprint(os.Getpid())); err != nil {
			return 1
		}
	}
	if err := prober.Run(ctx, prober.Options{Socket: path, Logger: slog.New(slog.NewTextHandler(os.Stderr, nil))}); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

func addr(s string) netip.Addr         { return netip.MustParseAddr(s) }
func addrPort(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

// patience is generous: only a failure takes it.
const patience = 20 * time.Second

// user is who the prober runs as.
const user = 54321

// A world is a host with two links to a provider. The test's thread is on the host, and ends with the
// test. At the provider, resolver answers queries and has an open port 443, both by either family.
type world struct {
	host, isp netns.NsHandle
	// wan0 and wan1 are the indexes of the links.
	wan0, wan1 int

	mu sync.Mutex
	// sources counts queries by their source.
	sources map[netip.Addr]int
	// answer makes the answers of resolvers; nil is the honest one.
	answer func(query []byte) [][]byte
}

const (
	host4, host6         = "192.0.2.2", "2001:db8:1::2"
	gateway4             = "192.0.2.1"
	second4              = "198.51.100.2"
	resolver4, resolver6 = "203.0.113.53", "2001:db8:53::53"
	// The provider answers these: port unreachable; host unreachable and no route; not at all.
	rejected4, rejected6 = "203.0.113.77", "2001:db8:53::77"
	noRoute4, noRoute6   = "203.0.113.66", "2001:db8:53::66"
	silent4, silent6     = "203.0.113.99", "2001:db8:53::99"
)

func newWorld(t *testing.T) *world {
	t.Helper()
	runtime.LockOSThread()
	w := &world{sources: map[netip.Addr]int{}}
	var err error
	w.isp, err = netns.New()
	must(t, err)
	t.Cleanup(func() { must(t, w.isp.Close()) })
	w.host, err = netns.New()
	must(t, err)
	t.Cleanup(func() { must(t, w.host.Close()) })
	for i, name := range []string{"wan0", "wan1"} {
		must(t, netlink.LinkAdd(&netlink.Veth{
			LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: fmt.Sprintf("isp%d", i), PeerNamespace: netlink.NsFd(int(w.isp)),
		}))
	}
	run(t, `ip link set lo up`, `ip link set wan0 up`, `ip link set wan1 up`,
		`ip addr add 192.0.2.2/24 dev wan0`, `ip addr add 2001:db8:1::2/64 dev wan0 nodad`,
		`ip addr add 198.51.100.2/24 dev wan1`, `ip addr add 2001:db8:2::2/64 dev wan1 nodad`,
		`ip route add default via 192.0.2.1 dev wan0`, `ip -6 route add default via 2001:db8:1::1 dev wan0`,
		`ip route add default via 198.51.100.1 dev wan1 metric 100`, `ip -6 route add default via 2001:db8:2::1 dev wan1 metric 2000`,
		`sysctl -qw net.ipv4.conf.all.rp_filter=0`)
	w.wan0, w.wan1 = index(t, "wan0"), index(t, "wan1")
	w.at(t, func() {
		run(t, `sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv4.icmp_ratelimit=0 net.ipv6.icmp.ratelimit=0 net.ipv4.conf.all.rp_filter=0`,
			`ip link set lo up`, `ip link set isp0 up`, `ip link set isp1 up`,
			`ip addr add 192.0.2.1/24 dev isp0`, `ip addr add 2001:db8:1::1/64 dev isp0 nodad`,
			`ip addr add 198.51.100.1/24 dev isp1`, `ip addr add 2001:db8:2::1/64 dev isp1 nodad`,
			`ip addr add 203.0.113.53/32 dev lo`, `ip addr add 2001:db8:53::53/128 dev lo nodad`,
			`ip link add behind type veth peer name beyond`, `ip link set behind up`, `ip link set beyond up`,
			`ip route add 203.0.113.77/32 dev behind`, `ip -6 route add 2001:db8:53::77/128 dev behind`,
			`ip route add 203.0.113.66/32 dev behind`, `ip -6 route add 2001:db8:53::66/128 dev behind`,
			`ip route add blackhole 203.0.113.99/32`, `ip -6 route add blackhole 2001:db8:53::99/128`,
			`nft add table inet f`, `nft add chain inet f forward { type filter hook forward priority 0; }`,
			`nft add rule inet f forward ip daddr 203.0.113.77 reject`, `nft add rule inet f forward ip6 daddr 2001:db8:53::77 reject`,
			// Not by a route, whose errors the kernel limits (ip_error in net/ipv4/route.c).
			`nft add rule inet f forward ip daddr 203.0.113.66 reject with icmp type host-unreachable`,
			`nft add rule inet f forward ip6 daddr 2001:db8:53::66 reject with icmpv6 type no-route`)
		w.serve(t, "udp4")
		w.serve(t, "udp6")
		l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", ":443")
		must(t, err)
		accept(t, l)
	})
	w.settle(t)
	return w
}

// settle waits until both addresses of the resolver can be reached.
func (w *world) settle(t *testing.T) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for _, to := range []string{resolver4, resolver6} {
		for {
			d := net.Dialer{Timeout: time.Second}
			c, err := d.DialContext(t.Context(), "tcp", net.JoinHostPort(to, "443"))
			if err == nil {
				must(t, c.Close())
				break
			}
			if time.Now().After(deadline) {
				t.Fatal(err)
			}
		}
	}
}

// accept reads from all connections, until the listener and then they are closed.
func accept(t *testing.T, l net.Listener) {
	var all sync.WaitGroup
	var mu sync.Mutex
	var open []net.Conn
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open = append(open, c)
			mu.Unlock()
			all.Go(func() { _, _ = io.Copy(io.Discard, c) }) // Probes reset it.
		}
	})
	t.Cleanup(func() {
		must(t, l.Close())
		mu.Lock()
		defer mu.Unlock()
		for _, c := range open {
			_ = c.Close()
		}
		all.Wait()
	})
}

// at calls f on this thread at the provider.
func (w *world) at(t *testing.T, f func()) {
	t.Helper()
	must(t, netns.Set(w.isp))
	defer func() { must(t, netns.Set(w.host)) }()
	f()
}

// serve answers queries to all addresses, each from the address that was asked.
func (w *world) serve(t *testing.T, network string) {
	t.Helper()
	for _, address := range map[string][]string{"udp4": {resolver4, gateway4}, "udp6": {resolver6}}[network] {
		c, err := net.ListenUDP(network, net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr(address), 53)))
		must(t, err)
		t.Cleanup(func() { must(t, c.Close()) })
		go func() {
			b := make([]byte, 4096)
			for {
				n, from, err := c.ReadFromUDPAddrPort(b)
				if err != nil {
					return
				}
				w.mu.Lock()
				w.sources[from.Addr()]++
				answer := w.answer
				w.mu.Unlock()
				if answer == nil {
					answer = honest
				}
				for _, a := range answer(bytes.Clone(b[:n])) {
					_, _ = c.WriteToUDPAddrPort(a, from)
				}
			}
		}()
	}
}

func honest(query []byte) [][]byte {
	query[2] |= 0x80
	return [][]byte{query}
}

func (w *world) answers(answer func([]byte) [][]byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.answer = answer
}

func index(t *testing.T, name string) int {
	t.Helper()
	link, err := netlink.LinkByName(name)
	must(t, err)
	return link.Attrs().Index
}

func run(t *testing.T, commands ...string) {
	t.Helper()
	for _, c := range commands {
		// The thread's namespace is the command's.
		words := strings.Fields(c)
		if out, err := exec.CommandContext(t.Context(), words[0], words[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", c, err, out)
		}
	}
}

// A child is a prober in a process of its own, without rights.
type child struct {
	path string
	cmd  *exec.Cmd
	log  bytes.Buffer
	done chan struct{}
}

// start starts a prober on this thread's network.
func start(t *testing.T) *child {
	t.Helper()
	dir, err := os.MkdirTemp("", "prober") //nolint:usetesting // The user of the prober must reach it.
	must(t, err)
	t.Cleanup(func() { must(t, os.RemoveAll(dir)) })
	must(t, os.Chown(dir, user, user))
	p := &child{path: filepath.Join(dir, "socket")}
	p.run(t)
	return p
}

func (p *child) run(t *testing.T) {
	t.Helper()
	p.done = make(chan struct{})
	p.cmd = exec.Command("/proc/self/exe") //nolint:noctx // It is killed below.
	p.cmd.Env = []string{socketEnv + "=" + p.path}
	p.cmd.Stderr = &p.log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: user, Gid: user}}
	must(t, p.cmd.Start())
	cmd, done := p.cmd, p.done
	go func() {
		defer close(done)
		_ = cmd.Wait() // Its end is what counts.
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-done
		if t.Failed() {
			t.Logf("the prober's log:\n%s", p.log.String())
		}
	})
}

// connection is a client, and its events.
type connection struct {
	*client.Client
	t *testing.T
}

func connect(t *testing.T, path string) connection {
	t.Helper()
	c := connection{Client: client.New(path), t: t}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		c.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
	})
	return c
}

// next returns the next event.
func (c connection) next() client.Event {
	c.t.Helper()
	select {
	case e, more := <-c.Events():
		if !more {
			c.t.Fatal("the client has ended")
		}
		return e
	case <-time.After(patience):
		c.t.Fatal("no event")
	}
	return client.Event{}
}

// connected waits for the connection.
func (c connection) connected() connection {
	c.t.Helper()
	for {
		if _, is := c.next().Report.(client.Connected); is {
			return c
		}
	}
}

// lost waits for its end.
func (c connection) lost() error {
	c.t.Helper()
	for {
		if lost, is := c.next().Report.(client.Lost); is {
			return lost.Err
		}
	}
}

// probe does one probe and returns its last event. An answer must be between now and the horizon of a
// later ping.
func (c connection) probe(p wire.Probe) client.Event {
	c.t.Helper()
	before := time.Now()
	id, err := c.Probe(p)
	must(c.t, err)
	var sent time.Time
	for {
		e := c.next()
		switch r := e.Report.(type) {
		case client.Sent:
			sent = r.At
			if r.ID != id || sent.Before(before) {
				c.t.Fatalf("%+v, for %d of %v", r, id, before)
			}
			continue
		case client.Answered:
			if r.ID != id || sent.IsZero() || r.At.Before(sent) || r.RTT <= 0 || r.RTT > r.At.Sub(sent) {
				c.t.Fatalf("%+v, for %d of %v", r, id, sent)
			}
		case client.Unsent:
			if !sent.IsZero() {
				c.t.Fatal("sent and unsent")
			}
		case client.Lost:
			c.t.Fatal(r.Err)
		}
		return e
	}
}

func isAnswered(e client.Event) bool { _, is := e.Report.(client.Answered); return is }

// fails returns the error of a probe that was sent and failed.
func (c connection) fails(p wire.Probe) error {
	c.t.Helper()
	e := c.probe(p)
	if f, is := e.Report.(client.Failed); is {
		return f.Err
	}
	return fmt.Errorf("%w: %+v", errors.ErrUnsupported, e.Report)
}

// unsent returns the error of a probe that was not sent.
func (c connection) unsent(p wire.Probe) error {
	c.t.Helper()
	e := c.probe(p)
	if f, is := e.Report.(client.Unsent); is {
		return f.Err
	}
	return fmt.Errorf("%w: %+v", errors.ErrUnsupported, e.Report)
}

// capabilities are the effective ones of a process, and its real user.
func capabilities(t *testing.T, pid int) (caps, uid string) {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	must(t, err)
	for line := range strings.Lines(string(text)) {
		if value, is := strings.CutPrefix(line, "CapEff:\t"); is {
			caps = strings.TrimSpace(value)
		}
		if value, is := strings.CutPrefix(line, "Uid:\t"); is {
			uid = strings.Fields(value)[1]
		}
	}
	return caps, uid
}

// rawClient is a client that keeps to no rule.
func rawClient(t *testing.T, path string) int {
	t.Helper()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	must(t, unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: int64(patience.Seconds())}))
	deadline := time.Now().Add(patience)
	for {
		err := unix.Connect(fd, &unix.SockaddrUnix{Name: path})
		if err == nil {
			return fd
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

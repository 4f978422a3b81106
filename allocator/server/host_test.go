package server_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"multihomed/allocator"
	"multihomed/allocator/server"
	"multihomed/internal/unixgram"
	"multihomed/routing"
	"multihomed/test/lab/nettest"
)

func TestMain(m *testing.M) { os.Exit(nettest.Main(m)) }

// patience bounds what a test waits for.
const patience = 20 * time.Second

var serial atomic.Int64

// A host is a server with real leases and real sockets, and a kernel and a
// router that do what the test says.
type host struct {
	*testing.T
	name   string
	leases allocator.Options
	allow  server.Access
	served []routing.Family
	life   time.Duration
	quota  int
	kernel kernel
	router router
	log    logbook

	stop func()
	a    *allocator.Allocator
}

func newHost(t *testing.T) *host {
	t.Helper()
	h := &host{
		T: t, name: fmt.Sprintf("test%d", serial.Add(1)),
		leases: allocator.Options{
			Path: filepath.Join(t.TempDir(), "leases.db"), Range: routing.TableRange{First: 10000, Last: 10039},
		},
		served: []routing.Family{0, routing.IPv4, routing.IPv6}, life: time.Hour,
	}
	h.kernel.used = map[routing.TableID]string{}
	return h
}

// start runs the server until the test ends or stop is called.
func (h *host) start() {
	h.Helper()
	a, err := allocator.Open(h.Context(), h.leases)
	if err != nil {
		h.Fatal(err)
	}
	h.a = a
	s := server.New(server.Options{
		Leases: a, Kernel: &h.kernel, Router: &h.router, Access: h.allow, Families: h.served,
		Lifetime: h.life, Quota: h.quota, Logger: slog.New(slog.NewTextHandler(&h.log, nil)), Uptime: allocator.Uptime,
	})
	exact, err := unixgram.Abstract(h.name)
	if err != nil {
		h.Fatal(err)
	}
	conns := make(chan *unixgram.Conn, 2)
	var open []*unixgram.Conn
	for _, address := range []unixgram.Address{exact, exact.Padded()} {
		conn, err := unixgram.Listen(address)
		if err != nil {
			h.Fatal(err)
		}
		open = append(open, conn)
		conns <- conn
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx, conns) }()
	h.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			h.Error(err)
		}
		for _, conn := range open {
			if err := conn.Close(); err != nil {
				h.Error(err)
			}
		}
		if err := a.Close(); err != nil {
			h.Error(err)
		}
	})
	h.Cleanup(h.stop)
}

// restart ends the server in an orderly way and starts another.
func (h *host) restart() {
	h.Helper()
	h.stop()
	h.start()
}

// kernel is a server.Kernel.
type kernel struct {
	mu      sync.Mutex
	used    map[routing.TableID]string
	sources map[netip.Addr]routing.TableID
	err     error
}

func (k *kernel) Fresh(context.Context) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.err
}

func (k *kernel) InUse(t routing.TableID) (string, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	why, used := k.used[t]
	return why, used
}

func (k *kernel) Used(a netip.Addr) routing.TableID {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.sources[a]
}

// router is a server.Router that gives table 10039 to every address, but for an
// error it is told; while gate is set, only when that is closed.
type router struct {
	mu     sync.Mutex
	routes map[netip.Addr]server.Route
	err    error
	gate   chan struct{}
}

func (r *router) Route(ctx context.Context, want server.Route) (routing.TableID, error) {
	r.mu.Lock()
	gate, err := r.gate, r.err
	r.mu.Unlock()
	if gate != nil {
		select {
		case <-gate:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
	if err != nil {
		return 0, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.routes == nil {
		r.routes = map[netip.Addr]server.Route{}
	}
	r.routes[want.Address] = want
	return 10039, nil
}

func (r *router) Unroute(_ context.Context, what server.Route) (bool, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, known := r.routes[what.Address]
	delete(r.routes, what.Address)
	return known, nil
}

func (r *router) left() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.routes)
}

func (r *router) fail(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.err = err
}

func (*router) Expire(context.Context) {}

// logbook keeps what is logged.
type logbook struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logbook) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logbook) count(what string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.text.String(), what)
}

// A client is a program with a socket, as a given user.
type client struct {
	*host
	fd  int
	uid uint32
	gid uint32
}

// client makes one with a name in the abstract namespace. Root may say to be
// anybody (unix(7), SCM_CREDENTIALS), which saves processes.
func (h *host) client(uid uint32) *client {
	h.Helper()
	c := h.unbound(uid)
	if err := unix.Bind(c.fd, &unix.SockaddrUnix{Name: fmt.Sprintf("@client%d", serial.Add(1))}); err != nil {
		h.Fatal(err)
	}
	return c
}

func (h *host) unbound(uid uint32) *client {
	h.Helper()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		h.Fatal(err)
	}
	h.Cleanup(func() { _ = unix.Close(fd) })
	wait := unix.NsecToTimeval(patience.Nanoseconds())
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait); err != nil {
		h.Fatal(err)
	}
	return &client{host: h, fd: fd, uid: uid, gid: uid}
}

func (c *client) send(datagram string) {
	c.Helper()
	if err := c.trySend(datagram); err != nil {
		c.Fatal(err)
	}
}

func (c *client) trySend(datagram string) error {
	who := unix.UnixCredentials(&unix.Ucred{Pid: int32(os.Getpid()), Uid: c.uid, Gid: c.gid})
	for {
		err := unix.Sendmsg(c.fd, []byte(datagram), who, &unix.SockaddrUnix{Name: "@" + c.name}, 0)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// An answer is any field that any version of the protocol has.
type answer struct {
	Version     int    `json:"version"`
	Command     int    `json:"cmd"`
	Table       int    `json:"table"`
	Expires     int64  `json:"lease_expires"`
	Lifetime    int64  `json:"lifetime"`
	Transaction uint32 `json:"transaction"`
	Routing     bool   `json:"routing"`
	Code        string `json:"code"`
	Error       string `json:"error"`
}

func (c *client) receive() answer {
	c.Helper()
	buffer := make([]byte, 2048)
	n, _, err := unix.Recvfrom(c.fd, buffer, 0)
	for errors.Is(err, unix.EINTR) {
		n, _, err = unix.Recvfrom(c.fd, buffer, 0)
	}
	if err != nil {
		c.Fatalf("no answer: %v", err)
	}
	var a answer
	if err := json.Unmarshal(buffer[:n], &a); err != nil {
		c.Fatalf("answer %q: %v", buffer[:n], err)
	}
	if a.Version == 1 && n > 253 {
		c.Fatalf("an old client cannot read %d bytes", n)
	}
	return a
}

func (c *client) ask(datagram string) answer {
	c.Helper()
	c.send(datagram)
	return c.receive()
}

func request(command, family int, name, address string) string {
	return fmt.Sprintf(`{"address":%q,"ifname":%q,"addr_family":%d,"cmd":%d,"version":1}`, address, name, family, command)
}

func lease(address string) string { return request(0, 2, "wan0", address) }

func release(address string) string { return request(1, 2, "wan0", address) }

// granted must be a lease, and returns its number.
func (c *client) granted(datagram string) int {
	c.Helper()
	a := c.ask(datagram)
	if a.Command != 2 || a.Table == 0 {
		c.Fatalf("%s: %+v", datagram, a)
	}
	return a.Table
}

// refused must be refused.
func (c *client) refused(datagram, code string) answer {
	c.Helper()
	a := c.ask(datagram)
	if a.Command != 3 || a.Code != code || a.Error == "" || a.Table != 0 {
		c.Errorf("%.80s: %+v, want a refusal with code %s", datagram, a, code)
	}
	return a
}

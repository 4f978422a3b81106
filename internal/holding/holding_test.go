package holding_test

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"multihomed/internal/binder"
	binderwire "multihomed/internal/binder/wire"
	"multihomed/internal/cgroupbpf"
	"multihomed/internal/holding"
	"multihomed/internal/holding/client"
	"multihomed/internal/holding/wire"
	"multihomed/routing"
)

// askEnv makes the test's program a helper that asks on a socket for wan1.
const askEnv = "MULTIHOMED_HOLDING_TEST_ASK"

func TestMain(m *testing.M) {
	if path := os.Getenv(askEnv); path != "" {
		_, err := client.Daemon{Path: path}.Hold(context.Background(), "wan1")
		if err != nil {
			os.Stdout.WriteString(err.Error())
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

var (
	mark = routing.Mark{Value: 0x82000000, Mask: 0xff000000}
	dns4 = netip.MustParseAddr("192.0.2.53")
	dns6 = netip.MustParseAddr("2001:db8::53")
	host = netip.MustParseAddr("198.51.100.53")
)

// A daemon knows wan1.
type daemon struct {
	mu      sync.Mutex
	servers []netip.Addr
	changes []binderwire.DNS
	fail    error
	stored  []string
	maps    *holding.Maps
	server  *holding.Server
}

func (d *daemon) Hold(_ context.Context, link string) (routing.Mark, error) {
	if link != "wan1" {
		return routing.Mark{}, errors.New("there is no link " + link + "; there are wan0 and wan1")
	}
	return mark, nil
}

func start(t *testing.T, group, helper string) (*daemon, client.Daemon) {
	t.Helper()
	// A directory that others may enter.
	dir, err := os.MkdirTemp("/tmp", "holding-test-") //nolint:usetesting // see above
	must(t, err)
	t.Cleanup(func() { must(t, os.RemoveAll(dir)) })
	must(t, os.Chmod(dir, 0o755))
	d := &daemon{servers: []netip.Addr{netip.MustParseAddr("fe80::1"), dns4, dns6}}
	d.maps = &holding.Maps{Store: func(name string, _ *os.File) error {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.stored = append(d.stored, name)
		return nil
	}}
	t.Cleanup(func() { _ = d.maps.Close() }) // Tests may have closed a file before.
	d.server, err = holding.Listen(dir, holding.Options{
		Logger: slog.New(slog.DiscardHandler), Holder: d, Maps: d.maps, Group: group, Helper: helper,
		Servers: func(context.Context, string) ([]netip.Addr, bool, error) {
			d.mu.Lock()
			defer d.mu.Unlock()
			return d.servers, true, nil
		},
		Resolvers: func() ([]netip.Addr, error) {
			return []netip.Addr{netip.MustParseAddr("127.0.0.53"), dns4, host, host}, nil
		},
		Change: func(_ context.Context, to binderwire.DNS, _ *os.File) error {
			d.changes = append(d.changes, to)
			return d.fail
		},
	})
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- d.server.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		must(t, <-done)
	})
	return d, client.Daemon{Path: filepath.Join(dir, wire.Name)}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// newMap stands for a map: the daemon only keeps the descriptor.
func newMap(t *testing.T) *os.File {
	t.Helper()
	fd, err := unix.MemfdCreate("map", 0)
	must(t, err)
	f := os.NewFile(uintptr(fd), "map")
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func sameFile(t *testing.T, a, b *os.File) bool {
	t.Helper()
	x, err := a.Stat()
	must(t, err)
	y, err := b.Stat()
	must(t, err)
	return os.SameFile(x, y)
}

func TestALinkIsHeldAndItsMapKept(t *testing.T) {
	d, c := start(t, "0", "nobody")
	first, err := c.Hold(t.Context(), "wan1")
	must(t, err)
	if first.Mark != cgroupbpf.Mark(mark) || first.Map != nil || first.Note != "" || first.DNS.Server4 != dns4 || first.DNS.Server6 != dns6 || !slices.Equal(first.DNS.Resolvers, []netip.Addr{host}) {
		t.Fatalf("%+v, DNS %+v", first, first.DNS)
	}
	kept := newMap(t)
	must(t, first.Keep(t.Context(), kept))
	second, err := c.Hold(t.Context(), "wan1")
	must(t, err)
	if second.Map == nil || !sameFile(t, second.Map, kept) {
		t.Fatalf("%+v", second)
	}
	must(t, second.Map.Close())
	d.mu.Lock()
	if !slices.Equal(d.stored, []string{"dns-map-wan1"}) {
		t.Errorf("systemd keeps %q", d.stored)
	}
	d.mu.Unlock()
	if _, err := c.Hold(t.Context(), "wan7"); err == nil || err.Error() != "there is no link wan7; there are wan0 and wan1" {
		t.Error(err)
	}
}

func TestMapsFollowTheServersOfTheirLinks(t *testing.T) {
	d, c := start(t, "0", "nobody")
	follow := func(servers ...netip.Addr) error {
		return d.server.Follow(t.Context(), func(link string) []netip.Addr {
			if link != "wan1" {
				t.Errorf("%s is followed", link)
			}
			return servers
		})
	}
	must(t, follow(dns6))
	b, err := c.Hold(t.Context(), "wan1")
	must(t, err)
	must(t, b.Keep(t.Context(), newMap(t)))
	must(t, follow(dns4, dns6))
	must(t, follow())
	if len(d.changes) > 0 {
		t.Errorf("without a change: %+v", d.changes)
	}
	d.fail = errors.New("no helper")
	if err := follow(dns6); err == nil || !strings.Contains(err.Error(), "wan1 keep its old DNS servers: no helper") {
		t.Error(err)
	}
	d.fail = nil
	must(t, follow(dns6))
	must(t, follow(dns6))
	want := binderwire.DNS{Server6: dns6, Resolvers: []netip.Addr{dns4, host}}
	if len(d.changes) != 2 || !d.changes[1].Equal(want) {
		t.Errorf("%+v", d.changes)
	}
	// As after a restart: nobody knows what a map of systemd's store holds.
	if d.maps.TakeStored("tas_socket", newMap(t)) || d.maps.TakeStored("dns-map-a/b", newMap(t)) || d.maps.TakeStored("dns-map-%1", newMap(t)) {
		t.Error("something else is a map")
	}
	for _, link := range []string{"wan1", "Wired connection 1", "caf\xe9:a/b%"} {
		if name := holding.StoreName(link); strings.ContainsAny(name, ": /") || !new(holding.Maps).TakeStored(name, newMap(t)) {
			t.Errorf("the map of %q is none: %q", link, name)
		}
	}
	if !d.maps.TakeStored(holding.StoreName("wan1"), newMap(t)) {
		t.Error("a map is none")
	}
	must(t, follow(dns6))
	if len(d.changes) != 3 {
		t.Errorf("%+v", d.changes)
	}
	for range 4 {
		d.maps.TakeStored(holding.StoreName("wan1"), newMap(t))
	}
	if err := b.Keep(t.Context(), newMap(t)); err == nil || !strings.Contains(err.Error(), "to fix") {
		t.Errorf("one map too many: %v", err)
	}
}

func TestNamesOfStoredMaps(t *testing.T) {
	t.Parallel()
	for _, link := range []string{"wan0", "caf\xe9", "a%b", "100%"} {
		maps := &holding.Maps{}
		name := holding.StoreName(link)
		f := newMap(t)
		if strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r > '~' }) || !maps.TakeStored(name, f) {
			t.Errorf("%q is stored as %q", link, name)
		}
	}
}

func TestALinkWithoutServersSaysSo(t *testing.T) {
	d, c := start(t, "0", "nobody")
	d.mu.Lock()
	d.servers = nil
	d.mu.Unlock()
	b, err := c.Hold(t.Context(), "wan1")
	must(t, err)
	if !strings.Contains(b.Note, "wan1 has no DNS server") || b.DNS.Server4.IsValid() || len(b.DNS.Resolvers) != 2 {
		t.Errorf("%+v", b)
	}
}

func TestWhoMayBind(t *testing.T) {
	_, c := start(t, "0", "nobody")
	for _, p := range []binder.Peer{{}, {UID: 7, GID: 0}, {UID: 7, GID: 8, Groups: []uint32{9, 0}}} {
		if err := c.Allowed(t.Context(), p); err != nil {
			t.Errorf("%+v: %v", p, err)
		}
	}
	if err := c.Allowed(t.Context(), binder.Peer{UID: 7, GID: 8, Groups: []uint32{9}}); err == nil || !strings.Contains(err.Error(), "usermod -aG 0") {
		t.Error(err)
	}
	c.Trusted = []uint32{7}
	if err := c.Allowed(t.Context(), binder.Peer{UID: 7, GID: 8}); err != nil {
		t.Errorf("the daemon: %v", err)
	}
	_, c = start(t, "no-such-group", "nobody")
	if err := c.Allowed(t.Context(), binder.Peer{UID: 7}); err == nil || !strings.Contains(err.Error(), "no-such-group") {
		t.Error(err)
	}
	if err := (client.Daemon{Path: "/nowhere"}).Allowed(t.Context(), binder.Peer{UID: 7}); err == nil || !strings.Contains(err.Error(), "systemctl start multihomed") {
		t.Error(err)
	}
}

// TestOnlyTheHelperIsAnswered: who is neither root nor the helper's user gets nothing.
func TestOnlyTheHelperIsAnswered(t *testing.T) {
	nobody, err := user.Lookup("nobody")
	must(t, err)
	uid, err := strconv.ParseUint(nobody.Uid, 10, 32)
	must(t, err)
	for helper, want := range map[string]string{"nobody": "", "daemon": "it does not answer this user", "no-such-user": "it does not answer this user"} {
		_, c := start(t, "0", helper)
		cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
		cmd.Env = append(os.Environ(), askEnv+"="+c.Path)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}}
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), want) || want == "" && len(out) > 0 {
			t.Errorf("helper %s: %v, %q", helper, err, out)
		}
	}
}

// Package integration_test runs package dnsmasq against the real dnsmasq in the
// lab.
package dnsmasq_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"multihomed/internal/dnsmasq"
	"multihomed/test/lab"
	"multihomed/test/lab/labtest"
)

func TestMain(m *testing.M) { os.Exit(labtest.Main(m)) }

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// A provider is a DNS server behind a link of the host: wan0 with 100.64.0.1,
// 2001:db8:0:1::1 and fe80::1 for number 0. Every one answers a name with
// its own IPv4 address.
type provider struct {
	name   string
	dns    *lab.Process
	v4, v6 netip.Addr // the host's addresses on the link
	s4, s6 netip.Addr // the server's
	heard  int        // how many of its lines were read
}

func newProvider(t *testing.T, host *lab.Host, n int) *provider {
	t.Helper()
	ns, err := host.NewNamespace(fmt.Sprintf("isp%d", n))
	must(t, err)
	p := &provider{
		name: fmt.Sprintf("wan%d", n),
		v4:   addr(fmt.Sprintf("100.64.%d.10", n)), s4: addr(fmt.Sprintf("100.64.%d.1", n)),
		v6: addr(fmt.Sprintf("2001:db8:0:%d::10", n+1)), s6: addr(fmt.Sprintf("2001:db8:0:%d::1", n+1)),
	}
	_, err = host.NewLink(lab.LinkConfig{Name: p.name, Namespace: ns, Up: true})
	must(t, err)
	for _, a := range []netip.Addr{p.s4, p.s6, addr("fe80::1")} {
		must(t, ns.AddAddr(p.name, netip.PrefixFrom(a, bits(a))))
	}
	for _, a := range []netip.Addr{p.v4, p.v6} {
		must(t, host.AddAddr(p.name, netip.PrefixFrom(a, bits(a)).String()))
	}
	p.dns, err = host.Start(lab.ProcessConfig{Path: "dnsmasq", Namespace: ns, Args: []string{
		"--keep-in-foreground", "--log-facility=-", "--log-queries", "--conf-file=/dev/null", "--user=root", "--pid-file=",
		"--no-resolv", "--no-hosts", "--address=/test/" + p.s4.String(),
	}})
	must(t, err)
	_, err = p.dns.WaitLine(t.Context(), "started, version")
	must(t, err)
	return p
}

func bits(a netip.Addr) int {
	if a.Is4() {
		return 24
	}
	return 64
}

// asked waits for a query and returns from where it came.
func (p *provider) asked(t *testing.T, name string) netip.Addr {
	t.Helper()
	line, err := p.dns.WaitLineAfter(t.Context(), p.heard, "] "+name+" from ")
	must(t, err)
	p.heard = len(p.dns.Lines())
	a, err := netip.ParseAddr(line[strings.LastIndexByte(line, ' ')+1:])
	must(t, err)
	return a
}

// A resolver is a dnsmasq of the host.
type resolver struct {
	*lab.Process
	path, pidFile string
	port          int
}

// newResolver starts one; user is what it becomes after it has started.
func newResolver(t *testing.T, host *lab.Host, port int, user string) *resolver {
	t.Helper()
	dir := t.TempDir()
	// It reads the file as its user.
	for d := dir; d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		must(t, os.Chmod(d, 0o777))
	}
	r := &resolver{path: filepath.Join(dir, "servers"), pidFile: filepath.Join(dir, "pid"), port: port}
	r.start(t, host, user)
	return r
}

func (r *resolver) start(t *testing.T, host *lab.Host, user string) {
	t.Helper()
	var err error
	r.Process, err = host.Start(lab.ProcessConfig{Path: "dnsmasq", Args: []string{
		"--keep-in-foreground", "--log-facility=-", "--log-queries", "--conf-file=/dev/null", "--user=" + user,
		"--pid-file=" + r.pidFile, "--servers-file=" + r.path, "--no-resolv", "--no-hosts", "--all-servers", "--cache-size=0",
		"--listen-address=127.0.0.1", "--bind-interfaces", "--port=" + strconv.Itoa(r.port),
	}})
	must(t, err)
	_, err = r.WaitLine(t.Context(), "started, version")
	must(t, err)
}

func (r *resolver) lookUp(ctx context.Context, name string) (netip.Addr, error) {
	resolver := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "udp", net.JoinHostPort("127.0.0.1", strconv.Itoa(r.port)))
	}}
	all, err := resolver.LookupNetIP(ctx, "ip4", name+".")
	if err != nil {
		return netip.Addr{}, err
	}
	return all[0].Unmap(), nil
}

var count int

// answers checks that a provider answers a name below a domain, from an address of
// the host if it is given. Each question is another one: dnsmasq refuses one that
// was not answered and is asked again after its server went.
func (r *resolver) answers(t *testing.T, domain string, p *provider, from netip.Addr) {
	t.Helper()
	count++
	name := fmt.Sprintf("n%d.%s", count, domain)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	got, err := r.lookUp(ctx, name)
	if err != nil || got != p.s4 {
		t.Fatalf("%s is %v, %v; want %v\ndnsmasq:\n%s", name, got, err, p.s4, r.Log())
	}
	if at := p.asked(t, name); from.IsValid() && at != from {
		t.Errorf("%s was asked from %v, want %v", name, at, from)
	}
}

// update has the servers written and waits until dnsmasq uses them.
func (r *resolver) update(t *testing.T, f *dnsmasq.File, uses string, servers ...dnsmasq.Server) {
	t.Helper()
	n := len(r.Lines())
	must(t, f.Update(t.Context(), servers))
	_, err := r.WaitLineAfter(t.Context(), n, uses)
	must(t, err)
}

func debug(t *testing.T) *slog.Logger {
	t.Helper()
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
}

func TestServers(t *testing.T) {
	host := labtest.NewHost(t, lab.HostConfig{FastDAD: true, NoBus: true})
	a, b := newProvider(t, host, 0), newProvider(t, host, 1)
	r, beside := newResolver(t, host, 5301, "root"), newResolver(t, host, 5302, "root")
	// It has read its file once when it answers.
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if a, err := beside.lookUp(ctx, "which.test"); err == nil {
		t.Errorf("an answer from nowhere: %v", a)
	}
	// What it has written before is read, too, when its line of the question is.
	_, err := beside.WaitLine(ctx, "which.test")
	must(t, err)
	quiet := len(beside.Lines())
	f := dnsmasq.New(r.path, r.pidFile, debug(t))

	r.update(t, f, "using nameserver 100.64.0.1#53", dnsmasq.Server{Interface: a.name, Address: a.s4, Source: a.v4})
	r.answers(t, "which.test", a, a.v4)
	r.update(t, f, "using nameserver 100.64.1.1#53", dnsmasq.Server{Interface: b.name, Address: b.s4, Source: b.v4})
	r.answers(t, "which.test", b, b.v4)
	r.update(t, f, "using nameserver 2001:db8:0:1::1#53", dnsmasq.Server{Interface: a.name, Address: a.s6, Source: a.v6})
	r.answers(t, "which.test", a, a.v6)
	r.update(t, f, "using nameserver 2001:db8:0:2::1#53", dnsmasq.Server{Interface: b.name, Address: b.s6})
	r.answers(t, "which.test", b, b.v6)

	// The same address on both links is another server on each.
	shared := addr("fe80::1")
	for _, p := range []*provider{a, b} {
		r.update(t, f, "using nameserver fe80::1%"+p.name+"#53", dnsmasq.Server{Interface: p.name, Address: shared})
		r.answers(t, "which.test", p, netip.Addr{})
	}
	r.update(t, f, "using nameserver fe80::1%"+a.name+"#53", dnsmasq.Server{Interface: a.name, Address: shared, Source: a.v6})
	r.answers(t, "which.test", a, a.v6)

	// Domains go to the link that knows them, and what is only for domains gets
	// nothing else.
	domains := []dnsmasq.Server{
		{Interface: a.name, Address: a.s4, Source: a.v4, Domains: []string{"corp.test", "lan.test"}, OnlyDomains: true},
		{Interface: b.name, Address: b.s4, Source: b.v4, Domains: []string{"home.test"}},
	}
	r.update(t, f, "using nameserver 100.64.1.1#53(via", domains...)
	for range 3 {
		r.answers(t, "which.test", b, b.v4)
		r.answers(t, "corp.test", a, a.v4)
		r.answers(t, "lan.test", a, a.v4)
		r.answers(t, "home.test", b, b.v4)
	}

	// An unchanged file sends no signal, and another dnsmasq never gets one.
	n := len(r.Lines())
	must(t, f.Update(t.Context(), domains))
	r.answers(t, "which.test", b, b.v4)
	if slices.ContainsFunc(r.Lines()[n:], func(line string) bool { return strings.Contains(line, "using nameserver") }) {
		t.Error("it was told of nothing new")
	}
	// A new process does not know whether the one before could tell it.
	r.update(t, dnsmasq.New(r.path, r.pidFile, debug(t)), "using nameserver 100.64.1.1#53(via", domains...)
	if more := beside.Lines()[quiet:]; slices.ContainsFunc(more, func(line string) bool {
		return strings.Contains(line, "using nameserver") || strings.Contains(line, "cannot read")
	}) {
		t.Errorf("the dnsmasq beside it was told: %q", more)
	}

	// After a restart it reads the current file.
	must(t, r.Stop(t.Context()))
	must(t, f.Update(t.Context(), []dnsmasq.Server{{Interface: a.name, Address: a.s4, Source: a.v4}}))
	r.start(t, host, "root")
	_, err = r.WaitLine(t.Context(), "using nameserver 100.64.0.1#53")
	must(t, err)
	r.answers(t, "which.test", a, a.v4)
}

// What is not there, or not any more, keeps dnsmasq from nothing else: neither
// when it starts nor when it is told.
func TestWhatIsNotThere(t *testing.T) {
	host := labtest.NewHost(t, lab.HostConfig{FastDAD: true, NoBus: true})
	a, b := newProvider(t, host, 0), newProvider(t, host, 1)
	r := newResolver(t, host, 5301, "root")
	f := dnsmasq.New(r.path, r.pidFile, debug(t))
	good := dnsmasq.Server{Interface: b.name, Address: b.s4, Source: b.v4}
	for i, bad := range []dnsmasq.Server{
		{Interface: "none0", Address: a.s4, Source: a.v4},
		{Interface: "none0", Address: a.s6},
		{Interface: "none0", Address: addr("fe80::1")},
		{Interface: a.name, Address: a.s4, Source: addr("100.64.9.9")},
		{Interface: a.name, Address: a.s6, Source: addr("2001:db8:9::9")},
		{Interface: a.name, Address: addr("fe80::1"), Source: addr("2001:db8:9::9")},
		{Interface: a.name, Address: a.s4, Source: a.v4, Domains: []string{strings.Repeat("a", 63) + "." + strings.Repeat("b-_.", 40) + "c"}, OnlyDomains: true},
	} {
		n := len(r.Lines())
		must(t, f.Update(t.Context(), []dnsmasq.Server{bad, good}))
		_, err := r.WaitLineAfter(t.Context(), n, "using nameserver 100.64.1.1#53")
		must(t, err)
		r.answers(t, "which.test", b, b.v4)
		must(t, r.Stop(t.Context()))
		r.start(t, host, "root")
		_, err = r.WaitLine(t.Context(), "using nameserver 100.64.1.1#53")
		must(t, err)
		r.answers(t, "which.test", b, b.v4)
		t.Logf("%d: %+v", i, bad)
	}
}

// As on Debian, where dnsmasq becomes another user and its pid file with it.
func TestUsers(t *testing.T) {
	host := labtest.NewHost(t, lab.HostConfig{FastDAD: true, NoBus: true})
	a := newProvider(t, host, 0)
	const nobody = 65534
	r := newResolver(t, host, 5301, "nobody")
	f := dnsmasq.New(r.path, r.pidFile, debug(t))
	one := dnsmasq.Server{Interface: a.name, Address: a.s4, Source: a.v4}
	r.update(t, f, "using nameserver 100.64.0.1#53", one)
	r.answers(t, "which.test", a, a.v4)

	// A daemon that is neither root nor dnsmasq's user may write the file, but not send the signal.
	other := one
	other.Address = a.s6
	other.Source = a.v6
	n := len(r.Lines())
	err := as(nobody-1, func() error { return f.Update(t.Context(), []dnsmasq.Server{other}) })
	if err == nil || !errors.Is(err, unix.EPERM) || !strings.Contains(err.Error(), "or run dnsmasq as user 65533") {
		t.Errorf("%v", err)
	}
	// The next one does it.
	must(t, as(nobody, func() error { return f.Update(t.Context(), []dnsmasq.Server{other}) }))
	_, err = r.WaitLineAfter(t.Context(), n, "using nameserver 2001:db8:0:1::1#53")
	must(t, err)
	r.answers(t, "which.test", a, a.v6)

	// A PID file of another user selects no dnsmasq.
	must(t, os.Chown(r.pidFile, nobody-1, nobody-1))
	if err := f.Update(t.Context(), []dnsmasq.Server{one}); err == nil || !strings.Contains(err.Error(), "belongs to user 65533, and process") {
		t.Errorf("%v", err)
	}
}

// as calls f on a thread of another user, which ends with the goroutine.
func as(user uintptr, f func() error) error {
	result := make(chan error)
	go func() {
		runtime.LockOSThread()
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, user, user, user); errno != 0 {
			result <- errno
			return
		}
		result <- f()
	}()
	return <-result
}

func TestDiskFull(t *testing.T) {
	labtest.NewHost(t, lab.HostConfig{NoBus: true})
	dir := t.TempDir()
	must(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "size=8k"))
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	path := filepath.Join(dir, "servers")
	f := dnsmasq.New(path, filepath.Join(dir, "pid"), debug(t))
	one := dnsmasq.Server{Interface: "wan0", Address: addr("192.0.2.1")}
	must(t, f.Update(t.Context(), []dnsmasq.Server{one}))
	before, err := os.ReadFile(path)
	must(t, err)
	filler := filepath.Join(dir, "filler")
	must(t, os.WriteFile(filler, make([]byte, 4096), 0o600))
	two := dnsmasq.Server{Interface: "wan0", Address: addr("192.0.2.2")}
	if err := f.Update(t.Context(), []dnsmasq.Server{two}); !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "writing dnsmasq's servers to "+path) {
		t.Errorf("%v", err)
	}
	text, err := os.ReadFile(path)
	if err != nil || string(text) != string(before) || !strings.Contains(string(text), "192.0.2.1@wan0") {
		t.Errorf("the file is %q, %v", text, err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 2 {
		t.Errorf("left over: %v, %v", entries, err)
	}
	must(t, os.Remove(filler))
	must(t, f.Update(t.Context(), []dnsmasq.Server{two}))
}

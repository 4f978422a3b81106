package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"multihomed/nm/nmtest"
	"multihomed/test/lab"
)

// A link is one uplink with an IPv4 network of its own.
type link struct {
	name    string
	index   int
	address netip.Prefix
	gateway netip.Addr
	metric  uint32
}

func linkAt(n int) link {
	base := [4]byte{10, byte(100 + n/250), byte(n % 250), 0}
	at := func(host byte) netip.Addr { a := base; a[3] = host; return netip.AddrFrom4(a) }
	return link{
		name: fmt.Sprintf("wan%d", n), address: netip.PrefixFrom(at(5), 24), gateway: at(1),
		// Later links are worse ones, so the last link's rules belong at the end.
		metric: uint32(100 + n),
	}
}

// configure are the requests by which NetworkManager configures the link.
func (l link) configure() []message {
	const proto = unix.RTPROT_STATIC
	return []message{
		{kind: unix.RTM_NEWADDR, flags: unix.NLM_F_CREATE | unix.NLM_F_REPLACE, payload: addressPayload(l.index, l.address)},
		{kind: unix.RTM_NEWROUTE, flags: unix.NLM_F_CREATE | unix.NLM_F_REPLACE, payload: route{
			dst: l.address.Masked(), src: l.address.Addr(), index: l.index, metric: l.metric, protocol: unix.RTPROT_KERNEL,
		}.payload()},
		{kind: unix.RTM_NEWROUTE, flags: unix.NLM_F_CREATE | unix.NLM_F_REPLACE, payload: route{
			dst: netip.PrefixFrom(netip.IPv4Unspecified(), 0), via: l.gateway, src: l.address.Addr(), index: l.index, metric: l.metric, protocol: proto,
		}.payload()},
	}
}

// deconfigure takes the address away, and with it the kernel all routes.
func (l link) deconfigure() []message {
	return []message{{kind: unix.RTM_DELADDR, payload: addressPayload(l.index, l.address)}}
}

// An owner is who tells the daemon which interfaces are links.
type owner interface {
	// String says who.
	String() string
	// bus is where the owner can be found.
	bus() string
	// pid is the owner's process, 0 if it is the bench.
	pid() int
	// add makes links that have their addresses and routes.
	add(ctx context.Context, links []link) error
	close()
}

// realOwner is NetworkManager itself.
type realOwner struct{ host *lab.Host }

func (o *realOwner) String() string { return "real NetworkManager" }
func (o *realOwner) bus() string    { return lab.BusAddress }
func (o *realOwner) pid() int       { return o.host.NMPid() }
func (o *realOwner) close()         {}

func (o *realOwner) add(ctx context.Context, links []link) error {
	for _, l := range links {
		if _, err := o.host.NewLink(lab.LinkConfig{Name: l.name}); err != nil {
			return err
		}
		err := o.host.WriteProfile(l.name, l.name, "connection.autoconnect=true", "ipv4.method=manual",
			fmt.Sprintf("ipv4.address1=%s,%s", l.address, l.gateway), fmt.Sprintf("ipv4.route-metric=%d", l.metric),
			"ipv6.method=disabled")
		if err != nil {
			return err
		}
	}
	return o.host.ReloadProfiles(ctx)
}

// fakeOwner speaks NetworkManager's D-Bus interface on a bus of its own.
type fakeOwner struct {
	host    *lab.Host
	tb      *benchTB
	private *nmtest.Bus
	nm      *nmtest.NM
	send    *sender
	last    int
}

func newFakeOwner(host *lab.Host) (o *fakeOwner, err error) {
	o = &fakeOwner{host: host, tb: &benchTB{}}
	defer o.tb.caught(&err)
	if o.send, err = newSender(); err != nil {
		return nil, err
	}
	o.private = nmtest.NewBus(o.tb)
	o.nm = o.private.NewNM()
	o.nm.Own()
	return o, nil
}

func (o *fakeOwner) String() string { return "fake NetworkManager on a real bus" }
func (o *fakeOwner) bus() string    { return o.private.Address }
func (o *fakeOwner) pid() int       { return 0 }

func (o *fakeOwner) close() {
	_ = o.send.close()
	o.tb.cleanup()
}

func (o *fakeOwner) add(_ context.Context, links []link) (err error) {
	defer o.tb.caught(&err)
	for _, l := range links {
		if _, err := o.host.NewLink(lab.LinkConfig{Name: l.name, Up: true}); err != nil {
			return err
		}
		i, err := net.InterfaceByName(l.name)
		if err != nil {
			return fmt.Errorf("finding %s: %w", l.name, err)
		}
		l.index = i.Index
		if err := o.send.batched(l.configure()); err != nil {
			return fmt.Errorf("configuring %s: %w", l.name, err)
		}
		o.last++
		n := o.last
		o.nm.AddEthernet(n, l.name)
		o.nm.Set(nmtest.DevicePath(n), nmtest.Device, nmtest.Properties{"Dhcp4Config": dbus.ObjectPath("/")})
		o.nm.Set(nmtest.IP4Path(n), nmtest.IP4, nmtest.Properties{"Gateway": l.gateway.String()})
		for _, path := range []dbus.ObjectPath{nmtest.IP4Path(n), nmtest.ActivePath(n), nmtest.DevicePath(n)} {
			o.nm.Announce(path)
		}
	}
	return nil
}

// activationExternal is NM_ACTIVATION_STATE_FLAG_EXTERNAL.
const activationExternal = 0x80

// ask has the owner answer what the daemon has to ask at its start, for nothing
// but the time that takes: all objects, and two calls for each active device.
func ask(ctx context.Context, address string) (time.Duration, error) {
	conn, err := dbus.Connect(address, dbus.WithContext(ctx))
	if err != nil {
		return 0, fmt.Errorf("connecting to the bus: %w", err)
	}
	defer conn.Close()
	begin := time.Now()
	var objects map[dbus.ObjectPath]map[string]map[string]dbus.Variant
	err = conn.Object(nmtest.Name, "/org/freedesktop").CallWithContext(ctx, "org.freedesktop.DBus.ObjectManager.GetManagedObjects", 0).Store(&objects)
	if err != nil {
		return 0, fmt.Errorf("asking for all objects: %w", err)
	}
	const outstanding = 32 // as package nm has it
	replies := make(chan *dbus.Call, outstanding)
	under := 0
	answer := func() error {
		under--
		if c := <-replies; c.Err != nil {
			return fmt.Errorf("asking for a profile: %w", c.Err)
		}
		return nil
	}
	call := func(path dbus.ObjectPath, method string, args ...any) error {
		if under == outstanding {
			if err := answer(); err != nil {
				return err
			}
		}
		under++
		conn.Object(nmtest.Name, path).GoWithContext(ctx, method, 0, replies, args...)
		return nil
	}
	for path, interfaces := range objects {
		active, _ := interfaces[nmtest.Device]["ActiveConnection"].Value().(dbus.ObjectPath)
		profile, ok := objects[active][nmtest.Active]["Connection"].Value().(dbus.ObjectPath)
		flags, _ := objects[active][nmtest.Active]["StateFlags"].Value().(uint32)
		if !ok || flags&activationExternal != 0 {
			continue
		}
		if err := call(path, nmtest.Device+".GetAppliedConnection", uint32(0)); err != nil {
			return 0, err
		}
		if err := call(profile, nmtest.Connection+".GetSettings"); err != nil {
			return 0, err
		}
	}
	for under > 0 {
		if err := answer(); err != nil {
			return 0, err
		}
	}
	return time.Since(begin), nil
}

// benchTB lets the fake of the tests serve outside of one.
type benchTB struct {
	testing.TB
	cleanups []func()
}

// fatal is how benchTB ends the function that failed.
type fatal struct{ err error }

func (t *benchTB) Helper()                           {}
func (t *benchTB) Logf(string, ...any)               {}
func (t *benchTB) Cleanup(f func())                  { t.cleanups = append(t.cleanups, f) }
func (t *benchTB) Fatal(args ...any)                 { panic(fatal{fmt.Errorf("%s", fmt.Sprint(args...))}) }
func (t *benchTB) Fatalf(format string, args ...any) { panic(fatal{fmt.Errorf(format, args...)}) }

func (t *benchTB) TempDir() string {
	dir, err := os.MkdirTemp("", "bench")
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Clean(dir)
}

func (t *benchTB) cleanup() {
	for len(t.cleanups) > 0 {
		last := len(t.cleanups) - 1
		f := t.cleanups[last]
		t.cleanups = t.cleanups[:last]
		f()
	}
}

// caught turns a call of Fatal into an error.
func (t *benchTB) caught(err *error) {
	switch r := recover().(type) {
	case nil:
	case fatal:
		*err = r.err
	default:
		panic(r)
	}
}

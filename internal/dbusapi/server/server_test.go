package server_test

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"

	"multihomed/internal/dbusapi"
	"multihomed/internal/dbusapi/server"
	"multihomed/internal/status"
	"multihomed/nm/nmtest"
	"multihomed/routing"
)

// house is a server on a private bus.
type house struct {
	t   *testing.T
	bus *nmtest.Bus
	*server.Server
	owned    chan struct{}
	mu       sync.Mutex
	problems []routing.Code
}

// backend answers with the name of the method and its arguments.
type backend struct {
	calls atomic.Int64
	wait  func(context.Context, server.Request)
}

func (b *backend) Do(ctx context.Context, r server.Request) (string, error) {
	b.calls.Add(1)
	if b.wait != nil {
		b.wait(ctx, r)
	}
	return fmt.Sprint(r.Method, r.Args), nil
}

func (b *backend) Check(_ context.Context, r server.Request) error {
	if fmt.Sprint(r.Args) == "[loud]" {
		return dbusapi.Errorf(dbusapi.InvalidArgs, "the level is loud")
	}
	return nil
}

func (b *backend) Measured() dbusapi.Measured {
	rtt, loss := 12.5, 0.25
	return dbusapi.Measured{Passes: 7, Repairs: 2, Links: dbusapi.Measure(&status.Failover{Uplinks: []status.Health{{Interface: "wan1", Family: "ipv4", RTT: &rtt, Loss: &loss}}})}
}

// open starts a server, and waits for its name.
func open(t *testing.T, b server.Backend) *house {
	t.Helper()
	h := &house{t: t, bus: nmtest.NewBus(t), owned: make(chan struct{}, 64)}
	h.run(b)
	h.awaitName()
	return h
}

func (h *house) run(b server.Backend) {
	h.Server = server.New(server.Options{Logger: slog.New(slog.DiscardHandler), Address: h.bus.Address, First: modelOf(0, nil, 0), Fault: func(p routing.Problem) {
		h.mu.Lock()
		h.problems = append(h.problems, p.Code)
		h.mu.Unlock()
		h.owned <- struct{}{}
	}})
	h.Serve(b)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		h.Run(ctx)
	}()
	h.t.Cleanup(func() {
		cancel()
		<-done
	})
}

func (h *house) awaitName() {
	h.t.Helper()
	select {
	case <-h.owned:
	case <-time.After(20 * time.Second):
		h.t.Fatal("the server does not ask for its name")
	}
}

// modelOf is a host with links, of which one has changed a number of times.
func modelOf(links int, last *dbusapi.Model, flaps int) *dbusapi.Model {
	s := &status.Status{Schema: 1, Version: "1", Daemon: status.Daemon{Ready: true}, Unbound: map[string]status.Unbound{"ipv4": {Interface: "wan1", Table: 254}}}
	for n := range links {
		l := status.Link{Interface: fmt.Sprintf("wan%d", n+1), Index: n + 1, Role: "uplink", Up: true, Carrier: true, InForce: status.Count{Planned: 16, Present: 16}}
		for i := range l.InForce.Planned {
			l.Objects = append(l.Objects, status.Object{Kind: "rule", Family: "ipv4", State: status.InForce, Text: fmt.Sprintf("%d: from 192.0.2.%d lookup %d", 10000+i, i, 10000+n)})
		}
		if n == 0 {
			l.Carrier = flaps%2 == 0
			l.RoleWhy = fmt.Sprint(flaps)
		}
		s.Links = append(s.Links, l)
	}
	return dbusapi.Of(s, dbusapi.Facts{LogLevel: "info"}, last)
}

func (h *house) manager(conn *dbus.Conn) dbus.BusObject {
	return conn.Object(dbusapi.Name, dbusapi.Path)
}

// counted counts signals until a last one, which it waits for.
func counted(t *testing.T, h *house) (count func() map[string]int) {
	t.Helper()
	conn := h.bus.Connect()
	if err := conn.AddMatchSignal(dbus.WithMatchPathNamespace(dbusapi.Path)); err != nil {
		t.Fatal(err)
	}
	signals := make(chan *dbus.Signal, 1<<14)
	conn.Signal(signals)
	count = func() map[string]int {
		t.Helper()
		h.Emit(t.Context(), dbusapi.Message{Path: dbusapi.Path, Interface: dbusapi.ManagerInterface, Member: "Changed", Body: []any{[]dbusapi.Change{}}})
		got := map[string]int{}
		for {
			select {
			case s := <-signals:
				if s.Name == dbusapi.ManagerInterface+".Changed" {
					return got
				}
				got[string(s.Path)+" "+s.Name[strings.LastIndex(s.Name, ".")+1:]]++
			case <-time.After(20 * time.Second):
				t.Fatalf("signals do not come; so far %v", got)
			}
		}
	}
	count() // What the bus still had to pass on is not counted.
	return count
}

// TestSignals: a pass that changes one link is one signal; what changes nothing is none.
func TestSignals(t *testing.T) {
	t.Parallel()
	h := open(t, &backend{})
	count := counted(t, h)
	m := modelOf(3, nil, 0)
	for _, step := range []struct {
		name string
		next func() *dbusapi.Model
		want map[string]int
	}{
		{"links come", func() *dbusapi.Model { return m }, map[string]int{"/org/multihomed1 InterfacesAdded": 3, "/org/multihomed1 PropertiesChanged": 1}},
		{"the same again", func() *dbusapi.Model { return modelOf(3, m, 0) }, map[string]int{}},
		{"one changes", func() *dbusapi.Model { return modelOf(3, m, 1) }, map[string]int{"/org/multihomed1/link/_31 PropertiesChanged": 1}},
		{"one goes", func() *dbusapi.Model { return modelOf(2, m, 1) }, map[string]int{"/org/multihomed1 InterfacesRemoved": 1, "/org/multihomed1 PropertiesChanged": 1}},
	} {
		m = step.next()
		h.Publish(t.Context(), m)
		if got := count(); !maps.Equal(got, step.want) {
			t.Errorf("%s: %v, want %v", step.name, got, step.want)
		}
	}
}

// TestThousandLinks: all are read at once, and one that changes is one signal.
func TestThousandLinks(t *testing.T) {
	t.Parallel()
	h := open(t, &backend{})
	const links = 1000
	m := modelOf(links, nil, 0)
	h.Publish(t.Context(), m)
	count := counted(t, h)
	var all map[dbus.ObjectPath]map[string]map[string]dbus.Variant
	for flaps := 1; flaps <= 3; flaps++ {
		if err := h.manager(h.bus.Connect()).Call(dbusapi.ObjectManager+".GetManagedObjects", 0).Store(&all); err != nil || len(all) != links {
			t.Errorf("%d objects, %v", len(all), err)
		}
		m = modelOf(links, m, flaps)
		h.Publish(t.Context(), m)
	}
	if got, want := count(), map[string]int{"/org/multihomed1/link/_31 PropertiesChanged": 3}; !maps.Equal(got, want) {
		t.Errorf("signals %v, want %v", got, want)
	}
}

// TestReaders: readers that never rest, and one that never reads, see and harm nothing while a
// link changes a thousand times.
func TestReaders(t *testing.T) {
	t.Parallel()
	h := open(t, &backend{})
	const links, flaps = 20, 1000
	m := modelOf(links, nil, 0)
	h.Publish(t.Context(), m)
	stall(t, h)
	ctx, cancel := context.WithCancel(t.Context())
	var readers sync.WaitGroup
	var answers atomic.Int64
	for n := range 4 {
		conn := h.bus.Connect()
		readers.Go(func() {
			for ctx.Err() == nil {
				var err error
				if n%2 == 0 {
					var all map[dbus.ObjectPath]map[string]map[string]dbus.Variant
					err = h.manager(conn).CallWithContext(ctx, dbusapi.ObjectManager+".GetManagedObjects", 0).Store(&all)
					if err == nil && len(all) != links {
						t.Errorf("%d objects", len(all))
					}
				} else {
					var all map[string]dbus.Variant
					err = conn.Object(dbusapi.Name, dbusapi.LinkPath(1)).CallWithContext(ctx, dbusapi.Properties+".GetAll", 0, dbusapi.LinkInterface).Store(&all)
				}
				if err == nil {
					answers.Add(1)
				} else if ctx.Err() == nil {
					t.Error(err)
					return
				}
			}
		})
	}
	count := counted(t, h)
	for n := 1; n <= flaps; n++ {
		m = modelOf(links, m, n)
		h.Publish(t.Context(), m)
	}
	got := count()
	cancel()
	readers.Wait()
	if got["/org/multihomed1/link/_31 PropertiesChanged"] != flaps || len(got) != 1 {
		t.Errorf("%d flaps are the signals %v", flaps, got)
	}
	if answers.Load() == 0 {
		t.Error("nobody was answered")
	}
}

// stall connects somebody who calls, and never reads.
func stall(t *testing.T, h *house) {
	t.Helper()
	conn := raw(t, h)
	for serial := range 500 {
		if _, err := conn.Write(message(t, uint32(serial+10), dbusapi.ObjectManager, "GetManagedObjects", nil)); err != nil {
			return // The bus has had enough of it.
		}
	}
}

// raw is a connection without godbus.
func raw(t *testing.T, h *house) net.Conn {
	t.Helper()
	conn, err := new(net.Dialer).DialContext(t.Context(), "unix", strings.TrimPrefix(h.bus.Address, "unix:path="))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if err := server.Authenticate(t.Context(), conn); err != nil {
		t.Fatal(err)
	}
	hello := &dbus.Message{Type: dbus.TypeMethodCall, Headers: map[dbus.HeaderField]dbus.Variant{
		dbus.FieldDestination: dbus.MakeVariant("org.freedesktop.DBus"), dbus.FieldPath: dbus.MakeVariant(dbus.ObjectPath("/org/freedesktop/DBus")),
		dbus.FieldInterface: dbus.MakeVariant("org.freedesktop.DBus"), dbus.FieldMember: dbus.MakeVariant("Hello"),
	}}
	data, err := server.Encode(hello, 1)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write(data); err != nil {
		t.Fatal(err)
	}
	return conn
}

// message is a call of the manager.
func message(t *testing.T, serial uint32, iface, member string, change func(*dbus.Message), body ...any) []byte {
	t.Helper()
	m := &dbus.Message{Type: dbus.TypeMethodCall, Body: body, Headers: map[dbus.HeaderField]dbus.Variant{
		dbus.FieldDestination: dbus.MakeVariant(dbusapi.Name), dbus.FieldPath: dbus.MakeVariant(dbusapi.Path),
		dbus.FieldInterface: dbus.MakeVariant(iface), dbus.FieldMember: dbus.MakeVariant(member),
	}}
	if len(body) > 0 {
		m.Headers[dbus.FieldSignature] = dbus.MakeVariant(dbus.SignatureOf(body...))
	}
	if change != nil {
		change(m)
	}
	data, err := server.Encode(m, serial)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// TestManyClients: 200 clients that call much and send much, and do not read, cost little memory,
// and another one is answered meanwhile.
func TestManyClients(t *testing.T) {
	t.Parallel()
	b := &backend{wait: func(context.Context, server.Request) { <-time.After(time.Millisecond) }}
	h := open(t, b)
	h.Publish(t.Context(), modelOf(20, nil, 0))
	heap := func() int64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	before := heap()
	huge := strings.Repeat("x", 8<<20)
	packet := map[string]dbus.Variant{}
	for n := range 45 { // All calls together are less than a bus holds for one receiver (max_outgoing_bytes).
		packet[fmt.Sprint("key", n)] = dbus.MakeVariant(strings.Repeat("v", 200))
	}
	var clients sync.WaitGroup
	for n := range 200 {
		conn := raw(t, h)
		clients.Go(func() {
			_ = conn.SetWriteDeadline(time.Now().Add(5 * time.Second))
			if n == 0 {
				_, _ = conn.Write(message(t, 2, dbusapi.ManagerInterface, "Explain", nil, map[string]dbus.Variant{"destination": dbus.MakeVariant(huge)}))
			}
			for serial := range uint32(40) {
				packet := maps.Clone(packet)
				packet["uid"] = dbus.MakeVariant(serial + uint32(n)*100)
				if _, err := conn.Write(message(t, serial+10, dbusapi.ManagerInterface, "Explain", nil, packet)); err != nil {
					return
				}
			}
		})
	}
	conn := h.bus.Connect()
	worst := int64(0)
	for range 5 {
		var all map[string]dbus.Variant
		if err := h.manager(conn).CallWithContext(t.Context(), dbusapi.Properties+".GetAll", 0, "").Store(&all); err != nil {
			t.Fatal(err)
		}
		worst = max(worst, heap()-before)
	}
	clients.Wait()
	worst = max(worst, heap()-before)
	if most := int64(64 << 20); worst > most {
		t.Errorf("200 clients cost %d MiB, at most %d MiB are meant", worst>>20, most>>20)
	}
	t.Logf("200 clients: %d MiB more, %d answers", worst>>20, b.calls.Load())
}

// TestSharedAnswers: identical calls that wait share an answer.
func TestSharedAnswers(t *testing.T) {
	t.Parallel()
	begun, going := make(chan struct{}, 1000), make(chan struct{})
	b := &backend{wait: func(context.Context, server.Request) {
		begun <- struct{}{}
		<-going
	}}
	h := open(t, b)
	conn := h.bus.Connect()
	var clients sync.WaitGroup
	call := func() {
		// It is sent when Go returns.
		sent := h.manager(conn).Go(dbusapi.ManagerInterface+".Describe", 0, make(chan *dbus.Call, 1), map[string]dbus.Variant{})
		clients.Go(func() {
			var text string
			if err := (<-sent.Done).Store(&text); err != nil || text != "Describe[map[]]" {
				t.Errorf("%q, %v", text, err)
			}
		})
	}
	call()
	<-begun // From now on an answer would be too old for who comes.
	for range 10 {
		call()
	}
	var all map[string]dbus.Variant
	// The calls before it have been taken when this one is answered.
	for range 12 {
		if err := h.manager(h.bus.Connect()).Call(dbusapi.Properties+".GetAll", 0, "").Store(&all); err != nil {
			t.Fatal(err)
		}
	}
	close(going)
	clients.Wait()
	if got := b.calls.Load(); got < 2 || got > 4 {
		t.Errorf("11 calls are %d answers", got)
	}
}

// TestBusRestart: the name comes back with the bus, and so do answers.
func TestBusRestart(t *testing.T) {
	t.Parallel()
	h := open(t, &backend{})
	for range 3 {
		h.bus.Stop()
		h.Publish(t.Context(), modelOf(2, nil, 0)) // It waits for nobody.
		h.bus.Start()
		h.awaitName()
		var text string
		if err := h.manager(h.bus.Connect()).Call(dbusapi.ManagerInterface+".Plan", 0, map[string]dbus.Variant{}).Store(&text); err != nil || text != "Plan[map[]]" {
			t.Errorf("%q, %v", text, err)
		}
	}
}

// TestFrozenBus: a bus that does not read delays nobody but who waits for it.
func TestFrozenBus(t *testing.T) {
	t.Parallel()
	h := open(t, &backend{})
	h.Publish(t.Context(), modelOf(100, nil, 0))
	conn := h.bus.Connect()
	h.bus.Freeze()
	for range 10 {
		h.manager(conn).Go(dbusapi.ObjectManager+".GetManagedObjects", 0, nil)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	for n := range 500 {
		h.Publish(ctx, modelOf(3, h.Last(), n))
	}
	h.bus.Thaw()
	var all map[string]dbus.Variant
	if err := h.manager(conn).Call(dbusapi.Properties+".GetAll", 0, "").Store(&all); err != nil {
		t.Error(err)
	}
}

// TestNameTaken: who comes second says so, and gets the name when it is free.
func TestNameTaken(t *testing.T) {
	t.Parallel()
	h := &house{t: t, bus: nmtest.NewBus(t), owned: make(chan struct{}, 64)}
	first := h.bus.Connect()
	if _, err := first.RequestName(dbusapi.Name, dbus.NameFlagDoNotQueue); err != nil {
		t.Fatal(err)
	}
	h.run(&backend{})
	h.awaitName()
	if h.IsHeard() {
		t.Error("the name of another one is ours")
	}
	if _, err := first.ReleaseName(dbusapi.Name); err != nil {
		t.Fatal(err)
	}
	h.awaitName()
	h.mu.Lock()
	defer h.mu.Unlock()
	if !slices.Equal(h.problems, []routing.Code{server.NameTaken, ""}) || !h.IsHeard() {
		t.Errorf("problems: %q", h.problems)
	}
}

// TestCalls are those that are wrong, and what they get.
func TestCalls(t *testing.T) {
	t.Parallel()
	h := open(t, &backend{})
	h.Publish(t.Context(), modelOf(2, nil, 0))
	conn := h.bus.Connect()
	link := dbusapi.LinkPath(1)
	for _, c := range []struct {
		path   dbus.ObjectPath
		method string
		args   []any
		want   string
	}{
		{"/", dbusapi.Peer + ".Ping", nil, ""},
		{"/org", dbusapi.Introspectable + ".Introspect", nil, ""},
		{"/org/multihomed1/link", dbusapi.Introspectable + ".Introspect", nil, ""},
		{"/org/multihomed", dbusapi.Peer + ".Ping", nil, dbusapi.UnknownObject},
		{"/org/multihomed1/link/_39", dbusapi.Peer + ".Ping", nil, dbusapi.UnknownObject},
		{"/org/multihomed1/link/1", dbusapi.Peer + ".Ping", nil, dbusapi.UnknownObject},
		{dbusapi.Path, "org.example.None.Ping", nil, dbusapi.UnknownInterface},
		{dbusapi.Path, dbusapi.ManagerInterface + ".Pong", nil, dbusapi.UnknownMethod},
		{dbusapi.Path, dbusapi.ManagerInterface + ".GetLinkByName", []any{"wan2"}, ""},
		{dbusapi.Path, dbusapi.ManagerInterface + ".GetLinkByName", []any{"wan9"}, dbusapi.NoSuchLink},
		{dbusapi.Path, dbusapi.ManagerInterface + ".GetLinkByName", nil, dbusapi.InvalidArgs},
		{dbusapi.Path, dbusapi.ManagerInterface + ".GetLinkByName", []any{uint32(1)}, dbusapi.InvalidArgs},
		{link, dbusapi.Properties + ".Get", []any{dbusapi.LinkInterface, "Name"}, ""},
		{link, dbusapi.Properties + ".Get", []any{"", "Measurements"}, ""},
		{link, dbusapi.Properties + ".Get", []any{dbusapi.LinkInterface, "None"}, dbusapi.UnknownProperty},
		{link, dbusapi.Properties + ".Get", []any{dbusapi.ManagerInterface, "State"}, dbusapi.UnknownInterface},
		{link, dbusapi.Properties + ".GetAll", []any{dbusapi.Peer}, ""},
		{link, dbusapi.Properties + ".Set", []any{dbusapi.LinkInterface, "Name", dbus.MakeVariant("x")}, dbusapi.PropertyReadOnly},
		{link, dbusapi.Properties + ".Set", []any{dbusapi.LinkInterface, "None", dbus.MakeVariant("x")}, dbusapi.UnknownProperty},
		{dbusapi.Path, dbusapi.ManagerInterface + ".Explain", []any{map[string]dbus.Variant{"destination": dbus.MakeVariant(strings.Repeat("x", 1<<17))}}, dbusapi.LimitsExceeded},
	} {
		err := conn.Object(dbusapi.Name, c.path).Call(c.method, 0, c.args...).Err
		got := ""
		if failure, is := err.(dbus.Error); is { //nolint:errorlint // godbus returns it bare
			got = failure.Name
		} else if err != nil {
			t.Errorf("%s %s: %v", c.path, c.method, err)
		}
		if got != c.want {
			t.Errorf("%s %s %v: %q, want %q (%v)", c.path, c.method, c.args, got, c.want, err)
		}
	}
	var measured []map[string]dbus.Variant
	v, err := conn.Object(dbusapi.Name, link).GetProperty(dbusapi.LinkInterface + ".Measurements")
	if err != nil || v.Store(&measured) != nil || !reflect.DeepEqual(measured, []map[string]dbus.Variant{{"Family": dbus.MakeVariant("ipv4"), "LastProof": dbus.MakeVariant(uint64(0)), "Loss": dbus.MakeVariant(0.25), "RTT": dbus.MakeVariant(12.5)}}) {
		t.Errorf("measurements: %v, %v", v, err)
	}
}

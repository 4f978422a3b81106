package client_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"multihomed/allocator/client"
	"multihomed/allocator/wire"
	"multihomed/internal/unixgram"
	"multihomed/test/lab/nettest"
)

func TestMain(m *testing.M) { os.Exit(nettest.Main(m)) }

var serial atomic.Int64

// A fake is a server that answers as a test says.
type fake struct {
	*testing.T
	name  string
	conn  *unixgram.Conn
	asked chan request
}

// A request is what arrived, as a stranger reads it.
type request struct {
	from        unixgram.Address
	Address     string `json:"address"`
	Interface   string `json:"ifname"`
	Family      int    `json:"addr_family"`
	Command     int    `json:"cmd"`
	Version     int    `json:"version"`
	Transaction uint32 `json:"transaction"`
	Routing     bool   `json:"routing"`
	Hold        bool   `json:"hold"`
	Table       int    `json:"table"`
	Tag         string `json:"tag"`
}

// newFake starts one that hands each request to answer, in order of arrival.
func newFake(t *testing.T, answer func(f *fake, r request)) *fake {
	t.Helper()
	f := &fake{T: t, name: fmt.Sprint("fake", serial.Add(1)), asked: make(chan request, 100)}
	f.conn = f.listen()
	var done sync.WaitGroup
	done.Go(func() {
		buffer := make([]byte, 2048)
		for {
			d, err := f.conn.Receive(buffer)
			if err != nil {
				return
			}
			r := request{from: d.From}
			if err := json.Unmarshal(d.Payload, &r); err != nil {
				t.Errorf("the client sent %q: %v", d.Payload, err)
			}
			f.asked <- r
			answer(f, r)
		}
	})
	t.Cleanup(func() {
		if err := f.conn.Close(); err != nil {
			t.Error(err)
		}
		done.Wait()
	})
	return f
}

func (f *fake) listen() *unixgram.Conn {
	f.Helper()
	name, err := unixgram.Abstract(f.name)
	if err != nil {
		f.Fatal(err)
	}
	conn, err := unixgram.Listen(name.Padded())
	if err != nil {
		f.Fatal(err)
	}
	return conn
}

func (f *fake) say(r request, format string, args ...any) {
	if err := f.conn.Send(r.from, fmt.Appendf(nil, format, args...)); err != nil {
		f.Logf("answering: %v", err)
	}
}

// grant is a proper answer.
func (f *fake) grant(r request, table int, lifetime time.Duration) {
	f.say(r, `{"version":2,"cmd":2,"table":%d,"lease_expires":%d,"lifetime":%d,"transaction":%d,"routing":%t}`,
		table, seconds()+int64(lifetime/time.Second), lifetime/time.Second, r.Transaction, r.Routing)
}

func seconds() int64 {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC_RAW, &now); err != nil {
		panic(err)
	}
	return now.Sec
}

func (f *fake) client(o client.Options) *client.Client {
	f.Helper()
	o.Name = f.name
	if o.Interval == 0 {
		o.Interval = 10 * time.Second
	}
	c, err := client.New(o)
	if err != nil {
		f.Fatal(err)
	}
	return c
}

// hasty gives up quickly, for servers that never answer.
func (f *fake) hasty() *client.Client {
	return f.client(client.Options{Interval: 20 * time.Millisecond})
}

// brief is the interval where some requests are not answered, and the others must be answered within it.
const brief = time.Second

var plain = client.Request{Interface: "wan0", Address: netip.MustParseAddr("192.0.2.1"), Tag: "test"}

func TestLease(t *testing.T) {
	f := newFake(t, func(f *fake, r request) { f.grant(r, 10007, time.Hour) })
	c := f.client(client.Options{})
	l, err := c.Lease(t.Context(), plain)
	if err != nil {
		t.Fatal(err)
	}
	if l.Table != 10007 || l.Routed || !l.Extended || l.Lifetime > time.Hour || l.Lifetime < time.Hour-2*time.Second || time.Until(l.Expires) < 59*time.Minute {
		t.Errorf("lease %+v", l)
	}
	want := request{Address: "192.0.2.1", Interface: "wan0", Family: 2, Version: 2, Transaction: 1, Tag: "test"}
	got := <-f.asked
	if got.from = ""; got != want {
		t.Errorf("asked %+v, want %+v", got, want)
	}
	// A server that has forgotten is told what it said.
	if _, err := c.Lease(t.Context(), plain); err != nil {
		t.Fatal(err)
	}
	if got := <-f.asked; got.Table != 10007 {
		t.Errorf("renewed without the number: %+v", got)
	}
	if err := c.Release(t.Context(), plain); err != nil {
		t.Fatal(err)
	}
	if got := <-f.asked; got.Command != 1 {
		t.Errorf("released with %+v", got)
	}
	id := client.Request{Interface: "wan0", ID: "a modem"}
	if _, err := c.Lease(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if got := <-f.asked; got.Family != 0 || got.Address != "a modem" || got.Table != 0 {
		t.Errorf("asked %+v", got)
	}
}

// TestTheAncestorsServer answers in version 1, to exactly the sender's address.
func TestTheAncestorsServer(t *testing.T) {
	f := newFake(t, func(f *fake, r request) {
		if len(r.from) != 108 {
			t.Errorf("the client's address has %d bytes: the ancestor's server does not answer it", len(r.from))
		}
		if r.Command == 1 {
			f.say(r, `{"version":1,"cmd":2,"table":0,"lease_expires":0}`)
			return
		}
		f.say(r, `{"version":1,"cmd":2,"table":10000,"lease_expires":%d}`, seconds()+3600)
	})
	c := f.client(client.Options{})
	l, err := c.Lease(t.Context(), plain)
	if err != nil || l.Table != 10000 || l.Extended || l.Lifetime < 3598*time.Second {
		t.Errorf("lease %+v, %v", l, err)
	}
	if err := c.Release(t.Context(), plain); err != nil {
		t.Error(err)
	}
	<-f.asked
	<-f.asked
	// It cannot route: what it leased is given back.
	routed := plain
	routed.Routing = true
	if _, err := c.Lease(t.Context(), routed); !errors.Is(err, client.ErrNotRouted) {
		t.Errorf("a routed lease of the ancestor's server: %v", err)
	}
	if a, b := <-f.asked, <-f.asked; a.Command != 0 || b.Command != 1 {
		t.Errorf("asked %+v, then %+v", a, b)
	}
}

func TestWhatIsNotBelieved(t *testing.T) {
	for name, lie := range map[string]func(f *fake, r request){
		"garbage":           func(f *fake, r request) { f.say(r, `[]`) },
		"empty":             func(f *fake, r request) { f.say(r, ``) },
		"too long":          func(f *fake, r request) { f.say(r, `{"version":2,"cmd":2,"x":"%s"}`, strings.Repeat("x", 3000)) },
		"main":              func(f *fake, r request) { f.grant(r, 254, time.Hour) },
		"no table":          func(f *fake, r request) { f.grant(r, 0, time.Hour) },
		"other transaction": func(f *fake, r request) { r.Transaction += 7; f.grant(r, 10666, time.Hour) },
		"another user":      func(f *fake, r request) { f.forge(r, 65534) },
		"another socket":    func(f *fake, r request) { f.elsewhere(r) },
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t, func(f *fake, r request) {
				lie(f, r)
				f.grant(r, 10001, time.Hour)
			})
			if l, err := f.client(client.Options{}).Lease(t.Context(), plain); err != nil || l.Table != 10001 {
				t.Errorf("lease %+v, %v", l, err)
			}
		})
	}
}

// forge answers as another user, from another socket.
func (f *fake) forge(r request, uid int) {
	text := fmt.Appendf(nil, `{"version":2,"cmd":2,"table":10666,"lease_expires":%d,"lifetime":3600,"transaction":%d,"routing":false}`, seconds()+3600, r.Transaction)
	done := make(chan error)
	go func() {
		// This thread alone becomes that user, and ends with the goroutine.
		runtime.LockOSThread()
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)); errno != 0 {
			done <- errno
			return
		}
		name, err := unixgram.Abstract(fmt.Sprint("forger", serial.Add(1)))
		if err != nil {
			done <- err
			return
		}
		conn, err := unixgram.Listen(name)
		if err != nil {
			done <- err
			return
		}
		done <- errors.Join(conn.Send(r.from, text), conn.Close())
	}()
	// The client's socket may be connected to the server's: so much the better.
	if err := <-done; err != nil && !errors.Is(err, unixgram.ErrDenied) {
		f.Errorf("forging: %v", err)
	}
}

// elsewhere answers as root, from another socket.
func (f *fake) elsewhere(r request) { f.forge(r, 0) }

func TestSilence(t *testing.T) {
	f := newFake(t, func(*fake, request) {})
	_, err := f.hasty().Lease(t.Context(), plain)
	if !errors.Is(err, client.ErrNoAnswer) {
		t.Errorf("error %v", err)
	}
	for n := range client.DefaultTries {
		if r := <-f.asked; r.Transaction != uint32(n+1) {
			t.Errorf("try %d has transaction %d", n, r.Transaction)
		}
	}
	select {
	case r := <-f.asked:
		t.Errorf("a try too many: %+v", r)
	default:
	}
}

func TestNoServer(t *testing.T) {
	c, err := client.New(client.Options{Name: "nobody", Interval: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.Lease(t.Context(), plain)
	if !errors.Is(err, client.ErrNoAnswer) || !strings.Contains(err.Error(), "systemctl start multihomed") {
		t.Errorf("error %v", err)
	}
}

func TestAnAnswerThatComesLate(t *testing.T) {
	var first request
	f := newFake(t, func(f *fake, r request) {
		if r.Transaction == 1 {
			first = r
			return
		}
		f.grant(first, 10666, time.Hour)
		f.grant(r, 10001, time.Hour)
	})
	l, err := f.client(client.Options{Interval: brief}).Lease(t.Context(), plain)
	if err != nil || l.Table != 10001 {
		t.Errorf("lease %+v, %v", l, err)
	}
}

func TestRefusals(t *testing.T) {
	var tries atomic.Int64
	f := newFake(t, func(f *fake, r request) {
		n := tries.Add(1)
		if r.Interface == "busy0" && n > 2 {
			f.grant(r, 10002, time.Hour)
			return
		}
		code := "exhausted"
		if r.Interface == "busy0" {
			code = "busy"
		}
		f.say(r, `{"version":2,"cmd":3,"transaction":%d,"code":%q,"error":"no table is left; widen the range"}`, r.Transaction, code)
	})
	c := f.client(client.Options{Interval: brief})
	_, err := c.Lease(t.Context(), plain)
	refused, ok := errors.AsType[*wire.Error](err)
	if !ok || refused.Code != wire.Exhausted || refused.Text != "no table is left; widen the range" || tries.Load() != 1 {
		t.Errorf("after %d tries %v", tries.Load(), err)
	}
	tries.Store(0)
	busy := plain
	busy.Interface = "busy0"
	if l, err := c.Lease(t.Context(), busy); err != nil || l.Table != 10002 || tries.Load() != 3 {
		t.Errorf("after %d tries %+v, %v", tries.Load(), l, err)
	}
	for _, senseless := range []client.Request{
		{Interface: "wan0"},
		{Interface: "wan0", Address: plain.Address, ID: "x"},
		{Interface: "", Address: plain.Address},
		{Interface: "an-interface-name-too-long", Address: plain.Address},
		{Interface: "wan0", ID: strings.Repeat("x", 46)},
	} {
		tries.Store(0)
		if _, err := c.Lease(t.Context(), senseless); err == nil || tries.Load() != 0 {
			t.Errorf("%+v: %v after %d tries", senseless, err, tries.Load())
		}
	}
}

func TestExpiryInThePastDoesNotWrap(t *testing.T) {
	f := newFake(t, func(f *fake, r request) {
		f.say(r, `{"version":2,"cmd":2,"table":10001,"lease_expires":%d,"lifetime":3600,"transaction":%d,"routing":false}`, max(seconds()-100, 1), r.Transaction)
	})
	l, err := f.client(client.Options{}).Lease(t.Context(), plain)
	if err != nil || l.Lifetime != 0 || time.Until(l.Expires) > 0 {
		t.Errorf("lease %+v, %v", l, err)
	}
}

func TestTwoClientsOfOneLease(t *testing.T) {
	f := newFake(t, func(f *fake, r request) { f.grant(r, 10001, time.Hour) })
	var both sync.WaitGroup
	for range 2 {
		c := f.client(client.Options{})
		both.Go(func() {
			for range 20 {
				if l, err := c.Lease(t.Context(), plain); err != nil || l.Table != 10001 {
					t.Errorf("lease %+v, %v", l, err)
				}
			}
		})
	}
	both.Wait()
}

func TestCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	f := newFake(t, func(*fake, request) { cancel() })
	_, err := f.client(client.Options{}).Lease(ctx, plain)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}

func TestHold(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	var renewals int
	f := newFake(t, func(f *fake, r request) {
		if r.Command == 1 {
			f.say(r, `{"version":2,"cmd":2,"table":0,"lease_expires":0,"lifetime":0,"transaction":%d,"routing":false}`, r.Transaction)
			return
		}
		renewals++
		switch renewals {
		case 1, 2:
			f.grant(r, 10001, time.Second) // at half of it, but not busier than once a second
		case 3:
			// It was restarted, and has lost its memory.
			f.grant(r, 10002, time.Second)
		case 4:
			f.say(r, `{"version":2,"cmd":3,"transaction":%d,"code":"kernel","error":"for a moment"}`, r.Transaction)
		default:
			f.grant(r, 10002, time.Hour)
		}
	})
	var told []string
	began := time.Now()
	err := f.client(client.Options{Interval: brief}).Hold(ctx, plain, func(l client.Lease, err error) {
		told = append(told, fmt.Sprint(l.Table, " ", err != nil))
		if len(told) == 4 {
			cancel()
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := strings.Join(told, ", "), "10001 false, 10002 false, 10002 true, 10002 false"; got != want {
		t.Errorf("told %s, want %s", got, want)
	}
	if took := time.Since(began); took < 3900*time.Millisecond {
		t.Errorf("five requests in %v: busier than once a second", took)
	}
	var last request
	for len(f.asked) > 0 {
		last = <-f.asked
	}
	if last.Command != 1 {
		t.Errorf("it was not released at the end: %+v", last)
	}
}

func TestHoldIsRefused(t *testing.T) {
	f := newFake(t, func(f *fake, r request) {
		f.say(r, `{"version":2,"cmd":3,"transaction":%d,"code":"not-allowed","error":"no"}`, r.Transaction)
	})
	err := f.client(client.Options{}).Hold(t.Context(), plain, func(l client.Lease, err error) { t.Errorf("told %+v, %v", l, err) })
	if refused, ok := errors.AsType[*wire.Error](err); !ok || refused.Code != wire.NotAllowed {
		t.Errorf("error %v", err)
	}
}

func TestAServerOfAnotherUser(t *testing.T) {
	f := newFake(t, func(f *fake, r request) { f.grant(r, 10666, time.Hour) })
	c := f.client(client.Options{Interval: 20 * time.Millisecond, Servers: []uint32{12345}})
	if l, err := c.Lease(t.Context(), plain); !errors.Is(err, client.ErrNoAnswer) {
		t.Errorf("believed %+v, %v", l, err)
	}
}

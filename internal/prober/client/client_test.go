package client_test

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"multihomed/internal/prober/client"
	"multihomed/internal/prober/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is generous: only a failure takes it.
const patience = 20 * time.Second

// A fake is a prober that does what a test says.
type fake struct {
	t    *testing.T
	path string
	l    *net.UnixListener
}

func newFake(t *testing.T) *fake {
	t.Helper()
	dir, err := os.MkdirTemp("", "fake") //nolint:usetesting // Names of sockets are short.
	must(t, err)
	t.Cleanup(func() { must(t, os.RemoveAll(dir)) })
	f := &fake{t: t, path: filepath.Join(dir, "socket")}
	f.l, err = net.ListenUnix("unixpacket", &net.UnixAddr{Name: f.path, Net: "unixpacket"})
	must(t, err)
	t.Cleanup(func() { _ = f.l.Close() }) // Some tests close it.
	return f
}

// accept returns the next connection of a client.
func (f *fake) accept() *served {
	f.t.Helper()
	must(f.t, f.l.SetDeadline(time.Now().Add(patience)))
	c, err := f.l.AcceptUnix()
	must(f.t, err)
	f.t.Cleanup(func() { _ = c.Close() }) // Some tests close it.
	must(f.t, c.SetDeadline(time.Now().Add(patience)))
	return &served{t: f.t, UnixConn: c}
}

// greeted returns the next connection, of a client that is told that the prober works.
func (f *fake) greeted() *served {
	f.t.Helper()
	s := f.accept()
	p, is := s.request().(wire.Ping)
	if !is {
		f.t.Fatal("the client begins without a ping")
	}
	s.tell(wire.Pong{ID: p.ID, At: wire.Now()}, wire.Now())
	return s
}

type served struct {
	*net.UnixConn
	t *testing.T
}

func (s *served) request() wire.Request {
	s.t.Helper()
	b := make([]byte, wire.MaxDatagram)
	n, err := s.Read(b)
	must(s.t, err)
	r, err := wire.DecodeRequest(b[:n])
	must(s.t, err)
	return r
}

func (s *served) tell(r wire.Report, horizon wire.Time) {
	s.t.Helper()
	datagram, err := wire.EncodeReport(nil, r, horizon)
	must(s.t, err)
	_, err = s.Write(datagram)
	must(s.t, err)
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

// run runs a client for the test.
func run(t *testing.T, path string) *client.Client {
	t.Helper()
	c := client.New(path)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		c.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		select {
		case <-ended:
		case <-time.After(patience):
			t.Error("the client does not end")
		}
		for range c.Events() {
			continue // It must be closed.
		}
	})
	return c
}

func next(t *testing.T, c *client.Client) any {
	t.Helper()
	select {
	case e := <-c.Events():
		return e.Report
	case <-time.After(patience):
		t.Fatal("no event")
	}
	return nil
}

func connected(t *testing.T, c *client.Client) {
	t.Helper()
	if e, is := next(t, c).(client.Connected); !is {
		t.Fatalf("%T %+v", e, e)
	}
}

func lost(t *testing.T, c *client.Client, want error, text string) {
	t.Helper()
	e := next(t, c)
	if l, is := e.(client.Lost); !is || want != nil && !errors.Is(l.Err, want) || !strings.Contains(l.Err.Error(), text) {
		t.Fatalf("%T %+v, want %v, %q", e, e, want, text)
	}
}

func probe() wire.Probe {
	return wire.Probe{Kind: wire.DNS, Device: 1, Target: netip.MustParseAddrPort("192.0.2.1:53")}
}

// TestReports: each report arrives with the times of this process.
func TestReports(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	c := run(t, f.path)
	if _, err := c.Ping(); !errors.Is(err, client.ErrAway) {
		t.Errorf("before it is connected: %v", err)
	}
	s := f.greeted()
	connected(t, c)

	before := time.Now()
	id, err := c.Probe(probe())
	must(t, err)
	r, is := s.request().(wire.Probe)
	if !is || r.ID != id {
		t.Fatalf("%+v, for %d", r, id)
	}
	sent := wire.Now()
	s.tell(wire.Sent{ID: id, At: sent}, sent)
	at := wire.Now()
	s.tell(wire.Answered{ID: id, At: at, RTT: at.Sub(sent)}, at)
	after := time.Now()
	if e, is := next(t, c).(client.Sent); !is || e.ID != id || e.At.Before(before) || e.At.After(after) {
		t.Errorf("%+v between %v and %v", e, before, after)
	}
	if e, is := next(t, c).(client.Answered); !is || e.ID != id || e.At.Before(before) || e.At.After(after) || e.RTT != at.Sub(sent) {
		t.Errorf("%+v between %v and %v", e, before, after)
	}

	here, there := netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("2001:db8::2")
	_, err = c.Look(wire.Look{Sources: []wire.Source{{Addr: here, Device: 1}, {Addr: there, Device: 2}}, Devices: []int{1, 2}})
	must(t, err)
	l, _ := s.request().(wire.Look)
	at = wire.Now()
	s.tell(wire.Looked{
		ID: l.ID, At: at, Connections: []wire.Connections{{}, {Count: 2, Proof: at.Add(-time.Millisecond), Silence: time.Second}},
		Devices: []wire.Counters{{}, {TxPackets: 5}},
	}, at)
	e, is := next(t, c).(client.Looked)
	if !is || e.ID != l.ID || e.Connections[here] != (client.Connections{}) || e.Devices[2].TxPackets != 5 || len(e.Devices) != 2 {
		t.Errorf("%+v", e)
	}
	if of := e.Connections[there]; of.Count != 2 || of.Silence != time.Second || e.At.Sub(of.Proof) != time.Millisecond {
		t.Errorf("%+v", of)
	}

	must(t, s.Close())
	lost(t, c, nil, "the prober has ended")
	s = f.greeted()
	connected(t, c)
	again, err := c.Probe(probe())
	must(t, err)
	if again <= id {
		t.Errorf("the ID %d comes after %d", again, id)
	}
	s.request()
	now := wire.Now()
	s.tell(wire.Unsent{ID: again, At: now, Errno: unix.ENODEV}, now)
	if e, is := next(t, c).(client.Unsent); !is || !errors.Is(e.Err, unix.ENODEV) {
		t.Errorf("%+v", e)
	}
}

// TestLies: a report that no honest prober sends ends the connection.
func TestLies(t *testing.T) {
	t.Parallel()
	for name, lie := range map[string]func(s *served, probe, look uint64){
		"unasked":        func(s *served, probe, _ uint64) { s.tell(wire.Sent{ID: probe + 100, At: wire.Now()}, wire.Now()) },
		"answer, unsent": func(s *served, probe, _ uint64) { s.tell(wire.Answered{ID: probe, At: wire.Now()}, wire.Now()) },
		"twice": func(s *served, probe, _ uint64) {
			s.tell(wire.Sent{ID: probe, At: wire.Now()}, wire.Now())
			s.tell(wire.Sent{ID: probe, At: wire.Now()}, wire.Now())
		},
		"answered twice": func(s *served, probe, _ uint64) {
			s.tell(wire.Sent{ID: probe, At: wire.Now()}, wire.Now())
			s.tell(wire.Answered{ID: probe, At: wire.Now()}, wire.Now())
			s.tell(wire.Failed{ID: probe, At: wire.Now(), Errno: unix.ETIMEDOUT}, wire.Now())
		},
		"before it was asked": func(s *served, probe, _ uint64) { s.tell(wire.Sent{ID: probe, At: 1}, wire.Now()) },
		"the future": func(s *served, probe, _ uint64) {
			s.tell(wire.Sent{ID: probe, At: wire.Now().Add(time.Hour)}, wire.Now())
		},
		"answered before sent": func(s *served, probe, _ uint64) {
			at := wire.Now()
			s.tell(wire.Sent{ID: probe, At: wire.Now()}, wire.Now())
			s.tell(wire.Answered{ID: probe, At: at}, wire.Now())
		},
		"round trip": func(s *served, probe, _ uint64) {
			s.tell(wire.Sent{ID: probe, At: wire.Now()}, wire.Now())
			s.tell(wire.Answered{ID: probe, At: wire.Now(), RTT: 1e9}, wire.Now())
		},
		"a horizon of the future": func(s *served, probe, _ uint64) {
			s.tell(wire.Sent{ID: probe, At: wire.Now()}, wire.Now().Add(time.Minute))
		},
		"a horizon that goes back": func(s *served, probe, _ uint64) { s.tell(wire.Sent{ID: probe, At: wire.Now()}, 1) },
		"a pong of a probe":        func(s *served, probe, _ uint64) { s.tell(wire.Pong{ID: probe, At: wire.Now()}, wire.Now()) },
		"a look of a probe":        func(s *served, probe, _ uint64) { s.tell(wire.Looked{ID: probe, At: wire.Now()}, wire.Now()) },
		"a look at others":         func(s *served, _, look uint64) { s.tell(wire.Looked{ID: look, At: wire.Now()}, wire.Now()) },
		"a cost": func(s *served, _, look uint64) {
			s.tell(wire.Looked{ID: look, At: wire.Now(), Cost: time.Hour, Devices: make([]wire.Counters, 1)}, wire.Now())
		},
		"nonsense": func(s *served, _, _ uint64) { must(s.t, write(s, []byte("hello"))) },
		"a length": func(s *served, _, _ uint64) {
			must(s.t, write(s, append([]byte{1, 8}, make([]byte, 24)...), 0xff, 0xff))
		},
		"too much": func(s *served, _, _ uint64) { must(s.t, write(s, make([]byte, 100<<10))) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFake(t)
			c := run(t, f.path)
			s := f.greeted()
			connected(t, c)
			p, err := c.Probe(probe())
			must(t, err)
			l, err := c.Look(wire.Look{Devices: []int{1}})
			must(t, err)
			s.request()
			s.request()
			lie(s, p, l)
			for {
				switch e := next(t, c).(type) {
				case client.Sent, client.Answered:
					continue
				case client.Lost:
					if !errors.Is(e.Err, client.ErrLied) {
						t.Errorf("%v", e.Err)
					}
				default:
					t.Errorf("%T %+v", e, e)
				}
				break
			}
			if _, err := c.Ping(); !errors.Is(err, client.ErrAway) {
				t.Errorf("a liar is still asked: %v", err)
			}
		})
	}
}

func write(s *served, b []byte, more ...byte) error {
	_, err := s.Write(append(b, more...))
	return err
}

// TestFlood: a prober that floods is closed at its first word too many, and its next connections wait longer
// and longer.
func TestFlood(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	c := run(t, f.path)
	began := time.Now()
	const times = 5
	for range times {
		s := f.greeted()
		datagram, err := wire.EncodeReport(nil, wire.Pong{ID: 1 << 40, At: wire.Now()}, wire.Now())
		must(t, err)
		for {
			if _, err := s.Write(datagram); err != nil {
				break
			}
		}
		connected(t, c)
		lost(t, c, client.ErrLied, "")
	}
	// 0.1, 0.2, 0.4 and 0.8 seconds.
	if took := time.Since(began); took < 1500*time.Millisecond {
		t.Errorf("%d connections in %v", times, took)
	}
}

// TestBounds: a prober that does not read, or never answers, makes the client refuse, and not wait.
func TestBounds(t *testing.T) {
	t.Parallel()
	for name, reads := range map[string]bool{"does not read": false, "does not answer": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFake(t)
			c := run(t, f.path)
			s := f.greeted()
			connected(t, c)
			if reads {
				go func() {
					b := make([]byte, wire.MaxDatagram)
					for {
						if _, err := s.Read(b); err != nil {
							return
						}
					}
				}()
			}
			asked := 0
			for ; ; asked++ {
				if _, err := c.Probe(probe()); err != nil {
					if !reads && errors.Is(err, client.ErrBusy) || reads && asked == wire.MaxOpen && errors.Is(err, client.ErrBusy) {
						break
					}
					// The fake reads a little later than it is asked.
					if !errors.Is(err, client.ErrBusy) || asked > wire.MaxOpen {
						t.Fatalf("after %d: %v", asked, err)
					}
					asked--
				}
			}
			began := time.Now()
			lost(t, c, client.ErrStalled, "has not answered for")
			if took := time.Since(began); took < client.StallAfter-time.Second {
				t.Errorf("stalled after %v", took)
			}
		})
	}
}

// TestSlowUser: a user that does not read stops the client from reading, and loses nothing.
func TestSlowUser(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	c := run(t, f.path)
	s := f.greeted()
	connected(t, c)
	const asked = 1000
	for n := range asked {
		id, err := c.Probe(probe())
		must(t, err)
		s.request()
		must(t, s.SetWriteDeadline(time.Now().Add(100*time.Millisecond)))
		datagram, err := wire.EncodeReport(nil, wire.Unsent{ID: id, At: wire.Now(), Errno: unix.ENODEV}, wire.Now())
		must(t, err)
		if _, err := s.Write(datagram); err != nil {
			// Its queue is full, as it must be at some time.
			if n < 256 {
				t.Fatal(err)
			}
			must(t, s.SetWriteDeadline(time.Now().Add(patience)))
			for range n {
				if e, is := next(t, c).(client.Unsent); !is {
					t.Fatalf("%+v", e)
				}
			}
			return
		}
	}
	for range asked {
		if e, is := next(t, c).(client.Unsent); !is {
			t.Fatalf("%+v", e)
		}
	}
}

// TestAway: the reason why there is no prober is told once; the prober is found when it comes.
func TestAway(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	c := run(t, filepath.Join(dir, "nothing"))
	lost(t, c, unix.ENOENT, "connecting to the prober")
	select {
	case e := <-c.Events():
		t.Errorf("told again: %+v", e)
	case <-time.After(time.Second):
	}

	f := newFake(t)
	file := f.path
	must(t, f.l.Close())
	c = run(t, file)
	lost(t, c, nil, "connecting to the prober")
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: file, Net: "unixpacket"})
	must(t, err)
	t.Cleanup(func() { must(t, l.Close()) })
	f.l = l
	f.greeted()
	connected(t, c)
}

// TestNobodyServes: a connection that nobody serves, as that to a socket of systemd whose service fails, is
// none.
func TestNobodyServes(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	c := run(t, f.path)
	lost(t, c, client.ErrStalled, "has not answered for")
}

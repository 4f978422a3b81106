package prober_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"multihomed/internal/prober/client"
	"multihomed/internal/prober/wire"
)

// TestDeath: the client notices that the prober was killed, and finds the next one; what was open is gone.
func TestDeath(t *testing.T) {
	w := newWorld(t)
	p := start(t)
	c := connect(t, p.path).connected()
	probe := wire.Probe{Kind: wire.DNS, Device: w.wan0, Target: addrPort(silent4 + ":53")}
	_, err := c.Probe(probe)
	must(t, err)
	must(t, p.cmd.Process.Kill())
	if err := c.lost(); err.Error() != "the prober has ended" {
		t.Errorf("%v", err)
	}
	<-p.done
	if _, err := c.Probe(probe); !errors.Is(err, client.ErrAway) {
		t.Errorf("%v", err)
	}
	// The dead one's socket file is still there.
	p.run(t)
	c.connected()
	probe.Target = addrPort(resolver4 + ":53")
	if e := c.probe(probe); !isAnswered(e) {
		t.Errorf("%+v", e.Report)
	}
	// Asked to end, it ends.
	must(t, p.cmd.Process.Signal(syscall.SIGTERM))
	<-p.done
	if code := p.cmd.ProcessState.ExitCode(); code != 0 {
		t.Errorf("exit status %d", code)
	}
}

// TestStop: a prober that is stopped delivers no horizon, and what it finds afterwards says nothing about
// round trips.
func TestStop(t *testing.T) {
	w := newWorld(t)
	p := start(t)
	c := connect(t, p.path).connected()
	arrived, let := make(chan struct{}), make(chan struct{})
	w.answers(func(query []byte) [][]byte {
		close(arrived)
		<-let
		return honest(query)
	})
	id, err := c.Probe(wire.Probe{Kind: wire.DNS, Device: w.wan0, Target: addrPort(resolver4 + ":53")})
	must(t, err)
	<-arrived
	must(t, p.cmd.Process.Signal(syscall.SIGSTOP))
	stopped(t, p.cmd.Process.Pid)
	before := time.Now()
	close(let)
	_, err = c.Ping()
	must(t, err)
	const pause = 500 * time.Millisecond
	deadline := time.After(pause)
wait:
	for {
		select {
		case e := <-c.Events():
			if _, is := e.Report.(client.Sent); !is || e.Horizon.After(before) {
				t.Fatalf("%+v of a stopped prober", e)
			}
		case <-deadline:
			break wait
		}
	}
	must(t, p.cmd.Process.Signal(syscall.SIGCONT))
	var got, pong bool
	for !got || !pong {
		e := c.next()
		switch r := e.Report.(type) {
		case client.Answered:
			got = true
			if r.ID != id || r.RTT != 0 {
				t.Errorf("%+v", r)
			}
		case client.Pong:
			pong = true
			if e.Horizon.Sub(before) < pause {
				t.Errorf("a horizon %v after the stop", e.Horizon.Sub(before))
			}
			if !got {
				t.Error("a horizon over an answer that comes later")
			}
		}
	}
}

func stopped(t *testing.T, pid int) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		must(t, err)
		_, rest, _ := strings.Cut(string(text), ") ")
		if strings.HasPrefix(rest, "T") {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not stopped: %s", text)
		}
	}
}

// TestTwoClients: the second one waits until the first one goes.
func TestTwoClients(t *testing.T) {
	newWorld(t)
	p := start(t)
	first := rawClient(t, p.path)
	ask(t, first, wire.Ping{ID: 1})
	if r := report(t, first); r != (wire.Pong{ID: 1, At: atOf(r)}) {
		t.Errorf("%+v", r)
	}
	second := connect(t, p.path)
	ask(t, first, wire.Ping{ID: 2})
	report(t, first)
	select {
	case e := <-second.Events():
		t.Errorf("%+v of the second client", e.Report)
	default:
	}
	must(t, unix.Close(first))
	second.connected()
}

// TestHostileClients: whatever a client sends, it is served or closed, memory and descriptors stay bounded,
// and the next client is served.
func TestHostileClients(t *testing.T) {
	w := newWorld(t)
	p := start(t)
	pid := p.cmd.Process.Pid
	at := func(target string) wire.Probe {
		return wire.Probe{Kind: wire.DNS, Device: w.wan0, Target: netip.AddrPortFrom(addr(target), 53)}
	}
	good, err := wire.EncodeRequest(nil, at(silent4))
	must(t, err)
	for name, datagram := range map[string][]byte{
		"empty": {}, "nonsense": []byte("GET / HTTP/1.1\r\n\r\n"), "short": good[:len(good)-1], "long": append(slices.Clip(good), 0),
		"endless": make([]byte, 100<<10), "a report": {1, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0},
	} {
		fd := rawClient(t, p.path)
		must(t, unix.Send(fd, datagram, unix.MSG_NOSIGNAL))
		if n, _, err := unix.Recvfrom(fd, make([]byte, 100), 0); n > 0 || err != nil && !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("%s: %d bytes, %v", name, n, err)
		}
		must(t, unix.Close(fd))
	}

	// Two that never read, and ask as fast as they can. The first one goes.
	fd, _ := flood(t, p.path, good)
	must(t, unix.Close(fd))
	fd, asked := flood(t, p.path, good)
	bounded(t, pid)
	// It reads after all: everything it asked has its reports.
	reports := 0
	for last := 0; last < 10; reports++ {
		if _, is := report(t, fd).(wire.Sent); !is {
			last++
		}
	}
	must(t, unix.Close(fd))

	// One that asks for more at once than is allowed, and reads.
	fd = rawClient(t, p.path)
	var refused, sent int
	for range 100 {
		for range 60 {
			ask(t, fd, at(silent4))
		}
		for range 60 {
			switch r := report(t, fd).(type) {
			case wire.Sent:
				sent++
			case wire.Unsent:
				refused++
				if r.Errno != unix.ENOBUFS {
					t.Fatalf("%+v", r)
				}
			}
		}
	}
	bounded(t, pid)
	if refused == 0 || sent < 1000 {
		t.Errorf("%d refused, %d sent", refused, sent)
	}
	must(t, unix.Close(fd))

	// Looks without end, without waiting.
	fd = rawClient(t, p.path)
	busy := 0
	for range 20 {
		ask(t, fd, wire.Look{Devices: []int{w.wan0}, Sources: []wire.Source{{Addr: addr(host4), Device: w.wan0}}})
	}
	for range 20 {
		if r, is := report(t, fd).(wire.Unsent); is && r.Errno == unix.EBUSY {
			busy++
		}
	}
	t.Logf("%d of 20 looks at once are refused; %d requests fit, %d reports", busy, asked, reports)
	must(t, unix.Close(fd))

	c := connect(t, p.path).connected()
	if e := c.probe(at(resolver4)); !isAnswered(e) {
		t.Errorf("the next client: %+v", e.Report)
	}
	if n := descriptors(t, pid); n > 50 {
		t.Errorf("%d descriptors are left over", n)
	}
}

// TestPeers: only root and the owner of the socket may ask, even where the file lets others in.
func TestPeers(t *testing.T) {
	newWorld(t)
	p := start(t)
	fd := rawClient(t, p.path)
	must(t, os.Chmod(p.path, 0o666))
	must(t, unix.Close(fd))
	for uid, served := range map[uint32]bool{0: true, user: true, user + 1: false} {
		cmd := exec.CommandContext(t.Context(), "/proc/self/exe", p.path)
		cmd.Env = []string{pingEnv + "=1"}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: user}}
		out, err := cmd.CombinedOutput()
		if served != (err == nil) {
			t.Errorf("user %d: %v, %s", uid, err, out)
		}
	}
}

// pingEnv makes the test's program a client that sends one ping.
const pingEnv = "MULTIHOMED_PROBER_TEST_PING"

func pingMain(path string) int {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		err = unix.Connect(fd, &unix.SockaddrUnix{Name: path})
	}
	var ping []byte
	if err == nil {
		ping, err = wire.EncodeRequest(nil, wire.Ping{ID: 1})
	}
	if err == nil {
		err = unix.Send(fd, ping, unix.MSG_NOSIGNAL)
	}
	if err == nil {
		if n, _, recvErr := unix.Recvfrom(fd, make([]byte, 100), 0); n == 0 {
			err = errors.Join(recvErr, errors.New("not served"))
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// TestActivation: with a socket of systemd the prober serves one client and ends, and the next one finds the
// next prober. One that is gone before its turn takes no prober from those behind it.
func TestActivation(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: dir + "/socket", Net: "unixpacket"})
	must(t, err)
	must(t, os.Chown(dir+"/socket", user, user))
	// The prober asks who owns the file.
	for d := dir; d != os.TempDir() && d != "/"; d = parent(d) {
		must(t, os.Chmod(d, 0o755))
	}
	t.Cleanup(func() { must(t, l.Close()) })
	file, err := l.File()
	must(t, err)
	defer file.Close()
	for range 2 {
		for range 3 {
			gone := rawClient(t, dir+"/socket")
			ask(t, gone, wire.Ping{ID: 1})
			must(t, unix.Close(gone))
		}
		cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
		cmd.Env = []string{socketEnv + "=systemd", "LISTEN_FDS=1"}
		cmd.ExtraFiles = []*os.File{file}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: user + 2, Gid: user + 2}}
		cmd.Stderr = os.Stderr
		must(t, cmd.Start())
		fd := rawClient(t, dir+"/socket")
		ask(t, fd, wire.Probe{ID: 3, Kind: wire.DNS, Device: w.wan0, Target: addrPort(resolver4 + ":53")})
		if _, is := report(t, fd).(wire.Sent); !is {
			t.Error("no report")
		}
		must(t, unix.Close(fd))
		must(t, cmd.Wait())
	}
}

func parent(path string) string { return path[:strings.LastIndexByte(path, '/')] }

func ask(t *testing.T, fd int, r wire.Request) {
	t.Helper()
	datagram, err := wire.EncodeRequest(nil, r)
	must(t, err)
	must(t, unix.Send(fd, datagram, unix.MSG_NOSIGNAL))
}

func report(t *testing.T, fd int) wire.Report {
	t.Helper()
	b := make([]byte, wire.MaxDatagram)
	n, _, err := unix.Recvfrom(fd, b, 0)
	must(t, err)
	r, _, err := wire.DecodeReport(b[:n])
	must(t, err)
	return r
}

func atOf(r wire.Report) wire.Time {
	p, _ := r.(wire.Pong)
	return p.At
}

func descriptors(t *testing.T, pid int) int {
	t.Helper()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	must(t, err)
	return len(entries)
}

// flood sends a request until the prober takes no more, and returns how often.
func flood(t *testing.T, path string, request []byte) (fd, asked int) {
	t.Helper()
	fd = rawClient(t, path)
	must(t, unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &unix.Timeval{Usec: 300_000}))
	for ; asked < 100_000; asked++ {
		if err := unix.Send(fd, request, unix.MSG_NOSIGNAL); errors.Is(err, unix.EAGAIN) {
			return fd, asked
		} else if err != nil {
			t.Fatalf("after %d: %v", asked, err)
		}
	}
	t.Fatal("it takes everything")
	return fd, asked
}

// bounded checks that a prober holds no more than it may.
func bounded(t *testing.T, pid int) {
	t.Helper()
	n, kib := descriptors(t, pid), memory(t, pid)
	if n > wire.MaxOpen+50 || kib > 200<<10 {
		t.Errorf("%d descriptors, %d KiB of memory", n, kib)
	}
	t.Logf("%d descriptors, %d KiB of memory", n, kib)
}

// memory is the resident set of a process, in KiB.
func memory(t *testing.T, pid int) int {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	must(t, err)
	_, rest, found := strings.Cut(string(text), "VmRSS:")
	if !found {
		t.Fatalf("%s", text)
	}
	kib, err := strconv.Atoi(strings.Fields(rest)[0])
	must(t, err)
	return kib
}

package binder_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"multihomed/internal/binder"
	"multihomed/internal/binder/client"
	"multihomed/internal/binder/wire"
	"multihomed/internal/cgroupbpf"
	"multihomed/test/lab/boundtest"
)

// askEnv makes the test's program a client: it asks for a link and the cgroup at a path.
const askEnv = "MULTIHOMED_BINDER_TEST_ASK"

func TestMain(m *testing.M) {
	if socket, is := os.LookupEnv(askEnv); is {
		os.Exit(askMain(socket, os.Args[1], os.Args[2]))
	}
	if socket, is := os.LookupEnv(askUsersEnv); is {
		os.Exit(askUsersMain(socket))
	}
	os.Exit(boundtest.Main(m))
}

func askMain(socket, link, path string) int {
	cgroup, err := os.Open(path)
	if err == nil {
		_, err = client.Bind(context.Background(), socket, link, cgroup)
	}
	if err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println("bound")
	return 0
}

// A daemon knows wan1, and forbids what it is told to.
type daemon struct {
	mu     sync.Mutex
	peers  []binder.Peer
	forbid error
	dns    *os.File // as the helper gave it
	hold   chan struct{}
	stale  bool // dns is no map
}

func (d *daemon) Allowed(_ context.Context, p binder.Peer) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.peers = append(d.peers, p)
	return d.forbid
}

func (d *daemon) Hold(ctx context.Context, link string) (binder.Binding, error) {
	if link != "wan1" {
		return binder.Binding{}, errors.New("there is no link " + link + "; to fix: see multihomectl status")
	}
	if d.hold != nil {
		select {
		case <-d.hold:
		case <-ctx.Done():
			return binder.Binding{}, context.Cause(ctx)
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	b := binder.Binding{Mark: boundtest.Wan1, Note: "a note"}
	if d.dns != nil {
		again, err := dup(d.dns)
		b.Map = again
		if err != nil || !d.stale {
			return b, err
		}
	}
	b.DNS = &boundtest.DNS1
	b.Keep = func(_ context.Context, f *os.File) (err error) {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.stale = false
		d.dns, err = dup(f)
		return err
	}
	return b, nil
}

func (d *daemon) isStale() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.stale
}

// kept is the map that the helper gave it.
func (d *daemon) kept() *os.File {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.dns
}

func dup(f *os.File) (*os.File, error) {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	return os.NewFile(uintptr(fd), f.Name()), err
}

// start runs a helper until the test ends, and returns its socket.
func start(t *testing.T, w *boundtest.World, d *daemon, change ...func(*binder.Options)) string {
	t.Helper()
	// A directory that others may enter, with a short path: that of a socket is bounded.
	dir, err := os.MkdirTemp("/tmp", "binder-test-") //nolint:usetesting // see above
	must(t, err)
	t.Cleanup(func() { must(t, os.RemoveAll(dir)) })
	must(t, os.Chmod(dir, 0o755))
	var log bytes.Buffer
	o := binder.Options{Socket: filepath.Join(dir, "socket"), Bindings: d, Logger: slog.New(slog.NewTextHandler(&log, nil)), Idle: time.Hour}
	for _, c := range change {
		c(&o)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		w.Here()
		done <- binder.Run(ctx, o)
	}()
	t.Cleanup(func() {
		cancel()
		must(t, <-done)
		if dns := d.kept(); dns != nil {
			must(t, dns.Close())
		}
		if t.Failed() {
			t.Log(log.String())
		}
	})
	await(t, "the helper listens", func() bool {
		c, err := net.Dial("unixpacket", o.Socket) //nolint:noctx // It answers at once.
		if err == nil {
			must(t, c.Close())
		}
		return err == nil
	})
	return o.Socket
}

func await(t *testing.T, what string, so func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !so(); {
		if time.Now().After(deadline) {
			t.Fatalf("it never came that %s", what)
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestACgroupIsBoundWithTheLinksServers(t *testing.T) {
	w := boundtest.New(t)
	d := &daemon{}
	socket := start(t, w, d)
	for n := range 2 {
		cgroup := w.Cgroup(fmt.Sprint("bound", n))
		note, err := client.Bind(t.Context(), socket, "wan1", cgroup)
		if err != nil || note != "a note" {
			t.Fatalf("%q, %v", note, err)
		}
		got := w.Run(cgroup, "mark 4", "udp "+boundtest.Stub+":53")
		if want := "wan1 from " + boundtest.Stub + ":53"; got[0] != "0x82000000" || got[1] != want {
			t.Errorf("%q", got)
		}
		// The second cgroup uses the map of the first.
		if n == 1 {
			dns, err := cgroupbpf.OpenDNSMap(d.kept())
			must(t, err)
			must(t, dns.Set(cgroupbpf.DNS{}))
			if got := w.Run(cgroup, "udp "+boundtest.Stub+":53"); got[0] != "error: EPERM" {
				t.Errorf("without a server: %q", got)
			}
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if p := d.peers[0]; p.UID != 0 || p.PID != int32(os.Getpid()) {
		t.Errorf("the caller is %+v", p)
	}
}

// TestTheDaemonChangesServersThroughTheHelper: it has no right to call bpf(2), and ordinary users may not change where others' names
// are asked.
func TestTheDaemonChangesServersThroughTheHelper(t *testing.T) {
	w := boundtest.New(t)
	d := &daemon{}
	socket := start(t, w, d)
	cgroup := w.Cgroup("a")
	ask := func() error {
		w.Here()
		_, err := client.Bind(t.Context(), socket, "wan1", cgroup)
		return err
	}
	must(t, ask())
	before := w.Run(cgroup, "udp "+boundtest.Stub+":53")
	must(t, client.Change(t.Context(), socket, wire.DNS{}, d.kept()))
	if after := w.Run(cgroup, "udp "+boundtest.Stub+":53"); after[0] == before[0] || after[0] != "error: EPERM" {
		t.Errorf("before %q, without servers %q", before, after)
	}
	must(t, client.Change(t.Context(), socket, wire.DNS(boundtest.DNS1), d.kept()))
	if after := w.Run(cgroup, "udp "+boundtest.Stub+":53"); after[0] != before[0] {
		t.Errorf("before %q, after %q", before, after)
	}
	if err := client.Change(t.Context(), socket, wire.DNS{}, cgroup); err == nil || !strings.Contains(err.Error(), "DNS map") {
		t.Errorf("a cgroup for a map: %v", err)
	}
	if err := client.Change(t.Context(), socket, wire.DNS{Server4: boundtest.DNS1.Server6}, d.kept()); err == nil {
		t.Error("an address of IPv6 is a server of IPv4")
	}
}

// TestAMapOfAnotherVersionIsReplaced: systemd keeps maps over an upgrade.
func TestAMapOfAnotherVersionIsReplaced(t *testing.T) {
	w := boundtest.New(t)
	fd, err := unix.MemfdCreate("map", unix.MFD_CLOEXEC)
	must(t, err)
	d := &daemon{dns: os.NewFile(uintptr(fd), "map"), stale: true}
	socket := start(t, w, d)
	cgroup := w.Cgroup("a")
	if _, err := client.Bind(t.Context(), socket, "wan1", cgroup); err != nil || d.isStale() {
		t.Fatalf("%v, stale %t", err, d.isStale())
	}
	if got := w.Run(cgroup, "udp "+boundtest.Stub+":53"); got[0] != "wan1 from "+boundtest.Stub+":53" {
		t.Errorf("%q", got)
	}
}

func TestWrongCgroupsAndLinksAreRefusedWithAReason(t *testing.T) {
	w := boundtest.New(t)
	socket := start(t, w, &daemon{})
	const user = 1000
	own, populated, above, foreign := w.Cgroup("own"), w.Cgroup("populated"), w.Cgroup("above"), w.Cgroup("foreign")
	below := w.Cgroup("below", above)
	for _, f := range []*os.File{own, populated, above, below} {
		must(t, f.Chown(user, user))
	}
	sleeper := exec.CommandContext(t.Context(), "sleep", "1000")
	sleeper.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(populated.Fd())}
	must(t, sleeper.Start())
	defer func() {
		must(t, sleeper.Process.Kill())
		_ = sleeper.Wait()
	}()
	removed := filepath.Join(w.Root(), "removed")
	must(t, os.Mkdir(removed, 0o755))
	gone, err := os.Open(removed)
	must(t, err)
	defer gone.Close()
	must(t, os.Remove(removed))
	for _, c := range []struct {
		name, link, path string
		uid              int
		want             string
	}{
		{"own", "wan1", own.Name(), user, "bound"},
		{"below", "wan1", below.Name(), user, "bound"},
		{"somebody's, by root", "wan1", populated.Name(), 0, "bound"},
		{"with others below", "wan1", above.Name(), user, "holds further cgroups; to fix"},
		{"with others in it", "wan1", populated.Name(), user, "holds processes other than the caller; to fix"},
		{"somebody else's", "wan1", foreign.Name(), user, "belongs to user 0, and user 1000 asks; to fix"},
		{"anybody's", "wan1", own.Name(), 65534, "may be anybody"},
		{"the root", "wan1", filepath.Dir(w.Root()), 0, "the root of all cgroups"},
		{"the root, by a user", "wan1", filepath.Dir(w.Root()), user, "the root of all cgroups"},
		{"a file of a cgroup", "wan1", filepath.Join(own.Name(), "cgroup.events"), user, "not the directory of a cgroup v2; to fix"},
		{"another file system", "wan1", "/", user, "not the directory of a cgroup v2; to fix"},
		{"removed", "wan1", fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), gone.Fd()), 0, "has been removed"},
		{"no link", "wan7", own.Name(), user, "there is no link wan7; to fix"},
		{"no name", "a/b", own.Name(), user, "not the name of an interface"},
	} {
		ask := exec.CommandContext(t.Context(), "/proc/self/exe", c.link, c.path)
		ask.Env = append(os.Environ(), askEnv+"="+socket)
		ask.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(c.uid), Gid: uint32(c.uid)}}
		out, err := ask.CombinedOutput()
		if !strings.Contains(string(out), c.want) || (err == nil) != (c.want == "bound") {
			t.Errorf("%s: %v, %s", c.name, err, out)
		}
	}
}

// What a user's own process asks for from inside, as systemd-run --user --scope leaves it.
func TestTheCallerMayBeInItsCgroup(t *testing.T) {
	w := boundtest.New(t)
	socket := start(t, w, &daemon{})
	own := w.Cgroup("own")
	must(t, own.Chown(1000, 1000))
	ask := exec.CommandContext(t.Context(), "/proc/self/exe", "wan1", own.Name())
	ask.Env = append(os.Environ(), askEnv+"="+socket)
	ask.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 1000, Gid: 1000}, UseCgroupFD: true, CgroupFD: int(own.Fd())}
	if out, err := ask.CombinedOutput(); err != nil || string(out) != "bound\n" {
		t.Errorf("%v, %s", err, out)
	}
}

func TestWhoMayNotBindIsToldWhy(t *testing.T) {
	w := boundtest.New(t)
	d := &daemon{forbid: errors.New("nobody may; to fix: ask root")}
	socket := start(t, w, d)
	_, err := client.Bind(t.Context(), socket, "wan1", w.Cgroup("own"))
	if r, is := errors.AsType[client.Refusal](err); !is || r.Code != wire.Denied || r.Text != "nobody may; to fix: ask root" {
		t.Errorf("%v", err)
	}
}

func TestCallersOfOtherNetworksAreRefused(t *testing.T) {
	w := boundtest.New(t)
	socket := start(t, w, &daemon{})
	cgroup := w.Cgroup("own")
	w.In("br0", func() {
		// The connection is made on this thread.
		fd := dial(t, socket)
		defer func() { must(t, unix.Close(fd)) }()
		must(t, unix.Sendmsg(fd, []byte("\x01wan1"), unix.UnixRights(int(cgroup.Fd())), nil, 0))
		if a := answer(t, fd); a.Code != wire.BadRequest || !strings.Contains(a.Text, "another network namespace") {
			t.Errorf("%+v", a)
		}
	})
}

func dial(t *testing.T, socket string) int {
	t.Helper()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	must(t, unix.Connect(fd, &unix.SockaddrUnix{Name: socket}))
	return fd
}

func answer(t *testing.T, fd int) wire.Answer {
	t.Helper()
	b := make([]byte, wire.MaxAnswer+1)
	n, err := unix.Read(fd, b)
	if errors.Is(err, unix.ECONNRESET) {
		n, err = unix.Read(fd, b)
	}
	must(t, err)
	a, err := wire.DecodeAnswer(b[:n])
	must(t, err)
	return a
}

func TestHostileClientsCostNothingThatLasts(t *testing.T) {
	w := boundtest.New(t)
	socket := start(t, w, &daemon{})
	cgroup := w.Cgroup("own")
	descriptors := func() int {
		names, err := os.ReadDir("/proc/self/fd")
		must(t, err)
		return len(names)
	}
	before := descriptors()
	many := make([]int, 253) // SCM_MAX_FD
	for n := range many {
		many[n] = int(cgroup.Fd())
	}
	for _, c := range []struct {
		name, datagram string
		fds            []int
	}{
		{"nothing", "", nil},
		{"no descriptor", "\x01wan1", nil},
		{"two descriptors", "\x01wan1", many[:2]},
		{"as many as there can be", "\x01wan1", many},
		{"half a message", "\x01", many[:1]},
		{"too much", "\x01" + strings.Repeat("x", 60000), many[:1]},
		{"another version", "\x02wan1", many[:1]},
		{"nonsense", "\x01wan 1\x00", many[:1]},
	} {
		fd := dial(t, socket)
		must(t, unix.Sendmsg(fd, []byte(c.datagram), unix.UnixRights(c.fds...), nil, 0))
		if a := answer(t, fd); a.Code != wire.BadRequest || a.Text == "" {
			t.Errorf("%s: %+v", c.name, a)
		}
		must(t, unix.Close(fd))
	}
	for range 200 {
		// Peers that vanish, before and after the request.
		fd := dial(t, socket)
		_ = unix.Sendmsg(fd, []byte("\x01wan7"), unix.UnixRights(int(cgroup.Fd())), nil, 0)
		must(t, unix.Close(fd))
		must(t, unix.Close(dial(t, socket)))
	}
	if _, err := client.Bind(t.Context(), socket, "wan1", cgroup); err != nil {
		t.Errorf("afterwards: %v", err)
	}
	// The map for DNS stays with the daemon.
	await(t, "descriptors are closed", func() bool { return descriptors() <= before+1 })
}

func TestAUserWhoFloodsLeavesPlacesForOthers(t *testing.T) {
	w := boundtest.New(t)
	d := &daemon{hold: make(chan struct{})}
	socket := start(t, w, d, func(o *binder.Options) { o.Idle = time.Hour })
	flood := exec.CommandContext(t.Context(), "perl", "-e", `use Socket; $| = 1; my @all; for (1..200) {
		socket(my $s, AF_UNIX, SOCK_SEQPACKET, 0) or die; connect($s, pack_sockaddr_un($ARGV[0])) or die "connect: $!"; push @all, $s } print "full\n"; sleep 1000`, socket)
	flood.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 1000, Gid: 1000}}
	out, err := flood.StdoutPipe()
	must(t, err)
	must(t, flood.Start())
	defer func() {
		must(t, flood.Process.Kill())
		_ = flood.Wait()
	}()
	if _, err := out.Read(make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
	close(d.hold)
	if _, err := client.Bind(t.Context(), socket, "wan1", w.Cgroup("own")); err != nil {
		t.Errorf("root: %v", err)
	}
}

func TestItEndsWhenItIsIdle(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "socket")
	o := binder.Options{Socket: path, Bindings: &daemon{}, Logger: slog.New(slog.DiscardHandler), Idle: time.Millisecond}
	for range 2 {
		// The second time, the socket of the first is there no more, or is replaced.
		must(t, binder.Run(t.Context(), o))
	}
	must(t, os.WriteFile(path, nil, 0o600))
	if err := binder.Run(t.Context(), o); err == nil {
		t.Error("a file that is no socket was replaced")
	}
}

func TestWithoutASocketItSaysHowToGetOne(t *testing.T) {
	t.Setenv("LISTEN_PID", "")
	if err := binder.Run(t.Context(), binder.Options{Logger: slog.New(slog.DiscardHandler)}); !errors.Is(err, binder.ErrNoSocket) {
		t.Errorf("%v", err)
	}
	f, err := os.Open(t.TempDir())
	must(t, err)
	defer f.Close()
	if _, err := client.Bind(t.Context(), filepath.Join(t.TempDir(), "none"), "wan1", f); !errors.Is(err, client.ErrAway) || !strings.HasSuffix(err.Error(), "; to fix: systemctl start multihomed-binder.socket") {
		t.Errorf("%v", err)
	}
}

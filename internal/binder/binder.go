// Package binder is the process multihomed-binder: it binds cgroups to links, for users who may not do that themselves.
// The daemon knows the links and may not load BPF programs; this process has CAP_BPF and CAP_NET_ADMIN, listens to one
// socket, and does nothing else. systemd starts it for a request, and it ends when none has come for a while: the programs
// stay with their cgroups (package cgroupbpf).
//
// A request is a link and a cgroup, as an open directory (package wire). The helper binds a cgroup of cgroup v2 that
// belongs to the caller and holds nobody else: no process but the caller's own, and no further cgroup. Trusted
// users, such as root, may bind every cgroup but the root of the hierarchy.
//
// For the daemon it binds users, too, in all cgroups, and gives it the descriptors that keep the programs attached.
//
// A hostile client costs a goroutine and two descriptors for a few seconds, and there are few at a time. What it
// passes may be a file of a file system of its own, which never answers: such a request keeps its place among those of
// its user, who has few, until systemd ends the process.
package binder

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"

	"multihomed/internal/activation"
	"multihomed/internal/binder/wire"
	"multihomed/internal/cgroupbpf"
	"multihomed/internal/notify"
)

// A Peer is who asks, as the kernel knows it (SO_PEERCRED, SO_PEERGROUPS in unix(7)).
type Peer struct {
	UID, GID uint32
	// Groups are the supplementary groups.
	Groups []uint32
	PID    int32
}

// A Binding is what a link's sockets need.
type Binding struct {
	Mark cgroupbpf.Mark
	// DNS says where queries go. Without it they go where they are sent.
	DNS *cgroupbpf.DNS
	// Map is the DNSMap that an earlier Keep got for this link, nil if there is none. The helper closes it. If it cannot be used,
	// such as that of another version, there is a new one by DNS and Keep.
	Map *os.File
	// Keep gets the DNSMap that was made because there was none, to change it when the link's servers change. The file is
	// the helper's. It may be nil: then the servers stay as they are.
	Keep func(context.Context, *os.File) error
	// Note says what the binding lacks, for the user; usually nothing.
	Note string
}

// Bindings is the daemon. Its errors are shown to the user, and say how to fix them.
type Bindings interface {
	// Allowed refuses callers who may not bind anything.
	Allowed(context.Context, Peer) error
	// Hold makes the rules of a link's bindings stand, and keeps them as long as sockets may have its mark.
	Hold(ctx context.Context, link string) (Binding, error)
}

// Options are what the process was told.
type Options struct {
	// Socket is the path to listen at. Empty means that systemd passed the socket.
	Socket   string
	Bindings Bindings
	// Trusted are users who may bind every cgroup and all users, and change the servers of links, beside root: the daemon's.
	Trusted []uint32
	// Cgroups is where cgroups are mounted; empty means where systemd mounts them.
	Cgroups string
	Logger  *slog.Logger
	// Idle is how long it waits for a request before it ends; 0 means 10 seconds.
	Idle time.Duration
}

// ErrNoSocket says that there is nothing to listen at.
var ErrNoSocket = errors.New("no socket was passed by systemd; to fix: start multihomed-binder.socket, or use --socket")

const (
	defaultIdle = 10 * time.Second
	// patience is how long a client may take for its request, and the daemon for its part.
	patience = 5 * time.Second
	// atOnce is how many requests are served at a time, and perUser how many of them are one user's, who is not trusted.
	// The trusted always find a free place: so many others there cannot be.
	atOnce, perUser, ofUsers = 64, 4, 48
	// beat is how often it tells systemd that it is alive.
	beat = time.Second
)

// Run serves requests until none has come for a while, or ctx is done.
func Run(ctx context.Context, o Options) (err error) {
	listener, err := listen(o.Socket)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, listener.Close()) }()
	ours, err := networkOf(listener)
	if err != nil {
		return err
	}
	if o.Idle == 0 {
		o.Idle = defaultIdle
	}
	manager := notify.New(o.Logger)
	manager.Ready()
	b := &binder{o: o, network: ours, users: map[uint32]int{}, complaints: rate.NewLimiter(1, 10)}
	defer b.requests.Wait()
	return b.serve(ctx, listener, manager)
}

type binder struct {
	o          Options
	network    uint64 // the cookie of this process's network namespace
	complaints *rate.Limiter
	requests   sync.WaitGroup

	mu       sync.Mutex
	open     int
	ordinary int // of these, how many are of users who are not trusted
	users    map[uint32]int
	last     time.Time // when a request ended
}

// serve takes clients until it has been idle for long enough.
func (b *binder) serve(ctx context.Context, listener *net.UnixListener, manager *notify.Notifier) error {
	stop := context.AfterFunc(ctx, func() { _ = listener.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	b.last = time.Now()
	for ctx.Err() == nil {
		manager.Alive()
		if err := listener.SetDeadline(time.Now().Add(min(beat, b.o.Idle))); err != nil {
			return fmt.Errorf("waiting for requests: %w", err)
		}
		if ctx.Err() != nil {
			// It was done before the deadline was set anew.
			return nil
		}
		c, err := listener.AcceptUnix()
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			if b.idle() {
				return nil
			}
		case errors.Is(err, unix.ECONNABORTED):
		case err != nil:
			return fmt.Errorf("taking a client: %w", err)
		default:
			b.take(ctx, c)
		}
	}
	return nil
}

func (b *binder) idle() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.open == 0 && time.Since(b.last) >= b.o.Idle
}

// take starts a goroutine for a client, if there is a place.
func (b *binder) take(ctx context.Context, c *net.UnixConn) {
	peer, err := peerOf(c)
	if err != nil {
		b.complain(ctx, peer, err)
		_ = c.Close()
		return
	}
	leave, has := b.enter(peer)
	if !has {
		b.answer(ctx, c, wire.Answer{Code: wire.Busy, Text: "multihomed-binder has too many requests"}, nil)
		_ = c.Close()
		return
	}
	b.requests.Go(func() {
		defer leave()
		a, give := b.handle(ctx, c, peer)
		if a.Code != wire.Bound {
			b.complain(ctx, peer, errors.New(a.Text))
		}
		b.pass(ctx, c, a, give)
		_ = c.Close()
	})
}

// enter takes a place.
func (b *binder) enter(p Peer) (leave func(), has bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	ordinary := 1
	if b.isTrusted(p) {
		ordinary = 0
	}
	if b.open >= atOnce || ordinary == 1 && (b.users[p.UID] >= perUser || b.ordinary >= ofUsers) {
		return nil, false
	}
	b.open++
	b.ordinary += ordinary
	b.users[p.UID]++
	return func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.open--
		b.ordinary -= ordinary
		if b.users[p.UID]--; b.users[p.UID] == 0 {
			delete(b.users, p.UID)
		}
		b.last = time.Now()
	}, true
}

func (b *binder) isTrusted(p Peer) bool { return p.UID == 0 || slices.Contains(b.o.Trusted, p.UID) }

// complain logs a refusal, and bounds how often.
func (b *binder) complain(ctx context.Context, p Peer, err error) {
	if b.complaints.Allow() {
		b.o.Logger.LogAttrs(ctx, slog.LevelWarn, "request refused",
			slog.Uint64("uid", uint64(p.UID)), slog.Int("pid", int(p.PID)), slog.String("error", err.Error()))
	}
}

// answer does not wait for a client that does not read: one datagram always fits into a new socket.
func (b *binder) answer(ctx context.Context, c *net.UnixConn, a wire.Answer, rights []byte) {
	err := c.SetWriteDeadline(time.Now().Add(time.Second))
	if err == nil {
		_, _, err = c.WriteMsgUnix(wire.EncodeAnswer(nil, a), rights, nil)
	}
	if err != nil && !errors.Is(err, unix.EPIPE) && b.complaints.Allow() {
		b.o.Logger.LogAttrs(ctx, slog.LevelWarn, "a client did not take its answer", slog.String("error", err.Error()))
	}
}

// A refusal is an error with the code that the client gets.
type refusal struct {
	code wire.Code
	error
}

func badRequest(format string, args ...any) error {
	return refusal{wire.BadRequest, fmt.Errorf(format, args...)}
}

// handle serves one request.
func (b *binder) handle(ctx context.Context, c *net.UnixConn, p Peer) (a wire.Answer, give []*os.File) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	note, give, err := b.serveOne(ctx, c, p)
	if err == nil {
		return wire.Answer{Code: wire.Bound, Text: note}, give
	}
	a = wire.Answer{Code: wire.Failed, Text: err.Error()}
	if r, is := errors.AsType[refusal](err); is {
		a.Code = r.code
	}
	return a, nil
}

func (b *binder) serveOne(ctx context.Context, c *net.UnixConn, p Peer) (note string, give []*os.File, err error) {
	datagram, file, err := receive(ctx, c)
	if file != nil {
		defer func() { _ = file.Close() }() // It was only read.
	}
	switch {
	case err != nil:
		return "", nil, err
	case wire.IsChange(datagram):
		return "", nil, b.change(datagram, file, p)
	case wire.IsUsers(datagram):
		give, err = b.bindUsers(c, datagram, file, p)
		return "", give, err
	}
	link, err := wire.DecodeRequest(datagram)
	switch {
	case err != nil:
		return "", nil, refusal{wire.BadRequest, fmt.Errorf("reading a request: %w", err)}
	case file == nil:
		return "", nil, badRequest("a request comes with one descriptor, that of a cgroup's directory; to fix: use multihomectl run")
	}
	note, err = b.bind(ctx, c, p, link, file)
	return note, nil, err
}

// change does for the daemon what its sandbox forbids: it writes a link's new servers into the map that attached programs
// read. Whoever may do that sees every name that bound programs ask for, so only trusted users may.
func (b *binder) change(datagram []byte, file *os.File, p Peer) (err error) {
	if !b.isTrusted(p) {
		return refusal{wire.Denied, errors.New("only multihomed and root may change the DNS servers of a link; to fix: run it as root")}
	}
	d, err := wire.DecodeChange(datagram)
	if err == nil && file == nil {
		err = errors.New("a change comes with the descriptor of a DNS map")
	}
	if err != nil {
		return refusal{wire.BadRequest, fmt.Errorf("reading a change: %w", err)}
	}
	dns, err := cgroupbpf.OpenDNSMap(file)
	if err != nil {
		return refusal{wire.BadRequest, err}
	}
	return able(dns.Set(cgroupbpf.DNS(d)))
}

func (b *binder) bind(ctx context.Context, c *net.UnixConn, p Peer, link string, cgroup *os.File) (note string, err error) {
	if network, err := networkOf(c); err != nil || network != b.network {
		return "", badRequest("the caller is in another network namespace than multihomed, where the rules of %s do not exist; to fix: run it outside of the container, or with multihomed in it", link)
	}
	if err := b.o.Bindings.Allowed(ctx, p); err != nil {
		return "", refusal{wire.Denied, err}
	}
	if err := checkCgroup(cgroup, p, b.isTrusted(p)); err != nil {
		return "", refusal{wire.BadCgroup, err}
	}
	binding, err := b.o.Bindings.Hold(ctx, link)
	if err != nil {
		return "", refusal{wire.NoLink, err}
	}
	if err := attach(ctx, cgroup, binding); err != nil {
		return "", err
	}
	return binding.Note, nil
}

// attach binds the cgroup, with the link's map for DNS, or a new one, that the daemon gets.
func attach(ctx context.Context, cgroup *os.File, b Binding) (err error) {
	var dns *cgroupbpf.DNSMap
	if b.Map != nil {
		if dns, err = cgroupbpf.OpenDNSMap(b.Map); err != nil {
			if err = errors.Join(err, b.Map.Close()); b.DNS == nil {
				return err
			}
			b.Map = nil
		}
	}
	if b.Map == nil && b.DNS != nil {
		if dns, err = cgroupbpf.NewDNSMap(*b.DNS); err != nil {
			return able(err)
		}
	}
	if dns != nil {
		defer func() { err = errors.Join(err, dns.Close()) }()
	}
	if b.Map == nil && dns != nil && b.Keep != nil {
		if err := b.Keep(ctx, dns.File()); err != nil {
			return fmt.Errorf("passing the link's DNS map on: %w", err)
		}
	}
	return able(cgroupbpf.Attach(cgroup, b.Mark, dns))
}

// able tells what another way of binding may achieve.
func able(err error) error {
	if errors.Is(err, cgroupbpf.ErrRights) || errors.Is(err, cgroupbpf.ErrKernel) {
		return refusal{wire.Unable, err}
	}
	return err
}

// listen returns the listening socket.
func listen(path string) (*net.UnixListener, error) {
	if path != "" {
		return listenAt(path)
	}
	files := activation.Files()
	if len(files) == 0 {
		return nil, ErrNoSocket
	}
	var listener *net.UnixListener
	var errs []error
	for _, f := range files {
		l, err := net.FileListener(f)
		unixListener, is := l.(*net.UnixListener)
		switch {
		case err != nil:
			errs = append(errs, err)
		case !is || l.Addr().Network() != "unixpacket":
			errs = append(errs, l.Close(), fmt.Errorf("%s is no AF_UNIX socket of type SOCK_SEQPACKET; in a unit that is ListenSequentialPacket=/PATH", f.Name()))
		case listener != nil:
			errs = append(errs, l.Close(), errors.New("more than one socket"))
		default:
			listener = unixListener
		}
		errs = append(errs, f.Close())
	}
	if err := errors.Join(errs...); err != nil {
		if listener != nil {
			err = errors.Join(err, listener.Close())
		}
		return nil, fmt.Errorf("socket activation: %w; to fix: see multihomed-binder.socket", err)
	}
	// It is systemd's, and the next process needs it.
	listener.SetUnlinkOnClose(false)
	return listener, nil
}

// everybody may connect: who may bind is decided for each request, with an answer that says why.
const everybody = 0o666

// listenAt makes a socket at a path. One that nobody listens at is replaced.
func listenAt(path string) (*net.UnixListener, error) {
	address := &net.UnixAddr{Name: path, Net: "unixpacket"}
	listener, err := net.ListenUnix(address.Net, address)
	if errors.Is(err, unix.EADDRINUSE) && isAbandoned(address) {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("removing an old socket: %w", err)
		}
		listener, err = net.ListenUnix(address.Net, address)
	}
	if err == nil {
		if err = os.Chmod(path, everybody); err != nil {
			err = errors.Join(err, listener.Close())
		}
	}
	if err != nil {
		return nil, fmt.Errorf("listening at %s: %w; to fix: stop the other multihomed-binder, or choose another path", path, err)
	}
	return listener, nil
}

// isAbandoned reports whether there is a socket at which nobody listens.
func isAbandoned(address *net.UnixAddr) bool {
	info, err := os.Lstat(address.Name)
	if err != nil || info.Mode().Type() != fs.ModeSocket {
		return false
	}
	c, err := net.DialUnix(address.Net, nil, address)
	if err == nil {
		_ = c.Close() // It sent nothing.
	}
	return errors.Is(err, unix.ECONNREFUSED)
}

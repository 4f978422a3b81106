package holding

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	binder "multihomed/internal/binder/wire"
	"multihomed/internal/event"
	"multihomed/internal/holding/wire"
	"multihomed/routing"
)

// A Holder makes the rules of bindings.
type Holder interface {
	// Hold makes the rules stand by which sockets with the returned mark leave by a link and by no other uplink. They stand
	// until the next boot. For an unknown link the error says which links there are.
	Hold(ctx context.Context, link string) (routing.Mark, error)
}

// HelperUser is the user of multihomed-binder.service.
const HelperUser = "multihomed-binder"

// Options are what a Server needs.
type Options struct {
	Logger *slog.Logger
	Holder Holder
	Maps   *Maps
	// Group is the name or number of the group whose members may bind, beside root.
	Group string
	// Servers returns the DNS servers of a link, and false if nobody knows them now.
	Servers func(ctx context.Context, link string) ([]netip.Addr, bool, error)
	// Resolvers returns the resolvers of the host.
	Resolvers func() ([]netip.Addr, error)
	// Change writes servers into a map.
	Change func(context.Context, binder.DNS, *os.File) error
	// Kept is called after a map was kept; nil for nobody.
	Kept func()
	// Helper is the name of the user that may ask, beside root.
	Helper string
}

const (
	// atOnce is how many requests are served at a time.
	atOnce = 64
	// patience is how long a request may take.
	patience = 5 * time.Second
	// memory is how long the number of the helper's user is remembered.
	memory = 10 * time.Second
)

// A Server answers multihomed-binder.
type Server struct {
	o        Options
	listener *net.UnixListener
	path     string
	made     fs.FileInfo

	mu     sync.Mutex
	helper uint32
	known  bool
	until  time.Time
}

// Listen makes the socket in the runtime directory. Everybody may connect, and who is not the helper is sent away: the
// directory belongs to the daemon's user, who cannot give a socket to another one.
func Listen(runtime string, o Options) (*Server, error) {
	path := filepath.Join(runtime, wire.Name)
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("removing the socket for multihomed-binder of an earlier process: %w", err)
	}
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		return nil, fmt.Errorf("making the socket for multihomed-binder: %w", err)
	}
	s := &Server{o: o, listener: l, path: path}
	if err = os.Chmod(path, 0o666); err == nil { //nolint:gosec // see above
		s.made, err = os.Lstat(path)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("opening the socket for multihomed-binder: %w", err), l.Close())
	}
	return s, nil
}

// Stands reports whether the helper finds the socket.
func (s *Server) Stands() bool {
	now, err := os.Lstat(s.path)
	return err == nil && os.SameFile(s.made, now)
}

// Run answers until ctx is done. It takes the socket away.
func (s *Server) Run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = s.listener.Close() })
	defer stop()
	var requests sync.WaitGroup
	defer requests.Wait()
	free := make(chan struct{}, atOnce)
	for {
		select {
		case free <- struct{}{}:
		case <-ctx.Done():
			return nil
		}
		c, err := s.listener.AcceptUnix()
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			<-free
			s.o.Logger.LogAttrs(ctx, event.LevelNotice, "request of multihomed-binder not taken", slog.String("error", err.Error()))
			timer := time.NewTimer(time.Second) // Too many open files, for one.
			select {
			case <-timer.C:
			case <-ctx.Done():
				timer.Stop()
				return nil
			}
		case !s.mayAsk(c):
			<-free
			_ = c.Close()
		default:
			requests.Go(func() {
				defer func() { <-free }()
				defer func() { _ = c.Close() }()
				s.serve(ctx, c)
			})
		}
	}
}

// mayAsk asks the kernel who connected.
func (s *Server) mayAsk(c *net.UnixConn) bool {
	raw, err := c.SyscallConn()
	if err != nil {
		return false
	}
	var peer *unix.Ucred
	var failed error
	if err := raw.Control(func(fd uintptr) { peer, failed = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil || failed != nil {
		return false
	}
	return peer.Uid == 0 || s.isHelper(peer.Uid)
}

func (s *Server) isHelper(uid uint32) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now := time.Now(); now.After(s.until) {
		s.until, s.known = now.Add(memory), false
		if u, err := user.Lookup(s.o.Helper); err == nil {
			n, err := strconv.ParseUint(u.Uid, 10, 32)
			s.helper, s.known = uint32(n), err == nil && n != 0
		}
	}
	return s.known && uid == s.helper
}

func (s *Server) serve(ctx context.Context, c *net.UnixConn) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	deadline, _ := ctx.Deadline()
	if err := c.SetDeadline(deadline); err != nil {
		return
	}
	var a wire.Answer
	var give *os.File
	r, file, err := receive(c)
	if err == nil {
		a, give, err = s.answer(ctx, r, file)
	} else if file != nil {
		err = errors.Join(err, file.Close())
	}
	if err != nil {
		a, give = wire.Answer{Error: err.Error()}, nil
		s.o.Logger.LogAttrs(ctx, slog.LevelDebug, "request of multihomed-binder refused", slog.String("error", err.Error()))
	}
	datagram, err := wire.Encode(a)
	if err != nil {
		datagram, give = []byte(`{"error":"the reason is too long for an answer; to fix: see journalctl -u multihomed"}`), nil
	}
	_ = wire.Send(c, datagram, give) // A helper that has gone needs no answer.
}

// answer takes the file over.
func (s *Server) answer(ctx context.Context, r wire.Request, file *os.File) (a wire.Answer, give *os.File, err error) {
	if r.Op == wire.Keep {
		return a, nil, s.keep(r, file)
	}
	if file != nil {
		_ = file.Close() // Nobody asked for it.
	}
	if r.Op == wire.Policy {
		return wire.Answer{Group: s.group()}, nil, nil
	}
	mark, err := s.o.Holder.Hold(ctx, r.Link)
	if err != nil {
		return a, nil, err
	}
	servers, _, err := s.o.Servers(ctx, r.Link)
	if err != nil {
		return a, nil, fmt.Errorf("looking for the DNS servers of %s: %w", r.Link, err)
	}
	d := Choose(servers, s.resolvers(ctx))
	a = wire.Answer{Value: mark.Value, Mask: mark.Mask, DNS: &d}
	give = s.o.Maps.Of(r.Link)
	if !d.Server4.IsValid() && !d.Server6.IsValid() && give == nil {
		a.Note = r.Link + " has no DNS server that can be used, so that no name is resolved; to fix: give its profile one, such as: nmcli connection modify NAME ipv4.dns 9.9.9.9"
	}
	return a, give, nil
}

func (s *Server) keep(r wire.Request, file *os.File) error {
	if file == nil {
		return errors.New("a map without its descriptor")
	}
	if err := s.o.Maps.add(r.Link, file, r.DNS, true); err != nil {
		if errors.Is(err, errTooMany) {
			return errors.Join(err, file.Close())
		}
		// It is kept all the same, until the daemon ends.
		s.o.Logger.LogAttrs(context.Background(), event.LevelNotice, "systemd does not keep the DNS servers of bound programs over a restart", slog.String("error", err.Error()))
	}
	if s.o.Kept != nil {
		s.o.Kept()
	}
	return nil
}

// group is who may bind now: the databases may change while the daemon runs.
func (s *Server) group() *wire.Group {
	g := &wire.Group{Name: s.o.Group}
	number := s.o.Group
	if found, err := user.LookupGroup(s.o.Group); err == nil {
		number = found.Gid
	}
	if n, err := strconv.ParseUint(number, 10, 32); err == nil {
		g.GID = new(uint32(n))
	}
	return g
}

// resolvers are the host's. Without them those of the loopback are still replaced.
func (s *Server) resolvers(ctx context.Context) []netip.Addr {
	all, err := s.o.Resolvers()
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.o.Logger.LogAttrs(ctx, event.LevelNotice, "resolvers of the host unknown", slog.String("error", err.Error()))
	}
	return all
}

// Follow has the maps of links changed whose servers have changed. known returns the servers of a link, none if nobody knows
// them.
func (s *Server) Follow(ctx context.Context, known func(link string) []netip.Addr) error {
	if s.o.Maps.Len() == 0 {
		return nil
	}
	resolvers := s.resolvers(ctx)
	return s.o.Maps.follow(ctx, func(link string) binder.DNS { return Choose(known(link), resolvers) }, s.o.Change)
}

// receive reads a request and the descriptor that comes with it.
func receive(c *net.UnixConn) (r wire.Request, file *os.File, err error) {
	datagram, file, err := wire.Receive(c)
	if err != nil {
		return r, file, err
	}
	r, err = wire.DecodeRequest(datagram)
	return r, file, err
}

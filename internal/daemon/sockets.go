package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"multihomed/allocator"
	"multihomed/allocator/server"
	"multihomed/internal/activation"
	"multihomed/internal/config"
	"multihomed/internal/routedlease"
	"multihomed/internal/unixgram"
)

// serveLeases runs the table allocator until ctx is done. It gives ready after the first
// attempt to open every socket.
func (s *service) serveLeases(ctx context.Context, cfg config.Config, p *parts, ready *latch) error {
	defer ready.give()
	if !cfg.Allocator.Enabled {
		s.fault(allocatorFault, nil)
		return s.sockets.keepOnly(nil)
	}
	names, err := addresses(cfg.Allocator.Socket)
	if err != nil {
		return err
	}
	if err := s.sockets.keepOnly(names); err != nil {
		return err
	}
	srv := server.New(server.Options{
		Leases: p.leases, Kernel: routedlease.NewTables(p.mirror, p.loop, cfg.Tables), Router: p.router,
		Access:   server.Access{Users: cfg.Allocator.Users, Groups: cfg.Allocator.Groups},
		Families: cfg.Allocator.Families, Lifetime: cfg.Allocator.Lifetime, Quota: cfg.Allocator.TablesPerUser,
		Logger: s.Logger, Uptime: allocator.Uptime,
	})
	conns := make(chan *unixgram.Conn)
	tasks, ctx := errgroup.WithContext(ctx)
	tasks.Go(func() error { return srv.Run(ctx, conns) })
	tasks.Go(func() error {
		s.sockets.offer(ctx, names, conns, func(err error) {
			s.fault(allocatorFault, err)
			ready.give()
		})
		return nil
	})
	return tasks.Wait()
}

// addresses are the two forms of a name: padded to the full length of an address, as the
// clients of the ancestor do, and exact.
func addresses(name string) ([]unixgram.Address, error) {
	exact, err := unixgram.Abstract(name)
	if err != nil {
		return nil, fmt.Errorf("the socket of the table allocator: %w", err)
	}
	return []unixgram.Address{exact, exact.Padded()}, nil
}

// sockets are those of the table allocator. They outlive a change of the configuration, so
// that no request is lost meanwhile.
type sockets struct {
	mu sync.Mutex
	// open are the sockets that we made, by address; given those from systemd.
	open  map[unixgram.Address]*unixgram.Conn
	given []*unixgram.Conn
}

// openSockets takes over the sockets that systemd passed (sd_listen_fds(3)). What it kept for an earlier process
// comes the same way, and stored takes it by its name.
func openSockets(stored func(name string, f *os.File) bool) (*sockets, error) {
	s := &sockets{open: map[unixgram.Address]*unixgram.Conn{}}
	for _, file := range activation.Files() {
		if stored(file.Name(), file) {
			continue
		}
		conn, err := unixgram.FromFile(file)
		err = errors.Join(err, file.Close())
		if err != nil {
			return nil, errors.Join(fmt.Errorf("socket activation: %w; to fix: see multihomed.socket", err), s.Close())
		}
		s.given = append(s.given, conn)
	}
	return s, nil
}

// Close closes all.
func (s *sockets) Close() error {
	err := s.keepOnly(nil)
	for _, conn := range s.given {
		err = errors.Join(err, conn.Close())
	}
	return err
}

// keepOnly closes the sockets that we made under other names.
func (s *sockets) keepOnly(names []unixgram.Address) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for address, conn := range s.open {
		wanted := false
		for _, name := range names {
			wanted = wanted || name == address
		}
		if !wanted {
			delete(s.open, address)
			errs = append(errs, conn.Close())
		}
	}
	return errors.Join(errs...)
}

// again is the pause before trying a name again that another process has.
const again = 5 * time.Second

// offer passes on all sockets, and tries again to open those whose name is taken.
func (s *sockets) offer(ctx context.Context, names []unixgram.Address, to chan<- *unixgram.Conn, fault func(error)) {
	pass := func(conn *unixgram.Conn) {
		select {
		case to <- conn:
		case <-ctx.Done():
		}
	}
	got := map[unixgram.Address]bool{}
	for _, conn := range s.given {
		got[conn.LocalAddress()] = true
		pass(conn)
	}
	ticker := time.NewTicker(again)
	defer ticker.Stop()
	for {
		var missing []error
		for _, name := range names {
			if got[name] {
				continue
			}
			conn, err := s.listen(name)
			if err != nil {
				missing = append(missing, err)
				continue
			}
			got[name] = true
			pass(conn)
		}
		if len(missing) == 0 {
			fault(nil)
			return
		}
		fault(missing[0])
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

func (s *sockets) listen(name unixgram.Address) (*unixgram.Conn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if conn := s.open[name]; conn != nil {
		return conn, nil
	}
	conn, err := unixgram.Listen(name)
	if err != nil {
		return nil, fmt.Errorf("%w; trying again every %v", err, again)
	}
	s.open[name] = conn
	return conn, nil
}

package server_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"multihomed/allocator"
	tables "multihomed/allocator/client"
	"multihomed/allocator/server"
	"multihomed/internal/unixgram"
	"multihomed/routing"
)

// A server over a database, and a client of it.
func Example() {
	dir, err := os.MkdirTemp("", "leases")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	leases, err := allocator.Open(ctx, allocator.Options{
		Path: filepath.Join(dir, allocator.DefaultName), Range: routing.TableRange{First: 10000, Last: 10999},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer leases.Close()
	user := fmt.Sprint(os.Getuid())
	s := server.New(server.Options{
		Leases: leases, Kernel: unusedTables{}, Router: noRouter{}, Access: server.Access{Users: []string{user}},
		Families: []routing.Family{0, routing.IPv4, routing.IPv6}, Lifetime: time.Hour, Quota: 100,
		Logger: slog.New(slog.DiscardHandler), Uptime: allocator.Uptime,
	})
	name := fmt.Sprint("example of package server ", os.Getpid())
	address, err := unixgram.Abstract(name)
	if err != nil {
		fmt.Println(err)
		return
	}
	conn, err := unixgram.Listen(address.Padded())
	if err != nil {
		fmt.Println(err)
		return
	}
	defer conn.Close()
	sockets := make(chan *unixgram.Conn, 1)
	sockets <- conn
	done := make(chan error)
	go func() { done <- s.Run(ctx, sockets) }()

	c, err := tables.New(tables.Options{Name: name, Servers: []uint32{uint32(os.Getuid())}})
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, address := range []string{"192.0.2.10", "192.0.2.11", "192.0.2.10"} {
		lease, err := c.Lease(ctx, tables.Request{Interface: "wan0", Address: netip.MustParseAddr(address)})
		fmt.Println(address, lease.Table, err)
	}
	cancel()
	fmt.Println(<-done)
	// Output:
	// 192.0.2.10 10000 <nil>
	// 192.0.2.11 10001 <nil>
	// 192.0.2.10 10000 <nil>
	// <nil>
}

// unusedTables is a kernel that uses none of the tables.
type unusedTables struct{}

func (unusedTables) Fresh(context.Context) error          { return nil }
func (unusedTables) InUse(routing.TableID) (string, bool) { return "", false }
func (unusedTables) Used(netip.Addr) routing.TableID      { return 0 }

// noRouter is the Router of a server that only leases tables.
type noRouter struct{}

func (noRouter) Route(context.Context, server.Route) (routing.TableID, error) {
	return 0, errors.New("there is no routing here")
}
func (noRouter) Unroute(context.Context, server.Route) (bool, error) { return false, nil }
func (noRouter) Expire(context.Context)                              {}

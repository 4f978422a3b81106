package client_test

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"time"

	"multihomed/allocator/client"
	"multihomed/allocator/wire"
	"multihomed/internal/unixgram"
)

// A plain lease: a table number that nobody else gets. What stands in the table is up to
// the program.
func ExampleClient_Lease() {
	name, stop := exampleServer()
	defer stop()

	// The zero Options ask multihomed as it is installed.
	c, err := client.New(client.Options{
		Name: name, Servers: []uint32{uint32(os.Getuid())},
		Uptime: func() time.Duration { return 0 }, // So that the example prints the same each time.
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	request := client.Request{Interface: "wan0", Address: netip.MustParseAddr("192.0.2.10")}
	lease, err := c.Lease(context.Background(), request)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Printf("ip route add default via 192.0.2.1 table %d\n", lease.Table)
	fmt.Println("renew within", lease.Lifetime)
	fmt.Println(c.Release(context.Background(), request))
	// Output:
	// ip route add default via 192.0.2.1 table 10000
	// renew within 1h0m0s
	// <nil>
}

// A routed lease that is kept for as long as the program runs: multihomed makes the rules
// and routes of an address that an interface has.
func ExampleClient_Hold() {
	name, stop := exampleServer()
	defer stop()

	c, err := client.New(client.Options{Name: name, Servers: []uint32{uint32(os.Getuid())}})
	if err != nil {
		fmt.Println(err)
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	err = c.Hold(ctx, client.Request{Interface: "eth1", Address: netip.MustParseAddr("192.0.2.7"), Routing: true}, func(l client.Lease, err error) {
		if err != nil {
			fmt.Println("trying again:", err) // The number stays valid until the lease expires.
			return
		}
		fmt.Println("192.0.2.7 is routed by table", l.Table)
		cancel() // A daemon does this when it ends.
	})
	fmt.Println(err)
	// Output:
	// 192.0.2.7 is routed by table 10000
	// <nil>
}

// exampleServer grants table 10000 to everybody, in the place of multihomed.
func exampleServer() (name string, stop func()) {
	name = fmt.Sprint("example", serial.Add(1))
	address, err := unixgram.Abstract(name)
	if err != nil {
		panic(err)
	}
	conn, err := unixgram.Listen(address.Padded())
	if err != nil {
		panic(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buffer := make([]byte, wire.MaxRequest)
		for {
			d, err := conn.Receive(buffer)
			if err != nil {
				return
			}
			request, refused := wire.DecodeRequest(d.Payload, d.Truncated)
			answer := wire.Response{Version: request.Version, Transaction: request.Transaction, Refused: refused}
			if request.Command == wire.Lease {
				answer.Table, answer.Routing, answer.Lifetime = 10000, request.Routing, uint32(time.Hour.Seconds())
				answer.Expires = answer.Lifetime
			}
			if err := conn.Send(d.From, answer.Encode()); err != nil {
				panic(err)
			}
		}
	}()
	return name, func() {
		_ = conn.Close() // What is not sent is asked for again.
		<-done
	}
}

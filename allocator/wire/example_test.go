package wire_test

import (
	"fmt"

	"multihomed/allocator/wire"
	"multihomed/routing"
)

func ExampleRequest_Encode() {
	datagram, refused := wire.Request{
		Version: 1, Command: wire.Lease, Family: routing.IPv4, Interface: "eth0", Address: "192.0.2.1",
	}.Encode()
	if refused != nil {
		fmt.Println(refused)
		return
	}
	fmt.Println(string(datagram))
	// Output:
	// {"address":"192.0.2.1","ifname":"eth0","addr_family":2,"cmd":0,"version":1}
}

// What a server cannot read is refused in words for people and a code for programs.
func ExampleDecodeRequest() {
	_, refused := wire.DecodeRequest([]byte(`{"address":"2001:db8::1","ifname":"eth0","addr_family":2,"cmd":0,"version":1}`), false)
	fmt.Println(refused.Code, refused.Temporary())
	// Output:
	// address false
}

func ExampleDecodeResponse() {
	r, err := wire.DecodeResponse([]byte(`{"version":1,"cmd":2,"table":10000,"lease_expires":4095}`))
	fmt.Println(r.Table, r.Expires, r.Refused == nil, err)
	// Output:
	// 10000 4095 true <nil>
}

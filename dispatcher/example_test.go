package dispatcher_test

import (
	"fmt"

	"multihomed/dispatcher"
	"multihomed/routing"
)

// dhclient-script(8) runs its hooks with variables.
func ExampleParse() {
	event, err := dispatcher.Parse([]string{"dhclient"}, dispatcher.ParseEnvironment([]string{
		"reason=BOUND", "interface=eth1",
		"new_ip_address=192.0.2.10", "new_subnet_mask=255.255.255.0", "new_routers=192.0.2.1",
	}))
	if err != nil {
		fmt.Println(err)
		return
	}
	config := event.Configs[routing.IPv4]
	fmt.Println(event.Caller, event.Interface, event.Effect, config.Addresses, config.Gateways)
	// Output:
	// dhclient eth1 configured [192.0.2.10/24] [192.0.2.1]
}

// ifupdown says nothing in arguments.
func ExampleParse_ifupdown() {
	event, err := dispatcher.Parse(nil, dispatcher.ParseEnvironment([]string{
		"IFACE=eth1", "MODE=start", "PHASE=post-up", "METHOD=static", "ADDRFAM=inet",
		"IF_ADDRESS=192.0.2.10", "IF_NETMASK=24", "IF_GATEWAY=192.0.2.1",
	}))
	fmt.Println(event.Caller, event.Effect, event.Configs[routing.IPv4].Gateways, err)
	// Output:
	// ifupdown configured [192.0.2.1] <nil>
}

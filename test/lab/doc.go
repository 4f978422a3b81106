// Package lab is a private network in namespaces: a host with a real system bus
// and a real NetworkManager, and the providers it is connected to. Tests and the
// demo use it; neither can reach the machine they run on.
//
// Main runs the calling program again inside new mount, network, process and host
// name namespaces. In there the program *is* on the lab's host: netlink sockets,
// D-Bus connections and child processes need no special treatment. Providers and
// containers are further network namespaces behind veth pairs. When the program
// ends, however it ends, the kernel removes all of it.
//
//	func main() { os.Exit(lab.Main(run)) } // a test: os.Exit(labtest.Main(m))
//
//	func run() int {
//		ctx := context.Background()
//		host, err := lab.NewHost(ctx, lab.HostConfig{}) // a bus and NetworkManager
//		if err != nil { ... }
//		defer host.Close()
//		isp, err := host.NewISP(ctx, lab.ISPConfig{ // wan0, DHCPv4 and RA
//			Name:   "isp0",
//			Link:   "wan0",
//			IPv4:   netip.MustParsePrefix("192.0.2.1/24"),
//			IPv6:   netip.MustParsePrefix("2001:db8:1::1/64"),
//			Routes: []lab.Route{{Dst: netip.MustParsePrefix("10.8.0.0/16"), Via: netip.MustParseAddr("192.0.2.254")}},
//		})
//		capture, err := isp.Capture()
//		err = host.AddProfile(ctx, "wan0", "wan0")
//		err = host.Up(ctx, "wan0")
//		src, err := host.WaitAddr(ctx, "wan0", lab.IPv4)
//		answer, err := lab.DialUDP(ctx, lab.From{Addr: src}, lab.InternetAddr4)
//		fmt.Println(answer.ISP)                    // isp0
//		packets, err := capture.Foreign(isp.IPv4()) // sources that isp0 did not assign
//	}
//
// Nothing in here sleeps to wait for something: it waits for an event, or tries
// again until the context ends (Eventually).
package lab

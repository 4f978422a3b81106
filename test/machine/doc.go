// Package machine boots whole Debian machines, with systemd as process 1 and the
// services that Debian starts, for tests of what a user installs. A machine is a
// container of systemd-nspawn in a lab (package lab): its providers are those of
// the lab, and the host's end of their links moves into the machine.
//
//	func TestMain(m *testing.M) { os.Exit(machine.Main(m.Run, machine.Bookworm)) }
//
//	func TestX(t *testing.T) {
//		host := labtest.NewHost(t, lab.HostConfig{NoBus: true}) // nobody touches the links in the lab
//		isp := labtest.NewISP(t, host, lab.DefaultISP(0))
//		m := machinetest.Boot(t, machine.Config{Release: machine.Bookworm})
//		err := m.CopyIn("multihomed.deb", "/root/multihomed.deb", 0o644)
//		out, err := m.Run(ctx, "dpkg", "-i", "/root/multihomed.deb")
//		err = m.MoveLink(isp.Link().Name()) // a cable is plugged in
//		err = m.Reboot(ctx)
//	}
//
// Nothing is left behind, however the program ends: the machine's processes are in the lab's
// process namespace, its file system is an overlay on the lab's private /run, its network is its
// own namespace. A killed program leaves an empty control group, which the next machine removes.
//
// The machine differs from a real one by the limits of a container: the kernel is
// the host's and there is no udev, so that NetworkManager manages every link and no
// rule of 85-nm-unmanaged.rules counts. /sys and most of /proc/sys are read-only,
// /proc/sys/net is not.
package machine

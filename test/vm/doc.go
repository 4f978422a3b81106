// Package vm runs tests on the kernels that Debian ships (6.1 of bookworm, 6.12 of
// trixie) in virtual machines, for what containers on the test host's kernel cannot
// have: wireguard, VRF, bonding, cgroup v2 with its programs, AppArmor, udev, a real
// power failure. There are two kinds.
//
// Start boots a kernel over the host's own file tree, in some 5 seconds: everything
// installed on the host is there, at the same path, and nothing that the machine writes
// leaves its memory, but in Config.Out. Run does it for one command. Whole tests, with
// their own lab in there (package lab), run as they are:
//
//	func TestOnDebiansKernels(t *testing.T) {
//		m := vm.StartTest(t, vm.Config{Release: machine.Trixie}) // one boot for many
//		m.Test(t, "multihomed/test/e2e", "^TestTwoProviders$")
//		out, err := m.Run(t.Context(), "ip", "link", "add", "wg0", "type", "wireguard")
//		r, err := m.Command(t.Context(), vm.Command{Args: ..., Env: ..., Output: t.Output()})
//	}
//
// vm.Test is StartTest and Test in one. Nothing is compiled inside: Test builds the
// test binary and the programs of cmd on the host, where labtest.Build finds the latter
// (MULTIHOMED_TEST_PROGRAMS).
//
// Boot boots a whole Debian with systemd as process 1, made of the root file system of
// package machine, in some 30 seconds. It has its own disk: Reboot, Shutdown, PowerOn,
// and Kill for a power failure.
//
//	m := vm.BootTest(t, vm.Config{Release: machine.Bookworm})
//	err := m.CopyIn("multihomed.deb", "/root/multihomed.deb", 0o644)
//	out, err := m.Run(t.Context(), "apt-get", "install", "-y", "/root/multihomed.deb")
//	err = m.Reboot(t.Context())
//
// A machine has no network but what a test makes inside: veth pairs, namespaces. The
// 85-nm-unmanaged.rules of NetworkManager count in a whole Debian, so the ends of a
// veth pair are unmanaged until `nmcli device set NAME managed yes`.
//
// How to add a test: boot once for all that can share a boot, with subtests, as boots
// are what costs. Machines are emulated (qemu, TCG), because hardware help is not
// everywhere; programs run 5 to 15 times slower. Bounds of the lab are multiplied by
// MULTIHOMED_TEST_SLOW, which Start sets to 5 inside; a test's own bound takes
// lab.Stretched. Do not measure times in here.
//
// Whatever ends the test ends qemu, and nothing is left: files that only qemu needs have
// no name. The kernels are fetched once, by apt from the host's mirror, and kept beside
// the roots of package machine in /var/cache/multihomed-test (MULTIHOMED_TEST_CACHE,
// MULTIHOMED_TEST_MIRROR). Removing linux-* there fetches newer ones.
//
// How it works: the initial file system is one static Go program (internal/guest) and
// the drivers. It mounts the host's directory by 9p, an overlay on top of it, and
// becomes systemd or the parent of an agent; the agent runs commands for the host,
// which talks to it on a virtio-serial port (internal/wire).
package vm

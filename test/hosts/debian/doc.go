// Package debian runs the hosts of package hosts on the kernels that Debian ships,
// in the machines of package vm: those that need what the kernel of the test host
// may lack (WireGuard, VRF, bonds, VLANs, macvlan, dummy, netem), and with -soak
// all of them, in all phases and with ten restarts of wg-quick, and failover under
// the losses of netem.
//
// The hosts are in files of package hosts with the build tag debiankernel:
// kernel_test.go and wireguard_test.go.
package debian

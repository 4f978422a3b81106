// Package unixgram has AF_UNIX datagram sockets that tell exactly who sent what.
//
// Package net and x/sys are of no use here: they lose the length of an abstract
// address, and with it the NULs at its end. To the kernel "\0name" and "\0name"
// with a hundred NULs behind are two addresses. The clients of the protocol of
// package wire use the latter kind (they pass the whole of sun_path), and a
// reply must go to precisely the address that the request came from.
//
// Who sent a datagram is told by the kernel (SCM_CREDENTIALS), not by the sender.
// File descriptors that come along never arrive.
package unixgram

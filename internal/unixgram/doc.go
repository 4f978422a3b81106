// Package unixgram has AF_UNIX datagram sockets that report the exact sender of each datagram.
//
// Package net and x/sys cannot do that: they lose the length of an abstract
// address, and with it the NULs at its end. To the kernel "\0name" and "\0name"
// with a hundred NULs behind are two addresses. The clients of the protocol of
// package wire use the latter kind (they pass the whole of sun_path), and a
// reply must go to precisely the address that the request came from.
//
// The kernel names the sender (SCM_CREDENTIALS). File descriptors arrive only with
// ReceiveWithFile.
package unixgram

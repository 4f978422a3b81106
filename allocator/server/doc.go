// Package server leases tables to other programs over datagram sockets, in the
// protocol of package wire.
//
// One goroutine per socket takes datagrams in, decides who may ask, and decodes
// them. One more takes whatever has come in since it looked last, has it done in
// one transaction, and answers when it is durable: the more clients wait, the
// more share a commit. Routed leases wait for the routing loop, each in a
// goroutine of its own, so that nobody else waits for them.
//
// Everything is bounded: what is queued, in all and for each user; the routed
// leases in progress; what is remembered for the log. Nothing is ever sent in a
// way that could wait for a client. What is dropped is no loss: a client asks
// again.
package server

// Package kerneltest is a kernel for tests: interfaces, addresses, policy rules
// and routes in memory, with the semantics of Linux that package routing and
// its users depend on; package lookup says where packets go. What it models was
// read in the source of Linux 6.18 and tried on it; every surprising part cites
// its function.
//
// A [Kernel] is not safe for concurrent use.
package kerneltest

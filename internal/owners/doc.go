// Package owners decides which interfaces are links. The owners count in this order:
// NetworkManager (manager.go), hooks, leases (judge.go). The package joins their sources
// (sources.go) into the claims that the reconcile loop takes (owners.go). It also knows the
// DNS servers of links (dns.go), and forgets interfaces that have gone (departed.go).
package owners

// Package owners says who the links are and in which order their owners are believed:
// NetworkManager (manager.go), then hooks, then leases (judge.go), put together from their
// sources (sources.go) into the claims that the reconcile loop takes (owners.go). It also
// knows the DNS servers of links (dns.go), and drops what was said of interfaces that have
// gone (departed.go).
package owners

// Package hosts is a table of hosts as people describe them in public: with VPNs,
// containers, routing daemons, rules made by hand. Every one of them is built in a
// lab, with a real NetworkManager and real packets, and is asked the same
// questions without multihomed, with multihomed started last, after a restart of
// it, with multihomed started first, and after it has been removed. A host names
// the differences that multihomed promises; any other difference is a defect, and
// so is a promise that is not kept.
//
// To add a host, add a Host to one of the lists in the files of its kind. To see
// what a host is like, run it with -v and -run TestHosts/NAME.
package hosts

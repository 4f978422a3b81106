// Package cleanup finds what is ours in the kernel by itself, and takes it away. It
// needs neither a configuration nor the database: whoever wants to be rid of
// multihomed is often one for whom these do not work.
//
// What is ours is what [routing.Ownership] says: rules of our protocol on the rungs
// of the ladder, routes of our protocol in the tables that these rules lead to, in
// the range of this configuration and in those of earlier ones; and the mark of
// uplinks, an interface group.
package cleanup

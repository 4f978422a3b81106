// Package cleanup finds our objects in the kernel and removes them. It needs neither a
// configuration nor the database: a user who removes multihomed may have neither in a
// usable state.
//
// [routing.Ownership] says what is ours: rules of our protocol on the rungs of the
// ladder; routes of our protocol in the tables that these rules lead to, and in the
// ranges of this configuration and of earlier ones; the interface group of uplinks. Endpoints of
// Multipath TCP do not show who made them: a note in the runtime directory says which are ours.
package cleanup

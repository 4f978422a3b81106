package status

import (
	"time"

	"multihomed/routing"
)

// Bindings are what `bind list --json` prints.
type Bindings struct {
	// Schema is 1.
	Schema int `json:"schema"`
	// Bindings are in the order of the status.
	Bindings []Binding `json:"bindings"`
}

// A ClientLease is a lease of a client in the list.
type ClientLease struct {
	// Interface is the name of the interface that the table is for.
	Interface string `json:"interface"`
	// Address or ID tells leases of one interface apart: an address of it, or a word of the client.
	Address string `json:"address,omitempty"`
	ID      string `json:"id,omitempty"`
	// Table is 0 while the daemon has none for the address.
	Table routing.TableID `json:"table"`
	// Routed says that multihomed routes the address as one of a link.
	Routed bool `json:"routed"`
	// UID is the owner of the lease, User the name of that user, empty if it has none.
	UID  uint32 `json:"uid"`
	User string `json:"user,omitempty"`
	// Tag is the client's note.
	Tag string `json:"tag,omitempty"`
	// Live is false once the lease has ended; it keeps its number for the next time.
	Live bool `json:"live"`
	// ExpiresIn is in seconds; only for live leases that must be renewed.
	ExpiresIn int64 `json:"expires_in_s,omitempty"`
	// Released is when the lease ended, nil if it has not.
	Released *time.Time `json:"released,omitempty"`
}

// ClientLeases are what `lease list --json` prints.
type ClientLeases struct {
	// Schema is 1.
	Schema int `json:"schema"`
	// Leases are sorted by interface, address and id.
	Leases []ClientLease `json:"leases"`
}

// A GrantedLease is what `lease --json` prints.
type GrantedLease struct {
	// Schema is 1.
	Schema int `json:"schema"`
	// Table is the number of the routing table.
	Table routing.TableID `json:"table"`
	// Interface is the name of the interface that the table is for.
	Interface string `json:"interface"`
	// Address or ID is what the client gave with it.
	Address string `json:"address,omitempty"`
	ID      string `json:"id,omitempty"`
	// Tag is the client's note.
	Tag string `json:"tag,omitempty"`
	// Routed says that multihomed routes the address as one of a link.
	Routed bool `json:"routed"`
	// Lifetime is in seconds from now, Expires the moment: only of a lease that must be renewed.
	Lifetime int64      `json:"lifetime_s,omitempty"`
	Expires  *time.Time `json:"expires,omitempty"`
}

package cli

import "multihomed/internal/status"

// What `multihomectl status` prints; package status says what each field means.
type (
	// Status is the whole.
	Status = status.Status
	// Daemon is the service.
	Daemon = status.Daemon
	// Manager is NetworkManager.
	Manager = status.Manager
	// Count is of rules, routes and interface groups.
	Count = status.Count
	// Range is of tables.
	Range = status.Range
	// Link is one interface that has its own routing.
	Link = status.Link
	// Network is one network of a link, with its table.
	Network = status.Network
	// Address is one of an interface.
	Address = status.Address
	// Gateway is one default route of a table.
	Gateway = status.Gateway
	// Object is one rule, route or interface group.
	Object = status.Object
	// Other is an interface that is no link.
	Other = status.Other
	// OtherRule is a rule of somebody else that has a say.
	OtherRule = status.OtherRule
	// Problem is something to know or to fix.
	Problem = status.Problem
	// Unbound is the way of packets that are bound to no link.
	Unbound = status.Unbound
)

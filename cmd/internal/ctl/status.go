package ctl

import (
	"net/netip"
	"time"

	"multihomed/routing"
)

// statusSchema is the version of the JSON of status. Fields may be added; if one
// goes or changes its meaning, this number goes up.
const statusSchema = 1

// A Status is what `multihomectl status --json` prints. Lists are never null.
type Status struct {
	// Schema is 1.
	Schema int `json:"schema"`
	// OK says that everything planned is in force and no problem is an error:
	// the exit status is 0.
	OK bool `json:"ok"`
	// Version is multihomectl's own.
	Version        string  `json:"version"`
	Daemon         Daemon  `json:"daemon"`
	NetworkManager Manager `json:"network_manager"`
	InForce        Count   `json:"in_force"`
	// Tables is the range that the tables of links come from.
	Tables      Range  `json:"tables"`
	UplinkGroup uint32 `json:"uplink_group"`
	Links       []Link `json:"links"`
	// Shared are the objects that serve all links, lifts of rules of others, and
	// those that no link wants.
	Shared []Object `json:"shared"`
	// Off says since when all of multihomed is switched off, and by whom; absent if it is not.
	Off *Off `json:"off,omitempty"`
	// OffLinks are the links that are switched off by themselves.
	OffLinks []OffLink `json:"off_links,omitempty"`
	// Others are the interfaces that are no links.
	Others   []Other   `json:"other_interfaces"`
	Problems []Problem `json:"problems"`
	// Unread are what could not be read, in sentences.
	Unread []string `json:"unread"`
}

// Off is the administrator's word that something is switched off.
type Off struct {
	// Since is nil, and By empty, if that is not known.
	Since *time.Time `json:"since"`
	By    string     `json:"by"`
}

// OffLink is a link that is switched off.
type OffLink struct {
	Interface string `json:"interface"`
	// UUID is that of its profile, empty for one that has none.
	UUID string `json:"uuid"`
	Off
}

// Daemon is the service. Its fields beside Running come from itself.
type Daemon struct {
	Running bool       `json:"running"`
	PID     int        `json:"pid,omitempty"`
	Version string     `json:"version,omitempty"`
	Started *time.Time `json:"started,omitempty"`
	// Ready says that a pass with complete knowledge was made.
	Ready bool `json:"ready"`
	// Waiting says what it waits for.
	Waiting string `json:"waiting,omitempty"`
}

// Manager is NetworkManager.
type Manager struct {
	Running bool   `json:"running"`
	Version string `json:"version,omitempty"`
	// Complete says that everything about its devices is known.
	Complete bool `json:"complete"`
	// None says that this host has no NetworkManager, and needs none.
	None    bool   `json:"none,omitempty"`
	Waiting string `json:"waiting,omitempty"`
	// Error says why it could not be asked.
	Error string `json:"error,omitempty"`
}

// Count is of rules, routes and interface groups; what yields does not count.
type Count struct {
	Planned int `json:"planned"`
	Present int `json:"present"`
	// Unexpected stand and are not planned.
	Unexpected int `json:"unexpected"`
}

// Range is a range of tables, both ends included.
type Range struct {
	First uint32 `json:"first"`
	Last  uint32 `json:"last"`
}

// Link is one interface that has its own routing.
type Link struct {
	Interface string `json:"interface"`
	Index     int    `json:"index"`
	// Role is "uplink" or "local", RoleWhy says in words why.
	Role    string `json:"role"`
	RoleWhy string `json:"role_why"`
	// Draining says that it is going down: its routing stays until its
	// addresses are gone.
	Draining bool `json:"draining"`
	// Why says in words why it is a link.
	Why     string `json:"why"`
	Profile string `json:"profile,omitempty"`
	// Type is NetworkManager's name of the kind of device.
	Type    string `json:"type,omitempty"`
	Up      bool   `json:"up"`
	Carrier bool   `json:"carrier"`
	// Group is the interface group.
	Group    uint32    `json:"group"`
	InForce  Count     `json:"in_force"`
	Networks []Network `json:"networks"`
	// LeftAlone says by family ("ipv4") why it is its owner's.
	LeftAlone map[string]string `json:"left_alone"`
	// Unused are addresses that have no part in it: another host has them.
	Unused  []Address `json:"unused_addresses"`
	Objects []Object  `json:"objects"`
}

// Network is one on-link prefix, or all host addresses of a link, with its table.
type Network struct {
	// Family is "ipv4" or "ipv6".
	Family string `json:"family"`
	// Prefix is absent where HostAddresses is true: addresses that have no network
	// (/32, /128, point to point).
	Prefix        netip.Prefix `json:"prefix,omitzero"`
	HostAddresses bool         `json:"host_addresses,omitempty"`
	// Table is 0 if the network has none.
	Table     uint32    `json:"table"`
	Addresses []Address `json:"addresses"`
	// Gateways are those of the default routes in the table, best first.
	Gateways []Gateway `json:"gateways"`
}

// Address is one address of an interface.
type Address struct {
	Address netip.Addr `json:"address"`
	// Length is that of the prefix it was given with.
	Length int         `json:"prefix_length"`
	Peer   *netip.Addr `json:"peer,omitempty"`
	// Flags are of "tentative", "duplicate", "deprecated", "temporary" and
	// "dynamic".
	Flags []string `json:"flags"`
}

// Gateway is one default route of a table.
type Gateway struct {
	// Via is absent where the default needs no next hop.
	Via *netip.Addr `json:"via,omitempty"`
}

// Object is one rule, route or interface group.
type Object struct {
	// Kind is "rule", "route" or "group".
	Kind   string `json:"kind"`
	Family string `json:"family,omitempty"`
	// State is "in force", "missing", "different", "misplaced", "yields" (somebody
	// deleted it in the words of a rule of his own; it comes back) or "unexpected".
	State string `json:"state"`
	// Text is the object in the words of iproute2.
	Text string `json:"text"`
	// Reason names why it exists.
	Reason string `json:"reason,omitempty"`
	// Lifts is the rule of somebody else that a rule of the reason "lift" leads to.
	Lifts string `json:"lifts,omitempty"`
}

// Other is an interface that is no link.
type Other struct {
	Interface string `json:"interface"`
	Why       string `json:"why"`
}

// Problem is something to know or to fix. Its JSON has code, severity ("error",
// "warning", "notice"), link, object, text and fix.
type Problem = routing.Problem

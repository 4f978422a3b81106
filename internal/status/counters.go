package status

import "multihomed/internal/escape"

// Counters are what the daemon has counted since its process started. No count goes back before
// that ends: a reload of the configuration keeps them.
type Counters struct {
	// Passes are plans that were made and compared with the kernel.
	Passes uint64 `json:"passes"`
	// Convergence has the times from an event until the kernel was as planned, for events
	// after which it had to be changed.
	Convergence Histogram `json:"convergence"`
	// Changes are what the kernel did; each object and verb has an entry.
	Changes []Changed `json:"changes"`
	// Refusals are changes that the kernel refused, each attempt by itself, and attempts to
	// lease tables after which a network had none.
	Refusals Refusals `json:"refusals"`
	// Repairs are objects that were restored after somebody else had deleted or replaced them.
	Repairs Repairs `json:"repairs"`
	// Overruns counts how often the kernel dropped notifications, so that everything was
	// read again.
	Overruns uint64 `json:"netlink_overruns"`
	// BusLosses counts how often the connection to the system bus, and with it
	// NetworkManager, was lost.
	BusLosses uint64 `json:"bus_losses"`
	// Logged are the problems in the log, by code and severity.
	Logged []Logged `json:"problems_logged"`
	// Deaths are how often uplinks were judged dead. One without an entry never was.
	Deaths []Deaths `json:"deaths"`
	// Switches say how often failover moved unbound traffic, an entry for each family.
	Switches []Switches `json:"switches"`
	// Leases are the tables that are leased, to links and to clients.
	Leases Leases `json:"leases"`
}

// A Histogram counts times by how long they are.
type Histogram struct {
	// Buckets are in ascending order.
	Buckets []Bucket `json:"buckets"`
	// Count is of all times, those above the last bucket too; Sum is their sum in seconds.
	Count uint64  `json:"count"`
	Sum   float64 `json:"sum_seconds"`
}

// A Bucket counts the times up to its bound, those of the buckets before it too.
type Bucket struct {
	// UpTo is in seconds.
	UpTo float64 `json:"up_to_seconds"`
	// Count is of times.
	Count uint64 `json:"count"`
}

// Changed counts changes of the kernel.
type Changed struct {
	// Object is "rule", "route" or "group".
	Object string `json:"object"`
	// Verb is "add", "replace", "move", "delete", "set" or "reset".
	Verb string `json:"verb"`
	// Count is of changes.
	Count uint64 `json:"count"`
}

// Refusals count by who refused.
type Refusals struct {
	// Kernel counts changes that the kernel refused.
	Kernel uint64 `json:"kernel"`
	// Database counts leases that the database refused, or that the range had no number for.
	Database uint64 `json:"database"`
}

// Repairs count by object.
type Repairs struct {
	// Rules counts rules.
	Rules uint64 `json:"rules"`
	// Routes counts routes.
	Routes uint64 `json:"routes"`
}

// Logged counts problems in the log.
type Logged struct {
	// Code is that of the problem.
	Code string `json:"code"`
	// Severity is "error", "warning" or "notice".
	Severity string `json:"severity"`
	// Count is of lines.
	Count uint64 `json:"count"`
}

// Deaths count those of an uplink in one family.
type Deaths struct {
	// Interface is the name that it had.
	Interface string `json:"interface"`
	// Family is "ipv4" or "ipv6".
	Family string `json:"family"`
	// Count is of deaths.
	Count uint64 `json:"count"`
}

// Switches count those of a family.
type Switches struct {
	// Family is "ipv4" or "ipv6".
	Family string `json:"family"`
	// Away counts moves to another uplink than that of main, Back returns to it.
	Away uint64 `json:"away"`
	Back uint64 `json:"back"`
}

// Leases count tables.
type Leases struct {
	// Live are in use, Released are kept for links that are down or gone, and given to others
	// when no other table is left.
	Live     int `json:"live"`
	Released int `json:"released"`
}

// Escape makes its names printable.
func (c *Counters) Escape() {
	for i := range c.Deaths {
		c.Deaths[i].Interface = escape.Name(c.Deaths[i].Interface)
	}
}

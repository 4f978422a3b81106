package status

import "multihomed/internal/escape"

// A Binding is what is bound to a link.
type Binding struct {
	// Selector is the key of [[bind]] that selects packets, Value what it selects.
	Selector string `json:"selector"`
	Value    string `json:"value"`
	// Link is what the administrator calls the link, Interface its name now, empty if there is none.
	Link      string `json:"link"`
	Interface string `json:"interface,omitempty"`
	// Strict says that nothing leaves by another uplink, DNS that queries go to the servers of the
	// link, Deny that requests by other links are not answered.
	Strict bool `json:"strict"`
	DNS    bool `json:"dns,omitempty"`
	Deny   bool `json:"deny,omitempty"`
	// DNSLed says of users that their queries go to the servers of the link now, as DNS wants it.
	DNSLed bool `json:"dns_led,omitempty"`
	// By says who wants it: "configuration", "state", "runtime", "profile NAME", or "sockets" for
	// those of `multihomectl run` and of units.
	By string `json:"by"`
	// State is one of the constants, Why says in words why it is not [BindingActive], or not wholly.
	State string `json:"state"`
	Why   string `json:"why,omitempty"`
	// Dropped counts the packets that the fence dropped, because they would have left by another
	// uplink; it begins anew with the table of nftables.
	Dropped uint64 `json:"dropped_packets"`

	// Name is what the planner calls it.
	Name string `json:"-"`
}

// ByCgroup reports whether it selects processes by their control group.
func (b Binding) ByCgroup() bool {
	return b.Selector == "unit" || b.Selector == "slice" || b.Selector == "cgroup"
}

// States of bindings.
const (
	// BindingActive: what is selected leaves by the link.
	BindingActive = "active"
	// BindingDown: the link is not there, or has no way to the outside.
	BindingDown = "link-down"
	// BindingWaits: what it selects does not exist yet.
	BindingWaits = "waiting"
	// BindingFailed: what it selects exists, and is not bound.
	BindingFailed = "failed"
	// BindingRefused: it has no effect.
	BindingRefused = "refused"
)

// Escape makes its texts printable.
func (b *Binding) Escape() {
	for _, text := range []*string{&b.Value, &b.Link, &b.Interface, &b.By, &b.Why} {
		*text = escape.Text(*text)
	}
}

package dbusapi

import (
	"cmp"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"time"

	"github.com/godbus/dbus/v5"

	"multihomed/internal/escape"
	"multihomed/internal/status"
)

// A Model is what the objects on the bus hold at one moment. It never changes, and shares with the
// one before what is the same in both.
type Model struct {
	// Manager are the properties of the daemon.
	Manager Values
	// Links are those on the bus, by interface index.
	Links []*Link
}

// Values are properties by name. Each value has the type of its property.
type Values map[string]any

// A Link is the object of a link.
type Link struct {
	Index int
	// Name is escaped as in the status.
	Name string
	// Values are its properties but Measurements.
	Values Values

	source source
}

// source is what the values of a link are made from.
type source struct {
	link   status.Link
	off    *status.OffLink
	device Device
	health []verdict
}

// verdict is what is judged of an uplink in a family.
type verdict struct {
	family, state, why string
	since              uint64
}

// Link finds a link.
func (m *Model) Link(index int) (*Link, bool) {
	at, found := slices.BinarySearchFunc(m.Links, index, func(l *Link, index int) int { return cmp.Compare(l.Index, index) })
	if !found {
		return nil, false
	}
	return m.Links[at], true
}

// Named finds a link by its name, as it is or escaped.
func (m *Model) Named(name string) (*Link, bool) {
	for _, l := range m.Links {
		if l.Name == name || escape.Original(l.Name) == name {
			return l, true
		}
	}
	return nil, false
}

// A Device is what the kernel says of an interface.
type Device struct {
	Index       int
	Up, Carrier bool
}

// A Place is where a daemon works.
type Place struct {
	// RuntimeDirectory is a path, not escaped.
	RuntimeDirectory string
	// NetworkNamespace is the number of its network namespace.
	NetworkNamespace uint64
}

// Facts are what a status does not have.
type Facts struct {
	Place Place
	// Devices are the interfaces by name, not escaped.
	Devices map[string]Device
	// LogLevel is a level as the configuration writes it.
	LogLevel string
}

// Measured is what changes all the time, and is announced by no signal.
type Measured struct {
	// Passes and Repairs count what the loop did.
	Passes, Repairs uint64
	// Links are the measurements of links by name, escaped.
	Links map[string][]map[string]dbus.Variant
}

// Measure takes the measurements out of what is known of uplinks; f may be nil.
func Measure(f *status.Failover) map[string][]map[string]dbus.Variant {
	out := map[string][]map[string]dbus.Variant{}
	if f == nil {
		return out
	}
	for _, h := range f.Uplinks {
		values := map[string]any{"Family": h.Family, "LastProof": usec(h.LastProof)}
		if h.Loss != nil {
			values["Loss"] = *h.Loss
		}
		if h.RTT != nil {
			values["RTT"] = *h.RTT
		}
		out[h.Interface] = append(out[h.Interface], variants(values))
	}
	return out
}

// States of the daemon.
const (
	Starting = "starting"
	Ready    = "ready"
	Off      = "off"
)

// States of a link, besides Off.
const (
	// Active: everything planned stands in the kernel.
	Active = "active"
	// Incomplete: something is missing, or too much.
	Incomplete = "incomplete"
	// Configuring: it is being brought up.
	Configuring = "configuring"
	// Draining: it is going down.
	Draining = "draining"
)

// Of makes the model of a status, whose names are escaped. What is the same as in the last one,
// which may be nil, is taken from there.
func Of(s *status.Status, f Facts, last *Model) *Model {
	if last == nil {
		last = &Model{}
	}
	m := &Model{Links: make([]*Link, 0, len(s.Links))}
	health := map[string][]verdict{}
	if s.Failover != nil {
		for _, h := range s.Failover.Uplinks {
			health[h.Interface] = append(health[h.Interface], verdict{h.Family, string(h.State), h.Verdict, usec(h.Since)})
		}
	}
	inForce := 0
	add := func(from source) {
		known, was := last.Link(from.device.Index)
		if was && reflect.DeepEqual(known.source, from) {
			m.Links = append(m.Links, known)
			return
		}
		m.Links = append(m.Links, linkOf(from))
	}
	names := make(map[string]bool, len(s.Links))
	for _, l := range s.Links {
		names[l.Interface] = true
		if l.InForce.Complete() {
			inForce++
		}
		add(source{link: l, device: Device{l.Index, l.Up, l.Carrier}, health: health[l.Interface]})
	}
	for _, o := range s.OffLinks {
		d, exists := f.Devices[escape.Original(o.Interface)]
		if !exists || names[o.Interface] {
			continue // Another profile may be active on its interface.
		}
		names[o.Interface] = true
		add(source{link: status.Link{Interface: o.Interface, Index: d.Index}, off: &o, device: d, health: health[o.Interface]})
	}
	slices.SortFunc(m.Links, func(a, b *Link) int { return cmp.Compare(a.Index, b.Index) })
	// A daemon that reads while names move may see one twice.
	m.Links = slices.CompactFunc(m.Links, func(a, b *Link) bool { return a.Index == b.Index })
	m.Manager = managerOf(s, f, inForce, last)
	m.Manager["LinksTotal"] = uint32(len(m.Links)) //nolint:gosec // a count
	m.Manager["Generation"] = uint64(1)
	if n, is := last.Manager["Generation"].(uint64); is {
		m.Manager["Generation"] = n
		if !m.equals(last) {
			m.Manager["Generation"] = n + 1
		}
	}
	return m
}

// equals reports whether nothing that is announced differs.
func (m *Model) equals(last *Model) bool {
	return slices.Equal(m.Links, last.Links) && len(changed(last.Manager, m.Manager, Manager())) == 0 || len(Changes(last, m, Measured{})) == 0
}

// Range is a range of tables.
type tableRange struct{ First, Last uint32 }

func managerOf(s *status.Status, f Facts, inForce int, last *Model) Values {
	state, reason := Starting, s.Daemon.Waiting
	before, _ := last.Manager["State"].(string)
	switch {
	case s.Off != nil:
		state, reason = Off, offReason(*s.Off)
	case s.Daemon.Ready, before == Ready, before == Off:
		// A daemon that reads its configuration again, maybe without NetworkManager, is not starting.
		state = Ready
	}
	problems := make([]map[string]dbus.Variant, 0, len(s.Problems))
	for _, p := range s.Problems {
		commands := p.Commands.Lines()
		if commands == nil {
			commands = []string{}
		}
		problems = append(problems, variants(map[string]any{
			"Code": string(p.Code), "Severity": p.Severity.String(), "Link": p.Link, "Object": p.Object, "Text": p.Text,
			"Fix": p.Fix, "Commands": commands, "Since": usec(p.Since),
		}))
	}
	unbound := make(map[string]map[string]dbus.Variant, len(s.Unbound))
	for family, u := range s.Unbound {
		shares := make([]share, 0, len(u.Shares))
		for _, l := range u.Shares {
			shares = append(shares, share{l.Interface, l.Weight})
		}
		unbound[family] = variants(map[string]any{"Interface": u.Interface, "Table": u.Table, "Main": u.Main, "Why": u.Why, "Shares": shares})
	}
	return Values{
		"Version": s.Version, "RuntimeDirectory": escape.Text(f.Place.RuntimeDirectory), "NetworkNamespace": f.Place.NetworkNamespace, "State": state, "StateReason": reason,
		"LinksInForce": uint32(inForce), //nolint:gosec // a count
		"Unbound":      unbound, "Problems": problems,
		"TableRange": tableRange{s.Tables.First, s.Tables.Last}, "UplinkGroup": s.UplinkGroup,
		"LogLevel": f.LogLevel,
	}
}

// share is the part of an uplink in shared traffic.
type share struct {
	Interface string
	Weight    uint16
}

// network is one of a link.
type network struct {
	Family, Prefix      string
	Table               uint32
	Addresses, Gateways []string
}

func offReason(o status.Off) string { return "switched off" + o.Text() }

func linkOf(from source) *Link {
	l := from.link
	state, reason := Active, ""
	missing, role := l.InForce.Planned-l.InForce.Present, l.Role
	switch {
	case from.off != nil:
		state, reason = Off, offReason(from.off.Off)
	case l.Draining:
		state, reason = Draining, "it is going down"
	case l.Pending:
		state, reason = Configuring, "it is being brought up"
	case missing > 0:
		state, reason = Incomplete, fmt.Sprintf("%d of %d objects missing", missing, l.InForce.Planned)
	case l.InForce.Unexpected > 0:
		state, reason = Incomplete, fmt.Sprintf("%d unexpected objects", l.InForce.Unexpected)
	}
	networks := make([]network, 0, len(l.Networks))
	for _, n := range l.Networks {
		out := network{Family: n.Family, Table: n.Table, Addresses: []string{}, Gateways: []string{}}
		if n.Prefix.IsValid() {
			out.Prefix = n.Prefix.String()
		}
		for _, a := range n.Addresses {
			out.Addresses = append(out.Addresses, fmt.Sprintf("%s/%d", a.Address, a.Length))
		}
		for _, g := range n.Gateways {
			if g.Via != nil {
				out.Gateways = append(out.Gateways, g.Via.String())
			}
		}
		networks = append(networks, out)
	}
	health := make([]map[string]dbus.Variant, 0, len(from.health))
	for _, h := range from.health {
		health = append(health, variants(map[string]any{"Family": h.family, "State": h.state, "Why": h.why, "Since": h.since}))
	}
	return &Link{
		Index: from.device.Index, Name: l.Interface, source: from,
		Values: Values{
			"IfIndex": int32(from.device.Index), "Name": l.Interface, "Role": role, "RoleWhy": l.RoleWhy, //nolint:gosec // an index
			"State": state, "StateReason": reason, "StateSince": sinceOf(from), "Why": l.Why, "Type": l.Type, "Profile": l.Profile,
			"Up": from.device.Up, "Carrier": from.device.Carrier, "Off": from.off != nil, "Networks": networks,
			"ObjectsPlanned": uint32(l.InForce.Planned), "ObjectsInForce": uint32(l.InForce.Present), //nolint:gosec // counts
			"Health": health,
		},
	}
}

func sinceOf(from source) uint64 {
	if from.off != nil {
		return usec(from.off.Since)
	}
	return usec(from.link.Since)
}

// usec is a moment in microseconds since 1970, 0 for one that is not known.
func usec(t *time.Time) uint64 {
	if t == nil || t.IsZero() {
		return 0
	}
	return uint64(t.UnixMicro())
}

func variants(values map[string]any) map[string]dbus.Variant {
	out := make(map[string]dbus.Variant, len(values))
	for k, v := range values {
		out[k] = dbus.MakeVariant(v)
	}
	return out
}

// Describe is the link's entry of the status, in JSON.
func (l *Link) Describe() (string, error) {
	data, err := json.Marshal(l.source.link)
	if err != nil {
		return "", fmt.Errorf("encoding the status of %s: %w", l.Name, err)
	}
	return string(data), nil
}

// All are the properties of a link as GetAll returns them.
func (l *Link) All(m Measured) map[string]dbus.Variant {
	out := variants(l.Values)
	measured := m.Links[l.Name]
	if measured == nil {
		measured = []map[string]dbus.Variant{}
	}
	out["Measurements"] = dbus.MakeVariant(measured)
	return out
}

// All are the properties of the daemon as GetAll returns them.
func (m *Model) All(now Measured) map[string]dbus.Variant {
	out := variants(m.Manager)
	out["Passes"], out["Repairs"] = dbus.MakeVariant(now.Passes), dbus.MakeVariant(now.Repairs)
	return out
}

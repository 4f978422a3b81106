package explain

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"multihomed/internal/escape"
	"multihomed/internal/status"
	"multihomed/routing"
	"multihomed/routing/lookup"
)

// A Snapshot is a host as it was when a question was asked.
type Snapshot struct {
	// Version is that of the program that made it, Taken when, as in RFC 3339.
	Version, Taken string
	// Question is what was asked.
	Question lookup.Flow
	Facts    Facts
	// Partial are the tables of which only the routes to the destination are known.
	Partial map[routing.TableID]bool
}

const (
	// snapshotKind tells these files from others.
	snapshotKind = "multihomed explain snapshot"
	// snapshotSchema is the version of the file; another one is refused.
	snapshotSchema = 1
	// Largest bounds the size of a file, in bytes.
	Largest = 64 << 20
	// longestName bounds a name of an interface: IFNAMSIZ, or ALTIFNAMSIZ (linux/if.h).
	longestName = 127
	// mostBindings bounds what is compared with each rule.
	mostBindings = 4096
)

type snapshotFile struct {
	Kind       string          `json:"kind"`
	Schema     int             `json:"schema"`
	Version    string          `json:"version"`
	Taken      string          `json:"taken"`
	Question   flowFile        `json:"question"`
	Interfaces []interfaceFile `json:"interfaces"`
	Rules      []ruleFile      `json:"rules"`
	Routes     []routeFile     `json:"routes"`
	// Partial are the tables of which only the routes to the destination are here.
	Partial []uint32          `json:"partial_tables"`
	Notes   notesFile         `json:"notes"`
	Users   map[uint32]string `json:"users"`
	Unread  []string          `json:"unread"`
	// Merged says that local and main are one trie ([lookup.Host.Merged]).
	Merged bool `json:"merged,omitempty"`
	// Before615 is [lookup.Host.Before615].
	Before615 bool `json:"before_6_15,omitempty"`
	// Before72 is [lookup.Host.Before72].
	Before72 bool        `json:"before_7_2,omitempty"`
	Answers  []askedFile `json:"answers"`
}

type flowFile struct {
	To        netip.Addr `json:"to"`
	From      netip.Addr `json:"from,omitzero"`
	IIF       string     `json:"iif,omitempty"`
	OIF       string     `json:"oif,omitempty"`
	LooseOIF  bool       `json:"loose_oif,omitempty"`
	Mark      uint32     `json:"mark,omitempty"`
	UID       uint32     `json:"uid"`
	IPProto   uint8      `json:"ipproto,omitempty"`
	SPort     uint16     `json:"sport,omitempty"`
	DPort     uint16     `json:"dport,omitempty"`
	TOS       uint8      `json:"tos,omitempty"`
	FlowLabel uint32     `json:"flowlabel,omitempty"`
}

type interfaceFile struct {
	Index     int      `json:"index"`
	Name      string   `json:"name"`
	AltNames  []string `json:"alt_names,omitempty"`
	Detached  []string `json:"detached_names,omitempty"`
	Group     uint32   `json:"group,omitempty"`
	Up        bool     `json:"up"`
	NoCarrier bool     `json:"no_carrier,omitempty"`
	Master    int      `json:"master,omitempty"`
	Lower     int      `json:"lower,omitempty"`
	Table     uint32   `json:"vrf_table,omitempty"`
	// The sysctls of the family, as they take effect.
	RPFilter       uint8          `json:"rp_filter,omitempty"`
	RouteLocalnet  bool           `json:"route_localnet,omitempty"`
	ValidMark      bool           `json:"src_valid_mark,omitempty"`
	AcceptLocal    bool           `json:"accept_local,omitempty"`
	Addressed      bool           `json:"addressed,omitempty"`
	Forwarding     bool           `json:"forwarding,omitempty"`
	IgnoreLinkDown bool           `json:"ignore_routes_with_linkdown,omitempty"`
	Addresses      []netip.Prefix `json:"addresses"`
}

type portsFile struct {
	First uint16 `json:"first"`
	Last  uint16 `json:"last"`
	Mask  uint16 `json:"mask,omitempty"`
}

type uidsFile struct {
	First uint32 `json:"first"`
	Last  uint32 `json:"last"`
}

type ruleFile struct {
	Family               uint8        `json:"family"`
	Priority             uint32       `json:"priority"`
	Invert               bool         `json:"not,omitempty"`
	From                 netip.Prefix `json:"from,omitzero"`
	To                   netip.Prefix `json:"to,omitzero"`
	TOS                  uint8        `json:"tos,omitempty"`
	DSCP                 *uint32      `json:"dscp,omitempty"`
	DSCPMask             uint8        `json:"dscp_mask,omitempty"`
	FlowLabel            *uint32      `json:"flowlabel,omitempty"`
	FlowLabelMask        uint32       `json:"flowlabel_mask,omitempty"`
	Mark                 uint32       `json:"fwmark,omitempty"`
	Mask                 uint32       `json:"fwmask,omitempty"`
	IIF                  string       `json:"iif,omitempty"`
	OIF                  string       `json:"oif,omitempty"`
	UIDs                 *uidsFile    `json:"uidrange,omitempty"`
	IPProto              uint8        `json:"ipproto,omitempty"`
	SPorts               *portsFile   `json:"sport,omitempty"`
	DPorts               *portsFile   `json:"dport,omitempty"`
	TunnelID             uint64       `json:"tun_id,omitempty"`
	L3MDev               bool         `json:"l3mdev,omitempty"`
	Action               uint8        `json:"action"`
	Table                uint32       `json:"table,omitempty"`
	Goto                 uint32       `json:"goto,omitempty"`
	Realms               uint32       `json:"realms,omitempty"`
	SuppressPrefixLength *uint32      `json:"suppress_prefixlength,omitempty"`
	SuppressGroup        *uint32      `json:"suppress_ifgroup,omitempty"`
	Protocol             uint8        `json:"protocol"`
	FindSource           bool         `json:"find_source,omitempty"`
	Unknown              bool         `json:"unknown,omitempty"`
}

type routeFile struct {
	Type        uint8        `json:"type"`
	Table       uint32       `json:"table"`
	Destination netip.Prefix `json:"dst"`
	Source      netip.Prefix `json:"from,omitzero"`
	Gateway     netip.Addr   `json:"via,omitzero"`
	Device      int          `json:"dev,omitempty"`
	Preferred   netip.Addr   `json:"src,omitzero"`
	Metric      uint32       `json:"metric,omitempty"`
	Weight      uint16       `json:"weight,omitempty"`
	TOS         uint8        `json:"tos,omitempty"`
	Scope       uint8        `json:"scope,omitempty"`
	Protocol    uint8        `json:"protocol,omitempty"`
	Preference  uint8        `json:"pref,omitempty"`
	OnLink      bool         `json:"onlink,omitempty"`
	Dead        bool         `json:"dead,omitempty"`
	Nexthop     uint32       `json:"nexthop,omitempty"`
}

type ruleNoteFile struct {
	Rule   string `json:"rule"`
	Reason string `json:"reason"`
	Link   string `json:"link,omitempty"`
	Lifts  string `json:"lifts,omitempty"`
}

type linkNoteFile struct {
	Interface string   `json:"interface"`
	Profile   string   `json:"profile,omitempty"`
	Role      string   `json:"role,omitempty"`
	Dead      []string `json:"dead,omitempty"`
	Preferred int      `json:"preferred,omitempty"`
	Metered   bool     `json:"metered,omitempty"`
	Weight    uint8    `json:"weight,omitempty"`
}

type tableNoteFile struct {
	Table     uint32 `json:"table"`
	Interface string `json:"interface"`
}

type notesFile struct {
	By            string           `json:"by"`
	Rules         []ruleNoteFile   `json:"rules"`
	Links         []linkNoteFile   `json:"links"`
	Tables        []tableNoteFile  `json:"tables"`
	Bindings      []status.Binding `json:"bindings"`
	FailoverTable uint32           `json:"failover_table,omitempty"`
}

type askedFile struct {
	Question flowFile    `json:"question"`
	Matched  []routeFile `json:"matched"`
	Sent     *routeFile  `json:"sent,omitempty"`
	// Missed and Unsent are errors by the name that [lookup.Refusal] gives them.
	Missed string `json:"missed,omitempty"`
	Unsent string `json:"unsent,omitempty"`
	Errno  int    `json:"errno,omitempty"`
}

// Save makes a file of a snapshot.
func Save(s Snapshot) ([]byte, error) {
	f := &s.Facts
	file := snapshotFile{
		Kind: snapshotKind, Schema: snapshotSchema, Version: s.Version, Taken: s.Taken, Question: flowOut(s.Question), Interfaces: []interfaceFile{}, Rules: []ruleFile{},
		Routes: []routeFile{}, Partial: []uint32{}, Users: f.Users, Unread: append([]string{}, f.Unread...), Answers: []askedFile{}, Notes: notesOut(&f.Notes),
	}
	file.Merged, file.Before615, file.Before72 = f.Merged, f.Before615, f.Before72
	for _, i := range f.Interfaces {
		file.Interfaces = append(file.Interfaces, interfaceFile{
			Index: i.Index, Name: escape.Name(i.Name), AltNames: each(i.AltNames, escape.Name), Detached: each(i.Detached, escape.Name), Group: i.Group, Up: i.Up, NoCarrier: i.NoCarrier, Master: i.Master, Lower: i.Lower, Table: uint32(i.Table),
			RPFilter: i.Config.ReversePath, ValidMark: i.Config.MarkReverse, AcceptLocal: i.Config.AcceptLocal, RouteLocalnet: i.Config.RouteLocalnet, Addressed: i.Config.Addressed,
			Forwarding: i.Config.Forwards.In(f.Family), IgnoreLinkDown: i.Config.IgnoreLinkDown.In(f.Family), Addresses: append([]netip.Prefix{}, f.Addresses[i.Index]...),
		})
	}
	for _, r := range f.Rules {
		file.Rules = append(file.Rules, ruleOut(r))
	}
	for c := range f.candidates() {
		file.Routes = append(file.Routes, routeOut(c))
	}
	for t := range s.Partial {
		file.Partial = append(file.Partial, uint32(t))
	}
	slices.Sort(file.Partial)
	for _, a := range f.Answers {
		out := askedFile{Question: flowOut(a.Flow), Matched: []routeFile{}, Errno: a.Answer.Errno}
		if a.Answer.Missed != lookup.None {
			out.Missed = a.Answer.Missed.String()
		}
		if a.Answer.Unsent != lookup.None {
			out.Unsent = a.Answer.Unsent.String()
		}
		for _, r := range a.Answer.Matched {
			out.Matched = append(out.Matched, routeOut(lookup.Candidate{Route: r}))
		}
		if a.Answer.Sent.Destination.IsValid() {
			sent := routeOut(lookup.Candidate{Route: a.Answer.Sent})
			out.Sent = &sent
		}
		file.Answers = append(file.Answers, out)
	}
	data, err := json.MarshalIndent(file, "", " ")
	if err != nil {
		return nil, fmt.Errorf("encoding the snapshot: %w", err)
	}
	if len(data) >= Largest {
		return nil, fmt.Errorf("the snapshot would have %d MB, and the most is %d", len(data)>>20, Largest>>20)
	}
	return append(data, '\n'), nil
}

// Load reads the file of a snapshot. It believes nothing: whatever the file holds, the facts are ones that
// [Facts.Explain] can work with.
func Load(data []byte) (*Snapshot, error) {
	if len(data) > Largest {
		return nil, fmt.Errorf("the snapshot is larger than %d MB", Largest>>20)
	}
	var file snapshotFile
	if err := json.Unmarshal(data, &file); err != nil {
		return nil, fmt.Errorf("this is no snapshot of multihomectl explain: %w", err)
	}
	switch {
	case file.Kind != snapshotKind:
		return nil, errors.New("this is no snapshot of multihomectl explain")
	case file.Schema != snapshotSchema:
		return nil, fmt.Errorf("the snapshot has schema %d, this program reads %d: use the multihomectl that wrote it, version %s", file.Schema, snapshotSchema, escape.Text(file.Version))
	case len(file.Notes.Bindings) > mostBindings:
		return nil, fmt.Errorf("the snapshot has %d bindings, and the most is %d", len(file.Notes.Bindings), mostBindings)
	}
	s := &Snapshot{Version: escape.Text(file.Version), Taken: escape.Text(file.Taken)}
	f := &s.Facts
	f.Addresses, s.Partial, f.Users = map[int][]netip.Prefix{}, map[routing.TableID]bool{}, map[uint32]string{}
	f.Tables, f.Merged, f.Before615, f.Before72 = map[routing.TableID][]lookup.Candidate{}, file.Merged, file.Before615, file.Before72
	var err error
	if s.Question, err = flowIn(file.Question); err != nil {
		return nil, fmt.Errorf("the question of the snapshot: %w", err)
	}
	family := routing.FamilyOf(s.Question.To)
	f.Family = family
	for n, i := range file.Interfaces {
		name, others, detached := escape.Original(i.Name), each(i.AltNames, escape.Original), each(i.Detached, escape.Original)
		var err error
		for _, n := range slices.Concat([]string{name}, others, detached) {
			err = errors.Join(err, checkName(n))
		}
		if i.Index <= 0 {
			err = errors.Join(err, fmt.Errorf("%d is no index", i.Index))
		}
		if err != nil {
			return nil, fmt.Errorf("interface %d of the snapshot: %w", n+1, err)
		}
		one := lookup.Interface{
			Index: i.Index, Name: name, AltNames: others, Detached: detached, Group: i.Group, Up: i.Up, NoCarrier: i.NoCarrier, Master: i.Master, Lower: i.Lower, Table: routing.TableID(i.Table),
			Config: lookup.Config{ReversePath: min(i.RPFilter, 2), MarkReverse: i.ValidMark, AcceptLocal: i.AcceptLocal, RouteLocalnet: i.RouteLocalnet, Addressed: i.Addressed},
		}
		one.Config.Forwards.Set(family, i.Forwarding)
		one.Config.IgnoreLinkDown.Set(family, i.IgnoreLinkDown)
		f.Interfaces = append(f.Interfaces, one)
		for _, p := range i.Addresses {
			if !p.IsValid() || p.Addr().Is4() != (family == routing.IPv4) || checkAddress(p.Addr()) != nil {
				return nil, fmt.Errorf("interface %d of the snapshot has an address that is none of %s", n+1, family.Name())
			}
			f.Addresses[i.Index] = append(f.Addresses[i.Index], p)
		}
	}
	for n, r := range file.Rules {
		rule, err := ruleIn(r)
		if err == nil && rule.Family != family {
			err = fmt.Errorf("it is not of %s, as the question is", family.Name())
		}
		if err != nil {
			return nil, fmt.Errorf("rule %d of the snapshot: %w", n+1, err)
		}
		f.Rules = append(f.Rules, rule)
	}
	for n, r := range file.Routes {
		route, err := routeIn(r)
		if err == nil && route.Route.Family != family {
			err = fmt.Errorf("it is not of %s, as the question is", family.Name())
		}
		if err != nil {
			return nil, fmt.Errorf("route %d of the snapshot: %w", n+1, err)
		}
		f.Tables[route.Route.Table] = append(f.Tables[route.Route.Table], route)
	}
	for _, t := range file.Partial {
		s.Partial[routing.TableID(t)] = true
	}
	for uid, name := range file.Users {
		f.Users[uid] = escape.Text(name)
	}
	for _, text := range file.Unread {
		f.Unread = append(f.Unread, escape.Text(text))
	}
	f.Notes = notesIn(&file.Notes)
	for n, a := range file.Answers {
		asked, err := askedIn(a)
		if err != nil {
			return nil, fmt.Errorf("answer %d of the snapshot: %w", n+1, err)
		}
		f.Answers = append(f.Answers, asked)
	}
	return s, nil
}

// Other prepares the facts of a snapshot for another question: of tables that were not read whole
// only the routes to the first destination are known.
func (s *Snapshot) Other(flow lookup.Flow) error {
	if family := routing.FamilyOf(s.Question.To); routing.FamilyOf(flow.To) != family {
		return fmt.Errorf("the snapshot has rules and routes of %s, and %s is no address of it", family.Name(), flow.To)
	}
	if flow.To != s.Question.To || flow.From != s.Question.From {
		s.Facts.Partial = s.Partial
	}
	return nil
}

// each is a function of every name; of none it is none, which a file leaves out.
func each(names []string, of func(string) string) (out []string) {
	for _, n := range names {
		out = append(out, of(n))
	}
	return out
}

func checkName(name string) error {
	if name == "" || len(name) > longestName || strings.ContainsAny(name, "/\x00") {
		return fmt.Errorf("%q is no name of an interface", escape.Name(name))
	}
	return nil
}

// checkPrefix wants a masked prefix of a family, or none.
func checkPrefix(f routing.Family, p netip.Prefix) error {
	if p == (netip.Prefix{}) {
		return nil
	}
	if !p.IsValid() || p.Masked() != p || routing.FamilyOf(p.Addr()) != f || p.Addr().Is4In6() {
		return fmt.Errorf("%s is no network of %s", p, f.Name())
	}
	return nil
}

func checkAddress(a netip.Addr) error {
	if a.Is4In6() || a.Zone() != "" {
		return fmt.Errorf("%s is no address to look up", escape.Text(a.String()))
	}
	return nil
}

func flowOut(f lookup.Flow) flowFile {
	return flowFile{
		To: f.To, From: f.From, IIF: escape.Name(f.IIF), OIF: escape.Name(f.OIF), LooseOIF: f.LooseOIF, Mark: f.Mark, UID: f.UID,
		IPProto: f.IPProto, SPort: f.SourcePort, DPort: f.DestinationPort, TOS: f.TOS, FlowLabel: f.FlowLabel,
	}
}

func flowIn(f flowFile) (lookup.Flow, error) {
	out := lookup.Flow{
		To: f.To, From: f.From, IIF: escape.Original(f.IIF), OIF: escape.Original(f.OIF), LooseOIF: f.LooseOIF, Mark: f.Mark, UID: f.UID,
		IPProto: f.IPProto, SourcePort: f.SPort, DestinationPort: f.DPort, TOS: f.TOS, FlowLabel: f.FlowLabel,
	}
	err := errors.Join(checkAddress(f.To), checkAddress(f.From))
	for _, name := range []string{out.IIF, out.OIF} {
		if name != "" {
			err = errors.Join(err, checkName(name))
		}
	}
	switch {
	case err != nil:
	case !out.To.IsValid():
		err = errors.New("it has no destination")
	case out.From.IsValid() && out.From.Is4() != out.To.Is4():
		err = errors.New("source and destination are of different families")
	}
	return out, err
}

func optionalOut(o routing.Optional) *uint32 {
	if !o.Set {
		return nil
	}
	return &o.Value
}

func optionalIn(v *uint32) routing.Optional {
	if v == nil {
		return routing.Optional{}
	}
	return routing.Some(*v)
}

func portsOut(p routing.PortRange) *portsFile {
	if p == (routing.PortRange{}) {
		return nil
	}
	return &portsFile{p.First, p.Last, p.Mask}
}

func portsIn(p *portsFile) routing.PortRange {
	if p == nil {
		return routing.PortRange{}
	}
	return routing.PortRange{First: p.First, Last: p.Last, Mask: p.Mask}
}

func ruleOut(r routing.Rule) ruleFile {
	out := ruleFile{
		Family: uint8(r.Family), Priority: uint32(r.Priority), Invert: r.Invert, From: r.From, To: r.To, TOS: r.TOS,
		DSCP: optionalOut(r.DSCP), DSCPMask: r.DSCPMask, FlowLabel: optionalOut(r.FlowLabel), FlowLabelMask: r.FlowLabelMask,
		Mark: r.Mark.Value, Mask: r.Mark.Mask, IIF: escape.Name(r.IIF), OIF: escape.Name(r.OIF), IPProto: r.IPProto,
		SPorts: portsOut(r.SourcePorts), DPorts: portsOut(r.DestinationPorts), TunnelID: r.TunnelID, L3MDev: r.L3MDev,
		Action: uint8(r.Action), Table: uint32(r.Table), Goto: uint32(r.Goto), Realms: r.Realms,
		SuppressPrefixLength: optionalOut(r.SuppressPrefixLength), SuppressGroup: optionalOut(r.SuppressGroup),
		Protocol: uint8(r.Protocol), FindSource: r.FindSource, Unknown: r.Unknown,
	}
	if r.UIDs.Set {
		out.UIDs = &uidsFile{r.UIDs.First, r.UIDs.Last}
	}
	return out
}

func ruleIn(r ruleFile) (routing.Rule, error) {
	out := routing.Rule{
		Family: routing.Family(r.Family), Priority: routing.Priority(r.Priority), Invert: r.Invert, From: r.From, To: r.To, TOS: r.TOS,
		DSCP: optionalIn(r.DSCP), DSCPMask: r.DSCPMask, FlowLabel: optionalIn(r.FlowLabel), FlowLabelMask: r.FlowLabelMask,
		Mark: routing.Mark{Value: r.Mark, Mask: r.Mask}, IIF: escape.Original(r.IIF), OIF: escape.Original(r.OIF), IPProto: r.IPProto,
		SourcePorts: portsIn(r.SPorts), DestinationPorts: portsIn(r.DPorts), TunnelID: r.TunnelID, L3MDev: r.L3MDev,
		Action: routing.Action(r.Action), Table: routing.TableID(r.Table), Goto: routing.Priority(r.Goto), Realms: r.Realms,
		SuppressPrefixLength: optionalIn(r.SuppressPrefixLength), SuppressGroup: optionalIn(r.SuppressGroup),
		Protocol: routing.Protocol(r.Protocol), FindSource: r.FindSource, Unknown: r.Unknown,
	}
	if r.UIDs != nil {
		out.UIDs = routing.UIDRange{Set: true, First: r.UIDs.First, Last: r.UIDs.Last}
	}
	if out.Family != routing.IPv4 && out.Family != routing.IPv6 {
		return out, fmt.Errorf("%d is no family: 2 is IPv4 and 10 is IPv6", r.Family)
	}
	err := errors.Join(checkPrefix(out.Family, r.From), checkPrefix(out.Family, r.To))
	for _, name := range []string{out.IIF, out.OIF} {
		if name != "" {
			err = errors.Join(err, checkName(name))
		}
	}
	return out, err
}

func routeOut(c lookup.Candidate) routeFile {
	r := c.Route
	return routeFile{
		Type: uint8(r.Type), Table: uint32(r.Table), Destination: r.Destination, Source: r.Source, Gateway: r.Gateway, Device: r.Device,
		Preferred: r.PreferredSource, Metric: r.Metric, Weight: r.Weight, TOS: r.TOS, Scope: uint8(r.Scope), Protocol: uint8(r.Protocol),
		Preference: uint8(r.Preference), OnLink: r.OnLink, Dead: c.Dead, Nexthop: c.Nexthop,
	}
}

func routeIn(r routeFile) (lookup.Candidate, error) {
	if !r.Destination.IsValid() {
		return lookup.Candidate{}, errors.New("it has no destination")
	}
	out := lookup.Candidate{Dead: r.Dead, Nexthop: r.Nexthop, Route: routing.Route{
		Family: routing.FamilyOf(r.Destination.Addr()), Type: routing.RouteType(r.Type), Table: routing.TableID(r.Table), Destination: r.Destination, Source: r.Source, Gateway: r.Gateway,
		Device: r.Device, PreferredSource: r.Preferred, Metric: r.Metric, Weight: r.Weight, TOS: r.TOS, Scope: routing.Scope(r.Scope),
		Protocol: routing.Protocol(r.Protocol), Preference: routing.Preference(r.Preference), OnLink: r.OnLink,
	}}
	err := errors.Join(checkPrefix(out.Route.Family, r.Destination), checkPrefix(out.Route.Family, r.Source), checkAddress(r.Gateway), checkAddress(r.Preferred))
	if r.Device < 0 {
		err = errors.Join(err, errors.New("its interface is negative"))
	}
	return out, err
}

// refusalIn finds an error by its name.
func refusalIn(name string) (lookup.Refusal, error) {
	if name == "" {
		return lookup.None, nil
	}
	for r := lookup.None; r <= lookup.Other; r++ {
		if r.String() == name {
			return r, nil
		}
	}
	return lookup.None, fmt.Errorf("%q is no error of the kernel", escape.Text(name))
}

func askedIn(a askedFile) (Asked, error) {
	flow, err := flowIn(a.Question)
	if err != nil {
		return Asked{}, err
	}
	out := Asked{Flow: flow, Answer: lookup.Answer{Errno: a.Errno}}
	if out.Answer.Missed, err = refusalIn(a.Missed); err != nil {
		return out, err
	}
	if out.Answer.Unsent, err = refusalIn(a.Unsent); err != nil {
		return out, err
	}
	for _, r := range a.Matched {
		route, err := routeIn(r)
		if err != nil {
			return out, err
		}
		out.Answer.Matched = append(out.Answer.Matched, route.Route)
	}
	if a.Sent != nil {
		route, err := routeIn(*a.Sent)
		if err != nil {
			return out, err
		}
		out.Answer.Sent = route.Route
	}
	return out, nil
}

func notesOut(n *Notes) notesFile {
	out := notesFile{By: n.By, Rules: []ruleNoteFile{}, Links: []linkNoteFile{}, Tables: []tableNoteFile{}, Bindings: append([]status.Binding{}, n.Bindings...), FailoverTable: uint32(n.FailoverTable)}
	for rule, note := range n.Rules {
		out.Rules = append(out.Rules, ruleNoteFile{rule, string(note.Decision), note.Link, note.Lifts})
	}
	slices.SortFunc(out.Rules, func(a, b ruleNoteFile) int { return strings.Compare(a.Rule, b.Rule) })
	for name, l := range n.Links {
		link := linkNoteFile{Interface: name, Profile: l.Profile, Role: l.Role, Preferred: l.Preferred, Metered: l.Metered, Weight: l.Weight}
		for family, dead := range l.Dead {
			if dead {
				link.Dead = append(link.Dead, family)
			}
		}
		slices.Sort(link.Dead)
		out.Links = append(out.Links, link)
	}
	slices.SortFunc(out.Links, func(a, b linkNoteFile) int { return strings.Compare(a.Interface, b.Interface) })
	for t, name := range n.Tables {
		out.Tables = append(out.Tables, tableNoteFile{uint32(t), name})
	}
	slices.SortFunc(out.Tables, func(a, b tableNoteFile) int { return int(a.Table) - int(b.Table) })
	return out
}

func notesIn(n *notesFile) Notes {
	out := Notes{By: escape.Text(n.By), Rules: map[string]RuleNote{}, Links: map[string]LinkNote{}, Tables: map[routing.TableID]string{}, FailoverTable: routing.TableID(n.FailoverTable)}
	for _, r := range n.Rules {
		out.Rules[escape.Text(r.Rule)] = RuleNote{routing.Decision(escape.Text(r.Reason)), escape.Text(r.Link), escape.Text(r.Lifts)}
	}
	for _, l := range n.Links {
		link := LinkNote{Profile: escape.Text(l.Profile), Role: escape.Text(l.Role), Dead: map[string]bool{}, Preferred: l.Preferred, Metered: l.Metered, Weight: l.Weight}
		for _, family := range l.Dead {
			link.Dead[escape.Text(family)] = true
		}
		out.Links[escape.Text(l.Interface)] = link
	}
	for _, t := range n.Tables {
		out.Tables[routing.TableID(t.Table)] = escape.Text(t.Interface)
	}
	for _, b := range n.Bindings {
		b.Selector = escape.Text(b.Selector)
		b.Escape()
		out.Bindings = append(out.Bindings, b)
	}
	return out
}

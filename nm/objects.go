package nm

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	gnm "github.com/Wifx/gonetworkmanager/v2"
	"github.com/godbus/dbus/v5"

	"multihomed/routing"
)

// activationExternal is NM_ACTIVATION_STATE_FLAG_EXTERNAL, which
// gonetworkmanager v2.2.0 does not name.
const activationExternal gnm.NmActivationStateFlag = 0x80

// A tree mirrors what matters of the objects of one NetworkManager process. It
// does no input or output: properties go in, and what has to be published or
// read comes out in names and wanted.
type tree struct {
	// views and dns say what is wanted of the IP configuration objects.
	views, dns bool

	// managerSeen tells a NetworkManager that has not exported its manager
	// object yet (it owns the name a few milliseconds before) from one that has
	// finished starting.
	managerSeen bool
	startup     bool
	version     string
	notes       notebook

	devices map[dbus.ObjectPath]*device
	actives map[dbus.ObjectPath]*activation
	leases  map[dbus.ObjectPath]*lease
	configs map[dbus.ObjectPath]*config
	byName  map[string]map[*device]struct{}
	// referrers are the devices that point at an object; it need not exist.
	referrers map[dbus.ObjectPath]map[*device]struct{}
	// byProfile are the activations of a profile.
	byProfile map[dbus.ObjectPath]map[dbus.ObjectPath]struct{}

	// renamed are the names before, by the present ones.
	renamed map[string]string
	// names are the interfaces to publish again.
	names map[string]struct{}
	// wanted are the devices whose profile is to be read.
	wanted map[*device]struct{}
}

// A device is one object with the Device interface.
type device struct {
	path dbus.ObjectPath
	name string
	// iface is the control interface, ipIface the one that carries the IP
	// configuration; NetworkManager leaves the latter empty outside of the
	// states 80 to 110, so the last one is remembered for an activation.
	iface, ipIface string
	dtype          gnm.NmDeviceType
	state          gnm.NmDeviceState
	managed, real  bool
	metered        gnm.NmMetered
	notes          notebook

	activation, ip4, ip6, dhcp4 dbus.ObjectPath

	// profile is what was read for the activation profileFor.
	profile    profile
	profileFor dbus.ObjectPath
	// router is the DHCP server's. It outlives the lease object: NetworkManager
	// takes that away when it exits and leaves the addresses.
	router netip.Addr
	// inherits says that no activation of this object has had a lease or an end:
	// after a restart of NetworkManager, the router is still the one known before.
	inherits bool

	reading reading
}

// An activation is an ActiveConnection object.
type activation struct {
	connection     dbus.ObjectPath
	id, uuid, kind string
	flags          gnm.NmActivationStateFlag
	vpn            bool
	controller     dbus.ObjectPath
	notes          notebook
}

// A lease is a DHCP4Config object.
type lease struct {
	// known is false until the server has answered.
	known  bool
	router netip.Addr
	notes  notebook
}

// A config is an IP4Config or IP6Config object.
type config struct {
	family     routing.Family
	view       View
	resolution resolution
	notes      notebook
}

func newTree(views, dns bool) *tree {
	return &tree{
		views:     views,
		dns:       dns,
		startup:   true,
		notes:     notebook{},
		devices:   map[dbus.ObjectPath]*device{},
		actives:   map[dbus.ObjectPath]*activation{},
		leases:    map[dbus.ObjectPath]*lease{},
		configs:   map[dbus.ObjectPath]*config{},
		byName:    map[string]map[*device]struct{}{},
		referrers: map[dbus.ObjectPath]map[*device]struct{}{},
		byProfile: map[dbus.ObjectPath]map[dbus.ObjectPath]struct{}{},
		renamed:   map[string]string{},
		names:     map[string]struct{}{},
		wanted:    map[*device]struct{}{},
	}
}

// load takes the whole of GetManagedObjects.
func (t *tree) load(all objects) {
	for path, interfaces := range all {
		t.add(path, interfaces)
	}
}

// add takes an object with all its properties.
func (t *tree) add(path dbus.ObjectPath, interfaces map[string]map[string]dbus.Variant) {
	for name, p := range interfaces {
		t.update(path, name, p, true)
	}
}

// update takes properties of one interface of an object. Full says that they
// are all there are.
func (t *tree) update(path dbus.ObjectPath, iface string, p properties, full bool) {
	switch iface {
	case gnm.NetworkManagerInterface:
		if path == gnm.NetworkManagerObjectPath {
			t.updateManager(p, full)
		}
	case gnm.DeviceInterface:
		t.updateDevice(path, p, full)
	case gnm.ActiveConnectionInterface:
		t.updateActivation(path, p, full)
	case gnm.DHCP4ConfigInterface:
		t.updateLease(path, p, full)
	case gnm.IP4ConfigInterface:
		t.updateConfig(routing.IPv4, path, p, full)
	case gnm.IP6ConfigInterface:
		t.updateConfig(routing.IPv6, path, p, full)
	}
}

// remove takes interfaces away from an object.
func (t *tree) remove(path dbus.ObjectPath, interfaces []string) {
	for _, iface := range interfaces {
		switch iface {
		case gnm.DeviceInterface:
			if d, ok := t.devices[path]; ok {
				for _, ref := range []*dbus.ObjectPath{&d.activation, &d.ip4, &d.ip6, &d.dhcp4} {
					t.refer(d, ref, "")
				}
				t.rename(d, "")
				delete(t.devices, path)
				delete(t.wanted, d)
			}
		case gnm.ActiveConnectionInterface:
			// The device keeps what it knew of it.
			if a, ok := t.actives[path]; ok {
				t.profileOf(path, a, "")
				delete(t.actives, path)
			}
		case gnm.DHCP4ConfigInterface:
			delete(t.leases, path)
		case gnm.IP4ConfigInterface, gnm.IP6ConfigInterface:
			delete(t.configs, path)
		}
	}
}

func (t *tree) updateManager(p properties, full bool) {
	startup := t.startup
	get(p, "Startup", full, &t.startup, t.notes)
	get(p, "Version", full, &t.version, t.notes)
	t.managerSeen = true
	if startup != t.startup {
		for name := range t.byName {
			t.names[name] = struct{}{}
		}
	}
}

func (t *tree) updateDevice(path dbus.ObjectPath, p properties, full bool) {
	d, ok := t.devices[path]
	if !ok {
		if !full {
			return // a signal of before the object was announced
		}
		d = &device{path: path, managed: true, real: true, inherits: true, notes: notebook{}}
		t.devices[path] = d
	}
	was := d.iface
	get(p, "Interface", full, &d.iface, d.notes)
	if d.iface != was && d.ipIface == was {
		d.ipIface = d.iface // It was renamed, and its other name follows.
	}
	ipIface := ""
	get(p, "IpInterface", full, &ipIface, d.notes)
	getNumber(p, "DeviceType", full, &d.dtype, d.notes)
	state := d.state
	getNumber(p, "State", full, &d.state, d.notes)
	get(p, "Managed", full, &d.managed, d.notes)
	get(p, "Real", full, &d.real, d.notes)
	getNumber(p, "Metered", false, &d.metered, d.notes)

	activation := d.activation
	get(p, "ActiveConnection", full, &activation, d.notes)
	activated := activation != d.activation && isPath(activation)
	if activated {
		d.inherits = d.inherits && !isPath(d.profileFor)
		d.ipIface = ""
		d.router = netip.Addr{}
	}
	t.refer(d, &d.activation, activation)
	if ipIface != "" {
		d.ipIface = ipIface
	}
	for _, ref := range []struct {
		name string
		at   *dbus.ObjectPath
	}{{"Ip4Config", &d.ip4}, {"Ip6Config", &d.ip6}, {"Dhcp4Config", &d.dhcp4}} {
		v := *ref.at
		get(p, ref.name, full, &v, d.notes)
		t.refer(d, ref.at, v)
	}

	name := d.ipIface
	if name == "" {
		name = d.iface
	}
	t.rename(d, unescape(name))
	t.touch(d)
	// The profile is read when the activation begins, and once more when it has
	// succeeded: what was changed on the way without a signal is in it.
	if activated || (d.state != state && (!active(state) || d.state == gnm.NmDeviceStateActivated)) {
		t.want(d)
	}
}

func (t *tree) updateActivation(path dbus.ObjectPath, p properties, full bool) {
	a, ok := t.actives[path]
	if !ok {
		if !full {
			return
		}
		a = &activation{notes: notebook{}}
		t.actives[path] = a
	}
	connection, flags := a.connection, a.flags
	get(p, "Connection", full, &connection, a.notes)
	t.profileOf(path, a, connection)
	get(p, "Id", full, &a.id, a.notes)
	get(p, "Uuid", full, &a.uuid, a.notes)
	get(p, "Type", full, &a.kind, a.notes)
	getNumber(p, "StateFlags", full, &a.flags, a.notes)
	get(p, "Vpn", full, &a.vpn, a.notes)
	// Master became Controller in 1.44; releases that have both agree.
	get(p, "Master", false, &a.controller, a.notes)
	get(p, "Controller", false, &a.controller, a.notes)
	for d := range t.referrers[path] {
		t.touch(d)
		if full || (flags^a.flags)&activationExternal != 0 {
			t.want(d)
		}
	}
}

func (t *tree) updateLease(path dbus.ObjectPath, p properties, full bool) {
	l, ok := t.leases[path]
	if !ok {
		if !full {
			return
		}
		l = &lease{notes: notebook{}}
		t.leases[path] = l
	}
	var options map[string]dbus.Variant
	get(p, "Options", full, &options, l.notes)
	if len(options) > 0 {
		l.known = true
		l.readRouter(options)
	}
	for d := range t.referrers[path] {
		t.touch(d)
	}
}

// readRouter finds the router of a lease where NetworkManager finds it (1.42.4,
// measured): the first default among the classless routes, those of RFC 3442 or, if
// there are none, Microsoft's; and if there is no default among them, the first of
// the routers. RFC 3442 has a client ignore the routers as soon as there are classless
// routes, and hardly any does. A default on the link has no router.
//
// What cannot be understood leaves the router as it was.
func (l *lease) readRouter(options properties) {
	for _, option := range []string{optionRoutes, optionMicrosoftRoutes, optionRouters} {
		delete(l.notes, option)
	}
	routes := optionRoutes
	if _, present := options[routes]; !present {
		routes = optionMicrosoftRoutes
	}
	text := ""
	get(options, routes, false, &text, l.notes)
	a, found, err := defaultRouter(text)
	if err != nil {
		l.notes.note(routes, "the DHCP option %s: %s", routes, err)
	}
	if !found && err == nil {
		text = ""
		get(options, optionRouters, false, &text, l.notes)
		if a, err = firstRouter(text); err != nil {
			l.notes.note(optionRouters, "the DHCP option routers: %s", err)
		}
	}
	if len(l.notes) == 0 {
		l.router = a
	}
}

func (t *tree) updateConfig(f routing.Family, path dbus.ObjectPath, p properties, full bool) {
	if full && (t.views || t.dns) {
		t.configs[path] = &config{family: f, notes: notebook{}}
	}
	changed := t.views || (t.dns && full)
	if c := t.configOf(f, path); c != nil {
		if t.views {
			c.updateView(p)
		}
		if t.dns {
			changed = c.updateDNS(p) || changed
		}
	}
	for d := range t.referrers[path] {
		if changed {
			t.touch(d)
		}
		// Reapply has no signal of its own. What it changes in the addresses and
		// routes shows here (measured on 1.42.4: 1 to 15 ms after the call).
		if !full {
			t.want(d)
		}
	}
}

// configOf returns a configuration object, nil if it is not known or not of the
// family.
func (t *tree) configOf(f routing.Family, path dbus.ObjectPath) *config {
	if c, ok := t.configs[path]; ok && c.family == f {
		return c
	}
	return nil
}

// configs are the paths of the device's IP configuration objects.
func (d *device) configs() map[routing.Family]dbus.ObjectPath {
	return map[routing.Family]dbus.ObjectPath{routing.IPv4: d.ip4, routing.IPv6: d.ip6}
}

func (c *config) updateView(p properties) {
	gateway := ""
	get(p, "Gateway", false, &gateway, c.notes)
	if _, ok := p["Gateway"]; ok {
		c.view.Gateway = netip.Addr{}
		// A default route without a next hop is said as one by way of "::".
		if none, err := netip.ParseAddr(gateway); err == nil && none.IsUnspecified() {
			gateway = ""
		}
		if gateway != "" {
			a, err := parseAddress(c.family, gateway)
			if err != nil {
				c.notes.note("Gateway", "Gateway: %s", err)
			}
			c.view.Gateway = a
		}
	}
	if v, ok := p["AddressData"]; ok {
		addresses, errs := DecodeAddressData(c.family, v.Value())
		c.view.Addresses = addresses
		c.report("AddressData", errs)
	}
	if v, ok := p["RouteData"]; ok {
		routes, errs := DecodeRouteData(c.family, v.Value())
		c.view.Routes = routes
		c.report("RouteData", errs)
	}
}

func (c *config) report(key string, errs []error) {
	delete(c.notes, key)
	if err := errors.Join(errs...); err != nil {
		c.notes.note(key, "%s: %s", key, strings.ReplaceAll(err.Error(), "\n", "; "))
	}
}

// changedProfile says that a stored profile was changed.
func (t *tree) changedProfile(connection dbus.ObjectPath) {
	for path := range t.byProfile[connection] {
		for d := range t.referrers[path] {
			t.want(d)
		}
	}
}

// touch has a device published again.
func (t *tree) touch(d *device) { t.names[d.name] = struct{}{} }

// want has the profile of a device read again, if it has one that matters.
func (t *tree) want(d *device) {
	if t.readable(d) {
		t.wanted[d] = struct{}{}
	}
}

// readable reports whether there is a profile to read. Of what somebody else
// configured, NetworkManager only has one that it made up; hosts with many
// containers have many of those.
func (t *tree) readable(d *device) bool {
	a, ok := t.actives[d.activation]
	return ok && active(d.state) && a.flags&activationExternal == 0
}

// refer moves a reference of a device to another object.
func (t *tree) refer(d *device, at *dbus.ObjectPath, to dbus.ObjectPath) {
	if *at == to {
		return
	}
	from := *at
	*at = to
	if isPath(to) {
		if t.referrers[to] == nil {
			t.referrers[to] = map[*device]struct{}{}
		}
		t.referrers[to][d] = struct{}{}
	}
	if !isPath(from) || d.activation == from || d.ip4 == from || d.ip6 == from || d.dhcp4 == from {
		return // nothing, or another reference leads there still
	}
	delete(t.referrers[from], d)
	if len(t.referrers[from]) == 0 {
		delete(t.referrers, from)
	}
}

// profileOf moves an activation to another profile.
func (t *tree) profileOf(path dbus.ObjectPath, a *activation, to dbus.ObjectPath) {
	if a.connection == to {
		return
	}
	delete(t.byProfile[a.connection], path)
	if len(t.byProfile[a.connection]) == 0 {
		delete(t.byProfile, a.connection)
	}
	a.connection = to
	if isPath(to) {
		if t.byProfile[to] == nil {
			t.byProfile[to] = map[dbus.ObjectPath]struct{}{}
		}
		t.byProfile[to][path] = struct{}{}
	}
}

// rename moves a device to another interface, or to none.
func (t *tree) rename(d *device, name string) {
	if d.name == name {
		return
	}
	if d.name != "" {
		t.names[d.name] = struct{}{}
		delete(t.byName[d.name], d)
		if len(t.byName[d.name]) == 0 {
			delete(t.byName, d.name)
		}
	}
	if d.name != "" && name != "" && !d.apart() {
		t.renamed[name] = d.name
	}
	d.name = name
	if name != "" {
		t.names[name] = struct{}{}
		if t.byName[name] == nil {
			t.byName[name] = map[*device]struct{}{}
		}
		t.byName[name][d] = struct{}{}
	}
}

// apart reports whether the interface that carries the IP configuration is another one
// than the one that the object is for, as a modem's is.
func (d *device) apart() bool { return d.ipIface != "" && d.ipIface != d.iface }

// owner returns the device that speaks for an interface. There are two where
// NetworkManager has an object for the control device and one for the
// interface it made (PPPoE): the one with the activation counts.
func (t *tree) owner(name string) *device {
	var best *device
	for d := range t.byName[name] {
		if best == nil || t.rank(d) > t.rank(best) || (t.rank(d) == t.rank(best) && d.path < best.path) {
			best = d
		}
	}
	return best
}

func (t *tree) rank(d *device) int {
	rank := 0
	if d.real {
		rank++
	}
	if active(d.state) {
		rank += 2
	}
	if t.readable(d) {
		rank += 4
	}
	return rank
}

// describe makes a device of an object. Previous is what was published for the
// interface: what the object does not say (yet) stays as it was.
func (t *tree) describe(d *device, previous Device) Device {
	now := previous
	now.Name, now.Gone, now.Views = d.name, false, nil
	now.Managed, now.Real = d.managed, d.real
	now.Metered = d.metered == gnm.NmMeteredYes || d.metered == gnm.NmMeteredGuessYes
	if d.dtype != gnm.NmDeviceTypeUnknown || d.notes["DeviceType"] == "" {
		now.Type = d.dtype
	}
	if d.state != gnm.NmDeviceStateUnknown || d.notes["State"] == "" {
		now.State = d.state
	}
	problems := notes(nil, "", d.notes)

	a, ok := t.actives[d.activation]
	if ok {
		now.External = a.flags&activationExternal != 0
		now.VPN = a.vpn || a.kind == "vpn" || a.kind == "wireguard"
		now.ProfileID, now.ProfileUUID = a.id, a.uuid
		now.Controller = t.interfaceOf(a.controller)
		problems = notes(problems, "active connection: ", a.notes)
	}

	if l, leased := t.leases[d.dhcp4]; leased && l.known {
		d.router, d.inherits = l.router, false
		problems = notes(problems, "DHCP: ", l.notes)
	} else if d.inherits && ok && previous.ProfileUUID == now.ProfileUUID {
		d.router = previous.Intents[routing.IPv4].Gateway
	}

	switch {
	case isPath(d.profileFor) && (d.profileFor == d.activation || !isPath(d.activation)):
		// NetworkManager takes the active connection away before it leaves
		// "deactivating": without a new one the last one counts.
		now.ProfileKnown = active(now.State)
		now.Ignored, now.Bound, now.Denied = d.profile.ignored, d.profile.bound, d.profile.denied
		now.RouteTables = d.profile.tables
		now.Intents = d.profile.intents(now.ProfileID, d.router)
		problems = append(problems, d.profile.problems...)
	case ok && now.External && active(now.State):
		now.ProfileKnown = true
		now.Ignored, now.Bound, now.Denied = false, "", false
		now.RouteTables = nil
		now.Intents = profile{}.intents(now.ProfileID, d.router)
	default:
		now.ProfileKnown = false
	}
	if d.reading.problem != "" {
		problems = append(problems, d.reading.problem)
	}

	if t.views {
		now.Views = map[routing.Family]View{}
	}
	if t.dns {
		kept := now.DNS
		if ok && previous.ProfileUUID != now.ProfileUUID {
			kept = nil // another profile's
		}
		now.DNS = t.dnsOf(d, now.State, kept)
	}
	if len(t.configs) > 0 {
		for f, path := range d.configs() {
			c := t.configOf(f, path)
			if c == nil {
				continue
			}
			if t.views {
				now.Views[f] = c.view
			}
			problems = notes(problems, f.String()+": ", c.notes)
		}
	}
	slices.Sort(problems)
	now.Problems = slices.Compact(problems)
	return now
}

// interfaceOf names the device behind an object path, or the path itself.
func (t *tree) interfaceOf(path dbus.ObjectPath) string {
	if !isPath(path) {
		return ""
	}
	if d, ok := t.devices[path]; ok && d.name != "" {
		return d.name
	}
	return string(path)
}

func notes(to []string, prefix string, n notebook) []string {
	for _, text := range n {
		to = append(to, fmt.Sprintf("%s%s", prefix, text))
	}
	return to
}

package nm

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	gnm "github.com/Wifx/gonetworkmanager/v2"
	"github.com/godbus/dbus/v5"

	"multihomed/routing"
)

// Passed is what the applied profile of a device says that concerns routing, passed on by
// somebody whom NetworkManager lets read it to somebody whom it does not
// (connection.permissions in nm-settings-nmcli(5)). There are no secrets in it.
type Passed struct {
	// UUID is the profile's.
	UUID string `json:"uuid"`
	// Ignored says that the profile carries multihomed.ignore=true.
	Ignored bool `json:"ignored,omitempty"`
	// Bound is the link that it names by multihomed.bind.
	Bound string       `json:"bound,omitempty"`
	IPv4  PassedFamily `json:"ipv4"`
	IPv6  PassedFamily `json:"ipv6"`
	// Tables are the table numbers that the profile names, sorted.
	Tables []routing.TableID `json:"tables,omitempty"`
	// Problems says in sentences what could not be understood.
	Problems []string `json:"problems,omitempty"`
}

// PassedFamily is one family of a profile.
type PassedFamily struct {
	// Table is route-table, 0 for main.
	Table routing.TableID `json:"table,omitempty"`
	// Gateway is not valid if the profile names none.
	Gateway netip.Addr `json:"gateway,omitzero"`
	// Automatic says that the method is auto.
	Automatic    bool `json:"automatic,omitempty"`
	NeverDefault bool `json:"never_default,omitempty"`
}

// maxPassed bounds the tables and problems that are believed.
const maxPassed = 1024

// Validate returns an error if no profile can say this.
func (p Passed) Validate() error {
	for f, family := range map[routing.Family]PassedFamily{routing.IPv4: p.IPv4, routing.IPv6: p.IPv6} {
		if g := family.Gateway; g.IsValid() && (g.Is4In6() || g.Zone() != "" || routing.FamilyOf(g) != f) {
			return fmt.Errorf("%v is not a gateway of %s", g, f)
		}
	}
	switch {
	case p.UUID == "":
		return errors.New("it names no profile")
	case len(p.Bound) > maxBound:
		return errors.New("it is bound to what is no link")
	case len(p.Tables) > maxPassed || len(p.Problems) > maxPassed:
		return fmt.Errorf("it names more than %d tables or problems", maxPassed)
	}
	return nil
}

func (p Passed) profile() profile {
	of := func(f PassedFamily) familyProfile {
		return familyProfile{table: f.Table, gateway: f.Gateway, automatic: f.Automatic, neverDefault: f.NeverDefault}
	}
	return profile{
		ignored: p.Ignored, bound: p.Bound, tables: p.Tables, problems: p.Problems,
		families: map[routing.Family]familyProfile{routing.IPv4: of(p.IPv4), routing.IPv6: of(p.IPv6)},
	}
}

func (p profile) pass(uuid string) Passed {
	of := func(f familyProfile) PassedFamily {
		return PassedFamily{Table: f.table, Gateway: f.gateway, Automatic: f.automatic, NeverDefault: f.neverDefault}
	}
	return Passed{
		UUID: uuid, Ignored: p.ignored, Bound: p.bound, Tables: p.tables[:min(len(p.tables), maxPassed)], Problems: p.problems[:min(len(p.problems), maxPassed)],
		IPv4: of(p.families[routing.IPv4]), IPv6: of(p.families[routing.IPv6]),
	}
}

// ReadPassed reads the profile that is active on an interface, if only some users may read
// it. Restricted is false if everybody may read it, or if there is none: then there is
// nothing to pass on.
func ReadPassed(ctx context.Context, opts Options, name string) (p Passed, restricted bool, err error) {
	opts = New(opts).opts
	ctx, cancel := context.WithTimeout(ctx, opts.CallTimeout)
	defer cancel()
	conn, err := dial(ctx, opts, newQueue(nil))
	if err != nil {
		return Passed{}, false, fmt.Errorf("connecting to the system bus: %w", err)
	}
	defer conn.Close()
	doing := func(err error) error { return fmt.Errorf("reading the profile of %s: %w", name, err) }
	object := func(path dbus.ObjectPath) dbus.BusObject { return conn.Object(gnm.NetworkManagerInterface, path) }
	property := func(path dbus.ObjectPath, iface, key string, to any) error {
		var v dbus.Variant
		if err := object(path).CallWithContext(ctx, propertiesInterface+".Get", dbus.FlagNoAutoStart, iface, key).Store(&v); err != nil {
			return err
		}
		return v.Store(to)
	}
	var device, active, connection dbus.ObjectPath
	if err := object(gnm.NetworkManagerObjectPath).CallWithContext(ctx, gnm.NetworkManagerGetDeviceByIpIface, dbus.FlagNoAutoStart, name).Store(&device); err != nil {
		return Passed{}, false, doing(err)
	}
	if err := property(device, gnm.DeviceInterface, "ActiveConnection", &active); err != nil {
		return Passed{}, false, doing(err)
	}
	if !isPath(active) {
		return Passed{}, false, nil // It is not active any more.
	}
	uuid := ""
	err = errors.Join(
		property(active, gnm.ActiveConnectionInterface, "Connection", &connection),
		property(active, gnm.ActiveConnectionInterface, "Uuid", &uuid),
	)
	if err != nil {
		return Passed{}, false, doing(err)
	}
	stored, err := decodeSettings(object(connection).CallWithContext(ctx, gnm.ConnectionGetSettings, dbus.FlagNoAutoStart))
	if err != nil {
		return Passed{}, false, doing(err)
	}
	// Whom the stored profile is for decides about both (measured on 1.42.4 and 1.52).
	var users []string
	if v, set := stored["connection"]["permissions"]; set {
		if err := v.Store(&users); err != nil {
			return Passed{}, false, doing(fmt.Errorf("connection.permissions: %w", err))
		}
	}
	if len(users) == 0 {
		return Passed{}, false, nil
	}
	applied, err := decodeSettings(object(device).CallWithContext(ctx, gnm.DeviceGetAppliedConnection, dbus.FlagNoAutoStart, uint32(0)))
	if err != nil {
		return Passed{}, false, doing(err)
	}
	read := decodeProfile(withUser(applied, stored), profile{})
	read.tables = slices.Clone(read.tables)
	return read.pass(uuid), true, nil
}

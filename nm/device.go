package nm

import (
	"maps"
	"slices"
	"strconv"

	gnm "github.com/Wifx/gonetworkmanager/v2"

	"multihomed/routing"
)

// Device types that NetworkManager 1.42 and later report and gonetworkmanager
// v2.2.0 does not name (NMDeviceType in nm-dbus-interface.h).
const (
	DeviceTypeVRF      gnm.NmDeviceType = 31
	DeviceTypeLoopback gnm.NmDeviceType = 32
	DeviceTypeHSR      gnm.NmDeviceType = 33
	DeviceTypeIPVLAN   gnm.NmDeviceType = 34
)

// A Device is what NetworkManager says of one network interface. It is a value: a change
// makes a new Device.
type Device struct {
	// Name is the kernel's interface: the one that carries the IP configuration
	// where NetworkManager distinguishes it (wwan0, not cdc-wdm0; ppp0).
	Name string
	// ID names the D-Bus object of the interface, and the NetworkManager process that has
	// it. It stays when the interface gets another name.
	ID      string
	Type    gnm.NmDeviceType
	State   gnm.NmDeviceState
	Managed bool
	// Real is false for a device that a profile could create but has not yet.
	Real bool
	// Metered says that traffic may cost money: the profile or the server says so, or
	// NetworkManager guesses it of the kind of device (NM_METERED_YES, NM_METERED_GUESS_YES).
	Metered bool
	// Gone says that NetworkManager took the object away. At its own exit it
	// does that with every device, so it says nothing about the interface;
	// netlink does.
	Gone bool
	// Settling says that State is not to be believed yet: NetworkManager is
	// starting and walks every device up from unmanaged again, or it has just
	// let go of the device and may itself be on its way out.
	Settling bool

	// The fields below describe the device's activation. While there is none
	// they keep the values of the last one: a link that is being taken down
	// must be treated until its end as it was.

	// External says that somebody else configured the interface and
	// NetworkManager only shows it.
	External bool
	// VPN says that the activation is a VPN's.
	VPN bool
	// Controller names the bridge, bond, team or VRF that the device is a port
	// of; empty for others.
	Controller             string
	ProfileID, ProfileUUID string
	// Ignored says that the profile carries multihomed.ignore=true in its
	// [user] data.
	Ignored bool
	// Bound is the link that the profile names by multihomed.bind in its [user] data: what comes
	// in by the device leaves by it. It is the name of an interface or profile, or empty.
	Bound string
	// Denied says that NetworkManager does not let us read the profile
	// (connection.permissions).
	Denied bool
	// ProfileKnown says that the fields of the activation, Intents included,
	// are those of the present one: the applied profile was read.
	ProfileKnown bool
	// Intents is what the profile and DHCP say and the kernel does not know.
	// Both families are present once ProfileKnown was true.
	Intents map[routing.Family]routing.Intent
	// RouteTables are the table numbers that the profile names, sorted.
	RouteTables []routing.TableID
	// DNS is what the IP configuration says of name resolution, without the
	// families of which it says nothing. Only [Options.DNS] fills it.
	DNS map[routing.Family]DNS
	// Views is NetworkManager's own picture of the IP configuration. Only
	// [ReadOnce] fills it, for people to compare with the kernel's.
	Views map[routing.Family]View

	// Problems says in sentences what could not be understood, sorted.
	Problems []string
}

// Active reports whether the state is one in which an activation exists: from
// preparing to deactivating.
func (d Device) Active() bool { return active(d.State) }

func active(s gnm.NmDeviceState) bool {
	return s >= gnm.NmDeviceStatePrepare && s <= gnm.NmDeviceStateDeactivating
}

func (d Device) equal(o Device) bool {
	return d.Name == o.Name && d.ID == o.ID && d.Type == o.Type && d.State == o.State &&
		d.Managed == o.Managed && d.Real == o.Real && d.Metered == o.Metered && d.Gone == o.Gone && d.Settling == o.Settling &&
		d.External == o.External && d.VPN == o.VPN && d.Controller == o.Controller &&
		d.ProfileID == o.ProfileID && d.ProfileUUID == o.ProfileUUID &&
		d.Ignored == o.Ignored && d.Bound == o.Bound && d.Denied == o.Denied && d.ProfileKnown == o.ProfileKnown &&
		maps.Equal(d.Intents, o.Intents) && slices.Equal(d.RouteTables, o.RouteTables) &&
		maps.EqualFunc(d.DNS, o.DNS, DNS.equal) && maps.EqualFunc(d.Views, o.Views, View.equal) &&
		slices.Equal(d.Problems, o.Problems)
}

// Status says how much of NetworkManager's knowledge there is.
type Status struct {
	// Running says that NetworkManager is on the bus now; Absent that it was looked for
	// and is not, or that there is no bus. While both are false, the answer is still out.
	Running, Absent bool
	// Complete says that nothing is missing: everything was read after
	// subscribing, NetworkManager has finished starting, and the profile of
	// every active device is known. Only then does the absence of a device
	// mean anything. Once complete, it stays so until NetworkManager or the
	// bus goes away; later activations have [Device.ProfileKnown].
	Complete bool
	// Read says that all that NetworkManager has now was read: every device, and the
	// profile of every active one. While it starts, others may follow.
	Read bool
	// Startup is NetworkManager's own property: it is still bringing up the
	// devices it found. One device that waits for DHCP keeps it true.
	Startup bool
	// Version is NetworkManager's, empty before it was first seen.
	Version string
	// Reason says in one line what is being waited for, empty if Complete.
	Reason string
}

// A Snapshot is everything known at one moment.
type Snapshot struct {
	Status
	// Devices by name. They are kept while NetworkManager or the bus is away.
	Devices map[string]Device
}

// Changes is what happened since the previous [Watcher.TakeChanges].
type Changes struct {
	Status Status
	// StatusChanged says that Status differs from that of the previous call.
	StatusChanged bool
	// Devices holds the changed ones as they are now.
	Devices map[string]Device
	// Removed names the devices that are no longer known at all.
	Removed []string
}

// TypeName returns the name nmcli gives a device type, which is what the
// configuration file uses.
func TypeName(t gnm.NmDeviceType) string {
	switch t {
	case gnm.NmDeviceTypeUnknown:
		return "unknown"
	case gnm.NmDeviceTypeGeneric:
		return "generic"
	case gnm.NmDeviceTypeEthernet:
		return "ethernet"
	case gnm.NmDeviceTypeWifi:
		return "wifi"
	case gnm.NmDeviceTypeBt:
		return "bt"
	case gnm.NmDeviceTypeOlpcMesh:
		return "olpc-mesh"
	case gnm.NmDeviceTypeWimax:
		return "wimax"
	case gnm.NmDeviceTypeModem:
		return "modem"
	case gnm.NmDeviceTypeInfiniband:
		return "infiniband"
	case gnm.NmDeviceTypeBond:
		return "bond"
	case gnm.NmDeviceTypeVlan:
		return "vlan"
	case gnm.NmDeviceTypeAdsl:
		return "adsl"
	case gnm.NmDeviceTypeBridge:
		return "bridge"
	case gnm.NmDeviceTypeTeam:
		return "team"
	case gnm.NmDeviceTypeTun:
		return "tun"
	case gnm.NmDeviceTypeIpTunnel:
		return "iptunnel"
	case gnm.NmDeviceTypeMacvlan:
		return "macvlan"
	case gnm.NmDeviceTypeVxlan:
		return "vxlan"
	case gnm.NmDeviceTypeVeth:
		return "veth"
	case gnm.NmDeviceTypeMacsec:
		return "macsec"
	case gnm.NmDeviceTypeDummy:
		return "dummy"
	case gnm.NmDeviceTypePpp:
		return "ppp"
	case gnm.NmDeviceTypeOvsInterface:
		return "ovs-interface"
	case gnm.NmDeviceTypeOvsPort:
		return "ovs-port"
	case gnm.NmDeviceTypeOvsBridge:
		return "ovs-bridge"
	case gnm.NmDeviceTypeWpan:
		return "wpan"
	case gnm.NmDeviceType6lowpan:
		return "6lowpan"
	case gnm.NmDeviceTypeWireguard:
		return "wireguard"
	case gnm.NmDeviceTypeWifiP2p:
		return "wifi-p2p"
	case DeviceTypeVRF:
		return "vrf"
	case DeviceTypeLoopback:
		return "loopback"
	case DeviceTypeHSR:
		return "hsr"
	case DeviceTypeIPVLAN:
		return "ipvlan"
	default:
		return "type-" + strconv.FormatUint(uint64(t), 10)
	}
}

// StateName returns the name nmcli gives a device state.
func StateName(s gnm.NmDeviceState) string {
	switch s {
	case gnm.NmDeviceStateUnknown:
		return "unknown"
	case gnm.NmDeviceStateUnmanaged:
		return "unmanaged"
	case gnm.NmDeviceStateUnavailable:
		return "unavailable"
	case gnm.NmDeviceStateDisconnected:
		return "disconnected"
	case gnm.NmDeviceStatePrepare:
		return "connecting (prepare)"
	case gnm.NmDeviceStateConfig:
		return "connecting (configuring)"
	case gnm.NmDeviceStateNeedAuth:
		return "connecting (need authentication)"
	case gnm.NmDeviceStateIpConfig:
		return "connecting (getting IP configuration)"
	case gnm.NmDeviceStateIpCheck:
		return "connecting (checking IP connectivity)"
	case gnm.NmDeviceStateSecondaries:
		return "connecting (starting secondary connections)"
	case gnm.NmDeviceStateActivated:
		return "connected"
	case gnm.NmDeviceStateDeactivating:
		return "deactivating"
	case gnm.NmDeviceStateFailed:
		return "connection failed"
	default:
		return "state " + strconv.FormatUint(uint64(s), 10)
	}
}

package nm

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"unicode"

	"github.com/godbus/dbus/v5"

	"multihomed/routing"
)

// ignoreKey is the key in a profile's [user] data that takes its device away
// from multihomed. NetworkManager wants a dot in such keys
// (nm_setting_user_check_key).
const ignoreKey = "multihomed.ignore"

// bindKey is the key in a profile's [user] data that names the link by which what this host
// forwards from the profile's interface leaves.
const bindKey = "multihomed.bind"

// settings is a profile as NetworkManager sends it: setting, key, value. Keys
// that have their default are absent.
type settings = map[string]map[string]dbus.Variant

// A profile is what a connection profile says that matters here.
type profile struct {
	ignored bool
	// bound is the link that bindKey names, empty if none.
	bound string
	// denied says that NetworkManager does not let us read it.
	denied   bool
	families map[routing.Family]familyProfile
	tables   []routing.TableID
	problems []string
}

type familyProfile struct {
	// table is ipv4.route-table, zero for main.
	table routing.TableID
	// gateway is ipv4.gateway. NetworkManager (1.42.4, measured) drops it from
	// profiles that set never-default as well.
	gateway netip.Addr
	// automatic is ipv4.method=auto, the only method that asks a DHCP server
	// whose word counts. In IPv6 it is the one that listens to routers.
	automatic bool
	// neverDefault is ipv4.never-default: no default of the device goes to main.
	neverDefault bool
	// noDefault says that the profile asks for no default, see [routing.Intent].
	noDefault bool
}

// decodeProfile reads a profile. A value that cannot be understood leaves that
// of the previous profile in place.
func decodeProfile(s settings, previous profile) profile {
	p := profile{families: make(map[routing.Family]familyProfile, 2)}
	note := func(where string, err error) {
		p.problems = append(p.problems, fmt.Sprintf("the profile's %s: %s", where, err))
	}
	data, err := userData(s)
	if err == nil {
		p.ignored, err = decodeIgnored(data)
	}
	if err != nil {
		note("user.data", err)
		p.ignored = previous.ignored
	}
	if p.bound, err = decodeBound(data); err != nil {
		note("user.data", err)
		p.bound = previous.bound
	}

	var tables []routing.TableID
	for _, f := range routing.Families() {
		section := properties(s[f.String()])
		was := previous.families[f]
		var now familyProfile
		n := notebook{}

		now.table = was.table
		if _, present := section["route-table"]; !present {
			now.table = 0
		}
		getNumber(section, "route-table", false, &now.table, n)
		tables = append(tables, now.table)

		method := "auto"
		get(section, "method", false, &method, n)
		now.automatic = method == "auto"
		// ignore-auto-routes leaves out the default, too (NetworkManager 1.42.4, measured).
		ignoresRoutes := false
		get(section, "ignore-auto-routes", false, &ignoresRoutes, n)
		// With ipv6.method=ignore the kernel listens to routers by itself.
		mayCome := now.automatic && !ignoresRoutes || method == "ignore"

		if _, present := section["never-default"]; present {
			now.neverDefault = was.neverDefault
		}
		get(section, "never-default", false, &now.neverDefault, n)

		gateway := ""
		get(section, "gateway", false, &gateway, n)
		if gateway != "" {
			a, err := parseAddress(f, gateway)
			if err != nil {
				note(f.String()+".gateway", err)
				a = was.gateway
			}
			now.gateway = a
		}

		if v, ok := section["route-data"]; ok {
			routes, errs := DecodeRouteData(f, v.Value())
			for _, err := range errs {
				note(f.String()+".route-data", err)
			}
			for _, r := range routes {
				tables = append(tables, r.Table)
				mayCome = mayCome || r.Destination.Bits() == 0
			}
			mayCome = mayCome || len(errs) > 0
		}
		if v, ok := section["routing-rules"]; ok {
			rules, err := decodeRuleTables(v.Value())
			if err != nil {
				note(f.String()+".routing-rules", err)
			}
			tables = append(tables, rules...)
		}
		for _, key := range []string{"route-table", "method", "never-default", "gateway", "ignore-auto-routes"} {
			if problem, bad := n[key]; bad {
				note(f.String(), fmt.Errorf("%s", problem))
			}
		}
		now.noDefault = now.neverDefault || !mayCome && !now.gateway.IsValid()
		p.families[f] = now
	}

	slices.Sort(tables)
	tables = slices.Compact(tables)
	p.tables = slices.DeleteFunc(tables, func(t routing.TableID) bool { return t == 0 })
	slices.Sort(p.problems)
	return p
}

// userData is what a profile has for other programs.
func userData(s settings) (map[string]string, error) {
	v, ok := s["user"]["data"]
	if !ok {
		return nil, nil
	}
	data, ok := v.Value().(map[string]string)
	if !ok {
		return nil, fmt.Errorf("has the type %s, expected a{ss}", typeOf(v))
	}
	return data, nil
}

// maxBound bounds the name of an interface or profile, in bytes.
const maxBound = 256

// decodeBound reads by which link the profile's interface leaves.
func decodeBound(data map[string]string) (string, error) {
	value := strings.TrimSpace(data[bindKey])
	if len(value) > maxBound || strings.ContainsFunc(value, unicode.IsControl) {
		return "", fmt.Errorf("%s is no name of an interface or profile", bindKey)
	}
	return value, nil
}

// decodeIgnored reads what takes the device away from us.
func decodeIgnored(data map[string]string) (bool, error) {
	switch value := data[ignoreKey]; strings.ToLower(strings.TrimSpace(value)) {
	case "", "false", "no", "0", "off":
		return false, nil
	case "true", "yes", "1", "on":
		return true, nil
	default:
		return false, fmt.Errorf("%s is %q, neither true nor false", ignoreKey, value)
	}
}

// decodeRuleTables returns the tables that routing rules (aa{sv}) lead to.
func decodeRuleTables(value any) ([]routing.TableID, error) {
	rules, ok := value.([]map[string]dbus.Variant)
	if !ok {
		return nil, fmt.Errorf("are a %T, expected a list of dictionaries", value)
	}
	var tables []routing.TableID
	for _, r := range rules {
		var t routing.TableID
		n := notebook{}
		getNumber(r, "table", false, &t, n)
		if problem, bad := n["table"]; bad {
			return tables, fmt.Errorf("%s", problem)
		}
		tables = append(tables, t)
	}
	return tables, nil
}

// intents turns a profile and the DHCP routers into what the routing side
// wants to know.
func (p profile) intents(id string, router netip.Addr) map[routing.Family]routing.Intent {
	intents := make(map[routing.Family]routing.Intent, 2)
	for _, f := range routing.Families() {
		fp := p.families[f]
		in := routing.Intent{Gateway: fp.gateway, NeverDefault: fp.neverDefault, Automatic: fp.automatic, NoDefault: fp.noDefault}
		if f == routing.IPv4 && fp.automatic && !in.Gateway.IsValid() {
			in.Gateway = router
		}
		if fp.table != 0 {
			in.LeaveAlone = fmt.Sprintf("profile %q sets %s.route-table=%d", id, f, uint32(fp.table))
		}
		intents[f] = in
	}
	return intents
}

package nm

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/godbus/dbus/v5"

	"multihomed/routing"
)

// properties are those of one interface of one object, or the keys of one
// setting of a profile: names to values of any type.
type properties map[string]dbus.Variant

// objects is the reply of ObjectManager.GetManagedObjects: path, interface,
// property.
type objects = map[dbus.ObjectPath]map[string]map[string]dbus.Variant

// A notebook collects what could not be understood, by where it was found, so
// that a value that becomes good again takes its entry away.
type notebook map[string]string

func (n notebook) note(key, format string, args ...any) {
	n[key] = fmt.Sprintf(format, args...)
}

// get stores a property into the variable if it is there and of the
// variable's type. If it is not, the variable keeps its value and the notebook
// says so. A property that is absent is only noted if it is required: signals
// carry just the changed ones.
func get[T any](p properties, name string, required bool, into *T, n notebook) {
	v, ok := p[name]
	if !ok {
		if required {
			n.note(name, "%s is missing", name)
		}
		return
	}
	t, ok := v.Value().(T)
	if !ok {
		n.note(name, "%s has the type %s, expected %s", name, typeOf(v), dbus.SignatureOf(*into))
		return
	}
	*into = t
	delete(n, name)
}

// getNumber is get for the enumerations, which are uint32 on the bus.
func getNumber[T ~uint32](p properties, name string, required bool, into *T, n notebook) {
	v := uint32(*into)
	get(p, name, required, &v, n)
	*into = T(v)
}

// typeOf names the type of a variant for people.
func typeOf(v dbus.Variant) string {
	if s := v.Signature().String(); s != "" {
		return s
	}
	return "none"
}

// isPath reports whether an object path leads somewhere; NetworkManager
// writes "/" for none.
func isPath(p dbus.ObjectPath) bool { return p != "" && p != "/" }

// unescape undoes NetworkManager's escaping of interface names, which may
// hold any byte but a slash and white space: names that are not UTF-8 are shown
// with \ooo octal sequences and a doubled backslash
// (nm_utils_str_utf8safe_escape). Anything else stays as it is.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' || i+1 == len(s) {
			b.WriteByte(s[i])
			continue
		}
		if s[i+1] == '\\' || s[i+1] == '"' {
			b.WriteByte(s[i+1])
			i++
			continue
		}
		if i+3 < len(s) && isOctal(s[i+1]) && s[i+1] <= '3' && isOctal(s[i+2]) && isOctal(s[i+3]) {
			b.WriteByte((s[i+1]-'0')<<6 | (s[i+2]-'0')<<3 | (s[i+3] - '0'))
			i += 3
			continue
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

func isOctal(c byte) bool { return c >= '0' && c <= '7' }

// parseAddress reads an address that must be of the family and usable as that
// of a host.
func parseAddress(f routing.Family, s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	switch {
	case err != nil:
		return netip.Addr{}, fmt.Errorf("%q is no address", s)
	case a.Zone() != "" || a.Is4In6() || routing.FamilyOf(a) != f:
		return netip.Addr{}, fmt.Errorf("%q is no %s address", s, f)
	case !routing.IsHostAddress(a):
		return netip.Addr{}, fmt.Errorf("%q is no address of a host", s)
	default:
		return a, nil
	}
}

// Names of DHCP options as NetworkManager has them on the bus: 121 (RFC 3442), 249 and
// 3.
const (
	optionRoutes          = "rfc3442_classless_static_routes"
	optionMicrosoftRoutes = "ms_classless_static_routes"
	optionRouters         = "routers"
)

// defaultRouter reads classless routes, which NetworkManager shows as destination,
// router, destination and so on. Found says that one of them leads to everything;
// its router is zero if that is on the link.
func defaultRouter(option string) (router netip.Addr, found bool, err error) {
	words := strings.Fields(option)
	for i := 0; i+1 < len(words); i += 2 {
		to, err := netip.ParsePrefix(words[i])
		if err != nil || !to.Addr().Is4() {
			return netip.Addr{}, false, fmt.Errorf("%q is no destination of ipv4", words[i])
		}
		if to.Bits() > 0 {
			continue
		}
		if a, err := netip.ParseAddr(words[i+1]); err == nil && a.IsUnspecified() {
			return netip.Addr{}, true, nil
		}
		router, err = parseAddress(routing.IPv4, words[i+1])
		return router, err == nil, err
	}
	if len(words)%2 != 0 {
		return netip.Addr{}, false, fmt.Errorf("%q has no router", words[len(words)-1])
	}
	return netip.Addr{}, false, nil
}

// firstRouter reads the DHCP option routers (option 3), which NetworkManager
// shows as addresses separated by spaces, in the server's order of preference
// (RFC 2132, section 3.5).
func firstRouter(option string) (netip.Addr, error) {
	var first error
	for s := range strings.FieldsSeq(option) {
		a, err := parseAddress(routing.IPv4, s)
		if err == nil {
			return a, nil
		}
		if first == nil {
			first = err
		}
	}
	return netip.Addr{}, first
}

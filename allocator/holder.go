package allocator

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"unicode"
	"unicode/utf8"

	"multihomed/routing"
)

// The kinds of holders, as they are stored.
const (
	kindLink   = 1
	kindClient = 2
)

// A holder is whom a number is leased to: a link or a client.
type holder struct {
	kind   int
	link   routing.Key
	client ClientKey
}

func linkHolder(k routing.Key) holder { return holder{kind: kindLink, link: k} }

func clientHolder(k ClientKey) holder { return holder{kind: kindClient, client: k} }

// A ClientKey names what a client leases a table for.
type ClientKey struct {
	// Family is AF_INET, AF_INET6, or 0 for what is no address (AF_UNSPEC).
	Family    routing.Family
	Interface string
	// Address is the canonical text of an IP address, or with family 0 any
	// identifier.
	Address string
}

func (k ClientKey) String() string { return k.Interface + " " + k.Address }

// address is the address of the key, false if it is none.
func (k ClientKey) address() (netip.Addr, bool) {
	if k.Family == 0 {
		return netip.Addr{}, false
	}
	a, err := netip.ParseAddr(k.Address)
	return a, err == nil
}

// maxIdentifier is INET6_ADDRSTRLEN without its NUL, what the protocol carries.
const maxIdentifier = 45

func checkClientKey(k ClientKey) error {
	if err := routing.CheckInterfaceName(k.Interface); err != nil {
		return err
	}
	switch k.Family {
	case routing.IPv4, routing.IPv6:
		a, err := netip.ParseAddr(k.Address)
		switch {
		case err != nil:
			return fmt.Errorf("%q is not an address", k.Address)
		case a.Zone() != "" || a.Is4In6() || routing.FamilyOf(a) != k.Family || a.String() != k.Address:
			return fmt.Errorf("%q is not an address of %v in its canonical form", k.Address, k.Family)
		}
	case 0:
		if k.Address == "" || len(k.Address) > maxIdentifier || !utf8.ValidString(k.Address) || strings.ContainsFunc(k.Address, unprintable) {
			return fmt.Errorf("%q is not an identifier of 1 to %d printable bytes", k.Address, maxIdentifier)
		}
	default:
		return fmt.Errorf("%v is none of ipv4, ipv6 and unspecified", k.Family)
	}
	return nil
}

func unprintable(r rune) bool { return !unicode.IsPrint(r) }

// row is a holder as the database has it.
type row struct {
	kind    int
	family  int64
	name    string
	subject string
}

func (h holder) row() row {
	if h.kind == kindClient {
		return row{h.kind, int64(h.client.Family), h.client.Interface, h.client.Address}
	}
	return row{h.kind, int64(h.link.Family), h.link.Interface, h.link.Prefix.String()}
}

func (r row) holder() (holder, error) {
	// Not every number is a family: what the conversion would cut is none.
	family := routing.Family(r.family) //nolint:gosec // compared below
	if int64(family) != r.family {
		return holder{}, fmt.Errorf("family %d is unknown", r.family)
	}
	switch r.kind {
	case kindLink:
		p, err := netip.ParsePrefix(r.subject)
		if err != nil {
			return holder{}, err
		}
		h := linkHolder(routing.Key{Family: family, Interface: r.name, Prefix: p})
		return h, checkKey(h.link)
	case kindClient:
		h := clientHolder(ClientKey{Family: family, Interface: r.name, Address: r.subject})
		return h, checkClientKey(h.client)
	default:
		return holder{}, fmt.Errorf("kind %d is unknown", r.kind)
	}
}

// name is the interface of the holder.
func (h holder) name() string {
	if h.kind == kindClient {
		return h.client.Interface
	}
	return h.link.Interface
}

func (h holder) String() string {
	if h.kind == kindClient {
		return h.client.String()
	}
	return h.link.String()
}

func compareClients(a, b ClientKey) int {
	return cmp.Or(strings.Compare(a.Interface, b.Interface), cmp.Compare(a.Family, b.Family), strings.Compare(a.Address, b.Address))
}

// ErrNotOwner says that a lease is another user's.
var ErrNotOwner = errors.New("the lease is another user's; to fix: ask as that user or as root, or wait until it has expired")

// A QuotaError says that a user holds as many tables as one may.
type QuotaError struct {
	Owner uint32
	Quota int
}

func (e *QuotaError) Error() string {
	return fmt.Sprintf("user %d holds %d tables, the most that one user may; to fix: release some, or raise tables_per_user of [allocator] in the configuration", e.Owner, e.Quota)
}

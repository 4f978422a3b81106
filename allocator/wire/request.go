package wire

import (
	"math"
	"net/netip"
	"strings"
	"unicode"
	"unicode/utf8"

	"multihomed/routing"
)

// DecodeRequest reads a request. truncated says that the datagram was longer
// than what was received of it.
//
// The request is filled as far as it could be read also when it is refused, so
// that the refusal can be sent in its version and with its transaction.
func DecodeRequest(datagram []byte, truncated bool) (Request, *Error) {
	if len(datagram) > MaxRequest {
		datagram, truncated = datagram[:MaxRequest], true
	}
	members, malformed := parse(datagram)
	r, refused := members.request()
	switch {
	case truncated:
		return r, refuse(TooLong, "the datagram has more than %d bytes; send a smaller one", MaxRequest)
	case malformed != nil:
		return r, malformed
	case refused != nil:
		return r, refused
	}
	return r.checked()
}

// request reads all members that it can, and returns the first mistake. The
// version and the transaction come first: they decide how any mistake is told.
func (o object) request() (r Request, refused *Error) {
	version, _, err := o.number("version", math.MaxInt32, BadVersion)
	r.Version = int(version) //nolint:gosec // Bounded by MaxInt32.
	mistakes := []*Error{err}
	if err == nil {
		mistakes = append(mistakes, r.checkVersion())
	}
	if r.Version == 2 {
		r.Transaction, err = o.uint32("transaction")
		mistakes = append(mistakes, err)
	}
	mistakes = append(mistakes, o.common(&r))
	if r.Version == 2 {
		mistakes = append(mistakes, o.second(&r))
	}
	return r, first(mistakes...)
}

func first(mistakes ...*Error) *Error {
	for _, mistake := range mistakes {
		if mistake != nil {
			return mistake
		}
	}
	return nil
}

// common reads what both versions have.
func (o object) common(r *Request) *Error {
	command, thereCommand, err1 := o.number("cmd", math.MaxUint8, BadCommand)
	family, thereFamily, err2 := o.number("addr_family", math.MaxUint8, BadFamily)
	r.Command, r.Family = Command(command), routing.Family(family) //nolint:gosec // Bounded by MaxUint8.
	var err3, err4, err5 *Error
	r.Interface, err3 = o.text("ifname", MaxInterface)
	r.Address, err4 = o.text("address", MaxIdentifier)
	r.Tag, err5 = o.text("tag", MaxTag)
	mistake := first(err1, err2, err3, err4, err5)
	switch {
	case mistake != nil:
		return mistake
	case !thereCommand:
		return refuse(BadCommand, `there is no member "cmd"; send 0 (lease) or 1 (release)`)
	case !thereFamily:
		return refuse(BadFamily, `there is no member "addr_family"; send 2 (IPv4), 10 (IPv6) or 0 (an identifier)`)
	}
	return nil
}

// second reads what only version 2 has.
func (o object) second(r *Request) *Error {
	var err1, err2 *Error
	r.Routing, err1 = o.flag("routing")
	r.Hold, err2 = o.flag("hold")
	table, err3 := o.uint32("table")
	r.Table = routing.TableID(table)
	return first(err1, err2, err3)
}

func (o object) uint32(key string) (uint32, *Error) {
	n, _, err := o.number(key, math.MaxUint32, Malformed)
	return uint32(n), err //nolint:gosec // Bounded by MaxUint32.
}

// Encode writes a request, or says what is wrong with it.
func (r Request) Encode() ([]byte, *Error) {
	r, err := r.checked()
	if err != nil {
		return nil, err
	}
	var w writer
	if r.Version == 2 {
		// In front, so that a server which reads only the beginning can answer.
		w.number("version", 2)
		w.number("transaction", uint64(r.Transaction))
	}
	w.text("address", r.Address)
	w.text("ifname", r.Interface)
	if r.Tag != "" {
		w.text("tag", r.Tag)
	}
	w.number("addr_family", uint64(r.Family))
	w.number("cmd", uint64(r.Command))
	if r.Version != 2 {
		w.number("version", 1)
		return w.end(), nil
	}
	w.yes("routing", r.Routing)
	w.yes("hold", r.Hold)
	if r.Table != 0 {
		w.number("table", uint64(r.Table))
	}
	return w.end(), nil
}

// checked returns the request with its address in canonical form. The request
// comes back also when it is refused.
func (r Request) checked() (Request, *Error) {
	if err := r.checkVersion(); err != nil {
		return r, err
	}
	if r.Command != Lease && r.Command != Release {
		return r, refuse(BadCommand, "command %d is unknown; send 0 (lease) or 1 (release)", r.Command)
	}
	if err := r.checkFamily(); err != nil {
		return r, err
	}
	if err := checkInterface(r.Interface); err != nil {
		return r, err
	}
	address, err := canonical(r.Family, r.Address)
	if err != nil {
		return r, err
	}
	r.Address = address
	return r, checkTag(r.Tag)
}

func (r Request) checkVersion() *Error {
	if r.Version == 1 || r.Version == 2 {
		return nil
	}
	return refuse(BadVersion, "version %d of the protocol is unknown; send 1 or 2", r.Version)
}

func (r Request) checkFamily() *Error {
	switch {
	case r.Family != Unspecified && r.Family != routing.IPv4 && r.Family != routing.IPv6:
		return refuse(BadFamily, "address family %d is unknown; send 2 (IPv4), 10 (IPv6) or 0 (an identifier)", r.Family)
	case r.Family == Unspecified && r.Routing && r.Version == 2:
		return refuse(BadFamily, "routing needs an address; send family 2 (IPv4) or 10 (IPv6)")
	}
	return nil
}

// checkInterface asks less than the kernel does: a colon is allowed, because the
// labels of addresses (eth0:1) have one and ifconfig takes them for interfaces.
func checkInterface(name string) *Error {
	switch {
	case name == "":
		return refuse(NoInterface, `there is no interface; send its name as "ifname"`)
	case len(name) > MaxInterface:
		return tooLong("ifname", name, MaxInterface)
	case name == "." || name == ".." || !clean(name, func(c rune) bool { return c != '/' && !unicode.IsSpace(c) && !unicode.IsControl(c) }):
		return refuse(NoInterface, "%s cannot be the name of an interface; send one that `ip link` shows", quote(name))
	}
	return nil
}

// canonical returns the one spelling of an address, so that it is one key.
func canonical(family routing.Family, text string) (string, *Error) {
	switch {
	case text == "":
		return "", refuse(BadAddress, `there is no address; send it as "address"`)
	case len(text) > MaxIdentifier:
		return "", tooLong("address", text, MaxIdentifier)
	case family != Unspecified:
		return canonicalIP(family, text)
	case !clean(text, unicode.IsPrint):
		return "", refuse(BadAddress, "identifier %s holds a character that cannot be printed; leave it out", quote(text))
	}
	return text, nil
}

func canonicalIP(family routing.Family, text string) (string, *Error) {
	address, err := netip.ParseAddr(text)
	switch {
	case err != nil:
		return "", refuse(BadAddress, "%s is not an IP address; send one without a prefix length, or family 0 for an identifier", quote(text))
	case address.Zone() != "":
		return "", refuse(BadAddress, "address %s has a zone; leave out what begins with %%", quote(text))
	case address.Is4In6():
		return "", refuse(BadAddress, "address %s is an IPv4 address in IPv6's clothes; send %s with family 2", quote(text), address.Unmap())
	case routing.FamilyOf(address) != family:
		return "", refuse(BadAddress, "address %s is not one of family %d; its family is %d", quote(text), family, routing.FamilyOf(address))
	}
	return address.String(), nil
}

func checkTag(tag string) *Error {
	switch {
	case len(tag) > MaxTag:
		return tooLong("tag", tag, MaxTag)
	case !clean(tag, unicode.IsPrint):
		return refuse(Malformed, "tag %s holds a character that cannot be printed; leave it out", quote(tag))
	}
	return nil
}

// clean tells whether text is valid and allowed accepts all of it.
func clean(text string, allowed func(rune) bool) bool {
	refused := func(c rune) bool { return c == utf8.RuneError || !allowed(c) }
	return strings.IndexFunc(text, refused) < 0
}

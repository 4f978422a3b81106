// Package wire is the protocol between `multihomectl run` and multihomed-binder: one request with a cgroup, one answer,
// each a datagram of an AF_UNIX socket of type SOCK_SEQPACKET (unix(7)).
//
//	request: version, name of the link; with it the descriptor of the cgroup's directory (SCM_RIGHTS)
//	change:  version, 0, servers of IPv4 and IPv6, resolvers; with it the descriptor of a link's DNS map
//	answer:  version, code, text
//
// No name of a link begins with 0. A change is for the daemon, which has the maps and no right to call bpf(2).
//
// Both sides decode strictly.
package wire

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"unicode/utf8"

	"multihomed/routing"
)

const (
	// version is the first byte of each datagram. It comes first so that a program of another version can be told.
	version = 1
	// MaxRequest is the longest request, in bytes.
	MaxRequest = 1 + routing.MaxInterfaceName
	// MaxResolvers is how many resolvers a change has at most.
	MaxResolvers = 16
	// MaxChange is the longest change.
	MaxChange = 2 + (2+MaxResolvers)*addressSize
	// addressSize is that of an address of IPv6. IPv4 stands as ::ffff:a.b.c.d, and no address as zeros.
	addressSize = 16
	// MaxText is the longest text of an answer.
	MaxText = 1024
	// MaxAnswer is the longest answer.
	MaxAnswer = 2 + MaxText
)

// A Code says how a request ended.
type Code uint8

// The codes.
const (
	// Bound says that the cgroup is bound to the link. The text is empty, or says what the binding lacks.
	Bound Code = iota + 1
	// BadRequest says that the datagram is no request, or came without a descriptor.
	BadRequest
	// BadCgroup says that the descriptor is no cgroup that the caller may bind.
	BadCgroup
	// Denied says that the configuration does not let the caller bind anything.
	Denied
	// NoLink says that the link does not exist, or cannot be bound to now.
	NoLink
	// Busy says that there are too many requests. Another attempt may succeed.
	Busy
	// Unable says that the helper or the kernel cannot bind cgroups: another way may work.
	Unable
	// Failed says that something else went wrong.
	Failed
)

// An Answer is what the helper says.
type Answer struct {
	Code Code
	// Text is for the user. Of a refusal it says how to fix it.
	Text string
}

// DNS says where the queries of a link's bound sockets go, as [multihomed/internal/cgroupbpf.DNS] does.
type DNS struct {
	// Server4 and Server6 are the link's servers. The zero Addr means that there is none.
	Server4 netip.Addr `json:"server4"`
	Server6 netip.Addr `json:"server6"`
	// Resolvers are addresses that are asked instead of the link's servers.
	Resolvers []netip.Addr `json:"resolvers,omitempty"`
}

// Equal reports whether queries go to the same servers.
func (d DNS) Equal(o DNS) bool {
	return d.Server4 == o.Server4 && d.Server6 == o.Server6 && slices.Equal(d.Resolvers, o.Resolvers)
}

// IsChange tells a change from a request.
func IsChange(datagram []byte) bool { return len(datagram) > 1 && datagram[1] == 0 }

// EncodeChange appends a change to out. Resolvers that are too many are left out.
func EncodeChange(out []byte, d DNS) []byte {
	out = append(out, version, 0)
	for _, a := range append([]netip.Addr{d.Server4, d.Server6}, d.Resolvers[:min(len(d.Resolvers), MaxResolvers)]...) {
		var b [addressSize]byte
		if a.IsValid() {
			b = a.As16()
		}
		out = append(out, b[:]...)
	}
	return out
}

// DecodeChange reads a change.
func DecodeChange(datagram []byte) (DNS, error) {
	if err := checkVersion(datagram); err != nil {
		return DNS{}, err
	}
	if !IsChange(datagram) || len(datagram) < 2+2*addressSize || len(datagram) > MaxChange || (len(datagram)-2)%addressSize != 0 {
		return DNS{}, errors.New("a change of an impossible length")
	}
	var all []netip.Addr
	for b := range slices.Chunk(datagram[2:], addressSize) {
		a := netip.AddrFrom16([addressSize]byte(b)).Unmap()
		if a == netip.IPv6Unspecified() {
			a = netip.Addr{}
		}
		all = append(all, a)
	}
	for _, r := range all[2:] {
		if !r.IsValid() {
			return DNS{}, errors.New("a change with a resolver without an address")
		}
	}
	d := DNS{Server4: all[0], Server6: all[1]}
	if len(all) > 2 {
		d.Resolvers = all[2:]
	}
	return d, nil
}

// EncodeRequest appends a request to out.
func EncodeRequest(out []byte, link string) ([]byte, error) {
	if err := routing.CheckInterfaceName(link); err != nil {
		return out, err
	}
	return append(append(out, version), link...), nil
}

// DecodeRequest reads the link of a request.
func DecodeRequest(datagram []byte) (link string, err error) {
	if err := checkVersion(datagram); err != nil {
		return "", err
	}
	link = string(datagram[1:])
	if err := routing.CheckInterfaceName(link); err != nil {
		return "", err
	}
	return link, nil
}

// EncodeAnswer appends an answer to out. A text that is too long is cut.
func EncodeAnswer(out []byte, a Answer) []byte {
	text := a.Text
	if len(text) > MaxText {
		text = text[:MaxText]
		for !utf8.ValidString(text) && len(text) > MaxText-utf8.UTFMax {
			text = text[:len(text)-1]
		}
	}
	return append(append(out, version, byte(a.Code)), text...)
}

// DecodeAnswer reads an answer.
func DecodeAnswer(datagram []byte) (Answer, error) {
	if err := checkVersion(datagram); err != nil {
		return Answer{}, err
	}
	if len(datagram) < 2 || len(datagram) > MaxAnswer {
		return Answer{}, errors.New("an answer of an impossible length")
	}
	a := Answer{Code: Code(datagram[1]), Text: string(datagram[2:])}
	if a.Code < Bound || a.Code > Failed {
		return Answer{}, fmt.Errorf("an answer with the unknown code %d", a.Code)
	}
	return a, nil
}

func checkVersion(datagram []byte) error {
	if len(datagram) == 0 {
		return errors.New("an empty datagram")
	}
	if datagram[0] != version {
		return fmt.Errorf("version %d of the protocol, and this program has version %d; to fix: install one version of multihomed, and restart multihomed-binder.socket", datagram[0], version)
	}
	return nil
}

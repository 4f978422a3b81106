package cgroupbpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
)

// A Mark is what the sockets of a cgroup get in the bits of Mask (SO_MARK in socket(7)).
type Mark struct{ Value, Mask uint32 }

// check refuses a mark that binds nothing, or changes bits that are not ours.
func (m Mark) check() error {
	if m.Value == 0 || m.Value&^m.Mask != 0 {
		return fmt.Errorf("the mark 0x%x/0x%x has no bit set inside of its mask, or one outside", m.Value, m.Mask)
	}
	return nil
}

// Offsets in struct bpf_sock and struct bpf_sock_addr, the contexts of the programs (linux/bpf.h).
const (
	sockProtocol = 12
	sockMark     = 16
	addrIP4      = 4
	addrIP6      = 8
	addrPort     = 24
	addrSock     = 64
	wordsOfIP6   = 4
	wordSize     = 4
	addrSize     = wordsOfIP6 * wordSize
	skStorageGet = 107 // BPF_FUNC_sk_storage_get
	createIt     = 1   // BPF_SK_STORAGE_GET_F_CREATE
	setRetval    = 187 // BPF_FUNC_set_retval
	getUIDAndGID = 15  // BPF_FUNC_get_current_uid_gid
	getNetwork   = 122 // BPF_FUNC_get_netns_cookie
	maxProtocol  = 255 // of IP: the field has 8 bits
)

// The programs handle all addresses in the form of IPv6, an IPv4 address as ::ffff:a.b.c.d (RFC 4291, 2.5.5.2), in
// four words in network byte order.

// What a DNSMap holds: two servers, and the resolvers of the host. Zeros are no address.
const (
	mapServer4   = 0
	mapServer6   = addrSize
	mapResolvers = 2 * addrSize
	mapSize      = mapResolvers + MaxResolvers*addrSize
)

// What a socket remembers, in its storage, and as it is prepared on the stack: who was asked, and who got it.
const (
	noteAsked    = 0
	noteTarget   = addrSize
	noteSize     = 2 * addrSize
	onStack      = -noteSize
	maxNoteWords = noteSize / wordSize
)

//nolint:gochecknoglobals // constants in all but name
var (
	port53      = uint32(binary.NativeEndian.Uint16([]byte{0, 53}))
	mapped      = binary.NativeEndian.Uint32([]byte{0, 0, 0xff, 0xff})
	one         = binary.NativeEndian.Uint32([]byte{0, 0, 0, 1})
	firstByte   = binary.NativeEndian.Uint32([]byte{0xff, 0, 0, 0})
	loopbackNet = binary.NativeEndian.Uint32([]byte{127, 0, 0, 0})
)

// A program, and where it is attached.
type program struct {
	name   string // for bpftool
	kind   uint32 // bpf_prog_type
	attach uint32 // bpf_attach_type
	code   []instruction
	// old is for kernels that refuse code, nil if there is nothing else.
	old []instruction
}

// markProgram sets the mark of new sockets.
//
// It refuses protocols above 255, which are those of the kernel's own (linux/in.h): sockets of MPTCP and SMC send by
// further sockets, that the kernel opens without asking a program, and that would leave by any link. The error is
// that of a kernel whose net.mptcp.enabled is 0, so that programs take TCP; before Linux 6.1 it is EPERM.
//
// What comes first may decide to "pass", and keeps the socket in r1.
func markProgram(m Mark, first ...instruction) program {
	body := func(refuse ...instruction) []instruction {
		return slices.Concat(first, []instruction{
			loadWord(r2, r1, sockProtocol),
			ifMore(r2, maxProtocol, "refuse"),
			loadWord(r2, r1, sockMark),
			move32(r3, r2),
			and(r3, m.Mask),
			ifUnequal(r3, 0, "pass"),
			orConstant(r2, m.Value),
			storeWord(r1, sockMark, r2),
			place("pass"),
		}, returns(1), []instruction{place("refuse")}, refuse, returns(0))
	}
	notAvailable := -int32(unix.ENOPROTOOPT)
	return program{
		name: "mh_mark", kind: unix.BPF_PROG_TYPE_CGROUP_SOCK, attach: unix.BPF_CGROUP_INET_SOCK_CREATE,
		code: body(constant(r1, uint32(notAvailable)), call(setRetval)), //nolint:gosec // The same bits.
		old:  body(),
	}
}

// dnsPrograms redirect DNS queries. servers is the descriptor of a DNSMap, notes that of a map of socket storage.
func dnsPrograms(m Mark, servers, notes int) []program {
	ask := func(name string, attach uint32, code ...[]instruction) program {
		head := slices.Concat([]instruction{
			move(r6, r1),
			loadWord(r0, r6, addrPort),
			ifUnequal(r0, port53, "pass"),
			loadDouble(r1, r6, addrSock),
			loadWord(r0, r1, sockMark),
			and(r0, m.Mask),
			ifUnequal(r0, m.Value, "pass"),
			loadValue(r7, servers),
		})
		tail := slices.Concat(remember(notes), []instruction{place("pass")}, returns(1), []instruction{place("refuse")}, returns(0))
		return program{name: name, kind: unix.BPF_PROG_TYPE_CGROUP_SOCK_ADDR, attach: attach, code: slices.Concat(head, slices.Concat(code...), tail)}
	}
	answer := func(name string, attach uint32, code []instruction) program {
		return program{
			name: name, kind: unix.BPF_PROG_TYPE_CGROUP_SOCK_ADDR, attach: attach,
			code: slices.Concat(recall(notes), code, []instruction{place("pass")}, returns(1)),
		}
	}
	return []program{
		ask("mh_dns_connect4", unix.BPF_CGROUP_INET4_CONNECT, asked4(), whetherResolver(), redirect4()),
		ask("mh_dns_connect6", unix.BPF_CGROUP_INET6_CONNECT, asked6(), whetherResolver(), redirectConnect6()),
		ask("mh_dns_sendmsg4", unix.BPF_CGROUP_UDP4_SENDMSG, asked4(), whetherResolver(), redirect4()),
		ask("mh_dns_sendmsg6", unix.BPF_CGROUP_UDP6_SENDMSG, asked6(), whetherResolver(), redirectSend6()),
		answer("mh_dns_recvmsg4", unix.BPF_CGROUP_UDP4_RECVMSG, restore4()),
		answer("mh_dns_recvmsg6", unix.BPF_CGROUP_UDP6_RECVMSG, restore6()),
		answer("mh_dns_peer4", unix.BPF_CGROUP_INET4_GETPEERNAME, restore4()),
		answer("mh_dns_peer6", unix.BPF_CGROUP_INET6_GETPEERNAME, restore6()),
	}
}

// words are where the address that is asked stands, one word each.
//
//nolint:gochecknoglobals // a constant in all but name
var words = [wordsOfIP6]register{r2, r3, r4, r5}

// asked4 reads the destination of a socket that speaks IPv4.
func asked4() []instruction {
	return append([]instruction{
		constant(r2, 0), constant(r3, 0), constant(r4, mapped), loadWord(r5, r6, addrIP4),
	}, noteWords(noteAsked)...)
}

// asked6 reads the destination of a socket that speaks IPv6, or IPv4 in the form of IPv6.
func asked6() []instruction {
	code := make([]instruction, 0, 2*len(words))
	for n, w := range words {
		code = append(code, loadWord(w, r6, addrIP6+word(n)))
	}
	return append(code, noteWords(noteAsked)...)
}

// noteWords writes the address into the note. The last word comes first: Linux 6.1 takes a word at the start of eight
// bytes for a register that is kept there, and lets only processes with CAP_PERFMON write behind it.
func noteWords(at int16) []instruction {
	code := make([]instruction, 0, len(words))
	for n, w := range slices.Backward(words[:]) {
		code = append(code, storeWord(r10, onStack+at+word(n), w))
	}
	return code
}

func word(n int) int16 { return int16(n * wordSize) } //nolint:gosec // Offsets of a few words.

// whetherResolver goes on at "redirect" if the destination is the loopback, which the unspecified address is too
// (inet_stream_connect and ip6_dst_lookup take it so), or a resolver of the host, and at "pass" if not.
func whetherResolver() []instruction {
	code := []instruction{
		ifUnequal(r2, 0, "list"), ifUnequal(r3, 0, "list"),
		ifEqual(r4, mapped, "four"), ifUnequal(r4, 0, "list"),
		ifEqual(r5, 0, "redirect"), ifEqual(r5, one, "redirect"), jump("list"),
		place("four"),
		ifEqual(r5, 0, "redirect"),
		move32(r0, r5), and(r0, firstByte), ifEqual(r0, loopbackNet, "redirect"),
		place("list"),
	}
	// An unused element is the unspecified address.
	for n := range MaxResolvers {
		next := "next" + strconv.Itoa(n)
		for k, w := range words {
			code = append(code, loadWord(r0, r7, mapResolvers+word(n*wordsOfIP6+k)), ifDifferent(r0, w, next))
		}
		code = append(code, jump("redirect"), place(next))
	}
	return append(code, jump("pass"), place("redirect"))
}

// redirect4 writes the IPv4 server as the destination. A socket of IPv4 can ask no other.
func redirect4() []instruction {
	code := []instruction{loadWord(r0, r7, mapServer4+word(3)), ifEqual(r0, 0, "refuse")}
	for n := range slices.Backward(words[:]) { // As in noteWords.
		code = append(code, loadWord(r0, r7, mapServer4+word(n)), storeWord(r10, onStack+noteTarget+word(n), r0))
	}
	return append(code, loadWord(r0, r7, mapServer4+word(3)), storeWord(r6, addrIP4, r0))
}

// redirectSend6 writes the IPv6 server as the destination of one datagram. The kernel refuses an IPv4 address from a
// program here (udpv6_sendmsg), and calls the program of IPv4 for one that was asked.
func redirectSend6() []instruction {
	return slices.Concat([]instruction{move(r8, r7), add(r8, mapServer6)}, unless(r8, "refuse"), write6())
}

// redirectConnect6 writes the server of the family that is asked, else the other one: a socket of IPv6 can speak both,
// if it was not told otherwise.
func redirectConnect6() []instruction {
	return slices.Concat(
		[]instruction{
			move(r8, r7), add(r8, mapServer6), move(r9, r7),
			ifUnequal(r2, 0, "order"), ifUnequal(r3, 0, "order"), ifUnequal(r4, mapped, "order"),
			move(r9, r8), move(r8, r7),
			place("order"),
		},
		unless(r8, "other"), []instruction{jump("write"), place("other"), move(r8, r9)},
		unless(r8, "refuse"), []instruction{place("write")}, write6(),
	)
}

// unless jumps if there is no server at an address. One of IPv6 has a bit in its first word, and one of IPv4
// in its third: [DNS.check] takes no other.
func unless(at register, to string) []instruction {
	return []instruction{loadWord(r0, at, 0), loadWord(r1, at, word(2)), or(r0, r1), ifEqual(r0, 0, to)}
}

func write6() []instruction {
	code := make([]instruction, 0, 3*len(words))
	for n := range slices.Backward(words[:]) { // As in noteWords.
		code = append(code, loadWord(r0, r8, word(n)), storeWord(r10, onStack+noteTarget+word(n), r0), storeWord(r6, addrIP6+word(n), r0))
	}
	return code
}

// remember writes the note into the socket's storage. Without memory for it the query goes out all the same.
func remember(notes int) []instruction {
	code := append(make([]instruction, 0, 6+2*maxNoteWords),
		loadMap(r1, notes), loadDouble(r2, r6, addrSock), constant(r3, 0), constant(r4, createIt),
		call(skStorageGet), ifNull(r0, "pass"),
	)
	for n := range maxNoteWords {
		code = append(code, loadWord(r1, r10, onStack+word(n)), storeWord(r0, word(n), r1))
	}
	return code
}

// recall reads the note of the socket into r0, if the peer's port is that of DNS.
func recall(notes int) []instruction {
	return []instruction{
		move(r6, r1),
		loadWord(r0, r6, addrPort), ifUnequal(r0, port53, "pass"),
		loadMap(r1, notes), loadDouble(r2, r6, addrSock), constant(r3, 0), constant(r4, 0),
		call(skStorageGet), ifNull(r0, "pass"),
	}
}

// restore4 shows who was asked, where the peer is who got the query.
func restore4() []instruction {
	return []instruction{
		loadWord(r1, r0, noteTarget+word(2)), ifUnequal(r1, mapped, "pass"),
		loadWord(r1, r0, noteTarget+word(3)), loadWord(r2, r6, addrIP4), ifDifferent(r1, r2, "pass"),
		loadWord(r1, r0, noteAsked+word(3)), storeWord(r6, addrIP4, r1),
	}
}

func restore6() []instruction {
	code := make([]instruction, 0, 5*len(words))
	for n := range words {
		code = append(code, loadWord(r1, r0, noteTarget+word(n)), loadWord(r2, r6, addrIP6+word(n)), ifDifferent(r1, r2, "pass"))
	}
	for n := range words {
		code = append(code, loadWord(r1, r0, noteAsked+word(n)), storeWord(r6, addrIP6+word(n), r1))
	}
	return code
}

// MaxResolvers is how many resolvers of the host a [DNS] has at most. resolv.conf(5) takes three.
const MaxResolvers = 16

// DNS says where the queries of bound sockets go.
type DNS struct {
	// Server4 and Server6 are the link's servers. The zero Addr means that the link has none in this family.
	Server4, Server6 netip.Addr
	// Resolvers are the addresses whose queries go to a server of the link, beside those of the loopback: the host's resolvers
	// that are not the link's.
	Resolvers []netip.Addr
}

// check refuses what the programs cannot use.
func (d DNS) check() error {
	usable := func(a netip.Addr) bool {
		return a == netip.Addr{} || a.IsGlobalUnicast() && a.Zone() == "" && !a.Is4In6()
	}
	switch {
	case !usable(d.Server4) || d.Server4.Is6():
		return fmt.Errorf("%v is not the IPv4 address of a DNS server of a link", d.Server4)
	case !usable(d.Server6) || d.Server6.Is4() || d.Server6.IsValid() && !fitsFirstWord(d.Server6):
		return fmt.Errorf("%v is not the IPv6 address of a DNS server of a link; one of the link itself (fe80::/10) cannot be used", d.Server6)
	case len(d.Resolvers) > MaxResolvers:
		return fmt.Errorf("%d resolvers; at most %d can be replaced", len(d.Resolvers), MaxResolvers)
	}
	for _, r := range d.Resolvers {
		if !r.IsValid() {
			return errors.New("a resolver without an address")
		}
	}
	return nil
}

func fitsFirstWord(a netip.Addr) bool {
	b := a.As16()
	return binary.NativeEndian.Uint32(b[:]) != 0
}

// encode is the content of a DNSMap.
func (d DNS) encode() [mapSize]byte {
	var out [mapSize]byte
	put := func(at int, a netip.Addr) {
		if a.IsValid() {
			b := a.As16()
			copy(out[at:], b[:])
		}
	}
	put(mapServer4, d.Server4)
	put(mapServer6, d.Server6)
	for n, r := range d.Resolvers {
		// Where a socket tells a resolver's interface, the programs do not see it: a link-local address counts on all.
		put(mapResolvers+n*addrSize, r.WithZone(""))
	}
	return out
}

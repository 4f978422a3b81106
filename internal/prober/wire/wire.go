// Package wire is the protocol between the daemon and multihomed-prober: values, and their
// encoding as datagrams of an AF_UNIX socket of type SOCK_SEQPACKET (unix(7)).
//
// The daemon sends requests: [Probe], [Look] and [Ping]. The prober answers with reports. A probe
// gets one [Unsent], or a [Sent] and then exactly one of [Answered] and [Failed]. A look gets one
// [Looked] or [Unsent], a ping gets one [Pong]. Reports of different requests come in any order.
//
// Each report carries a horizon: the prober has delivered everything that reached its sockets up to
// this time. A missing answer means something only for probes whose time was over at the horizon,
// because a prober that was stopped, was starved or has died delivers neither answers nor horizons.
//
// Both sides decode strictly: a datagram with an unknown type, a length that does not fit, or a value
// that no honest sender would choose is an error, and the reader closes the connection.
package wire

import (
	"net/netip"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Limits of the protocol. A request that exceeds them does not encode.
const (
	// MaxDatagram is the longest datagram, in bytes.
	MaxDatagram = 32 << 10
	// MaxSources bounds the sources of a Look.
	MaxSources = 512
	// MaxNear bounds its near networks.
	MaxNear = 512
	// MaxDevices bounds its devices.
	MaxDevices = 512
	// MaxOpen is how many probes may be open, that is, without their last report. The prober refuses more
	// with ENOBUFS.
	MaxOpen = 4096
	// Lifetime is how long the prober waits for an answer. Then it reports Failed with ETIMEDOUT.
	Lifetime = 5 * time.Second
)

// Time is a time of CLOCK_MONOTONIC, in nanoseconds (clock_gettime(2)). It is never negative.
type Time int64

// Now reads the clock.
func Now() Time {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &t); err != nil {
		panic(err) // Every kernel has this clock.
	}
	return Time(t.Nano())
}

// Add returns the time d later.
func (t Time) Add(d time.Duration) Time { return t + Time(d) }

// Sub returns the duration from u to t.
func (t Time) Sub(u Time) time.Duration { return time.Duration(t - u) }

// A Kind is what a probe sends.
type Kind uint8

// The kinds of probes.
const (
	// DNS asks a resolver by UDP for the name servers of the root. Any answer counts that repeats the
	// identifier and the question, errors included.
	DNS Kind = iota + 1
	// TCP opens a connection, and closes it at once. A reset counts as an answer.
	TCP
	// ICMP sends an echo request through a ping socket (icmp(7)), if the sysctl net.ipv4.ping_group_range
	// allows this; else the probe is unsent with EACCES.
	ICMP
)

// String is the kind as users know it.
func (k Kind) String() string {
	switch k {
	case DNS:
		return "DNS"
	case TCP:
		return "TCP"
	case ICMP:
		return "ICMP"
	}
	return "unknown"
}

// A Request is what the daemon asks for.
type Request interface {
	request(*writer) error
}

// A Probe asks to send one packet and to wait for its answer.
type Probe struct {
	// ID comes back in the reports. It must differ from those of all open requests.
	ID   uint64
	Kind Kind
	// Device is the interface index that the socket is bound to (SO_BINDTOIFINDEX).
	Device int
	// Source is the address that the socket is bound to. The zero Addr leaves it to the kernel.
	Source netip.Addr
	// Target is who is asked. The port is 0 for ICMP. The scope of a link-local address is Device.
	Target netip.AddrPort
}

// A Look asks what the kernel knows about TCP connections and devices.
type Look struct {
	ID uint64
	// Sources are the local addresses whose connections are summarised.
	Sources []Source
	// Near are networks whose hosts prove nothing about the link: connected ones, and those of
	// virtual devices. Connections to them do not count.
	Near []netip.Prefix
	// Devices are the interface indexes whose counters are read.
	Devices []int
}

// A Source is a local address, and the interface index that has it. Connections from this address
// that are bound to another device do not count.
type Source struct {
	Addr   netip.Addr
	Device int
}

// A Ping asks for a horizon.
type Ping struct{ ID uint64 }

// A Report is what the prober tells. Its times are of CLOCK_MONOTONIC.
type Report interface {
	report(*writer) error
}

// Sent says that a probe's packet was given to the kernel at a time.
type Sent struct {
	ID uint64
	At Time
}

// Answered says that the target answered, and that the prober knew of it at a time.
type Answered struct {
	ID uint64
	At Time
	// RTT is how long the answer took, or 0 if the prober cannot say: it was stopped or starved
	// meanwhile, and At may be long after the arrival.
	RTT time.Duration
}

// Failed says that a probe that was sent gets no answer: a router or this host reported that the target
// is unreachable (ENETUNREACH, EHOSTUNREACH, ECONNREFUSED and others of icmp(7)), or its lifetime is over
// (ETIMEDOUT). An error that the target itself reports is an answer.
type Failed struct {
	ID    uint64
	At    Time
	Errno syscall.Errno
}

// Unsent says that the prober could not do what was asked, for a reason on this host. It proves
// nothing about a link. Errno is ENODEV, ENETUNREACH or EADDRNOTAVAIL where the host's network has
// changed, EACCES where ping sockets are forbidden, and ENOBUFS where a limit is reached.
type Unsent struct {
	ID    uint64
	At    Time
	Errno syscall.Errno
}

// Looked is what the kernel knew at a time.
type Looked struct {
	ID uint64
	At Time
	// Cost is the processor time that the look took. It grows with the number of sockets of the host.
	Cost time.Duration
	// Connections has one element for each source of the request, in its order.
	Connections []Connections
	// Devices has one element for each device of the request, in its order.
	Devices []Counters
}

// Connections summarises the established TCP connections of a source to hosts that are not near.
type Connections struct {
	// Count is how many there are.
	Count int
	// Proof is when the last packet of any of them arrived, with the kernel's resolution of a few
	// milliseconds; 0 if there is none.
	Proof Time
	// Silence is for how long, at most, a connection with unacknowledged data has heard nothing; 0 if
	// there is none. It is a reason to probe, and proves nothing.
	Silence time.Duration
}

// Counters are those of a device since it exists. A device that does not exist has zeros.
type Counters struct{ RxPackets, TxPackets uint64 }

// A Pong answers a Ping.
type Pong struct {
	ID uint64
	At Time
}

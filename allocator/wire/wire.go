package wire

import (
	"fmt"

	"multihomed/routing"
)

// Unspecified is the family of identifiers that are not addresses (AF_UNSPEC).
const Unspecified routing.Family = 0

// A Command says what a datagram is.
type Command uint8

// The commands of the protocol.
const (
	Lease   Command = 0
	Release Command = 1
	Reply   Command = 2
	Refusal Command = 3
)

// Bounds of the protocol, in bytes.
const (
	MaxRequest    = 1024
	MaxResponse   = 1024
	MaxInterface  = 15  // IFNAMSIZ, without its NUL
	MaxIdentifier = 45  // INET6_ADDRSTRLEN, without its NUL
	MaxTag        = 127 // what the first server keeps

	// What a client of version 1 reads is one byte less than its buffer of 254.
	maxResponse1 = 253
)

// A Request asks for a table, or gives it back.
type Request struct {
	Command   Command
	Version   int            // 1 or 2
	Family    routing.Family // Unspecified, IPv4 or IPv6
	Interface string
	Address   string // canonical text of an address, or an identifier (Unspecified)
	Tag       string

	// Only version 2 has these.
	Transaction uint32
	Routing     bool
	Hold        bool
	Table       routing.TableID // 0: the client does not remember any
}

// A Response answers a Request.
type Response struct {
	Version int // 2, or anything else for 1
	Table   routing.TableID
	Expires uint32 // in seconds of CLOCK_MONOTONIC_RAW; with a table, 0 is never

	// Only version 2 has these.
	Lifetime    uint32 // in seconds
	Transaction uint32
	Routing     bool

	// Refused says why there is no table; then only Version and Transaction
	// are of interest besides.
	Refused *Error
}

// A Code names the kind of a refusal, for programs.
type Code string

// The codes of refusals. A client must expect others from a newer server.
const (
	Malformed   Code = "malformed"
	TooLong     Code = "too-long"
	BadVersion  Code = "version"
	BadCommand  Code = "command"
	BadFamily   Code = "family"
	BadAddress  Code = "address"
	NoInterface Code = "interface"
	Exhausted   Code = "exhausted"
	Quota       Code = "quota"
	NotYours    Code = "not-yours"
	NotAllowed  Code = "not-allowed"
	Database    Code = "database"
	Kernel      Code = "kernel"
	Busy        Code = "busy"
)

// An Error is a refusal.
type Error struct {
	Code Code
	Text string // for people
}

func (e *Error) Error() string { return e.Text + " (" + string(e.Code) + ")" }

// Temporary tells whether the same request may succeed in a moment.
func (e *Error) Temporary() bool { return e.Code == Busy || e.Code == Database }

func refuse(code Code, format string, args ...any) *Error {
	return &Error{Code: code, Text: fmt.Sprintf(format, args...)}
}

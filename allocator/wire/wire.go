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

// Bounds of datagrams and of members of them, in bytes.
const (
	MaxRequest    = 1024
	MaxResponse   = 1024
	MaxInterface  = 15  // IFNAMSIZ, without its NUL
	MaxIdentifier = 45  // INET6_ADDRSTRLEN, without its NUL
	MaxTag        = 127 // the server of version 1 keeps no more

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
	Table       routing.TableID // the number that the client has had; 0 for none
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

	// Refused says why there is no table. Of the other fields only Version and
	// Transaction count then.
	Refused *Error
}

// A Code names the kind of a refusal, for programs.
type Code string

// The codes of refusals. A client must expect others from a newer server.
const (
	Malformed   Code = "malformed"   // the datagram is not one JSON object of the protocol
	TooLong     Code = "too-long"    // the datagram or a member is longer than its bound
	BadVersion  Code = "version"     // the version is neither 1 nor 2
	BadCommand  Code = "command"     // the command is neither lease nor release
	BadFamily   Code = "family"      // the family is unknown, or not leased here
	BadAddress  Code = "address"     // the address is none of the family
	NoInterface Code = "interface"   // the interface is missing, or does not have the address
	Exhausted   Code = "exhausted"   // every table of the range is in use
	Quota       Code = "quota"       // the user holds as many tables as one user may
	NotYours    Code = "not-yours"   // the lease is another user's
	NotAllowed  Code = "not-allowed" // the user may not lease tables
	Database    Code = "database"    // the lease could not be written to the disk
	Kernel      Code = "kernel"      // the kernel could not be read
	Busy        Code = "busy"        // too many requests wait
)

// An Error is a refusal. The text says how to fix the cause.
type Error struct {
	Code Code
	Text string // for people
}

// Error is the text with the code in brackets.
func (e *Error) Error() string { return e.Text + " (" + string(e.Code) + ")" }

// Temporary tells whether the same request may succeed in a moment.
func (e *Error) Temporary() bool { return e.Code == Busy || e.Code == Database }

func refuse(code Code, format string, args ...any) *Error {
	return &Error{Code: code, Text: fmt.Sprintf(format, args...)}
}

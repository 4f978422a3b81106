package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// A Users request binds the sockets of users, on the whole host:
//
//	users:  version, '/', first and last user, value and mask of the mark, what happens to DNS, for [NewMap] servers and
//	        resolvers as in a change; for [OldMap] the descriptor of the link's DNS map comes with it
//	answer: with it the descriptors of the links that keep the programs attached, and for NewMap that of the map behind them
//
// No name of a link has a slash. The programs end with the last copy of the links.
type Users struct {
	// First and Last are the users, both included.
	First, Last uint32
	// Value and Mask are the mark that their sockets get.
	Value, Mask uint32
	Names       Names
	// DNS is for NewMap.
	DNS DNS
}

// Names say what happens to DNS queries of sockets with the mark.
type Names uint8

// The kinds.
const (
	// LeaveNames changes nothing: they go where they are sent, or another request of the same mark leads them.
	LeaveNames Names = iota
	// NewMap leads them to the servers in the request.
	NewMap
	// OldMap leads them to the servers in the map that comes with the request.
	OldMap
)

const (
	usersHead = 2 + 4*4 + 1
	// MaxUsers is the longest request for users.
	MaxUsers = usersHead + MaxChange - 2
	// MaxLinks is how many links an answer has at most: a program that sets marks, and eight for DNS.
	MaxLinks = 9
)

// IsUsers tells a request for users from one for a cgroup.
func IsUsers(datagram []byte) bool { return len(datagram) > 1 && datagram[1] == '/' }

// EncodeUsers appends a request to out. Resolvers that are too many are left out.
func EncodeUsers(out []byte, u Users) []byte {
	out = append(out, version, '/')
	for _, n := range []uint32{u.First, u.Last, u.Value, u.Mask} {
		out = binary.BigEndian.AppendUint32(out, n)
	}
	out = append(out, byte(u.Names))
	if u.Names == NewMap {
		out = append(out, EncodeChange(nil, u.DNS)[2:]...)
	}
	return out
}

// DecodeUsers reads a request.
func DecodeUsers(datagram []byte) (u Users, err error) {
	if err := checkVersion(datagram); err != nil {
		return u, err
	}
	if !IsUsers(datagram) || len(datagram) < usersHead || len(datagram) > MaxUsers {
		return u, errors.New("a request for users of an impossible length")
	}
	for n, to := range []*uint32{&u.First, &u.Last, &u.Value, &u.Mask} {
		*to = binary.BigEndian.Uint32(datagram[2+4*n:])
	}
	u.Names = Names(datagram[usersHead-1])
	rest := datagram[usersHead:]
	switch {
	case u.First == 0 || u.First > u.Last:
		return Users{}, fmt.Errorf("users %d to %d cannot be bound", u.First, u.Last)
	case u.Value == 0 || u.Value&^u.Mask != 0:
		return Users{}, fmt.Errorf("%#x/%#x is no mark", u.Value, u.Mask)
	case u.Names > OldMap:
		return Users{}, fmt.Errorf("%d says nothing about DNS", u.Names)
	case u.Names == NewMap:
		u.DNS, err = DecodeChange(append([]byte{version, 0}, rest...))
	case len(rest) > 0:
		err = errors.New("a request for users with servers for no map")
	}
	if err != nil {
		return Users{}, err
	}
	return u, nil
}

// Package wire is the protocol between multihomed-binder and the daemon: one request, one answer, each a JSON object in a
// datagram of an AF_UNIX socket of type SOCK_SEQPACKET (unix(7)). At most one descriptor goes with each, that of a link's
// DNS map.
//
// Both sides decode strictly. They are one program, so that another version is the rest of an upgrade.
package wire

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	binder "multihomed/internal/binder/wire"
	"multihomed/routing"
)

// Name is the name of the socket in the runtime directory.
const Name = "bindings"

// Max is the longest datagram, in bytes.
const Max = 4096

// An Op is what is asked.
type Op string

// The ops.
const (
	// Policy asks who may bind.
	Policy Op = "policy"
	// Hold asks for what a link's sockets need. The answer comes with the link's DNS map, if the daemon has one.
	Hold Op = "hold"
	// Keep gives the link's new DNS map to the daemon.
	Keep Op = "keep"
)

// A Request is what the helper asks.
type Request struct {
	Op   Op     `json:"op"`
	Link string `json:"link,omitempty"`
	// DNS is what the new map holds; for Keep.
	DNS *binder.DNS `json:"dns,omitempty"`
}

// A Group is who may bind, beside root.
type Group struct {
	Name string `json:"name"`
	// GID is nil if there is no such group.
	GID *uint32 `json:"gid"`
}

// An Answer is what the daemon says.
type Answer struct {
	// Error is for the user, and empty if there is none. It says how to fix it.
	Error string `json:"error,omitempty"`
	// Group answers Policy.
	Group *Group `json:"group,omitempty"`
	// Value and Mask are the mark of the link's sockets, DNS its servers, Note what it lacks. They answer Hold.
	Value uint32      `json:"value,omitempty"`
	Mask  uint32      `json:"mask,omitempty"`
	DNS   *binder.DNS `json:"dns,omitempty"`
	Note  string      `json:"note,omitempty"`
}

// Encode encodes a request or an answer.
func Encode[T Request | Answer](message T) ([]byte, error) {
	datagram, err := json.Marshal(message)
	if err != nil {
		return nil, err
	}
	if len(datagram) > Max {
		return nil, fmt.Errorf("a message of %d bytes; at most %d are possible", len(datagram), Max)
	}
	return datagram, nil
}

// DecodeRequest reads a request.
func DecodeRequest(datagram []byte) (r Request, err error) {
	if err := decode(datagram, &r); err != nil {
		return Request{}, err
	}
	switch r.Op {
	case Policy:
		return r, nil
	case Keep:
		if r.DNS == nil {
			return Request{}, errors.New("a map without its servers")
		}
	case Hold:
	default:
		return Request{}, fmt.Errorf("an unknown request %.20q%s", r.Op, versions)
	}
	if err := routing.CheckInterfaceName(r.Link); err != nil {
		return Request{}, err
	}
	return r, nil
}

// DecodeAnswer reads an answer to a request.
func DecodeAnswer(datagram []byte, op Op) (a Answer, err error) {
	if err := decode(datagram, &a); err != nil {
		return Answer{}, err
	}
	switch {
	case a.Error != "":
	case op == Policy && a.Group == nil:
		return Answer{}, errors.New("an answer without a group" + versions)
	case op == Hold && (a.Value == 0 || a.Value&^a.Mask != 0 || a.DNS == nil):
		return Answer{}, errors.New("an answer without a mark or servers" + versions)
	}
	return a, nil
}

// versions is the fix where the two sides do not understand each other.
const versions = "; to fix: install one version of multihomed, then: systemctl restart multihomed.service; systemctl stop multihomed-binder.service"

func decode(datagram []byte, into any) error {
	if len(datagram) > Max {
		return errors.New("a message that is too long" + versions)
	}
	d := json.NewDecoder(bytes.NewReader(datagram))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return fmt.Errorf("no message of this version (%w)%s", err, versions)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("more than one message" + versions)
	}
	return nil
}

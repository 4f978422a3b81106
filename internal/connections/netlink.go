package connections

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
)

// A connection is a netlink socket of one protocol, used for one request after the other.
type connection struct {
	protocol int
	socket   *nl.NetlinkSocket
	handles  map[int]*nl.SocketHandle
}

func dial(protocol int) (*connection, error) {
	socket, err := nl.Subscribe(protocol)
	if err != nil {
		return nil, fmt.Errorf("opening a netlink socket: %w", err)
	}
	return &connection{protocol, socket, map[int]*nl.SocketHandle{protocol: {Socket: socket}}}, nil
}

func (c *connection) close() { c.socket.Close() }

func (c *connection) request(kind, flags int) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(kind, flags)
	req.Sockets = c.handles
	return req
}

// each sends a request and calls f with each message of a kind that the kernel answers, 0 for every
// kind. A dump that changes interrupted is not an error: nothing here needs a list of one moment.
func (c *connection) each(req *nl.NetlinkRequest, kind uint16, f func([]byte)) error {
	err := req.ExecuteIter(c.protocol, kind, func(b []byte) bool {
		f(b)
		return true
	})
	if errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil
	}
	return err
}

func (c *connection) do(req *nl.NetlinkRequest) error { return c.each(req, 0, func([]byte) {}) }

package connections

import (
	"encoding/binary"
	"errors"
	"fmt"
	"syscall"

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

// genericHeader begins a message of generic netlink (genlmsghdr, linux/genetlink.h). That of the library,
// [nl.Genlmsg], takes the two reserved bytes from what happens to lie behind it in memory, which may be
// somebody else's.
type genericHeader struct{ command, version byte }

// Len is its length in bytes.
func (genericHeader) Len() int { return nl.SizeofGenlmsg }

// Serialize writes it.
func (h genericHeader) Serialize() []byte { return []byte{h.command, h.version, 0, 0} }

// genericAttributes are those of an answer of generic netlink, none if it cannot be read.
func genericAttributes(b []byte) []syscall.NetlinkRouteAttr {
	if len(b) < nl.SizeofGenlmsg {
		return nil
	}
	attributes, err := nl.ParseRouteAttr(b[nl.SizeofGenlmsg:])
	if err != nil {
		return nil
	}
	return attributes
}

// family asks for the number of a family of generic netlink. One that the kernel lacks is ENOENT.
func (c *connection) family(name string) (id int, err error) {
	req := c.request(nl.GENL_ID_CTRL, 0)
	req.AddData(genericHeader{nl.GENL_CTRL_CMD_GETFAMILY, nl.GENL_CTRL_VERSION})
	req.AddData(nl.NewRtAttr(nl.GENL_CTRL_ATTR_FAMILY_NAME, nl.ZeroTerminated(name)))
	err = c.each(req, 0, func(b []byte) {
		for _, a := range genericAttributes(b) {
			if a.Attr.Type&nl.NLA_TYPE_MASK == nl.GENL_CTRL_ATTR_FAMILY_ID && len(a.Value) == 2 {
				id = int(binary.NativeEndian.Uint16(a.Value))
			}
		}
	})
	if err == nil && id == 0 {
		err = fmt.Errorf("the kernel names no number of %q", name)
	}
	return id, err
}

package connections

import (
	"context"
	"encoding/binary"
	"fmt"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Numbers of include/uapi/linux/mptcp_pm.h.
const (
	pmGetLimits = 6 // MPTCP_PM_CMD_GET_LIMITS
	pmSubflows  = 3 // MPTCP_PM_ATTR_SUBFLOWS
)

// PathLimits returns the endpoints of Multipath TCP, whoever made them, and how many subflows a
// connection may add to its first one (`ip mptcp limits`). It needs no rights. Where Multipath TCP is
// missing or switched off there are no endpoints.
func PathLimits(ctx context.Context) (endpoints []Endpoint, subflows int, err error) {
	if enabled, err := multipath(); err != nil || !enabled {
		return nil, 0, err
	}
	pm, err := openPM(ctx)
	if err != nil || pm == nil {
		return nil, 0, err
	}
	defer pm.close()
	if endpoints, err = pm.list(); err != nil {
		return nil, 0, err
	}
	err = pm.each(pm.command(pmGetLimits, unix.NLM_F_ACK), 0, func(b []byte) {
		for _, a := range genericAttributes(b) {
			if a.Attr.Type&nl.NLA_TYPE_MASK == pmSubflows && len(a.Value) == 4 {
				subflows = int(binary.NativeEndian.Uint32(a.Value))
			}
		}
	})
	if err != nil {
		return nil, 0, fmt.Errorf("reading the limits of Multipath TCP: %w", err)
	}
	return endpoints, subflows, nil
}

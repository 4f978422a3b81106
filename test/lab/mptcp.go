package lab

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Constants of include/uapi/linux/mptcp_pm.h, and the limits of a new network namespace
// (mptcp_pm_nl_init_net in net/mptcp/pm_netlink.c, pm_kernel.c since Linux 6.16).
const (
	mptcpFamily    = "mptcp_pm"
	mptcpVersion   = 1
	mptcpFlush     = 4 // MPTCP_PM_CMD_FLUSH_ADDRS
	mptcpSetLimits = 5 // MPTCP_PM_CMD_SET_LIMITS
	mptcpAccepted  = 2 // MPTCP_PM_ATTR_RCV_ADD_ADDRS
	mptcpSubflows  = 3 // MPTCP_PM_ATTR_SUBFLOWS

	defaultAccepted = 0
	defaultSubflows = 2
)

// resetMPTCP removes the endpoints of Multipath TCP and restores its limits. Endpoints outlive
// their addresses, their devices and the NetworkManager that made them, and the kernel takes only
// eight of them. A kernel without Multipath TCP has none.
func resetMPTCP() error {
	family, err := netlink.GenlFamilyGet(mptcpFamily)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("looking for the path manager of Multipath TCP: %w", err)
	}
	request := func(command uint8, attrs ...*nl.RtAttr) error {
		req := nl.NewNetlinkRequest(int(family.ID), unix.NLM_F_ACK)
		req.AddData(&nl.Genlmsg{Command: command, Version: mptcpVersion})
		for _, a := range attrs {
			req.AddData(a)
		}
		_, err := req.Execute(unix.NETLINK_GENERIC, 0)
		return err
	}
	if err := request(mptcpFlush); err != nil {
		return fmt.Errorf("removing the endpoints of Multipath TCP: %w", err)
	}
	if err := request(mptcpSetLimits,
		nl.NewRtAttr(mptcpAccepted, nl.Uint32Attr(defaultAccepted)),
		nl.NewRtAttr(mptcpSubflows, nl.Uint32Attr(defaultSubflows))); err != nil {
		return fmt.Errorf("restoring the limits of Multipath TCP: %w", err)
	}
	return nil
}

package cli_test

import (
	"fmt"
	"strings"
	"testing"

	"multihomed/test/lab"
	"multihomed/test/lab/labtest"
)

// TestRoleFollowsProfile: a LAN had a gateway by mistake. It is an uplink until its profile,
// changed in place, asks for none, also if no daemon runs then; other changes of the profile
// do not matter.
func TestRoleFollowsProfile(t *testing.T) {
	h := newHost(t)
	_, err := h.NewLink(lab.LinkConfig{Name: "lan0", Peer: "client", Up: true})
	h.must(err)
	h.must(h.AddProfile(t.Context(), "lan0", "lan0", "ipv6.method", "disabled",
		"ipv4.method", "manual", "ipv4.addresses", "192.168.7.1/24", "ipv4.gateway", "192.168.7.254", "ipv4.route-metric", "5000"))
	h.must(h.Up(t.Context(), "lan0"))
	h.start()
	is := func(role, why string) {
		t.Helper()
		labtest.Eventually(t, func() error {
			if l := link(t, h.status(), "lan0"); l.Role != role || !strings.Contains(l.RoleWhy, why) {
				return fmt.Errorf("lan0 is %s: %s", l.Role, l.RoleWhy)
			}
			return nil
		})
	}
	change := func(settings ...string) {
		t.Helper()
		h.must(h.Modify(t.Context(), "lan0", settings...))
		h.must(h.Reapply(t.Context(), "lan0"))
	}
	is("uplink", "main has a default route")
	h.ip("route", "del", "default", "dev", "lan0")
	is("uplink", "its gateway is known")
	change("connection.autoconnect-priority", "7", "+ipv4.routes", "10.7.0.0/16 192.168.7.2")
	// NetworkManager puts the default back, too.
	is("uplink", "main has a default route")
	change("ipv4.gateway", "")
	is("local", "main has no default route")

	change("ipv4.gateway", "192.168.7.254")
	is("uplink", "main has a default route")
	h.stop()
	change("ipv4.gateway", "")
	h.start()
	is("local", "main has no default route")
}

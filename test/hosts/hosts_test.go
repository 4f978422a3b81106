package hosts_test

import (
	"slices"
	"testing"
)

// TestHosts runs the whole table.
func TestHosts(t *testing.T) {
	for _, h := range slices.Concat(plainHosts, vpnHosts, markHosts, lanHosts, addressHosts, routeHosts, roleHosts, beyondHosts) {
		t.Run(h.Name, h.run)
	}
}

// plainHosts have nothing but links.
var plainHosts = []Host{
	{
		Name: "two uplinks",
		What: "A host with two providers and nothing else.",
	},
}

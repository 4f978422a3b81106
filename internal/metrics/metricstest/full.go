// Package metricstest has statuses for tests of metrics.
package metricstest

import (
	"time"

	"multihomed/internal/status"
	"multihomed/routing"
)

// Full is a status in which every metric has a sample: a gateway on which nearly everything is
// configured, while one of its uplinks is dead.
func Full() *status.Status {
	at := func(seconds int64) *time.Time {
		t := time.Unix(1_700_000_000+seconds, 0).UTC()
		return &t
	}
	loss, rtt := 0.25, 12.5
	s := &status.Status{
		Schema: status.Schema, By: status.ByDaemon, Version: "1.2.3",
		Daemon:         status.Daemon{Running: true, Version: "1.2.3", Started: at(0), Ready: true},
		NetworkManager: status.Manager{Running: true, Complete: true},
		InForce:        status.Count{Planned: 45, Present: 41, Unexpected: 1},
		Tables:         status.Range{First: 10000, Last: 10999},
		Unbound: map[string]status.Unbound{
			"ipv4": {Interface: "wan1", Main: "wan0", Shares: []status.Leg{{Interface: "wan1", Weight: 3}, {Interface: "wan2", Weight: 1}}},
			"ipv6": {Interface: "wan0"},
		},
		Failover: &status.Failover{Enabled: true, Uplinks: []status.Health{
			{
				Interface: "wan0", Family: "ipv4", State: status.HealthDown, Since: at(60), Loss: &loss, RTT: &rtt, LastProof: at(59), Tested: at(100),
				Targets: []status.HealthTarget{{Target: "dns:192.0.2.53:53", Answered: true, Silent: true}, {Target: "icmp:192.0.2.1", Answered: true}},
			},
			{Interface: "wan1", Family: "ipv4", State: status.HealthUp},
		}},
		Answers:  &status.Answers{Dropped: 7, Families: []status.AnsweredFamily{{Family: "ipv4", Answers: true, Fence: true, Reason: "forwards", Marked: 2}, {Family: "ipv6", Reason: "off"}}},
		Bindings: []status.Binding{{State: status.BindingActive}, {State: status.BindingActive}, {State: status.BindingDown}},
		Counters: &status.Counters{
			Passes: 12, Overruns: 2, BusLosses: 1,
			Convergence: status.Histogram{Buckets: []status.Bucket{{UpTo: 0.001, Count: 3}, {UpTo: 1, Count: 9}}, Count: 10, Sum: 61.5},
			Changes:     []status.Changed{{Object: "route", Verb: "add", Count: 3}, {Object: "rule", Verb: "delete", Count: 0}},
			Refusals:    status.Refusals{Kernel: 4, Database: 5},
			Repairs:     status.Repairs{Rules: 6, Routes: 7},
			Logged:      []status.Logged{{Code: "kernel-refused", Severity: "error", Count: 4}},
			Deaths:      []status.Deaths{{Interface: "gone0", Family: "ipv6", Count: 9}, {Interface: "wan0", Family: "ipv4", Count: 2}},
			Switches:    []status.Switches{{Family: "ipv4", Away: 2, Back: 1}, {Family: "ipv6"}},
			Leases:      status.Leases{Live: 4, Released: 1},
		},
		Links: []status.Link{
			{
				Interface: "wan0", Role: "uplink", Profile: "Fibre", Type: "ethernet", Up: true, Carrier: true, Since: at(30),
				Networks: []status.Network{{Family: "ipv4", Table: 10000}, {Family: "ipv6", Table: 10001}},
				Objects: []status.Object{
					{Kind: "rule", Family: "ipv4", State: status.InForce},
					{Kind: "route", Family: "ipv4", State: status.Different},
					{Kind: "rule", Family: "ipv4", State: status.Misplaced},
					{Kind: "rule", Family: "ipv4", State: status.Missing},
					{Kind: "rule", Family: "ipv4", State: status.Yielding},
					{Kind: "rule", Family: "ipv6", State: status.Yielding},
				},
			},
			{Interface: "wan1", Role: "uplink", Profile: `LTE "cheap"`, Type: "gsm", Up: true, Networks: []status.Network{{Family: "ipv4", Table: 10002}}},
			{Interface: "lan0", Role: "local", Networks: []status.Network{{Family: "ipv4", Table: 10003}}},
		},
		Shared:    []status.Object{{Kind: "rule", Family: "ipv4", State: status.Missing}, {Kind: "rule", Family: "ipv4", State: status.Unexpected}},
		OffLinks:  []status.OffLink{{Interface: "wan3"}},
		Unchecked: 1,
	}
	s.Tell([]routing.Problem{
		{Code: routing.Refused, Severity: routing.Error, Link: "wan0", Text: "no"},
		{Code: routing.Refused, Severity: routing.Error, Link: "wan1", Text: "no"},
		{Code: routing.LeftAlone, Severity: routing.Notice, Link: "lan0", Text: "its owner's"},
	})
	return s
}

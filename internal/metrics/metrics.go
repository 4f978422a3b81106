package metrics

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"multihomed/internal/status"
	"multihomed/routing"
)

// Of returns the metrics of a status, always in the same order. What only the daemon knows has no
// samples if it did not answer; multihomed_up is 0 then.
func Of(s *status.Status) []Family {
	all := hostFamilies(s)
	all = append(all, countedFamilies(s)...)
	all = append(all, failoverFamilies(s)...)
	all = append(all, trafficFamilies(s)...)
	return append(all, linkFamilies(s)...)
}

func one(v float64, labels ...Label) []Sample { return []Sample{{Labels: labels, Value: v}} }

func truth(is bool) float64 {
	if is {
		return 1
	}
	return 0
}

// seconds is a moment as Prometheus has it.
func seconds(t time.Time) float64 {
	return float64(t.UnixMilli()) / float64(time.Second/time.Millisecond)
}

func deviceLabel(name string) Label   { return Label{"device", name} }
func familyLabel(family string) Label { return Label{"family", family} }
func stateLabel(state string) Label   { return Label{"state", state} }

func upFamily(up bool) Family {
	return Family{
		Name: "multihomed_up", Type: Gauge, Samples: one(truth(up)),
		Help: "Whether the daemon answered. If it is 0, the host was read without it.",
	}
}

func buildFamily(version string) Family {
	return Family{
		Name: "multihomed_build", Type: Info, Samples: one(1, Label{"version", version}),
		Help: "Version of the daemon, or of the program that asked it in vain.",
	}
}

// hostFamilies are about the host as a whole.
func hostFamilies(s *status.Status) []Family {
	byDaemon := s.By == status.ByDaemon
	started := Family{Name: "multihomed_start_time_seconds", Type: Gauge, Unit: "seconds", Help: "When the daemon started, in Unix time. Its counters begin then."}
	ready := Family{Name: "multihomed_ready", Type: Gauge, Help: "Whether the daemon has made a pass in which it knew all links."}
	if byDaemon {
		ready.Samples = one(truth(s.Daemon.Ready))
		if s.Daemon.Started != nil {
			started.Samples = one(seconds(*s.Daemon.Started))
		}
	}
	manager := Family{Name: "multihomed_networkmanager_running", Type: Gauge, Help: "Whether NetworkManager is on the system bus. It is absent on a host that needs none, and if the bus could not be asked."}
	if !s.NetworkManager.None && s.NetworkManager.Error == "" {
		manager.Samples = one(truth(s.NetworkManager.Running))
	}
	size := 0.0
	if s.Tables.Last > s.Tables.First {
		size = float64(s.Tables.Last - s.Tables.First) // The last one is that of failover.
	}
	return []Family{
		upFamily(byDaemon),
		buildFamily(cmp.Or(s.Daemon.Version, s.Version)),
		started, ready,
		{Name: "multihomed_ok", Type: Gauge, Samples: one(truth(s.OK)), Help: "Whether everything planned is in force and no problem is an error, as the exit status of multihomectl status says."},
		manager,
		{Name: "multihomed_off", Type: Gauge, Samples: one(truth(s.Off != nil)), Help: "Whether multihomed is switched off on this host."},
		{Name: "multihomed_off_links", Type: Gauge, Samples: one(float64(len(s.OffLinks))), Help: "Links that are switched off by themselves."},
		{Name: "multihomed_link_off", Type: Gauge, Samples: offLinks(s), Help: "Each link that is switched off by itself, with the value 1."},
		{Name: "multihomed_objects", Type: Gauge, Samples: objects(s), Help: "Rules, routes and interface groups of multihomed, by state. Those that yield stay away for a moment on purpose."},
		{Name: "multihomed_unchecked_links", Type: Gauge, Samples: one(float64(s.Unchecked)), Help: "Links of which it is not known yet whether their traffic leaves by them."},
		{Name: "multihomed_table_range_size", Type: Gauge, Samples: one(size), Help: "Numbers of routing tables that can be leased."},
		{Name: "multihomed_problems", Type: Gauge, Samples: severities(s), Help: "Problems that multihomectl status shows, by severity."},
		{Name: "multihomed_problems_by_code", Type: Gauge, Samples: codes(s), Help: "Problems that multihomectl status shows, by code and severity. Those that do not exist have no sample."},
	}
}

func offLinks(s *status.Status) []Sample {
	out := make([]Sample, 0, len(s.OffLinks))
	for i := range s.OffLinks {
		out = append(out, one(1, deviceLabel(s.OffLinks[i].Interface))...)
	}
	return out
}

// objects counts by state. The status has all objects of links on which one is not in force.
func objects(s *status.Status) []Sample {
	found := map[status.State]int{}
	count := func(all []status.Object) {
		for i := range all {
			found[all[i].State]++
		}
	}
	for i := range s.Links {
		count(s.Links[i].Objects)
	}
	count(s.Shared)
	missing := max(s.InForce.Planned-s.InForce.Present-found[status.Different]-found[status.Misplaced], 0)
	counts := []struct {
		state string
		n     int
	}{
		{"in_force", s.InForce.Present},
		{"missing", missing},
		{"different", found[status.Different]},
		{"misplaced", found[status.Misplaced]},
		{"unexpected", s.InForce.Unexpected},
		{"yields", found[status.Yielding]},
	}
	out := make([]Sample, 0, len(counts))
	for _, c := range counts {
		out = append(out, one(float64(c.n), stateLabel(c.state))...)
	}
	return out
}

func severities(s *status.Status) []Sample {
	count := map[routing.Severity]int{}
	for i := range s.Problems {
		count[s.Problems[i].Severity]++
	}
	all := []routing.Severity{routing.Error, routing.Warning, routing.Notice}
	out := make([]Sample, 0, len(all))
	for _, severity := range all {
		out = append(out, one(float64(count[severity]), Label{"severity", severity.String()})...)
	}
	return out
}

func codes(s *status.Status) []Sample {
	type kind struct{ code, severity string }
	count := map[kind]int{}
	for i := range s.Problems {
		count[kind{string(s.Problems[i].Code), s.Problems[i].Severity.String()}]++
	}
	out := make([]Sample, 0, len(count))
	for k, n := range count {
		out = append(out, one(float64(n), Label{"code", k.code}, Label{"severity", k.severity})...)
	}
	slices.SortFunc(out, func(a, b Sample) int { return strings.Compare(labelsOf(a.Labels), labelsOf(b.Labels)) })
	return out
}

// countedFamilies are what the daemon counts.
func countedFamilies(s *status.Status) []Family {
	c := s.Counters
	if c == nil {
		return nil
	}
	latency := Sample{Value: c.Convergence.Sum, Count: c.Convergence.Count}
	for _, b := range c.Convergence.Buckets {
		latency.Buckets = append(latency.Buckets, Bucket{UpTo: b.UpTo, Count: b.Count})
	}
	var changes, logged, switches []Sample
	for _, n := range c.Changes {
		changes = append(changes, one(float64(n.Count), Label{"object", n.Object}, Label{"verb", n.Verb})...)
	}
	for _, n := range c.Logged {
		logged = append(logged, one(float64(n.Count), Label{"code", n.Code}, Label{"severity", n.Severity})...)
	}
	for _, n := range c.Switches {
		switches = append(switches, one(float64(n.Away), familyLabel(n.Family), Label{"direction", "away"})...)
		switches = append(switches, one(float64(n.Back), familyLabel(n.Family), Label{"direction", "back"})...)
	}
	by := func(name string, pairs ...Sample) []Sample {
		for i := range pairs {
			pairs[i].Labels[0].Name = name
		}
		return pairs
	}
	value := func(word string, n uint64) Sample {
		return Sample{Labels: []Label{{Value: word}}, Value: float64(n)}
	}
	return []Family{
		{Name: "multihomed_passes", Type: Counter, Samples: one(float64(c.Passes)), Help: "Plans that were made and compared with the kernel."},
		{Name: "multihomed_convergence_seconds", Type: Histogram, Unit: "seconds", Samples: []Sample{latency}, Help: "Time from an event until the kernel was as planned, for events after which it had to be changed."},
		{Name: "multihomed_changes", Type: Counter, Samples: changes, Help: "Changes that were made to the kernel, by object and verb."},
		{
			Name: "multihomed_refusals", Type: Counter, Samples: by("by", value("kernel", c.Refusals.Kernel), value("database", c.Refusals.Database)),
			Help: "Changes that the kernel refused, and leases of tables that the database refused or that the range had no number for.",
		},
		{
			Name: "multihomed_repairs", Type: Counter, Samples: by("object", value("rule", c.Repairs.Rules), value("route", c.Repairs.Routes)),
			Help: "Rules and routes that were restored after somebody else had deleted or replaced them.",
		},
		{Name: "multihomed_netlink_overruns", Type: Counter, Samples: one(float64(c.Overruns)), Help: "Times that the kernel dropped notifications, so that everything was read again."},
		{Name: "multihomed_bus_losses", Type: Counter, Samples: one(float64(c.BusLosses)), Help: "Times that the connection to the system bus, and with it NetworkManager, was lost."},
		{Name: "multihomed_problems_logged", Type: Counter, Samples: logged, Help: "Problems that were written to the log, by code and severity."},
		{Name: "multihomed_failover_switches", Type: Counter, Samples: switches, Help: "Times that failover moved unbound traffic away from the uplink that main says, and back to it."},
		{
			Name: "multihomed_table_leases", Type: Gauge, Samples: by("state", value("live", uint64(c.Leases.Live)), value("released", uint64(c.Leases.Released))), //nolint:gosec // counts
			Help: "Routing tables that are leased. Those that are released are kept for links that are away, and given to others if no other is left.",
		},
	}
}

// healthStates are in the order of the manual.
func healthStates() []status.HealthState {
	return []status.HealthState{status.HealthUp, status.HealthSuspect, status.HealthDown, status.HealthRecovering, status.HealthUnknown, status.HealthUnprobed}
}

// failoverFamilies are about the uplinks.
func failoverFamilies(s *status.Status) []Family {
	f := s.Failover
	if f == nil {
		return nil
	}
	prober := Family{Name: "multihomed_prober_up", Type: Gauge, Help: "Whether probes are sent, where some are needed."}
	var health, alive, since, loss, rtt, proof, targets, answering, tested, deaths []Sample
	if f.Enabled {
		prober.Samples = one(truth(f.Prober == ""))
	}
	died := map[[2]string]uint64{}
	if s.Counters != nil {
		for _, d := range s.Counters.Deaths {
			died[[2]string{d.Interface, d.Family}] = d.Count
			deaths = append(deaths, one(float64(d.Count), deviceLabel(d.Interface), familyLabel(d.Family))...)
		}
	}
	for i := range f.Uplinks {
		h := &f.Uplinks[i]
		of := []Label{deviceLabel(h.Interface), familyLabel(h.Family)}
		for _, state := range healthStates() {
			health = append(health, one(truth(h.State == state), of[0], of[1], stateLabel(string(state)))...)
		}
		alive = append(alive, one(truth(!h.State.Dead()), of...)...)
		if h.Since != nil {
			since = append(since, one(seconds(*h.Since), of...)...)
		}
		if h.Loss != nil {
			loss = append(loss, one(*h.Loss, of...)...)
		}
		if h.RTT != nil {
			rtt = append(rtt, one(*h.RTT/float64(time.Second/time.Millisecond), of...)...)
		}
		if h.LastProof != nil {
			proof = append(proof, one(seconds(*h.LastProof), of...)...)
		}
		n := 0
		for _, t := range h.Targets {
			if t.Answered && !t.Silent {
				n++
			}
		}
		targets = append(targets, one(float64(len(h.Targets)), of...)...)
		answering = append(answering, one(float64(n), of...)...)
		tested = append(tested, one(truth(h.Tested != nil), of...)...)
		if _, known := died[[2]string{h.Interface, h.Family}]; !known && s.Counters != nil {
			deaths = append(deaths, one(0, of...)...)
		}
	}
	return []Family{
		{Name: "multihomed_failover_enabled", Type: Gauge, Samples: one(truth(f.Enabled)), Help: "Whether failover is configured."},
		prober,
		{Name: "multihomed_uplink_health", Type: Gauge, Samples: health, Help: "What an uplink is judged to be: 1 for its state, 0 for the others. Uplinks are judged while a family has two."},
		{Name: "multihomed_uplink_alive", Type: Gauge, Samples: alive, Help: "Whether unbound traffic may use an uplink: 0 while it is down or recovering."},
		{Name: "multihomed_uplink_state_since_timestamp_seconds", Type: Gauge, Unit: "seconds", Samples: since, Help: "When the state of an uplink began, in Unix time."},
		{Name: "multihomed_uplink_loss_ratio", Type: Gauge, Unit: "ratio", Samples: loss, Help: "Share of the probes of an uplink that got no answer."},
		{Name: "multihomed_uplink_rtt_seconds", Type: Gauge, Unit: "seconds", Samples: rtt, Help: "Smoothed round-trip time of the probes of an uplink."},
		{Name: "multihomed_uplink_last_proof_timestamp_seconds", Type: Gauge, Unit: "seconds", Samples: proof, Help: "When an uplink last showed that it works, in Unix time."},
		{Name: "multihomed_uplink_targets", Type: Gauge, Samples: targets, Help: "Hosts that are asked whether an uplink works."},
		{Name: "multihomed_uplink_targets_answering", Type: Gauge, Samples: answering, Help: "Those of them that have answered and still do."},
		{Name: "multihomed_uplink_tested", Type: Gauge, Samples: tested, Help: "Whether multihomectl failover test declares an uplink dead."},
		{Name: "multihomed_uplink_deaths", Type: Counter, Samples: deaths, Help: "Times that an uplink was judged dead."},
	}
}

// trafficFamilies are about unbound traffic, answers and bindings.
func trafficFamilies(s *status.Status) []Family {
	var unbound, moved, shares, answered, fenced, addresses, reasons, dropped []Sample
	for _, family := range families() {
		u, is := s.Unbound[family]
		if !is {
			continue
		}
		of := familyLabel(family)
		unbound = append(unbound, one(1, of, deviceLabel(u.Interface), Label{"main", cmp.Or(u.Main, u.Interface)})...)
		moved = append(moved, one(truth(u.Main != ""), of)...)
		sum := 0.0
		for _, leg := range u.Shares {
			sum += float64(leg.Weight)
		}
		for _, leg := range u.Shares {
			shares = append(shares, one(float64(leg.Weight)/sum, of, deviceLabel(leg.Interface))...)
		}
	}
	if a := s.Answers; a != nil {
		for _, f := range a.Families {
			of := familyLabel(f.Family)
			answered = append(answered, one(truth(f.Answers), of)...)
			fenced = append(fenced, one(truth(f.Fence), of)...)
			addresses = append(addresses, one(float64(f.Marked), of)...)
			reasons = append(reasons, one(1, of, Label{"reason", f.Reason})...)
		}
		dropped = one(float64(a.Dropped))
	}
	count := map[string]int{}
	for i := range s.Bindings {
		count[s.Bindings[i].State]++
	}
	states := []string{status.BindingActive, status.BindingDown, status.BindingWaits, status.BindingFailed, status.BindingRefused}
	bindings := make([]Sample, 0, len(states))
	for _, state := range states {
		bindings = append(bindings, one(float64(count[state]), stateLabel(state))...)
	}
	return []Family{
		{Name: "multihomed_unbound", Type: Info, Samples: unbound, Help: "Interface by which packets leave that are bound to no link, and main, the one that the main table says."},
		{Name: "multihomed_unbound_moved", Type: Gauge, Samples: moved, Help: "Whether failover moved unbound traffic away from the uplink that main says."},
		{Name: "multihomed_unbound_share_ratio", Type: Gauge, Unit: "ratio", Samples: shares, Help: "Share of unbound traffic by uplink, where several share it."},
		{Name: "multihomed_answers_enabled", Type: Gauge, Samples: answered, Help: "Whether forwarded packets are answered on the link on which they were asked."},
		{Name: "multihomed_answers", Type: Info, Samples: reasons, Help: "Why they are or are not, in a word."},
		{Name: "multihomed_answers_addresses", Type: Gauge, Samples: addresses, Help: "Addresses that are answered by their link."},
		{Name: "multihomed_fence_enabled", Type: Gauge, Samples: fenced, Help: "Whether packets with an address of one uplink are kept from leaving by another one."},
		{Name: "multihomed_fence_dropped_packets", Type: Counter, Samples: dropped, Help: "Packets that the fence dropped. It begins anew with the table of nftables."},
		{Name: "multihomed_bindings", Type: Gauge, Samples: bindings, Help: "What is bound to links, by state."},
	}
}

func families() []string { return []string{routing.IPv4.String(), routing.IPv6.String()} }

// linkFamilies are about single links.
func linkFamilies(s *status.Status) []Family {
	var inForce, since []Sample
	n := len(s.Links)
	info, up, carrier := make([]Sample, 0, n), make([]Sample, 0, n), make([]Sample, 0, n)
	count := map[string]int{}
	for i := range s.Links {
		l := &s.Links[i]
		of := deviceLabel(l.Interface)
		count[l.Role]++
		info = append(info, one(1, of, Label{"role", l.Role}, Label{"profile", l.Profile}, Label{"type", l.Type})...)
		up = append(up, one(truth(l.Up && l.Carrier), of)...)
		carrier = append(carrier, one(truth(l.Carrier), of)...)
		if l.Since != nil {
			since = append(since, one(seconds(*l.Since), of)...)
		}
		for _, family := range families() {
			if slices.ContainsFunc(l.Networks, func(n status.Network) bool { return n.Family == family }) {
				inForce = append(inForce, one(truth(soundIn(l, family)), of, familyLabel(family))...)
			}
		}
	}
	kinds := []string{routing.Uplink.String(), routing.Local.String()}
	roles := make([]Sample, 0, len(kinds))
	for _, role := range kinds {
		roles = append(roles, one(float64(count[role]), Label{"role", role})...)
	}
	return []Family{
		{Name: "multihomed_links", Type: Gauge, Samples: roles, Help: "Links by role."},
		{Name: "multihomed_link", Type: Info, Samples: info, Help: "Links, with role, profile and type. Join with on(device)."},
		{Name: "multihomed_link_up", Type: Gauge, Samples: up, Help: "Whether the interface is up and has a carrier."},
		{Name: "multihomed_link_carrier", Type: Gauge, Samples: carrier, Help: "Whether the interface has a carrier."},
		{Name: "multihomed_link_in_force", Type: Gauge, Samples: inForce, Help: "Whether everything planned for a link is in force."},
		{Name: "multihomed_link_since_timestamp_seconds", Type: Gauge, Unit: "seconds", Samples: since, Help: "When the role or the rules of a link changed last, in Unix time."},
	}
}

// soundIn reports whether all objects of a link are in force in a family; interface groups
// belong to both.
func soundIn(l *status.Link, family string) bool {
	return !slices.ContainsFunc(l.Objects, func(o status.Object) bool {
		return (o.Family == family || o.Family == "") && o.State != status.InForce && o.State != status.Yielding
	})
}

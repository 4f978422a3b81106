package daemon

import (
	"cmp"
	"slices"
	"strings"
	"sync/atomic"

	"multihomed/allocator"
	"multihomed/internal/status"
	"multihomed/routing"
	"multihomed/routing/reconcile"
)

// counts are what the daemon counts. They outlive a change of the configuration.
type counts struct {
	loop                reconcile.Counters
	overruns, busLosses atomic.Uint64
}

// A loggedProblem is a kind of problems in the log.
type loggedProblem struct {
	code     routing.Code
	severity routing.Severity
}

// counters are the counters of a status.
func (s *service) counters(p *parts) *status.Counters {
	loop := s.counts.loop.Read()
	out := &status.Counters{
		Passes: loop.Passes, Convergence: histogramOf(loop.Convergence), Changes: changesOf(loop.Changes[:]),
		Refusals: status.Refusals{Kernel: loop.RefusedByKernel, Database: loop.RefusedByDatabase},
		Repairs:  status.Repairs{Rules: loop.RepairedRules, Routes: loop.RepairedRoutes},
		Overruns: s.counts.overruns.Load(), BusLosses: s.counts.busLosses.Load(),
		Logged: []status.Logged{}, Deaths: []status.Deaths{}, Switches: []status.Switches{},
		Leases: leasesOf(p.leases),
	}
	s.mu.Lock()
	for l, n := range s.logged.written {
		out.Logged = append(out.Logged, status.Logged{Code: string(l.code), Severity: l.severity.String(), Count: n})
	}
	s.mu.Unlock()
	slices.SortFunc(out.Logged, func(a, b status.Logged) int {
		return cmp.Or(strings.Compare(a.Code, b.Code), strings.Compare(a.Severity, b.Severity))
	})
	if p.uplinks != nil {
		for m, n := range p.uplinks.Deaths() {
			out.Deaths = append(out.Deaths, status.Deaths{Interface: m.Name, Family: m.Family.String(), Count: n})
		}
	}
	slices.SortFunc(out.Deaths, func(a, b status.Deaths) int {
		return cmp.Or(status.CompareNames(a.Interface, b.Interface), strings.Compare(a.Interface, b.Interface), strings.Compare(a.Family, b.Family))
	})
	for i, f := range routing.Families() {
		out.Switches = append(out.Switches, status.Switches{Family: f.String(), Away: loop.Moved[i], Back: loop.Returned[i]})
	}
	out.Escape()
	return out
}

func histogramOf(l reconcile.Latencies) status.Histogram {
	h := status.Histogram{Sum: l.Sum.Seconds()}
	for i, n := range l.Buckets {
		h.Count += n
		if i < len(l.Bounds) {
			h.Buckets = append(h.Buckets, status.Bucket{UpTo: l.Bounds[i].Seconds(), Count: h.Count})
		}
	}
	return h
}

// changesOf names the changes: the verbs of the loop are "add rule" and so on.
func changesOf(byVerb []uint64) []status.Changed {
	out := make([]status.Changed, 0, len(byVerb))
	for v, n := range byVerb {
		verb, object, _ := strings.Cut(routing.Verb(v).String(), " ")
		out = append(out, status.Changed{Object: object, Verb: verb, Count: n})
	}
	slices.SortFunc(out, func(a, b status.Changed) int {
		return cmp.Or(strings.Compare(a.Object, b.Object), strings.Compare(a.Verb, b.Verb))
	})
	return out
}

// leasesOf counts the tables that are leased, to links and to clients, each table once.
func leasesOf(a *allocator.Allocator) status.Leases {
	live := map[routing.TableID]bool{}
	note := func(t routing.TableID, isLive bool) { live[t] = live[t] || isLive }
	for _, l := range a.List() {
		note(l.Table, l.Live)
	}
	for _, l := range a.Clients() {
		note(l.Table, l.Live)
	}
	var out status.Leases
	for _, isLive := range live {
		if isLive {
			out.Live++
		} else {
			out.Released++
		}
	}
	return out
}

package inspect_test

import (
	"encoding/json"
	"fmt"
	"testing"

	"multihomed/cmd/internal/config"
	"multihomed/cmd/internal/inspect"
	"multihomed/cmd/internal/runstate"
	"multihomed/internal/offswitch"
	"multihomed/internal/status"
	"multihomed/nm"
	"multihomed/routing"
	"multihomed/routing/kernel"
	"multihomed/routing/reconcile"
)

// snapshot is one of a host with many uplinks.
func snapshot(links int) *reconcile.Snapshot {
	p := routing.NewPlanner(routing.Policy{Tables: routing.TableRange{First: 10000, Last: 19999}, UplinkGroup: 28008, ContainerPrefixLength: 7})
	s := &reconcile.Snapshot{Generation: 1, Policy: p.Policy(), Claims: map[string]reconcile.Claim{}}
	for n := range links {
		l := uplink(fmt.Sprintf("wan%d", n), n+2, fmt.Sprintf("10.%d.%d.7/24", n/250, n%250), fmt.Sprintf("10.%d.%d.1", n/250, n%250))
		l.Tables = map[routing.Key]routing.TableID{}
		for _, k := range routing.Keys(l) {
			l.Tables[k] = routing.TableID(10000 + n)
		}
		p.Set(l)
		s.Claims[l.Name] = reconcile.Claim{Standing: reconcile.Link, Why: "connected", Profile: l.Name}
	}
	for plan := range p.Links() {
		s.Interfaces = append(s.Interfaces, &reconcile.Interface{
			Facts: kernel.Link{Index: plan.Link.Index, Name: plan.Link.Name, Up: true, Carrier: true, Group: plan.Link.Group}, IsLink: true, Plan: plan,
		})
	}
	for i, f := range routing.Families() {
		s.Others[i] = kernels(f)
	}
	return s
}

// BenchmarkStatus is what a status of 1,000 links costs: in the daemon when something has
// changed, and for who asks.
func BenchmarkStatus(b *testing.B) {
	s := snapshot(1000)
	cfg := config.Default()
	var document []byte
	b.Run("made", func(b *testing.B) {
		for range b.N {
			v := inspect.FromSnapshot(cfg, s, runstate.State{Ready: true}, nm.Status{Running: true, Complete: true}, false, offswitch.State{})
			told := v.Status(v.Findings(files()), "1")
			if len(told.Links) != 1000 || !told.OK {
				b.Fatalf("%d links, %+v", len(told.Links), told.Problems)
			}
			document, _ = json.Marshal(told)
		}
		b.ReportMetric(float64(len(document)), "bytes")
	})
	b.Run("read", func(b *testing.B) {
		for range b.N {
			if told, err := status.Decode(document, false); err != nil || len(told.Links) != 1000 {
				b.Fatalf("%+v, %v", told, err)
			}
		}
	})
}

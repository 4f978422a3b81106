package main_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"multihomed/test/lab/labtest"
)

type series struct {
	Median, Min, Max float64
	Runs             int
}

type change struct {
	Objects                               int
	Event, Daemon, CPU, Each, Batched, IP series
	BatchedCPU                            series `json:"batched_cpu"`
}

type memory struct {
	RSS float64 `json:"rss_mb"`
}

// TestQuick runs little of everything. It looks for numbers that make sense; no
// test here depends on how fast anything is.
func TestQuick(t *testing.T) {
	dir := t.TempDir()
	for _, program := range []string{"multihomed/cmd/multihomed", "multihomed/test/bench"} {
		out, err := exec.CommandContext(t.Context(), "go", "build", "-buildvcs=false", "-o", dir+"/", program).CombinedOutput()
		if err != nil {
			t.Fatalf("building %s: %v\n%s", program, err, out)
		}
	}
	if err := labtest.Links(dir); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), filepath.Join(dir, "bench"), "-quick", "-json", "-v")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	var report struct {
		Machine struct {
			CPU, Kernel, Go string
			Cores           int
		}
		Rows []struct {
			Links                                              int
			Owner                                              string
			Ready, Complete, Again, Answers, Each, Batched, IP series
			Memory                                             memory
			Change                                             change
			Status                                             struct {
				Text, JSON, Alone, Explain, Metrics series
				Bytes                               int
			}
		}
		Foreign *struct {
			Routes, Links                  int
			Adding                         float64 `json:"adding_s"`
			CPU                            float64 `json:"cpu_s"`
			Before, Peak, After, Restarted memory
			Again, Explain                 series
			Change                         change
		}
		Routes []struct {
			Routes, Copies int
			Appear         float64 `json:"appear_cpu_s"`
			Route          series  `json:"route_cpu"`
			RouteWall      series  `json:"route"`
			RouteEvent     series  `json:"route_event_cpu"`
			Address        series  `json:"address_cpu"`
			AddressWall    series  `json:"address"`
			Memory         memory
			Restarted      memory
		}
		Redundant *struct {
			Routes, Copies           int
			Before, After, Restarted memory
		}
		Hosts *struct {
			Addresses, Rules, Routes, Tables int
			Daemon, CPU, Batched, IP         series
			Before, After                    memory
		}
		Connects []struct {
			Links               int
			None, Version1, Now struct {
				Rules   int
				Unbound series `json:"unbound_ns"`
				Bound   series `json:"bound_ns"`
			}
		}
		NoRules series `json:"connect_no_rules_ns"`
		Leases  []struct {
			Store                 string
			Clients               int
			Lease, Renew, Release struct{ P50, P99 float64 }
			PerSecond             float64 `json:"requests_per_s"`
		}
		Dispatch struct{ True, Script series }
		Failover *struct {
			Outages []struct {
				Fault, Traffic string
				Outage         series
				Alone          series  `json:"networkmanager"`
				More           float64 `json:"networkmanager_more_than"`
			}
			Subnet *struct {
				Outage series
				Failed float64
				Most   float64 `json:"failed_most"`
				Alone  series  `json:"networkmanager"`
				More   float64 `json:"networkmanager_more_than"`
			}
			Costs []struct {
				Links  int
				Probes float64 `json:"probes_per_minute"`
				CPU    float64 `json:"daemon_cpu_percent"`
				Prober float64 `json:"prober_cpu_percent"`
			}
		}
		Forward *struct {
			Alone    series `json:"alone_ns"`
			Off      series `json:"off_ns"`
			On       series `json:"on_ns"`
			Connects []struct {
				Connect series `json:"connect_ns"`
				Socket  series `json:"socket_ns"`
			}
		}
	}
	if err := json.Unmarshal(out, &report); err != nil {
		t.Fatalf("%v in\n%s", err, out)
	}
	if m := report.Machine; m.CPU == "" || m.Kernel == "" || m.Go == "" || m.Cores < 1 {
		t.Errorf("the machine is described as %+v", m)
	}
	timed := func(what string, s series) {
		t.Helper()
		if s.Runs < 1 || s.Min <= 0 || s.Min > s.Median || s.Median > s.Max {
			t.Errorf("%s: %+v", what, s)
		}
	}
	changed := func(what string, c change) {
		t.Helper()
		if c.Objects < 7 {
			t.Errorf("%s: a ladder of %d objects", what, c.Objects)
		}
		for _, s := range []series{c.Event, c.Daemon, c.CPU, c.Each, c.Batched, c.BatchedCPU, c.IP} {
			timed(what+": change", s)
		}
	}
	held := func(what string, m memory) {
		t.Helper()
		if m.RSS < 1 {
			t.Errorf("%s: %v MB", what, m.RSS)
		}
	}
	owners := map[string]bool{}
	for _, r := range report.Rows {
		owners[r.Owner] = true
		for _, s := range []series{r.Ready, r.Complete, r.Again, r.Answers, r.Each, r.Batched, r.IP} {
			timed("start", s)
		}
		changed("row", r.Change)
		held("row", r.Memory)
		for _, s := range []series{r.Status.Text, r.Status.JSON, r.Status.Alone, r.Status.Explain, r.Status.Metrics} {
			timed("status", s)
		}
		if r.Status.Bytes < 1000*r.Links {
			t.Errorf("the status of %d links has %d bytes", r.Links, r.Status.Bytes)
		}
	}
	if len(report.Rows) < 3 || len(owners) != 2 {
		t.Errorf("%d rows, owners %v", len(report.Rows), owners)
	}
	for _, r := range report.Routes {
		if r.Copies != r.Routes || r.Appear <= 0 {
			t.Errorf("routes through a link: %+v", r)
		}
		for _, s := range []series{r.Route, r.RouteWall, r.RouteEvent, r.Address, r.AddressWall} {
			timed("routes through a link", s)
		}
		held("routes through a link", r.Memory)
		held("routes through a link: restarted", r.Restarted)
	}
	if len(report.Routes) != 2 {
		t.Errorf("%d rows of routes through a link", len(report.Routes))
	}
	if r := report.Redundant; r == nil || r.Routes < 100 || r.Copies != 0 {
		t.Errorf("redundant routes: %+v", r)
	} else {
		for _, m := range []memory{r.Before, r.After, r.Restarted} {
			held("redundant routes", m)
		}
	}
	if h := report.Hosts; h == nil || h.Addresses < 10 || h.Rules < 3*h.Addresses || h.Tables != 1 {
		t.Errorf("host addresses: %+v", h)
	} else {
		for _, s := range []series{h.Daemon, h.CPU, h.Batched, h.IP} {
			timed("host addresses", s)
		}
		held("host addresses: before", h.Before)
		held("host addresses", h.After)
	}
	timed("connect without rules", report.NoRules)
	for _, c := range report.Connects {
		if c.None.Rules != 0 || c.Version1.Rules != 2+5*c.Links || c.Now.Rules != 5*c.Links {
			t.Errorf("%d links: ladders of %d, %d and %d rules", c.Links, c.None.Rules, c.Version1.Rules, c.Now.Rules)
		}
		for _, s := range []series{c.None.Unbound, c.None.Bound, c.Version1.Unbound, c.Version1.Bound, c.Now.Unbound, c.Now.Bound} {
			timed("connect", s)
		}
	}
	if len(report.Connects) != len(report.Rows) {
		t.Errorf("%d rows of connects", len(report.Connects))
	}
	for _, l := range report.Leases {
		for _, d := range []struct{ P50, P99 float64 }{l.Lease, l.Renew, l.Release} {
			if d.P50 <= 0 || d.P50 > d.P99 || l.PerSecond <= 0 || l.Clients < 1 || l.Store == "" {
				t.Errorf("leases: %+v", l)
			}
		}
	}
	if len(report.Leases) != 6 {
		t.Errorf("%d rows of leases", len(report.Leases))
	}
	if f := report.Failover; f == nil || len(f.Outages) != 4 || f.Subnet == nil || len(f.Costs) != 5 {
		t.Errorf("failover: %+v", f)
	} else {
		for _, r := range f.Outages {
			if r.Outage.Runs < 1 { // a loss of carrier may cost nothing
				t.Errorf("%s, %s: %+v", r.Fault, r.Traffic, r.Outage)
			}
			if r.Alone.Runs == 0 && r.More <= 0 {
				t.Errorf("NetworkManager alone: %+v", r)
			}
		}
		timed("a shared subnet", f.Subnet.Outage)
		if s := f.Subnet; s.Outage.Runs != 2 || s.Failed < 0 || s.Failed > s.Most || s.Alone.Runs == 0 && s.More <= 0 {
			t.Errorf("a shared subnet: %+v", s)
		}
		for _, r := range f.Costs {
			if r.Links < 2 || r.Probes < 0 || r.CPU < 0 || r.Prober < 0 {
				t.Errorf("watching: %+v", r)
			}
		}
	}
	if f := report.Forward; f == nil || len(f.Connects) != 3 {
		t.Errorf("forwarded packets: %+v", f)
	} else {
		for _, s := range []series{f.Alone, f.Off, f.On} {
			timed("a forwarded packet", s)
		}
		for _, c := range f.Connects {
			timed("a bound connect", c.Connect)
			timed("a bound socket", c.Socket)
		}
	}
	timed("/bin/true", report.Dispatch.True)
	timed("script", report.Dispatch.Script)
	f := report.Foreign
	if f == nil || f.Routes < 1000 || f.Links < 1 || f.Adding <= 0 || f.CPU <= 0 {
		t.Fatalf("foreign routes: %+v", f)
	}
	changed("foreign", f.Change)
	timed("foreign: restart", f.Again)
	timed("foreign: explain", f.Explain)
	for _, m := range []memory{f.Before, f.Peak, f.After, f.Restarted} {
		held("foreign", m)
	}
}

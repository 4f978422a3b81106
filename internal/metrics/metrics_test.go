package metrics_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"multihomed/internal/metrics"
	"multihomed/internal/metrics/metricstest"
	"multihomed/internal/status"
	"multihomed/test/golden"
	_ "multihomed/test/seeds"
)

// TestOf pins names, labels and values: dashboards and alerts select by them.
func TestOf(t *testing.T) {
	t.Parallel()
	full := metrics.Of(metricstest.Full())
	golden.Compare(t, "full.openmetrics", metrics.Encode(full, metrics.OpenMetrics))
	golden.Compare(t, "full.prometheus", metrics.Encode(full, metrics.Prometheus))
	alone := metricstest.Full()
	alone.By, alone.Daemon, alone.Counters, alone.Failover, alone.Answers, alone.Bindings = status.ByHost, status.Daemon{}, nil, nil, nil, nil
	alone.NetworkManager = status.Manager{Error: "the bus cannot be asked"}
	golden.Compare(t, "no-daemon.openmetrics", metrics.Encode(metrics.Of(alone), metrics.OpenMetrics))
}

// TestEveryMetricHasASample: what the full status lacks, nobody compares.
func TestEveryMetricHasASample(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for _, f := range metrics.Of(metricstest.Full()) {
		if len(f.Samples) == 0 {
			t.Errorf("%s has no sample", f.Name)
		}
		if seen[f.Name] {
			t.Errorf("%s comes twice", f.Name)
		}
		seen[f.Name] = true
		if !strings.HasPrefix(f.Name, "multihomed_") || f.Help == "" || !strings.HasSuffix(f.Help, ".") {
			t.Errorf("%s: %q", f.Name, f.Help)
		}
		if f.Unit != "" && !strings.HasSuffix(f.Name, "_"+f.Unit) {
			t.Errorf("%s does not end in its unit %s", f.Name, f.Unit)
		}
	}
	if len(seen) < 40 {
		t.Errorf("%d metrics", len(seen))
	}
}

// TestHostileLabels: whatever is in a label, every line is one sample, and its label is what it was.
func TestHostileLabels(t *testing.T) {
	t.Parallel()
	text := rapid.OneOf(rapid.String(), rapid.SampledFrom([]string{`a"} 1`, "a\nb_total 7", `\`, `\n`, "\xff", "# EOF\n", "\u2028", "\r"}))
	rapid.Check(t, func(rt *rapid.T) {
		s := metricstest.Full()
		s.Links = nil
		for range rapid.IntRange(0, 4).Draw(rt, "links") {
			s.Links = append(s.Links, status.Link{Interface: text.Draw(rt, "name"), Profile: text.Draw(rt, "profile")})
		}
		var plain, want []string
		for _, l := range s.Links {
			if !slices.Contains(plain, l.Interface) {
				plain = append(plain, l.Interface)
				want = append(want, strings.ToValidUTF8(l.Interface, "\ufffd"))
			}
		}
		var got []string
		for line := range strings.Lines(string(metrics.Encode(metrics.Of(s), metrics.OpenMetrics))) {
			rest, is := strings.CutPrefix(line, `multihomed_link_up{device="`)
			if !is {
				continue
			}
			value, ends := strings.CutSuffix(rest, "\"} 0\n")
			if !ends {
				rt.Fatalf("line %q", line)
			}
			got = append(got, strings.NewReplacer(`\\`, `\`, `\n`, "\n", `\"`, `"`).Replace(value))
		}
		want = slices.CompactFunc(want, func(a, b string) bool { return a == b })
		slices.Sort(got)
		slices.Sort(want)
		if want = slices.Compact(want); !slices.Equal(got, want) {
			rt.Fatalf("%q, not %q", got, want)
		}
	})
}

// TestNumbers: what Go and Prometheus write in different ways.
func TestNumbers(t *testing.T) {
	t.Parallel()
	for v, want := range map[float64]string{0: "0", 1: "1", 1700000000.25: "1700000000.25", 1e-9: "1e-09", 1e300: "1e+300", 0.0025: "0.0025"} {
		f := metrics.Family{Name: "multihomed_x", Type: metrics.Gauge, Help: "X.", Samples: []metrics.Sample{{Value: v}}}
		if got := string(metrics.Encode([]metrics.Family{f}, metrics.Prometheus)); !strings.HasSuffix(got, fmt.Sprintf("\nmultihomed_x %s\n", want)) {
			t.Errorf("%v: %s", v, got)
		}
	}
}

func BenchmarkOf(b *testing.B) {
	s := metricstest.Full()
	link, health := s.Links[1], s.Failover.Uplinks[0]
	for n := range 1000 {
		link.Interface, health.Interface = fmt.Sprintf("wan%d", n+10), fmt.Sprintf("wan%d", n+10)
		s.Links, s.Failover.Uplinks = append(s.Links, link), append(s.Failover.Uplinks, health)
	}
	for b.Loop() {
		b.SetBytes(int64(len(metrics.Encode(metrics.Of(s), metrics.OpenMetrics))))
	}
}

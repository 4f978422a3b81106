package metrics

import (
	"math"
	"strconv"
	"strings"
	"unicode/utf8"
)

// A Format is a text format of metrics.
type Format uint8

// Formats.
const (
	// OpenMetrics is version 1.0.0 of https://prometheus.io/docs/specs/om/open_metrics_spec/.
	OpenMetrics Format = iota
	// Prometheus is version 0.0.4 of https://prometheus.io/docs/instrumenting/exposition_formats/,
	// which node_exporter reads from files.
	Prometheus
)

// ContentType is the format as HTTP names it.
func (f Format) ContentType() string {
	if f == OpenMetrics {
		return "application/openmetrics-text; version=1.0.0; charset=utf-8"
	}
	return "text/plain; version=0.0.4; charset=utf-8"
}

// A Type is the type of a family.
type Type string

// Types.
const (
	Gauge     Type = "gauge"
	Counter   Type = "counter"
	Histogram Type = "histogram"
	// Info carries text in its labels; its value is 1.
	Info Type = "info"
)

// A Family is a metric with all its samples.
type Family struct {
	// Name has no suffix: that of a counter ends in Encode with _total, that of an info with _info.
	Name string
	Type Type
	// Unit is the end of the name, empty if it has none.
	Unit string
	// Help is a sentence.
	Help string
	// Samples have different labels.
	Samples []Sample
}

// A Sample is one value.
type Sample struct {
	// Labels are pairs of a name and a value.
	Labels []Label
	Value  float64
	// Buckets are those of a histogram, ascending, with Value as its sum and Count of all.
	Buckets []Bucket
	Count   uint64
}

// A Label is one of a sample.
type Label struct{ Name, Value string }

// A Bucket counts values up to a bound.
type Bucket struct {
	UpTo  float64
	Count uint64
}

// Encode writes families in their order. A sample whose labels another one of its family has is
// left out, because whoever reads it would refuse all of them.
func Encode(families []Family, f Format) []byte {
	w := writer{format: f}
	for i := range families {
		if len(families[i].Samples) > 0 {
			w.family(&families[i])
		}
	}
	if f == OpenMetrics {
		w.out = append(w.out, "# EOF\n"...)
	}
	return w.out
}

type writer struct {
	format Format
	out    []byte
}

func (w *writer) text(parts ...string) {
	for _, p := range parts {
		w.out = append(w.out, p...)
	}
}

func (w *writer) family(m *Family) {
	name, kind := m.Name, m.Type
	suffix := map[Type]string{Counter: "_total", Info: "_info"}[kind]
	if w.format == Prometheus {
		// There the family has the name of its samples, and no such type.
		name += suffix
		suffix = ""
		if kind == Info {
			kind = Gauge
		}
	}
	w.text("# HELP ", name, " ", w.help(m.Help), "\n# TYPE ", name, " ", string(kind), "\n")
	if w.format == OpenMetrics && m.Unit != "" {
		w.text("# UNIT ", name, " ", m.Unit, "\n")
	}
	seen := make(map[string]struct{}, len(m.Samples))
	for _, s := range m.Samples {
		labels := labelsOf(s.Labels)
		if _, twice := seen[labels]; twice {
			continue
		}
		seen[labels] = struct{}{}
		if kind == Histogram {
			w.histogram(name, s)
			continue
		}
		w.sample(name+suffix, labels, number(s.Value))
	}
}

func (w *writer) histogram(name string, s Sample) {
	bucket := func(bound string, n uint64) {
		labels := append(append([]Label{}, s.Labels...), Label{"le", bound})
		w.sample(name+"_bucket", labelsOf(labels), strconv.FormatUint(n, 10))
	}
	for _, b := range s.Buckets {
		bound := number(b.UpTo)
		if w.format == OpenMetrics && !strings.ContainsAny(bound, ".e") {
			bound += ".0" // The canonical form there.
		}
		bucket(bound, b.Count)
	}
	bucket("+Inf", s.Count)
	w.sample(name+"_sum", labelsOf(s.Labels), number(s.Value))
	w.sample(name+"_count", labelsOf(s.Labels), strconv.FormatUint(s.Count, 10))
}

func (w *writer) sample(name, labels, value string) { w.text(name, labels, " ", value, "\n") }

// labelsOf writes labels with their braces, nothing if there are none.
func labelsOf(labels []Label) string {
	if len(labels) == 0 {
		return ""
	}
	var b strings.Builder
	for i, l := range labels {
		b.WriteByte("{,"[min(i, 1)])
		b.WriteString(l.Name)
		b.WriteString(`="`)
		b.WriteString(escaped(l.Value, true))
		b.WriteByte('"')
	}
	b.WriteByte('}')
	return b.String()
}

// help escapes a help text; quotation marks stay as they are in the older format.
func (w *writer) help(text string) string { return escaped(text, w.format == OpenMetrics) }

func escaped(text string, quotes bool) string {
	if utf8.ValidString(text) && !strings.ContainsAny(text, "\\\n\"") {
		return text // Nearly all are.
	}
	pairs := []string{`\`, `\\`, "\n", `\n`}
	if quotes {
		pairs = append(pairs, `"`, `\"`)
	}
	return strings.NewReplacer(pairs...).Replace(strings.ToValidUTF8(text, "\ufffd"))
}

// number writes a value.
func number(v float64) string {
	switch {
	case math.IsInf(v, 1):
		return "+Inf"
	case math.IsInf(v, -1):
		return "-Inf"
	case math.IsNaN(v):
		return "NaN"
	case v != 0 && (math.Abs(v) < 1e-6 || math.Abs(v) >= 1e15):
		return strconv.FormatFloat(v, 'g', -1, 64)
	default:
		return strconv.FormatFloat(v, 'f', -1, 64)
	}
}

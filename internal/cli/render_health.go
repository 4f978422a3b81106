package cli

import (
	"fmt"
	"math"
	"strings"
	"time"

	"multihomed/internal/english"
	"multihomed/internal/status"
)

// health says whether an uplink works in a family. Where there is only one uplink nothing can
// move, and it is of no interest.
func (r *renderer) health(name, family string) {
	h, known := r.s.Failover.Of(name, family)
	if !known || !r.verbose && (r.s.Failover.Among(family) < 2 || !r.s.Failover.Enabled) {
		return
	}
	word, s := healthWord(h)
	text := word
	if h.Since != nil && h.NotWatched == "" {
		text += " since " + h.Since.Local().Format(time.DateTime)
	}
	why := clean(h.Why)
	if h.NotWatched != "" {
		why = clean(h.NotWatched)
	}
	if h.Tested != nil {
		text += " until " + h.Tested.Local().Format(time.TimeOnly)
	}
	if why != "" {
		text += ": " + why
	}
	if all := strings.Join(r.measured(h), ", "); all != "" {
		text += "; " + all
	}
	// The state alone has a colour.
	const indent = "        "
	for i, line := range wrap(text, max(20, r.width-len(indent))) {
		if rest, is := strings.CutPrefix(line, word); i == 0 && is {
			line = r.paint.paint(s, word) + rest
		}
		r.line("%s%s", indent, line)
	}
	if !r.verbose {
		return
	}
	for _, t := range h.Targets {
		r.line("%s%s", indent, r.paint.paint(dim, "asks "+targetText(t)))
	}
}

// healthWord is a state for people.
func healthWord(h status.Health) (string, style) {
	switch h.State {
	case status.HealthUp:
		return h.Word(), green
	case status.HealthDown:
		return h.Word(), red
	case status.HealthSuspect, status.HealthRecovering:
		return h.Word(), yellow
	case status.HealthUnprobed, status.HealthUnknown:
		return h.Word(), dim
	default:
		return h.Word(), plain
	}
}

// measured is what was measured, and what matters of the past.
func (r *renderer) measured(h status.Health) []string {
	var out []string
	// Of a dead link they are of before.
	if isCurrent := r.verbose || h.State != status.HealthDown; isCurrent && h.RTT != nil && h.Loss != nil {
		out = append(out, milliseconds(*h.RTT), loss(*h.Loss))
	}
	if h.LastProof != nil && (r.verbose || h.State != status.HealthUp) {
		out = append(out, "last proof "+h.LastProof.Local().Format(time.DateTime))
	}
	if h.Recovered != nil {
		out = append(out, "counts as up at "+h.Recovered.Local().Format(time.TimeOnly))
	}
	if h.DeathsToday > 0 || r.verbose {
		out = append(out, english.Count(h.DeathsToday, "death")+" today")
	}
	if h.RouterOnly {
		out = append(out, "only its router answers")
	}
	if h.Metered {
		out = append(out, "metered")
	}
	if r.verbose && h.Interval > 0 {
		out = append(out, "one probe each "+(time.Duration(h.Interval)*time.Millisecond).String())
	}
	return out
}

// loss shows a share in whole percents, so that a little is not nothing.
func loss(share float64) string {
	switch percent := share * 100; {
	case percent <= 0:
		return "no loss"
	case percent < 1:
		return "less than 1% lost"
	default:
		return fmt.Sprintf("%.0f%% lost", math.Round(percent))
	}
}

// milliseconds shows a time with two digits at least.
func milliseconds(ms float64) string {
	if ms < 10 {
		return fmt.Sprintf("%.1f ms", ms)
	}
	return fmt.Sprintf("%.0f ms", ms)
}

func targetText(t status.HealthTarget) string {
	text := clean(t.Target)
	switch {
	case !t.Answered:
		text += ", which never answered"
	case t.Silent:
		text += ", which no longer answers"
	}
	if t.OnLink {
		text += " (a neighbour)"
	}
	return text
}

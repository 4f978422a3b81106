package inspect

import (
	"fmt"

	"multihomed/internal/offswitch"
	"multihomed/routing"
)

// checkOff says what the administrator switched off. That is his will, and no fault;
// a switch that cannot be read is one.
func checkOff(v *View, _ files) []Finding {
	switch {
	case v.Off.Damaged != nil:
		return []Finding{routing.ProblemOf("", routing.Error, "", fmt.Errorf("multihomed does nothing on this host: %w", v.Off.Damaged))}
	case v.Off.Host != nil:
		return []Finding{{
			Severity: routing.Notice,
			Text:     "multihomed is switched off (" + v.Off.Host.String() + "): all traffic follows the main table",
			Fix:      "multihomectl on",
		}}
	}
	var out []Finding
	for _, l := range v.Off.Links {
		name := v.nameOf(l)
		what := name
		if what == "" {
			what = "the profile " + l.UUID
		}
		out = append(out, Finding{
			Severity: routing.Notice, Link: name,
			Text: what + " is switched off (" + l.String() + "): its traffic follows the main table",
			Fix:  "multihomectl on " + l.Interface,
		})
	}
	return out
}

// nameOf is what the interface of a link that is off is called now.
func (v *View) nameOf(l offswitch.Link) string {
	for name, d := range v.NM.Devices {
		if l.UUID != "" && d.ProfileUUID == l.UUID {
			return name
		}
	}
	return l.Interface
}

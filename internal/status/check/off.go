package check

import (
	"fmt"

	"multihomed/internal/offswitch"
	"multihomed/internal/status/view"
	"multihomed/routing"
)

// checkOff says what the administrator switched off. That is his will, and no fault;
// a switch that cannot be read is one.
func checkOff(v *view.View, _ files) []routing.Problem {
	until := ""
	if v.Off.Temporary {
		until = "; until the next boot only, because the state directory could not be written"
	}
	switch {
	case v.Off.Damaged != nil:
		return []routing.Problem{routing.ProblemOf("", routing.Error, "", fmt.Errorf("multihomed does nothing on this host: %w", v.Off.Damaged))}
	case v.Off.Host != nil:
		return []routing.Problem{{
			Severity: routing.Notice,
			Text:     "multihomed is switched off (" + v.Off.Host.String() + "): all traffic follows the main table" + until,
			Fix:      "multihomectl on",
		}}
	}
	var out []routing.Problem
	present := v.Present()
	for _, l := range v.Off.Links {
		names := l.On(present)
		f := routing.Problem{Severity: routing.Notice}
		switch {
		case len(names) > 0:
			f.Link = names[0]
			f.Text = names[0] + " is switched off (" + l.String() + "): its traffic follows the main table"
			f.Fix = "multihomectl on " + names[0]
		case !v.Complete() || l.UUID == "":
			f.Link = l.Interface
			f.Text = l.Interface + " is switched off (" + l.String() + ") and is not here at present"
			f.Fix = "multihomectl on " + l.Interface
		default:
			f.Text = fmt.Sprintf("switched off (%s) for %s, which no interface has at present: nothing follows from it", l.String(), profileOf(l))
			f.Fix = "multihomectl on " + l.UUID
		}
		f.Text += until
		out = append(out, f)
	}
	return out
}

// profileOf names the profile of a link that is off.
func profileOf(l offswitch.Link) string {
	if l.Profile == "" {
		return "the profile " + l.UUID + ", once of " + l.Interface
	}
	return "the profile " + l.Profile + " (" + l.UUID + "), once of " + l.Interface
}

package preview

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"multihomed/internal/english"
	"multihomed/internal/escape"
)

// Script is the plan as text for sh(1): commands, and comments that say why. Nothing in it controls a
// terminal.
func (p Plan) Script() string {
	var b strings.Builder
	say := func(format string, args ...any) {
		fmt.Fprintf(&b, "# %s\n", escape.Text(fmt.Sprintf(format, args...)))
	}
	would, change := "multihomed would", "change nothing"
	if n := len(p.Steps); n > 0 {
		change = "make " + english.Count(n, "change")
	}
	if p.File != "" {
		would = "Started with " + p.File + ", multihomed would"
	}
	switch {
	case !p.Complete():
		say("%s %s, as far as could be read. Something may be missing.", would, change)
	case len(p.Steps) > 0 && p.File == "":
		say("%s %s now. To make them: multihomectl plan | sh", would, change)
	default:
		say("%s %s.", would, change)
	}
	for _, text := range p.Unknown {
		say("Not read: %s", text)
	}
	for _, text := range p.Hidden {
		say("Not shown: %s", text)
	}
	if len(p.Steps) > 0 {
		b.WriteString("set -e\n")
	}
	last := ""
	for _, s := range p.Steps {
		if why := s.Reason.sentence(); why != last || s.Note != "" {
			b.WriteByte('\n')
			say("%s", why)
			last = why
		}
		if s.Note != "" {
			say("Note: %s %s: %s", s.Action, escape.Name(s.Object), s.Note)
		}
		for _, c := range s.Commands {
			b.WriteString(c + "\n")
		}
	}
	return b.String()
}

// sentence is the reason for people, with the decision that the manual explains.
func (r Reason) sentence() string {
	out := r.Text
	if r.Decision != "" {
		out += " (" + string(r.Decision) + ")"
	}
	switch {
	case r.Link == "":
		return out
	case r.Profile == "" || r.Profile == r.Link:
		return escape.Name(r.Link) + ": " + out
	default:
		return fmt.Sprintf("%s, profile %s: %s", escape.Name(r.Link), escape.Name(r.Profile), out)
	}
}

// Complete reports whether all was read that the plan depends on.
func (p Plan) Complete() bool { return len(p.Unknown) == 0 }

// A Document is a plan for programs.
type Document struct {
	// Schema is 1.
	Schema int `json:"schema"`
	// Changes says that there are steps, Complete that all was read.
	Changes  bool `json:"changes"`
	Complete bool `json:"complete"`
	// Steps are in the order in which they must be taken.
	Steps []DocumentStep `json:"steps"`
	// NotShown is what a pass does besides, in sentences.
	NotShown []string `json:"not_shown"`
	// Unread are what could not be read, in sentences.
	Unread []string `json:"unread"`
}

// A DocumentStep is a Step. Names are escaped.
type DocumentStep struct {
	// Action is what is done, such as "add rule".
	Action Action `json:"action"`
	// Family is "ipv4" or "ipv6", absent for what has none.
	Family string `json:"family,omitempty"`
	// Interface is the one that it is about, absent if about none or several.
	Interface string `json:"interface,omitempty"`
	// Object is what changes, in the words of iproute2.
	Object string `json:"object"`
	// Why says in words why it changes.
	Why string `json:"why"`
	// Decision names why the object exists (REASONS in multihomectl(8)), absent for what goes.
	Decision string `json:"decision,omitempty"`
	// Link is the link that it is for, Profile its profile in NetworkManager.
	Link    string `json:"link,omitempty"`
	Profile string `json:"profile,omitempty"`
	// Commands are lines for sh(1), none if no command does it.
	Commands []string `json:"commands"`
	// Note says why there is no command, or what it lacks.
	Note string `json:"note,omitempty"`
}

// WriteJSON writes it as `multihomectl plan --json` prints it.
func (p Plan) WriteJSON(w io.Writer) error {
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	encoder.SetEscapeHTML(false)
	return encoder.Encode(p.Document())
}

// Document is the plan for programs.
func (p Plan) Document() Document {
	d := Document{Schema: 1, Changes: len(p.Steps) > 0, Complete: p.Complete(), Steps: []DocumentStep{}, NotShown: texts(p.Hidden), Unread: texts(p.Unknown)}
	for _, s := range p.Steps {
		out := DocumentStep{
			Action: s.Action, Interface: escape.Name(s.Interface), Object: escape.Name(s.Object), Why: escape.Text(s.Reason.Text),
			Decision: string(s.Reason.Decision), Link: escape.Name(s.Reason.Link), Profile: escape.Name(s.Reason.Profile),
			Commands: append([]string{}, s.Commands...), Note: escape.Text(s.Note),
		}
		if s.Family != 0 {
			out.Family = s.Family.String()
		}
		d.Steps = append(d.Steps, out)
	}
	return d
}

func texts(all []string) []string {
	out := make([]string, 0, len(all))
	for _, t := range all {
		out = append(out, escape.Text(t))
	}
	return out
}

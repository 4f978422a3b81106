package journal

import (
	"log/slog"
	"strconv"
	"strings"

	"multihomed/internal/escape"
	"multihomed/internal/event"
)

// Attributes with a place of their own in a sentence.
const (
	keyInterface = "interface"
	keyReason    = "reason"
	keyError     = "error"
	keyFix       = "fix"
)

// field is one attribute with its groups in the key.
type field struct{ key, value string }

// sentence writes a message and its attributes for people:
//
//	INTERFACE: message (key value, key value), because REASON: ERROR; to fix: FIX
func sentence(message string, fields []field) string {
	var link, reason, problem, fix string
	var rest []string
	for _, f := range fields {
		if _, is := event.IsField(f.key); is {
			continue
		}
		switch f.key {
		case keyInterface:
			link = escape.Name(f.value)
		case keyReason:
			reason = f.value
		case keyError:
			problem = f.value
		case keyFix:
			fix = f.value
		case event.Key:
		default:
			rest = append(rest, strings.NewReplacer("_", " ", ".", " ").Replace(f.key)+" "+word(f.value))
		}
	}
	var b strings.Builder
	if link != "" {
		b.WriteString(link + ": ")
	}
	b.WriteString(escape.Text(message))
	if len(rest) > 0 {
		b.WriteString(" (" + strings.Join(rest, ", ") + ")")
	}
	if reason != "" {
		b.WriteString(", because " + escape.Text(reason))
	}
	if problem != "" {
		b.WriteString(": " + escape.Text(problem))
	}
	if fix != "" {
		b.WriteString("; to fix: " + escape.Text(fix))
	}
	return b.String()
}

// word quotes a value that would hide where it ends.
func word(s string) string {
	if s == "" || strings.ContainsAny(s, "(),\"\n") {
		return strconv.Quote(s)
	}
	return escape.Text(s)
}

// flatten resolves an attribute, with its groups as a prefix of the key.
func flatten(out []field, prefix string, a slog.Attr) []field {
	v := a.Value.Resolve()
	if v.Kind() != slog.KindGroup {
		if a.Equal(slog.Attr{}) {
			return out
		}
		return append(out, field{prefix + a.Key, v.String()})
	}
	if a.Key != "" {
		prefix += a.Key + "."
	}
	for _, inner := range v.Group() {
		out = flatten(out, prefix, inner)
	}
	return out
}

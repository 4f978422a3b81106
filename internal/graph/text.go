package graph

import (
	"strings"

	"multihomed/internal/escape"
	"multihomed/routing"
)

// columns is how many columns of a monospace font a text takes at most. Scripts that are wider
// than Latin count twice, whatever they are: a box may be too wide, never too narrow.
func columns(text string) int {
	n := 0
	for _, r := range text {
		n += width(r)
	}
	return n
}

// firstWide is where Unicode begins to have wide characters (Hangul, UAX 11).
const firstWide = 0x1100

func width(r rune) int {
	switch {
	case r < firstWide, r >= 0x2010 && r <= 0x25ff: // Punctuation, arrows and shapes.
		return 1
	default:
		return 2
	}
}

// cut shortens a text to a number of columns.
func cut(text string, most int) string {
	if columns(text) <= most {
		return text
	}
	n := 0
	for i, r := range text {
		if n += width(r); n > most-1 {
			return strings.TrimRight(text[:i], " ") + "…"
		}
	}
	return text
}

// wrap breaks a text between words into lines, the last of which is cut.
func wrap(text string, width, most int) []string {
	var lines []string
	line := ""
	words := strings.Fields(text)
	for i, word := range words {
		switch {
		case line == "":
			line = word
		case columns(line)+1+columns(word) <= width:
			line += " " + word
		case len(lines) == most-1:
			return append(lines, cut(line+" "+strings.Join(words[i:], " "), width))
		default:
			lines, line = append(lines, cut(line, width)), word
		}
	}
	return append(lines, cut(line, width))
}

// ruleText is a rule as `ip rule` shows it, without its priority. Names are escaped so that two
// of them never look alike.
func ruleText(r routing.Rule) string {
	r.IIF, r.OIF = escaped(r.IIF), escaped(r.OIF)
	_, text, _ := strings.Cut(r.String(), ": ")
	return text
}

func escaped(name string) string {
	if name == "" {
		return ""
	}
	return escape.Name(name)
}

// placeholders stand for the values in which the rules of a group differ, in the words that the
// ladder uses in the manual.
var placeholders = map[string]string{ //nolint:gochecknoglobals // a constant in all but name
	"from": "SOURCE", "to": "PREFIX", "lookup": "TABLE", "goto": "PRIORITY", "iif": "DEVICE", "oif": "DEVICE", "fwmark": "MARK",
	"uidrange": "USERS", "ipproto": "PROTOCOL", "sport": "PORT", "dport": "PORT", "suppress_prefixlength": "LEN", "suppress_ifgroup": "GROUP",
}

// forms are the different shapes of some rules, each once, with placeholders for the values in
// which they differ.
func forms(rules []routing.Rule) []string {
	type form struct{ words, shape []string }
	var all []*form
	byShape := map[string]*form{}
	for _, r := range rules {
		words := strings.Fields(ruleText(r))
		shape := make([]string, len(words))
		for i, w := range words {
			shape[i] = w
			if i > 0 {
				if p, is := placeholders[words[i-1]]; is {
					shape[i] = p
				}
			}
		}
		key := strings.Join(shape, " ")
		known := byShape[key]
		if known == nil {
			known = &form{words: words, shape: shape}
			byShape[key] = known
			all = append(all, known)
			continue
		}
		for i := range known.words {
			if known.words[i] != words[i] {
				known.words[i] = known.shape[i]
			}
		}
	}
	out := make([]string, len(all))
	for i, f := range all {
		out[i] = strings.Join(f.words, " ")
	}
	return out
}

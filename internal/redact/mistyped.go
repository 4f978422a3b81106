package redact

import (
	"encoding/hex"
	"net/netip"
	"strings"

	"multihomed/internal/lazy"
)

var (
	// Runs of letters, digits and the points or colons of an address, with the escape of a string
	// before them.
	colonsOfAny = lazy.Regexp(`(?i)\\?[0-9a-z]*:[0-9a-z:.]*`)
	dotsOfAny   = lazy.Regexp(`(?i)\\?[0-9a-z]+(?:\.[0-9a-z]*){2,}`)
	// Without the fourth number it could be a version. Errors quote what was mistyped, and the
	// versions that reports quote begin with one digit.
	shortInQuotes = lazy.Regexp(`"\d{2,3}\.\d{1,3}\.\d{1,3}\.?(?:/\d+)?\\?"`)
	pciAddress    = lazy.Regexp(`(?i)^[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]$`)
)

// mistyped replaces the runs that look like an address and are none. Errors repeat what a user
// has mistyped.
func (r *Redactor) mistyped(looks func(string) bool) func(string) (string, bool) {
	return func(run string) (string, bool) {
		var before, after string
		before, run = escapeOf(run)
		if word := strings.TrimRight(run, ".:"); !strings.HasSuffix(run, "::") {
			run, after = word, run[len(word):]
		}
		address := run
		if word, behind, _ := strings.Cut(run, ":"); !strings.ContainsAny(word, "0123456789") && word != "" {
			address = behind // "via:2001:db8::1"
		}
		for _, text := range []string{run, address} {
			if _, err := netip.ParseAddr(text); err == nil {
				return "", false
			}
		}
		if !looks(run) {
			return "", false
		}
		return before + r.unreadable(run) + after, true
	}
}

// unreadable stands for what cannot be replaced by another address.
func (r *Redactor) unreadable(text string) string {
	return "mistyped-" + hex.EncodeToString(r.hash("mistyped", strings.ToLower(text)))[:8]
}

// escapeOf splits an escape of a string off (https://www.rfc-editor.org/rfc/rfc8259#section-7): its
// letters are no part of an address.
func escapeOf(run string) (escape, rest string) {
	const short, long = 2, 6
	switch {
	case !strings.HasPrefix(run, `\`):
		return "", run
	case strings.HasPrefix(run, `\u`):
		return run[:min(long, len(run))], run[min(long, len(run)):]
	default:
		return run[:min(short, len(run))], run[min(short, len(run)):]
	}
}

// looksLikeIPv4 reports whether enough of the groups are the numbers of an address.
func looksLikeIPv4(run string) bool {
	const (
		numbers = 4 // of an address
		longest = 4 // of a group with a mistake
	)
	groups := strings.Split(run, ".")
	if len(groups) < numbers {
		return false
	}
	n := 0
	for i, g := range groups {
		isNumber := g != "" && len(g) < longest && strings.Trim(g, "0123456789") == ""
		if isNumber {
			n++
		}
		if n == numbers-1 && i == n-1 {
			return true // The first three are.
		}
		if len(g) > longest {
			return false
		}
	}
	return n > 1
}

// looksLikeIPv6 reports whether enough of the groups are those of an address, so that a time, a
// list and a place in a file are none.
func looksLikeIPv6(run string) bool {
	const (
		digits = 4 // of a group
		wide   = 3 // digits that no time has
	)
	if pciAddress().MatchString(run) || strings.Count(run, ":") < 2 {
		return false
	}
	n, isWide := 0, false
	first, _, _ := strings.Cut(run, ":")
	isFirst := len(first) == digits && strings.ContainsAny(first[:1], "23fF") && strings.ContainsAny(first, "0123456789")
	for g := range strings.SplitSeq(run, ":") {
		if len(g) >= wide && len(g) <= digits+1 && strings.ContainsAny(g, "0123456789") {
			isWide = true
		}
		if g != "" && len(g) <= digits && strings.Trim(strings.ToLower(g), "0123456789abcdef") == "" {
			n++
		}
	}
	switch {
	case !isWide:
		return false
	case strings.Contains(run, "::"):
		return n > 0
	default:
		return n >= digits || n > 1 && isFirst
	}
}

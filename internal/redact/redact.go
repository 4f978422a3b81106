// Package redact replaces addresses and names in text, each always by the same, so that a bug
// report stays readable and identifies nobody.
package redact

import (
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"multihomed/internal/escape"
	"multihomed/internal/lazy"
	"multihomed/routing"
)

// A Redactor holds the key of one report.
type Redactor struct {
	key []byte
	// names are the spellings of names, by what replaces them; order has the longest
	// first.
	names map[string]string
	order []string
	// hardware are the hardware addresses that were learned, as hexadecimal digits.
	hardware map[string]bool
}

// New returns a Redactor with a key of its own. Names are replaced by WORD-1, WORD-2
// and so on, by the word that they are mapped by.
func New(names map[string][]string) *Redactor {
	key := make([]byte, sha256.Size)
	_, _ = rand.Read(key) // It never fails (crypto/rand).
	return newWith(key, names)
}

func newWith(key []byte, names map[string][]string) *Redactor {
	r := &Redactor{key: key, names: map[string]string{}, hardware: map[string]bool{}}
	for _, word := range slices.Sorted(maps.Keys(names)) {
		n := 0
		for _, name := range names[word] {
			if _, known := r.names[name]; known || len(name) < 2 {
				continue
			}
			n++
			by := fmt.Sprintf("%s-%d", word, n)
			for _, spelling := range spellings(name) {
				if _, known := r.names[spelling]; !known {
					r.names[spelling] = by
					r.order = append(r.order, spelling)
				}
			}
		}
	}
	// A name that contains another goes first.
	slices.SortFunc(r.order, func(a, b string) int {
		if len(a) != len(b) {
			return len(b) - len(a)
		}
		return strings.Compare(a, b)
	})
	return r
}

// spellings are the ways in which programs write a name: as it is, as status and the log
// do, and as nmcli -t does (nmcli(1), --escape); each of them as it is, or in quotes of
// JSON, of TOML or of an error, or in both.
func spellings(name string) []string {
	var out []string
	for _, base := range []string{name, escape.Name(name), escape.Text(name), strings.NewReplacer(`\`, `\\`, `:`, `\:`).Replace(name)} {
		for _, quoted := range append(quotes(base), base) {
			out = append(append(out, quoted), quotes(quoted)...) // A sentence with a quoted name, in JSON.
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// quotes are the ways to write a text between quotes.
func quotes(text string) []string {
	out := []string{inQuotes(strconv.Quote(text)), inQuotes(strconv.QuoteToASCII(text))}
	var plain bytes.Buffer
	encoder := json.NewEncoder(&plain)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(text); err == nil {
		out = append(out, inQuotes(strings.TrimSpace(plain.String())))
	}
	if html, err := json.Marshal(text); err == nil {
		out = append(out, inQuotes(string(html)))
	}
	return out
}

func inQuotes(s string) string { return s[1 : len(s)-1] }

// Learn takes the hardware addresses of a text, which are replaced then however they are
// written: names of interfaces are made of them.
func (r *Redactor) Learn(s string) {
	for _, run := range colons().FindAllString(s, -1) {
		if _, digits, _, is := hardwareIn(run); is {
			r.hardware[digits] = true
		}
	}
}

var (
	uuid = lazy.Regexp(`(?i)\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b`)
	// A run of hexadecimal digits between colons may be a hardware address; hardware
	// decides. Without a colon it is one behind enx, wlx and the like
	// (systemd.net-naming-scheme(7)), or if it was learned.
	colons = lazy.Regexp(`(?i)\b[0-9a-f]{1,4}(?::[0-9a-f]{0,4})+`)
	dashes = lazy.Regexp(`(?i)\b[0-9a-f]{2}(?:-[0-9a-f]{2}){5}\b|\b[0-9a-f]{4}\.[0-9a-f]{4}\.[0-9a-f]{4}\b`)
	named  = lazy.Regexp(`(?i)\b([a-z]{2,4}x)([0-9a-f]{12})`)
	bare   = lazy.Regexp(`(?i)[0-9a-f]{12,}`)
	// What may be an address; netip decides.
	candidate = lazy.Regexp(`(?i)[0-9a-f]*:[0-9a-f:]*:(?:\d+\.\d+\.\d+\.\d+|[0-9a-f]*)(?:/\d+)?|\b\d{1,3}(?:\.\d{1,3}){3}(?:/\d+)?\b`)
)

const (
	// digitsOfMAC are those of EUI-48, mostDigits those of InfiniBand.
	digitsOfMAC = 12
	mostDigits  = 40
	// groupsOfIPv6 are those of an IPv6 address that is written in full.
	groupsOfIPv6 = 8
)

// hardwareIn finds a hardware address in a run of hexadecimal digits and colons: it may
// stand behind a word that looks like digits, and before a colon of the sentence.
func hardwareIn(run string) (before, digits, after string, is bool) {
	if _, err := netip.ParseAddr(run); err == nil {
		return "", "", "", false
	}
	for strings.HasSuffix(run, ":") {
		run, after = run[:len(run)-1], after+":"
	}
	for {
		if digits, is := hardware(run); is {
			return before, digits, after, true
		}
		word, rest, more := strings.Cut(run, ":")
		if !more {
			return "", "", "", false
		}
		before, run = before+word+":", rest
	}
}

// hardware returns the digits of a hardware address, each byte as two. iproute2 and the
// kernel leave zeros in front out where they print the address of a bridge.
func hardware(run string) (digits string, is bool) {
	groups := strings.Split(run, ":")
	if len(groups) < digitsOfMAC/2 || len(groups) > mostDigits/2 || len(groups) == groupsOfIPv6 {
		return "", false
	}
	for _, g := range groups {
		switch len(g) {
		case 1:
			digits += "0" + g
		case 2:
			digits += g
		default:
			return "", false
		}
	}
	return strings.ToLower(digits), true
}

// bytesOf replaces the digits of a hardware address. All zeros and all ones identify nobody.
func (r *Redactor) bytesOf(digits string) string {
	if strings.Trim(digits, "0") == "" || strings.Trim(digits, "f") == "" {
		return digits
	}
	h := hex.EncodeToString(r.hash("mac", digits))
	return "02" + h[:len(digits)-2]
}

// Text redacts a text.
func (r *Redactor) Text(s string) string {
	// Names go first: an address may be part of one.
	for _, name := range r.order {
		s = replaceWord(s, name, r.names[name])
	}
	s = uuid().ReplaceAllStringFunc(s, func(u string) string {
		h := hex.EncodeToString(r.hash("uuid", strings.ToLower(u)))
		return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:32]
	})
	return r.addresses(s)
}

// addresses replaces addresses, each part of the text once: a replacement must not be taken
// for a hardware address that was learned.
func (r *Redactor) addresses(s string) string {
	steps := []struct {
		pattern *regexp.Regexp
		replace func(string) (string, bool)
	}{
		{colonsOfAny(), r.mistyped(looksLikeIPv6)},
		{colons(), func(run string) (string, bool) {
			before, digits, after, is := hardwareIn(run)
			if !is {
				return "", false
			}
			return before + grouped(r.bytesOf(digits), 2, ":") + after, true
		}},
		{named(), func(name string) (string, bool) {
			at := len(name) - digitsOfMAC
			return name[:at] + r.bytesOf(strings.ToLower(name[at:])), true
		}},
		{dashes(), func(run string) (string, bool) {
			digits := strings.ToLower(strings.NewReplacer("-", "", ".", "").Replace(run))
			if strings.Contains(run, "-") {
				return grouped(r.bytesOf(digits), 2, "-"), true
			}
			return grouped(r.bytesOf(digits), 4, "."), r.hardware[digits]
		}},
		{bare(), func(run string) (string, bool) {
			text := strings.ToLower(run)
			for digits := range r.hardware {
				text = strings.ReplaceAll(text, digits, r.bytesOf(digits))
			}
			return text, text != strings.ToLower(run)
		}},
		{dotsOfAny(), r.mistyped(looksLikeIPv4)},
		{shortInQuotes(), func(text string) (string, bool) {
			return text[:1] + r.unreadable(strings.Trim(text, `\"`)) + strings.TrimLeft(text[1:], "0123456789./"), true
		}},
		{candidate(), func(text string) (string, bool) {
			before, address, after := trimColons(text)
			replaced := before + r.address(address) + after
			return replaced, replaced != text
		}},
	}
	var apply func(s string, step int) string
	apply = func(s string, step int) string {
		if step == len(steps) {
			return s
		}
		var b strings.Builder
		rest := 0
		for _, at := range steps[step].pattern.FindAllStringIndex(s, -1) {
			by, is := steps[step].replace(s[at[0]:at[1]])
			if !is {
				continue
			}
			b.WriteString(apply(s[rest:at[0]], step+1))
			b.WriteString(by)
			rest = at[1]
		}
		b.WriteString(apply(s[rest:], step+1))
		return b.String()
	}
	return apply(s, 0)
}

// trimColons takes the colons of a sentence or a list from both ends of an address.
func trimColons(text string) (before, address, after string) {
	address = text
	if strings.HasPrefix(address, ":") && !strings.HasPrefix(address, "::") {
		before, address = ":", address[1:]
	}
	if strings.HasSuffix(address, ":") && !strings.HasSuffix(address, "::") {
		address, after = address[:len(address)-1], ":"
	}
	return before, address, after
}

// grouped puts something between groups of digits.
func grouped(digits string, size int, between string) string {
	var groups []string
	for len(digits) > size {
		groups, digits = append(groups, digits[:size]), digits[size:]
	}
	return strings.Join(append(groups, digits), between)
}

// replaceWord replaces a name where no letter or digit stands beside it.
func replaceWord(s, name, by string) string {
	var b strings.Builder
	for {
		i := strings.Index(s, name)
		if i < 0 {
			b.WriteString(s)
			return b.String()
		}
		end := i + len(name)
		if startsInWord(s, i) || end < len(s) && isWord(s[end]) {
			b.WriteString(s[:end])
		} else {
			b.WriteString(s[:i] + by)
		}
		s = s[end:]
	}
}

// startsInWord reports whether what starts at i is part of a longer word. The letter of an
// escape (\n) is no word.
func startsInWord(s string, i int) bool {
	if i == 0 || !isWord(s[i-1]) {
		return false
	}
	isEscape := i > 1 && s[i-2] == '\\' && strings.ContainsRune("nrt", rune(s[i-1]))
	return !isEscape
}

func isWord(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '_'
}

func (r *Redactor) address(text string) string {
	head, length, isPrefix := strings.Cut(text, "/")
	a, err := netip.ParseAddr(head)
	if err != nil {
		return text
	}
	if !isPrefix {
		return r.Addr(a).String()
	}
	// The length may be mistyped.
	if p, err := netip.ParsePrefix(text); err == nil && p.Masked() == p {
		return netip.PrefixFrom(r.Addr(a), p.Bits()).Masked().String() // A network has no host.
	}
	return r.Addr(a).String() + "/" + length
}

// kept are prefixes whose bits say what kind of address it is. Those of documentation
// and of the host itself are kept whole.
var kept = []netip.Prefix{ //nolint:gochecknoglobals // a constant in all but name
	netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("169.254.0.0/16"),
	netip.MustParsePrefix("172.16.0.0/12"), netip.MustParsePrefix("192.168.0.0/16"), netip.MustParsePrefix("fc00::/7"),
	netip.MustParsePrefix("fe80::/64"), netip.MustParsePrefix("2000::/3"),
}

// Addr replaces an address so that two addresses share as many leading bits after it
// as before (Xu, Fan, Ammar, Moon: Prefix-preserving IP address anonymization).
func (r *Redactor) Addr(a netip.Addr) netip.Addr {
	if !routing.IsHostAddress(a) {
		return a
	}
	first := 0
	for _, p := range kept {
		if p.Contains(a) {
			first = p.Bits()
		}
	}
	bytes := a.AsSlice()
	out := slices.Clone(bytes)
	for bit := first; bit < len(bytes)*8; bit++ {
		prefix := netip.PrefixFrom(a, bit).Masked()
		if r.hash("bit", prefix.String())[0]&1 == 1 {
			out[bit/8] ^= 0x80 >> (bit % 8)
		}
	}
	replaced, _ := netip.AddrFromSlice(out)
	return replaced
}

func (r *Redactor) hash(kind, text string) []byte {
	h := hmac.New(sha256.New, r.key)
	h.Write([]byte(kind + "\x00" + text))
	return h.Sum(nil)
}

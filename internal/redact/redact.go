// Package redact replaces addresses and names in text, the same one always by the
// same, so that a bug report can be read and tells nothing.
package redact

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
)

// A Redactor holds the key of one report.
type Redactor struct {
	key   []byte
	names map[string]string
	order []string
}

// New returns a Redactor with a key of its own. Names are replaced by WORD-1, WORD-2
// and so on, by the word that they are mapped by.
func New(names map[string][]string) *Redactor {
	key := make([]byte, sha256.Size)
	_, _ = rand.Read(key) // It never fails (crypto/rand).
	return NewWith(key, names)
}

// NewWith returns a Redactor with a given key, for tests.
func NewWith(key []byte, names map[string][]string) *Redactor {
	r := &Redactor{key: key, names: map[string]string{}}
	for word, list := range names {
		n := 0
		for _, name := range list {
			if _, known := r.names[name]; known || len(name) < 2 {
				continue
			}
			n++
			r.names[name] = fmt.Sprintf("%s-%d", word, n)
			r.order = append(r.order, name)
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

var (
	mac  = regexp.MustCompile(`(?i)\b[0-9a-f]{2}(:[0-9a-f]{2}){5}\b`)
	uuid = regexp.MustCompile(`(?i)\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b`)
	// What may be an address; netip decides.
	candidate = regexp.MustCompile(`(?i)[0-9a-f]*:[0-9a-f:]*(?:\d+\.\d+\.\d+\.\d+)?(?:/\d+)?|\b\d{1,3}(?:\.\d{1,3}){3}(?:/\d+)?\b`)
)

// Text redacts a text.
func (r *Redactor) Text(s string) string {
	s = uuid.ReplaceAllStringFunc(s, func(u string) string {
		h := hex.EncodeToString(r.hash("uuid", strings.ToLower(u)))
		return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:32]
	})
	s = mac.ReplaceAllStringFunc(s, func(m string) string {
		h := r.hash("mac", strings.ToLower(m))
		return fmt.Sprintf("02:%02x:%02x:%02x:%02x:%02x", h[0], h[1], h[2], h[3], h[4])
	})
	s = candidate.ReplaceAllStringFunc(s, r.address)
	for _, name := range r.order {
		s = replaceWord(s, name, r.names[name])
	}
	return s
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
		if i > 0 && isWord(s[i-1]) || end < len(s) && isWord(s[end]) {
			b.WriteString(s[:end])
		} else {
			b.WriteString(s[:i] + by)
		}
		s = s[end:]
	}
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
	p, err := netip.ParsePrefix(text)
	if err != nil {
		return text
	}
	if p.Masked() == p {
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
	if a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() || a.Is4() && a == netip.AddrFrom4([4]byte{255, 255, 255, 255}) {
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

// Package dnsname checks domain names from NetworkManager, DHCP clients and hooks.
package dnsname

import (
	"fmt"
	"strings"
)

// Parse checks a domain and returns it in lower case, without a final dot. The
// lengths are those of RFC 1035 (section 2.3.4). It allows underscores: host names have none,
// but many domains do.
func Parse(s string) (string, error) {
	d := strings.TrimSuffix(s, ".")
	if len(d) > 253 {
		return "", fmt.Errorf("a domain of %d bytes, at most 253 are possible", len(d))
	}
	if !Plain(d) {
		return "", fmt.Errorf("%q is no domain: only letters, digits and - . _ are", s)
	}
	for label := range strings.SplitSeq(d, ".") {
		if label == "" || len(label) > 63 {
			return "", fmt.Errorf("%q is no domain: a label has 1 to 63 bytes", s)
		}
	}
	return strings.ToLower(d), nil
}

// Plain reports whether a text holds only ASCII letters and digits and the characters - . _.
func Plain(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '.' && c != '_' {
			return false
		}
	}
	return true
}

package dnsname_test

import (
	"strings"
	"testing"

	"multihomed/internal/dnsname"
)

func TestParse(t *testing.T) {
	t.Parallel()
	longest := strings.Repeat("a.", 126) + "b" // 253 bytes
	for text, want := range map[string]string{
		"Example.NET": "example.net", "example.net.": "example.net", "_srv.a-b": "_srv.a-b", longest: longest, longest + ".": longest,
		strings.Repeat("a", 63): strings.Repeat("a", 63),
	} {
		if got, err := dnsname.Parse(text); got != want || err != nil {
			t.Errorf("%q is %q, %v", text, got, err)
		}
	}
	for _, text := range []string{"", ".", "..", "a..", "a..b", ".a", "a b", "a/b", "a\nb", "\u212aelvin", "~a", longest + "c", strings.Repeat("a", 64)} {
		if got, err := dnsname.Parse(text); err == nil {
			t.Errorf("%q is %q", text, got)
		}
	}
}

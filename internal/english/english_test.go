package english_test

import (
	"testing"

	"multihomed/internal/english"
)

func TestCount(t *testing.T) {
	t.Parallel()
	for want, c := range map[string]struct {
		n    int
		noun string
	}{"0 rules": {0, "rule"}, "1 rule": {1, "rule"}, "2 rules": {2, "rule"}, "1 address": {1, "address"}, "2 addresses": {2, "address"}} {
		if got := english.Count(c.n, c.noun); got != want {
			t.Errorf("%q, not %q", got, want)
		}
	}
}

package suggest_test

import (
	"testing"

	"multihomed/internal/suggest"
)

func TestFor(t *testing.T) {
	t.Parallel()
	words := []string{"status", "lease", "release", "flush", "config", "version", "report", "migrate"}
	for written, want := range map[string]string{
		"stauts": "status", "stat": "status", "STATUS": "status", "relase": "release", "flsh": "flush", "conf": "config",
		"xyz": "", "": "", "a": "", "reprot": "report", "somethingelse": "",
	} {
		if got := suggest.For(written, words); got != want {
			t.Errorf("%q: did you mean %q, want %q", written, got, want)
		}
	}
}

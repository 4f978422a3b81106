package cli_test

import (
	"bytes"
	"strings"
	"testing"

	"multihomed/internal/cli"
)

// TestShowOnly: whatever word selects a link, it is shown, and the totals are of what is
// shown.
func TestShowOnly(t *testing.T) {
	for _, c := range []struct {
		words         []string
		shown, hidden []string
		total         string
		unknownWord   bool
	}{
		{words: []string{"wan0"}, shown: []string{"wan0 uplink"}, total: "16 of 16 rules and routes active, on 1 link", hidden: []string{"wwan0", "lan0", "for all links", "docker0"}},
		{words: []string{"w*"}, shown: []string{"wan0 uplink", "wwan0 uplink", "wg0"}, total: "24 of 24 rules and routes active, on 2 links", hidden: []string{"lan0"}},
		{words: []string{"Office", "10.120.4.9"}, shown: []string{"wwan0 uplink", "lan0 local"}, total: "12 of 12 rules and routes active, on 2 links", hidden: []string{"wan0 uplink"}},
		{words: []string{"10001"}, shown: []string{"wan0 uplink"}, total: "16 of 16 rules and routes active, on 1 link", hidden: []string{"lan0"}},
		{words: []string{"docker0"}, shown: []string{"docker0"}, hidden: []string{"wan0", "there are no links"}},
		{words: []string{"wan9"}, unknownWord: true},
	} {
		s := sound()
		s.Shared[0].State = "missing" // It serves all links, and is not asked for.
		var out bytes.Buffer
		err := cli.ShowOnly(&out, s, c.words...)
		if (err != nil) != c.unknownWord {
			t.Fatalf("%v: %v", c.words, err)
		}
		text := out.String()
		fields := strings.Join(strings.Fields(text), " ")
		for _, want := range append(c.shown, c.total) {
			if !strings.Contains(" "+fields, " "+want) {
				t.Errorf("%v: no %q in\n%s", c.words, want, text)
			}
		}
		for _, not := range c.hidden {
			if strings.Contains(" "+fields, " "+not) {
				t.Errorf("%v: %q in\n%s", c.words, not, text)
			}
		}
	}
}

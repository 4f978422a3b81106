package e2e_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"multihomed/test/lab"
	"multihomed/test/lab/labtest"
)

// TestOwnersDeleteTheirOwn: deleting a rule by its selectors alone deletes the owner's rule and not
// its lift. If no other selectors match the same packets, the lift stays away, so that repeated
// deletion ends.
func TestOwnersDeleteTheirOwn(t *testing.T) {
	r := staticRig(t, 2, "")
	v4 := func() string {
		rules, err := r.RulesText(t.Context(), lab.IPv4)
		r.must(err)
		return rules
	}
	lifted := func(priority string, want bool) {
		t.Helper()
		labtest.Eventually(t, func() error {
			if rules := v4(); strings.Contains(rules, "goto "+priority+" ") != want {
				return fmt.Errorf("a goto to %s: want %t:\n%s", priority, want, rules)
			}
			return nil
		})
	}
	for i, words := range []string{
		"fwmark 1", "fwmark 0x10/0xf0", "fwmark 0x80000000", "uidrange 1001-1001", "uidrange 2000-2999",
		"to 10.5.0.0/16", "from 10.6.0.0/16", "dport 80-90 ipproto tcp", "uidrange 1002-1002 ipproto udp",
	} {
		priority := fmt.Sprint(31000 + i)
		r.ip(append(strings.Fields("rule add priority "+priority+" lookup 300"), strings.Fields(words)...)...)
		lifted(priority, true)
		r.ip(append([]string{"rule", "del"}, strings.Fields(words)...)...)
		if rules := v4(); strings.Contains(rules, priority+":") {
			t.Errorf("`ip rule del %s` left the owner's rule:\n%s", words, rules)
		}
		lifted(priority, false)
	}
	// By the address of a link, which our rungs have too.
	r.settled()
	before := v4()
	address := staticAddr(1).String()
	r.ip("rule", "add", "priority", "32000", "from", address, "lookup", "300")
	lifted("32000", true)
	count := 0
	for ; count < 50; count++ {
		if _, err := r.IP(t.Context(), "rule", "del", "from", address); err != nil {
			break
		}
	}
	// The lift, the rungs of the ladder and behind it, and the owner's own.
	if count == 50 || strings.Contains(v4(), "32000:") {
		t.Errorf("%d deletions, and still:\n%s", count, v4())
	}
	labtest.Eventually(t, func() error {
		if now := v4(); now != before {
			return errors.Join(errors.New("the ladder is not as before"), errors.New(now))
		}
		return nil
	})
	t.Logf("%d deletions until nothing was left", count)
}

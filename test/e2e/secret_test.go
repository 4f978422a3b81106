package e2e_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"multihomed/routing"
	"multihomed/test/lab"
	"multihomed/test/lab/labtest"
)

// TestSecretProfile: a profile that NetworkManager shows to root alone
// (connection.permissions) is passed on by the dispatcher, which is root, to the daemon,
// which is not. Its link gets routing as any other, and the settings of the profile count.
func TestSecretProfile(t *testing.T) {
	r := dispatched(t, "")
	ctx := t.Context()
	r.must(r.Modify(ctx, "wan1", "connection.permissions", "user:root"))
	r.startAsUser()
	r.up("wan0", "wan1")
	r.settled("wan0", "wan1")
	fault := func() *routing.Problem {
		t.Helper()
		s, err := r.json()
		r.must(err)
		for _, p := range s.Problems {
			if p.Code == routing.NotUnderstood && p.Link == "wan1" {
				return &p.Problem
			}
		}
		return nil
	}
	if p := fault(); p != nil {
		t.Errorf("status complains: %+v", p)
	}

	// What it says is followed.
	r.must(r.Modify(ctx, "wan1", "ipv4.never-default", "yes", "ipv6.never-default", "yes"))
	r.must(r.Reapply(ctx, "wan1"))
	labtest.Eventually(t, func() error { return r.ladderWithout("91000", "wan1", lab.IPv4) })
	r.must(r.Modify(ctx, "wan1", "ipv4.never-default", "no", "ipv6.never-default", "no", "ipv6.route-table", "77"))
	r.up("wan1")
	labtest.Eventually(t, func() error {
		s, err := r.json()
		if err != nil {
			return err
		}
		for _, l := range s.Links {
			if l.Interface == "wan1" && l.LeftAlone["ipv6"] == `profile "wan1" sets ipv6.route-table=77` {
				return r.ladder("wan1", lab.IPv4)
			}
		}
		return fmt.Errorf("IPv6 is not left alone: %+v", s.Links)
	})
	r.must(r.Modify(ctx, "wan1", "ipv6.route-table", "0"))
	r.up("wan1")
	r.settled("wan0", "wan1")

	// It outlives the daemon, and NetworkManager.
	r.kill9()
	r.startAsUser()
	r.settled("wan0", "wan1")
	if p := fault(); p != nil {
		t.Errorf("after a restart: %+v", p)
	}
	r.must(r.RestartNM(ctx))
	r.settled("wan0", "wan1")
	labtest.Eventually(t, func() error {
		if p := fault(); p != nil {
			return fmt.Errorf("after NetworkManager's restart: %+v", p)
		}
		return nil
	})

	// If it was not passed on, the link is left alone, and the fix works.
	r.must(r.Down(ctx, "wan1"))
	labtest.Eventually(t, func() error { return r.lacks(lab.IPv4, "oif wan1") })
	passed := filepath.Join(r.cfg.RuntimeDir, "profiles", "wan1.json")
	labtest.Eventually(t, func() error {
		if _, err := os.Stat(passed); !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("what was passed on is still there (%w)", err)
		}
		return nil
	})
	const script = "/usr/sbin/multihomed-dispatcher"
	r.must(os.Chmod(script, 0o644))
	r.up("wan1")
	labtest.Eventually(t, func() error {
		if p := fault(); p == nil || !strings.Contains(p.Text+p.Fix, "nmcli device reapply wan1") {
			return fmt.Errorf("status says %+v", p)
		}
		return nil
	})
	r.must(r.lacks(lab.IPv4, "oif wan1"))
	r.must(os.Chmod(script, 0o755))
	r.must(r.Reapply(ctx, "wan1"))
	r.settled("wan0", "wan1")
	// The administrator gives it to everybody.
	r.must(r.Modify(ctx, "wan1", "connection.permissions", ""))
	r.up("wan1")
	r.settled("wan0", "wan1")
	labtest.Eventually(t, func() error {
		if _, err := os.Stat(passed); !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("what was passed on is still there (%w)", err)
		}
		return nil
	})
}

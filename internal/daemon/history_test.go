package daemon_test

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"multihomed/internal/cleanup"
	"multihomed/internal/daemon"
	"multihomed/routing"
)

func policyOf(first, last routing.TableID, group uint32) routing.Policy {
	return routing.Policy{Tables: routing.TableRange{First: first, Last: last}, UplinkGroup: group}
}

// TestHistoryLosesNothing wants an earlier configuration to be known until what
// it left is gone, however often the daemon is killed meanwhile and whatever is
// configured next.
func TestHistoryLosesNothing(t *testing.T) {
	directory := t.TempDir()
	var log bytes.Buffer
	open := func(p routing.Policy) daemon.History {
		return daemon.OpenHistory(t.Context(), slog.New(slog.NewTextHandler(&log, nil)), directory, p)
	}
	wants := func(h daemon.History, past ...cleanup.Era) {
		t.Helper()
		if !slices.Equal(h.Past(), past) {
			t.Errorf("past %v, not %v", h.Past(), past)
		}
	}
	first, second, third := policyOf(10000, 10999, 28008), policyOf(20100, 20999, 28008), policyOf(20100, 20999, 4711)
	wants(open(first))
	wants(open(first))
	wants(open(second), cleanup.EraOf(first))
	// Killed before it was clean; and another configuration; and back.
	wants(open(second), cleanup.EraOf(first))
	wants(open(third), cleanup.EraOf(first), cleanup.EraOf(second))
	h := open(first)
	wants(h, cleanup.EraOf(second), cleanup.EraOf(third))
	h.Cleaned(t.Context())
	wants(open(first))
	if log.Len() > 0 {
		t.Errorf("complaints:\n%s", log.String())
	}
}

// TestHistoryDamaged wants no start to fail for it, and no table to be taken for
// ours that cannot be.
func TestHistoryDamaged(t *testing.T) {
	for name, text := range map[string]string{
		"empty": "", "no JSON": "tables", "no list": "{}", "types": `[{"first_table":"x"}]`,
		"kernel's tables": `[{"first_table":1,"last_table":4294967295,"uplink_group":28008},{"first_table":254,"last_table":254,"uplink_group":1},
			{"first_table":0,"last_table":5,"uplink_group":1},{"first_table":20,"last_table":5,"uplink_group":1},{"first_table":1000,"last_table":1001,"uplink_group":0}]`,
	} {
		t.Run(name, func(t *testing.T) {
			directory := t.TempDir()
			path := filepath.Join(directory, cleanup.HistoryName)
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			var log bytes.Buffer
			h := daemon.OpenHistory(t.Context(), slog.New(slog.NewTextHandler(&log, nil)), directory, policyOf(10000, 10999, 28008))
			if len(h.Past()) > 0 {
				t.Errorf("past: %v", h.Past())
			}
			if name != "kernel's tables" && !strings.Contains(log.String(), "earlier configurations unknown") {
				t.Errorf("it says: %s", log.String())
			}
			if eras, err := cleanup.ReadEras(directory); err != nil || len(eras) != 1 {
				t.Errorf("afterwards: %v, %v", eras, err)
			}
		})
	}
	// Nowhere to write.
	var log bytes.Buffer
	daemon.OpenHistory(t.Context(), slog.New(slog.NewTextHandler(&log, nil)), filepath.Join(t.TempDir(), "away"), policyOf(10000, 10999, 28008))
	if !strings.Contains(log.String(), "not recorded") {
		t.Errorf("it says: %s", log.String())
	}
}

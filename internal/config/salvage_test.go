package config_test

import (
	"os"
	"path/filepath"
	"testing"

	"multihomed/internal/config"
	"multihomed/routing"
)

// TestSalvage: of a file that cannot be used, what says where things are still counts.
func TestSalvage(t *testing.T) {
	path := filepath.Join(t.TempDir(), "multihomed.toml")
	sound := "state_dir = \"/var/a\"\nruntime_dir = '/run/b' # there\nuplink_group = 77\n\n[tables]\nfirst = 21000\nlast = 21099\n\n[repair]\nburst = 5\n"
	cases := []struct {
		name, text string
		fails      bool
		want       func(*config.Config)
	}{
		{"sound", sound, false, func(c *config.Config) { c.RepairBurst = 5 }},
		{"unknown key", "nonsense = 1\n" + sound, true, func(*config.Config) {}},
		{"no TOML", "}{\n" + sound, true, func(*config.Config) {}},
		{"a bad value", sound + "first = 1\n", true, func(*config.Config) {}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			if err := os.WriteFile(path, []byte(c.text), 0o600); err != nil {
				t.Fatal(err)
			}
			want := config.Default()
			want.StateDir, want.RuntimeDir, want.UplinkGroup = "/var/a", "/run/b", 77
			want.Tables = routing.TableRange{First: 21000, Last: 21099}
			c.want(&want)
			cfg, err := config.Salvage(path)
			if (err != nil) != c.fails {
				t.Errorf("error %v", err)
			}
			if cfg.StateDir != want.StateDir || cfg.RuntimeDir != want.RuntimeDir || cfg.UplinkGroup != want.UplinkGroup || cfg.Tables != want.Tables || cfg.RepairBurst != want.RepairBurst {
				t.Errorf("have %+v, want %+v", cfg, want)
			}
		})
	}
	if cfg, err := config.Salvage(filepath.Join(t.TempDir(), "none")); err != nil || cfg.StateDir != config.Default().StateDir {
		t.Errorf("without a file: %+v, %v", cfg, err)
	}
	if _, err := config.Salvage(t.TempDir()); err == nil {
		t.Error("a directory is no configuration")
	}
}

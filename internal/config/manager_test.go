package config_test

import (
	"os"
	"path/filepath"
	"testing"

	"multihomed/internal/config"
)

func TestPresence(t *testing.T) {
	t.Parallel()
	installed := filepath.Join(t.TempDir(), "NetworkManager")
	if err := os.WriteFile(installed, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	missing := installed + "-not"
	for _, test := range []struct {
		configured config.Presence
		program    string
		want       bool
	}{
		{config.Auto, installed, true},
		{config.Auto, missing, false},
		{config.Yes, missing, true},
		{config.No, installed, false},
	} {
		if got := config.InstalledAs(test.configured, missing, test.program); got != test.want {
			t.Errorf("%s with %s: %v", test.configured, filepath.Base(test.program), got)
		}
	}
}

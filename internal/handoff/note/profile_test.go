package note_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"multihomed/dispatcher"
	"multihomed/internal/handoff/note"
	"multihomed/routing"
)

// TestMain keeps the tests away from the machine's bus.
func TestMain(m *testing.M) {
	if err := os.Setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nonexistent/bus"); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

// TestPassed: what was passed on of a profile is believed if it can be one, stays while
// NetworkManager cannot be asked, and goes when the link does.
func TestPassed(t *testing.T) {
	t.Parallel()
	runtime := t.TempDir()
	directory := filepath.Join(runtime, "profiles")
	if err := os.Mkdir(directory, 0o755); err != nil {
		t.Fatal(err)
	}
	passed := note.Passed(runtime)
	path := filepath.Join(directory, "wan%2F0.json")
	for text, good := range map[string]bool{
		`{"uuid":"1-2-3","ipv4":{"gateway":"192.0.2.1","never_default":true},"ipv6":{},"tables":[77]}`: true,
		`{"uuid":"1-2-3","ipv4":{"gateway":"2001:db8::1"}}`:                                            false,
		`{"uuid":"1-2-3","ipv6":{"gateway":"fe80::1%wan0"}}`:                                           false,
		`{"ipv4":{"gateway":"192.0.2.1"}}`:                                                             false,
		`nonsense`:                                                                                     false,
		``:                                                                                             false,
		`{"uuid":"1-2-3","problems":["` + strings.Repeat("x", 1<<20) + `"]}`: false,
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		p, is := passed("wan/0")
		if is != good || good && (!p.IPv4.NeverDefault || p.IPv4.Gateway.String() != "192.0.2.1") {
			t.Errorf("%.80q: %+v, %t", text, p, is)
		}
	}
	if _, is := passed("wan1"); is {
		t.Error("it is of another interface")
	}
	// A link in the place of the file is not followed.
	if err := os.Rename(path, filepath.Join(runtime, "elsewhere")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(runtime, "elsewhere"), path); err != nil {
		t.Fatal(err)
	}
	if _, is := passed("wan/0"); is {
		t.Error("a symbolic link was followed")
	}

	path = filepath.Join(directory, "lo.json")
	stands := func(when string, want bool) {
		t.Helper()
		if _, err := os.Stat(path); (err == nil) != want {
			t.Errorf("%s: %v", when, err)
		}
	}
	if err := os.WriteFile(path, []byte(`{"uuid":"1-2-3"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	event := func(caller, action string, effect dispatcher.Effect) {
		t.Helper()
		take(t, runtime, dispatcher.Event{Caller: caller, Action: action, Interface: "lo", Effect: effect, Configs: of(true, routing.IPv4)})
	}
	event("NetworkManager", "up", dispatcher.Configured)
	event("NetworkManager", "reapply", dispatcher.Changed)
	event("dhclient", "EXPIRE", dispatcher.Gone)
	stands("NetworkManager cannot be asked", true)
	event("NetworkManager", "down", dispatcher.Gone)
	stands("it is down", false)
	if err := os.WriteFile(path, []byte(`{"uuid":"1-2-3"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	event("udev", "remove", dispatcher.Removed)
	stands("it was removed", false)
}

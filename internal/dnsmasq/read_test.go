package dnsmasq_test

import (
	"bytes"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"multihomed/internal/dnsmasq"
)

// TestRead: what was written is read, and written the same.
func TestRead(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "servers")
	f := dnsmasq.New(path, "", slog.New(slog.DiscardHandler))
	if servers, err := f.Read(); err != nil || servers != nil {
		t.Errorf("without a file: %v, %v", servers, err)
	}
	text := dnsmasq.Render([]dnsmasq.Server{
		server("wan0", "192.0.2.1", "192.0.2.10"), server("wan0", "fe80::1", ""),
		{Interface: "lan0", Address: netip.MustParseAddr("2001:db8::1"), Domains: []string{"lab", "corp.example"}, OnlyDomains: true},
		{Interface: "wan1", Address: netip.MustParseAddr("192.0.2.3"), Source: netip.MustParseAddr("192.0.2.11"), Dead: true},
		{Interface: "lan1", Address: netip.MustParseAddr("192.0.2.2"), Domains: []string{"lab"}},
	})
	write := func(text []byte) {
		t.Helper()
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(append(bytes.Clone(text), "server=\nserver=/x\nserver=1.2.3.4\nserver=nonsense@wan0\nserver=1.2.3.4@wan0@x\nserver=1.2.3.4@wan0@::1\naddress=/x/1.2.3.4\n"...))
	servers, err := f.Read()
	if err != nil || len(servers) != 7 {
		t.Fatalf("%d servers, %v: %v", len(servers), err, servers)
	}
	if again := dnsmasq.Render(servers); !bytes.Equal(again, text) {
		t.Errorf("written again:\n%s\nwant:\n%s", again, text)
	}
	write([]byte("server=192.0.2.1@wan0\n"))
	if servers, err := f.Read(); err != nil || servers != nil {
		t.Errorf("somebody else's: %v, %v", servers, err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Read(); err == nil {
		t.Error("a directory was read")
	}
}

package cli_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"multihomed/test/schematest"
)

// TestReportRedacted: what a redacted report must not say, it says in no spelling.
func TestReportRedacted(t *testing.T) {
	h := newHost(t)
	secrets := []string{"SecretBridge", "SecretUnused", "SecretIdle", "SecretGhost", "Café", "Söcrët", "slash", "quote", "02000000aa01", "ACME"}
	nm := func(args ...string) {
		t.Helper()
		_, err := h.NMCLI(t.Context(), args...)
		h.must(err)
	}
	nm("connection", "modify", "wan0", "connection.id", "Café:Söcrët Net")
	nm("connection", "modify", "wan1", "connection.id", `back\slash"quote`)
	nm("connection", "add", "type", "bridge", "ifname", "br7", "con-name", "SecretBridge", "bridge.stp", "yes", "bridge.mac-address", "02:77:88:99:AA:BB", "ipv4.method", "disabled", "ipv6.method", "disabled")
	nm("connection", "up", "SecretBridge")
	nm("connection", "add", "type", "ethernet", "ifname", "none7", "con-name", "SecretIdle", "autoconnect", "no")
	h.ip("link", "property", "add", "dev", "wan0", "altname", "enx02000000aa01")
	h.ip("link", "set", "wan1", "alias", "to ACME")
	h.ip("rule", "add", "priority", "30000", "from", "198.18.7.7", "to", "172.20.5.5", "lookup", "99")
	h.must(os.MkdirAll("/etc/multihomed", 0o755))
	h.must(os.WriteFile("/etc/multihomed/multihomed.toml", []byte("[[link]]\nprofile = \"SecretUnused\"\nrole = \"local\"\n"), 0o644))
	h.must(os.WriteFile("/var/lib/multihomed/off.json", []byte(`{"schema":1,"links":[{"uuid":"0d6a5bf2-8f6c-4a57-a1f4-0e4d5b9d1d11","profile":"SecretGhost","interface":"wan9","since":"2026-11-28T07:10:00Z","by":"alice"}]}`), 0o644))
	h.launch()
	// The journal keeps who switched something off, when it is on again.
	bin := t.TempDir()
	h.must(os.WriteFile(filepath.Join(bin, "journalctl"), []byte("#!/bin/sh\necho 'notice: wan1: link switched off (since 2026-11-29 16:45:14 +0000 UTC, by bertha)'\n"), 0o755))
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	directory := t.TempDir()
	read := func(name string, more ...string) string {
		t.Helper()
		path := filepath.Join(directory, name)
		if r := h.ctl(append([]string{"report", "-o", path}, more...)...); r.status != 0 {
			t.Fatal(r)
		}
		var all strings.Builder
		files := os.DirFS(path)
		h.must(fs.WalkDir(files, ".", func(name string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			text, err := fs.ReadFile(files, name)
			all.WriteString("== " + name + "\n" + string(text) + "\n")
			return err
		}))
		return all.String()
	}
	plain, redacted := read("plain"), read("redacted", "--redact")
	for _, s := range append(secrets, "alice", "bertha") {
		if s != "SecretIdle" && !strings.Contains(plain, s) { // That one may be in the journal.
			t.Errorf("nothing is proven for %q, which is in no report", s)
		}
	}
	for _, pattern := range []string{
		`\b(?:\d{1,3}\.){3}\d{1,3}\b`, `(?i)\b[0-9a-f]{1,2}(?::[0-9a-f]{1,2}){5}\b`, `(?i)\b(?:fe80|2001|fd[0-9a-f]{2}):[0-9a-f:]+`,
		`[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`,
	} {
		secrets = append(secrets, regexp.MustCompile(pattern).FindAllString(plain, -1)...)
	}
	public := regexp.MustCompile(`^(?:fe80::|127\..*|0\.0\.0\.0|255\..*|224\..*|0[0:]*|(?:ff:){5}ff)$`)
	for _, s := range append(secrets, "alice", "bertha") {
		if at := strings.Index(redacted, s); at >= 0 && !public.MatchString(s) {
			t.Errorf("%q leaks: %q", s, redacted[max(at-60, 0):min(at+60, len(redacted))])
		}
	}
	for _, s := range []string{"wan0", "br7", "bridge_id 8000.02:", "altname enx02", "alias [left out]", "profile-1", "lookup 99"} {
		if !strings.Contains(redacted, s) {
			t.Errorf("the report lacks %q", s)
		}
	}
	// Whoever gets the report can ask what packets do on this host, and addresses still have their networks.
	for _, name := range []string{"plain", "redacted"} {
		for _, family := range []string{"ipv4", "ipv6"} {
			if r := h.ctl("explain", "--snapshot", filepath.Join(directory, name, "explain-"+family+".json")); r.status != 0 || !strings.Contains(r.out, " leaves by wan0 ") {
				t.Errorf("%s, %s: %s", name, family, r)
			}
		}
		data, err := os.ReadFile(filepath.Join(directory, name, "doctor.json"))
		h.must(err)
		h.must(schematest.Check("doctor", data))
		data, err = os.ReadFile(filepath.Join(directory, name, "status.json"))
		h.must(err)
		h.must(schematest.Check("status", data))
	}
}

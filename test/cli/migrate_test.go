package cli_test

import (
	"database/sql"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	_ "modernc.org/sqlite" // writes what the ancestor would

	"multihomed/test/lab"
)

// ancestor leaves what the ancestor's server would.
func (h *host) ancestor(offset int, rows ...string) (config string) {
	h.t.Helper()
	dir := h.t.TempDir()
	database := filepath.Join(dir, "ancestor.db")
	db, err := sql.Open("sqlite", database)
	h.must(err)
	defer db.Close()
	statements := []string{`CREATE TABLE RtTables(RtTable INTEGER NOT NULL, AddrFamily INTEGER NOT NULL, Ifname TEXT NOT NULL,
		Addr TEXT NOT NULL, LeaseExpires INTEGER NOT NULL, Tag TEXT, PRIMARY KEY(RtTable, AddrFamily))`}
	for _, r := range rows {
		statements = append(statements, "INSERT INTO RtTables VALUES ("+r+")")
	}
	for _, s := range statements {
		_, err := db.ExecContext(h.t.Context(), s)
		h.must(err)
	}
	config = filepath.Join(dir, "server_config.json")
	h.must(os.WriteFile(config, fmt.Appendf(nil, `{
	// as shipped
	"socket_path": "tas_socket", "table_offset": %d, "num_tables": 40, "table_timeout": 7200,
	"db_path": %q, "do_syslog": true, "addr_families": {"inet": true, "inet6": true}
}`, offset, database), 0o600))
	return config
}

// TestMigrate: a dry run changes nothing; then the links and the clients of this
// host have the numbers that they had.
func TestMigrate(t *testing.T) {
	h := newHost(t)
	four, err := h.WaitAddr(t.Context(), "wan1", lab.IPv4)
	h.must(err)
	config := h.ancestor(12000,
		fmt.Sprintf(`12007, 2, 'wan1', '%s', 123456789, NULL`, four),
		`12009, 2, 'ppp7', '192.0.2.7', 1, 'tag'`, `12009, 10, 'ppp7', '2001:db8:7::7', 1, ''`, `500, 2, 'ppp7', '192.0.2.8', 1, ''`,
	)
	h.ip("rule", "add", "priority", "10000", "from", "192.0.2.7", "lookup", "12009")
	defer h.ip("rule", "del", "priority", "10000", "from", "192.0.2.7", "lookup", "12009")

	const file, database = "/etc/multihomed/multihomed.toml", "/var/lib/multihomed/leases.db"
	t.Cleanup(func() { h.must(os.Remove(file)) })
	dry := h.ctl("migrate", "--from", config)
	for _, line := range []string{
		"would write " + file, "first = 12000\n", "last = 12999\n", "lifetime = 7200\n",
		"wan1 " + four.String() + ", table 12007: would be taken over\n",
		"ppp7 192.0.2.7, table 12009: would be taken over\n",
		"ppp7 2001:db8:7::7, table 12009: not taken over: the table is that of ppp7 192.0.2.7; it gets another number when it asks\n",
		"ppp7 192.0.2.8, table 500: not taken over: the range of tables is 12000-12999;",
		"    ip -4 rule del priority 10000 from 192.0.2.7/32 lookup 12009\n",
		"nothing was changed",
	} {
		if !strings.Contains(dry.out, line) {
			t.Errorf("dry run lacks %q: %s", line, dry)
		}
	}
	for _, path := range []string{file, database} {
		if _, err := os.Stat(path); err == nil {
			t.Errorf("a dry run made %s", path)
		}
	}

	done := h.ctl("migrate", "--from", config, "--apply")
	if done.status != 1 || !strings.Contains(done.out, "wrote "+file) || !strings.Contains(done.out, "table 12007: taken over") || !strings.Contains(done.err, "2 numbers not taken over") {
		t.Errorf("apply: %s", done)
	}
	again := h.ctl("migrate", "--from", config, "--apply")
	if !strings.Contains(again.out, "table 12007: is there already") || !strings.Contains(again.out, "the active configuration needs no change") {
		t.Errorf("apply again: %s", again)
	}

	h.start()
	for _, l := range h.status().Links {
		if n := network(l, "ipv4"); l.Interface == "wan1" && n.Table != 12007 {
			t.Errorf("wan1 has table %d, had 12007", n.Table)
		}
	}
	if r := h.ctl("lease", "-i", "ppp7", "-a", "192.0.2.7", "--no-routing"); table(r) != "12009" {
		t.Errorf("the client got %s", r)
	}
	if r := h.ctl("migrate", "--from", config, "--apply"); r.status != 1 || !strings.Contains(r.err, "systemctl stop multihomed") {
		t.Errorf("beside the daemon: %s", r)
	}
}

// TestMigrateIntoAConfiguration: a file that is there is the administrator's.
func TestMigrateIntoAConfiguration(t *testing.T) {
	h := newHost(t)
	config := h.ancestor(30000, `30001, 2, 'ppp7', '192.0.2.7', 1, ''`)
	own := filepath.Join(t.TempDir(), "multihomed.toml")
	const text = "[allocator]\nenabled = false\n"
	h.must(os.WriteFile(own, []byte(text), 0o600))
	r := h.ctl("migrate", "--from", config, "--config", own, "--apply")
	if r.status != 1 || !strings.Contains(r.out, "stays as it is") || !strings.Contains(r.out, "first = 30000") ||
		!strings.Contains(r.out, "enabled = true") || !strings.Contains(r.out, "not taken over: the range of tables is 10000-10999") {
		t.Errorf("apply: %s", r)
	}
	if now, err := os.ReadFile(own); err != nil || string(now) != text {
		t.Errorf("the configuration is %q, %v", now, err)
	}
	if r := h.ctl("migrate", "--from", "/nonexistent"); r.status != 1 || !strings.Contains(r.err, "--from") {
		t.Errorf("without the ancestor: %s", r)
	}
}

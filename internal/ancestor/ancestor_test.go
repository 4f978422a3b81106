package ancestor_test

import (
	"database/sql"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"multihomed/allocator"
	"multihomed/internal/ancestor"
	"multihomed/routing"
)

const good = `{
	"socket_path": "tas_socket", // the // in "here" is a comment
	"table_offset": 10000,
	"num_tables": 40,
	"table_timeout": 70000,
	"db_path": "/tmp//table_\"allocator\".db",
	"do_syslog": true,
	//"log_path": "/tmp/tas.log",
	"addr_families": {
		"inet": true,
		"inet6": false,
		"unspec": true
	},
	"colour": "green"
}
`

func TestConfig(t *testing.T) {
	t.Parallel()
	got, err := ancestor.ParseConfig("f", []byte(good))
	if err != nil {
		t.Fatal(err)
	}
	want := ancestor.Config{
		Socket: "tas_socket", Tables: routing.TableRange{First: 10000, Last: 10039}, Lifetime: 70000 * time.Second,
		Database: `/tmp//table_"allocator".db`, Families: []routing.Family{0, routing.IPv4}, Unknown: []string{"colour"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	path := filepath.Join(t.TempDir(), "config.json")
	if err := os.WriteFile(path, []byte(good), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := ancestor.ReadConfig(path); err != nil || got.Socket != "tas_socket" {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := ancestor.ReadConfig(path + ".none"); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "--from") {
		t.Errorf("a missing file: %v", err)
	}
}

func TestBadConfigs(t *testing.T) {
	t.Parallel()
	change := func(old, text string) string { return strings.Replace(good, old, text, 1) }
	for name, test := range map[string]struct{ text, want string }{
		"empty":        {"", "f:1: not JSON: it ends too early"},
		"cut":          {good[:60], "not JSON: "},
		"syntax":       {change(`40,`, `40;`), "f:4: not JSON: "},
		"type":         {change(`40,`, `"40",`), "f:4: num_tables is a string"},
		"behind":       {good + "{}", "f:16: text after the object; to fix: remove it"},
		"list":         {"[]", "array"},
		"no socket":    {change(`"tas_socket"`, `""`), "f: socket_path is missing"},
		"no tables":    {change(`"num_tables": 40,`, ``), "table_offset or num_tables is missing"},
		"zero":         {change(`10000`, `0`), "table_offset 0 and num_tables 40 make no range"},
		"overflow":     {change(`10000`, `4294967290`), "make no range"},
		"negative":     {change(`70000`, `-1`), "table_timeout is missing or makes no sense"},
		"no family":    {strings.ReplaceAll(good, "true,\n\t\t", "false,\n\t\t"), "addr_families"},
		"several":      {"{}", "socket_path is missing; want the abstract name of the server's socket; table_offset"},
		"no database":  {change(`"db_path"`, `"db"`), "db_path is missing"},
		"only comment": {"// {}", "f:1: not JSON"},
	} {
		_, err := ancestor.ParseConfig("f", []byte(test.text))
		if name == "no family" {
			_, err = ancestor.ParseConfig("f", []byte(strings.NewReplacer(`"inet": true`, `"inet": false`, `"unspec": true`, `"unspec": false`).Replace(good)))
		}
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
	}
}

func FuzzConfig(f *testing.F) {
	f.Add([]byte(good))
	f.Add([]byte(`{"a":"\\"}//`))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := ancestor.ParseConfig("f", data)
		if err == nil && (c.Socket == "" || c.Tables.First == 0 || c.Tables.Last < c.Tables.First || len(c.Families) == 0 || c.Lifetime <= 0) {
			t.Errorf("%q gives %+v", data, c)
		}
	})
}

// database makes one as the ancestor has it.
func database(t *testing.T, rows ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "ancestor.db")
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	statements := []string{`CREATE TABLE RtTables(RtTable INTEGER NOT NULL, AddrFamily INTEGER NOT NULL, Ifname TEXT NOT NULL,
		Addr TEXT NOT NULL, LeaseExpires INTEGER NOT NULL, Tag TEXT, PRIMARY KEY(RtTable, AddrFamily))`}
	for _, r := range rows {
		statements = append(statements, "INSERT INTO RtTables VALUES ("+r+")")
	}
	for _, s := range statements {
		if _, err := db.ExecContext(t.Context(), s); err != nil {
			t.Fatal(err)
		}
	}
	return path
}

func TestDatabase(t *testing.T) {
	t.Parallel()
	path := database(t,
		`10000, 10, 'wan0', '2001:DB8:0::1', 99, NULL`, `10001, 2, 'wan1', '192.0.2.1', 99, 'tag'`, `10000, 2, 'wan0', '192.0.2.7', 0, ''`,
		`10002, 0, 'wan0', 'a modem', 0, ''`, `-5, 2, 'wan0', '192.0.2.8', 0, ''`, `10003, 77, 'wan0', '192.0.2.9', 0, ''`,
	)
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	rows, err := ancestor.ReadDatabase(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	key := func(f routing.Family, name, address string) allocator.ClientKey {
		return allocator.ClientKey{Family: f, Interface: name, Address: address}
	}
	want := []ancestor.Row{
		{Imported: allocator.Imported{Key: key(0, "wan0", "192.0.2.8")}, Why: "-5 is not a routing table"},
		{Imported: allocator.Imported{Key: key(2, "wan0", "192.0.2.7"), Table: 10000}},
		{Imported: allocator.Imported{Key: key(2, "wan1", "192.0.2.1"), Table: 10001, Tag: "tag"}},
		{Imported: allocator.Imported{Key: key(10, "wan0", "2001:db8::1"), Table: 10000}},
		{Imported: allocator.Imported{Key: key(0, "wan0", "a modem"), Table: 10002}},
		{Imported: allocator.Imported{Key: key(0, "wan0", "192.0.2.9"), Table: 10003}, Why: "address family 77 is unknown"},
	}
	if diff := cmp.Diff(want, rows); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if after, err := os.ReadFile(path); err != nil || string(after) != string(before) {
		t.Errorf("reading changed it, %v", err)
	}
}

func TestBadDatabases(t *testing.T) {
	t.Parallel()
	if _, err := ancestor.ReadDatabase(t.Context(), filepath.Join(t.TempDir(), "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing one: %v", err)
	}
	garbage := filepath.Join(t.TempDir(), "garbage")
	if err := os.WriteFile(garbage, []byte(strings.Repeat("x", 10_000)), 0o600); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(garbage, link); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{garbage, link, t.TempDir(), database(t, `'text', 2, 'wan0', '192.0.2.1', 0, ''`)} {
		if rows, err := ancestor.ReadDatabase(t.Context(), path); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v, %v", path, rows, err)
		}
	}
}

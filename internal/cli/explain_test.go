package cli_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"multihomed/internal/cli"
	"multihomed/internal/explain"
	"multihomed/routing/lookup"
	"multihomed/test/golden"
	"multihomed/test/schematest"
)

// house is the host of the tests of package explain, from its file.
const house = "../explain/testdata/snapshot.json"

// explained explains a question about that host.
func explained(t *testing.T, flow lookup.Flow, changes ...explain.Change) explain.Document {
	t.Helper()
	data, err := os.ReadFile(house)
	if err != nil {
		t.Fatal(err)
	}
	s, err := explain.Load(data)
	if err != nil {
		t.Fatal(err)
	}
	facts := &s.Facts
	if len(changes) > 0 {
		if facts, err = facts.WhatIf(changes); err != nil {
			t.Fatal(err)
		}
	}
	return facts.Explain(flow)
}

func TestRenderExplanation(t *testing.T) {
	t.Parallel()
	to, lte := netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("10.91.0.120")
	for name, d := range map[string]explain.Document{
		"bound":     explained(t, lookup.Flow{To: to, From: lte, IPProto: 6}),
		"user":      explained(t, lookup.Flow{To: to, UID: 1001}),
		"forwarded": explained(t, lookup.Flow{To: netip.MustParseAddr("172.31.0.9"), IIF: "wan1", From: to}),
		"lifted":    explained(t, lookup.Flow{To: netip.MustParseAddr("198.51.100.9"), From: lte, Mark: 7}),
		"what-if":   explained(t, lookup.Flow{To: to}, explain.Change{Link: "wg0"}, explain.Change{Link: "wan0"}),
	} {
		for _, width := range []int{80, 200} {
			for _, colour := range []bool{false, true} {
				var out bytes.Buffer
				if err := cli.RenderExplanation(&out, d, colour, width, false); err != nil {
					t.Fatal(err)
				}
				ending := "txt"
				if colour {
					ending = "ansi"
				} else {
					fitsIn(t, out.String(), width)
				}
				if width == 80 || name == "bound" {
					golden.Compare(t, fmt.Sprintf("explain-%s-%d.%s", name, width, ending), out.Bytes())
				}
			}
		}
		var verbose bytes.Buffer
		if err := cli.RenderExplanation(&verbose, d, false, 80, true); err != nil {
			t.Fatal(err)
		}
		for _, l := range d.Lookups {
			for _, r := range l.Rules {
				if !strings.Contains(verbose.String(), fmt.Sprintf("%5d  %s", r.Priority, r.Text)) {
					t.Errorf("%s: -v does not show the rule %d: %s", name, r.Priority, r.Text)
				}
			}
		}
	}
	data, err := json.MarshalIndent(explained(t, lookup.Flow{To: to, From: lte, IPProto: 6}), "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	golden.Compare(t, "explain-bound.json", append(data, '\n'))
}

// fitsIn checks what is true of every explanation. A rule is not broken: it is there to be copied.
func fitsIn(t *testing.T, text string, width int) {
	t.Helper()
	isRule := regexp.MustCompile(`^ *\d+  `)
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		if utf8.RuneCountInString(line) > width && !isRule.MatchString(line) {
			t.Errorf("more than %d columns: %q", width, line)
		}
		if strings.TrimRight(line, " ") != line || cli.Clean(line) != line {
			t.Errorf("%q", line)
		}
	}
}

// TestFoldedRules: a long ladder takes few lines, which account for each rule.
func TestFoldedRules(t *testing.T) {
	t.Parallel()
	d := explained(t, lookup.Flow{To: netip.MustParseAddr("203.0.113.1"), From: netip.MustParseAddr("10.91.0.120")})
	l := &d.Lookups[0]
	at := slices.IndexFunc(l.Rules, func(r explain.Rule) bool { return r.Result == explain.No && r.Selector == "from" })
	for n := range 300 {
		r := l.Rules[at]
		r.Text = fmt.Sprintf("from 192.0.2.%d lookup 1", n)
		l.Rules = slices.Insert(l.Rules, at+1, r)
	}
	var out bytes.Buffer
	if err := cli.RenderExplanation(&out, d, false, 80, false); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(out.String(), "\n"); n > 40 || !strings.Contains(out.String(), "301 rules by from") {
		t.Errorf("%d lines:\n%s", n, out.String())
	}
	shown := 0
	for _, found := range regexp.MustCompile(`(?m)^ *\d+  (?:(\d+) rules? |\S)`).FindAllStringSubmatch(out.String(), -1) {
		n := 1
		if found[1] != "" {
			_, _ = fmt.Sscan(found[1], &n)
		}
		shown += n
	}
	if shown != len(l.Rules) {
		t.Errorf("%d of %d rules are accounted for:\n%s", shown, len(l.Rules), out.String())
	}
}

// TestExplainCommand wants errors that say what is valid, and statuses for scripts.
func TestExplainCommand(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		args        []string
		status      int
		out, stderr string
	}{
		{nil, 2, "", "needs the address that the packet is for"},
		{[]string{"example.com"}, 2, "", `"example.com" is no address; give one such as 203.0.113.1`},
		{[]string{"203.0.113.1", "--from", "x"}, 2, "", `--from cannot be "x": it is an address such as`},
		{[]string{"203.0.113.1", "--from", "2001:db8::1"}, 2, "", "it is of another family than 203.0.113.1"},
		{[]string{"203.0.113.1", "--proto", "tpc"}, 2, "", "it is a name such as tcp, udp or icmp, or a number from 1 to 255"},
		{[]string{"203.0.113.1", "--dport", "0"}, 2, "", "it is a number from 1 to 65535"},
		{[]string{"203.0.113.1", "--mark", "0x100/0xff"}, 2, "", "bits that the mask leaves out"},
		{[]string{"203.0.113.1", "--mark", "x"}, 2, "", "it is a number such as 16, 0x10 or 0x10/0xff"},
		{[]string{"203.0.113.1", "--tos", "gold"}, 2, "", "it is a number from 0 to 0xff, or one of af11, af12"},
		{[]string{"203.0.113.1", "--uid", "nobody-of-that-name"}, 2, "", "this host has no user of that name"},
		{[]string{"203.0.113.1", "--iif", "br0"}, 2, "", "--iif needs --from"},
		{[]string{"fe80::1"}, 2, "", "add %DEVICE to it"},
		{[]string{"fe80::1%wan0", "--oif", "wan1"}, 2, "", "the address is on wan0, and --oif says wan1"},
		{[]string{"203.0.113.1", "--what-if", "wan0"}, 2, "", `"wan0" is no change: write down:LINK or up:LINK`},
		{[]string{"203.0.113.1", "--oif", "a", "--iif", "b"}, 2, "", "cannot go together"},
		{[]string{"--snapshot", "/nonexistent"}, 2, "", "reading the snapshot"},
		{[]string{"--snapshot", house, "--dport", "4"}, 2, "", "--dport needs an address, too"},
		{[]string{"--snapshot", house, "2001:db8::1"}, 2, "", "rules and routes of IPv4"},
		{[]string{"--snapshot", house, "--what-if", "down:wan9"}, 2, "", "there is no interface wan9; there are lo, wan0"},
		{[]string{"--snapshot", house}, 0, "leaves by wan1 via 10.91.0.1 (rule 10000, table 10001)", ""},
		{[]string{"--snapshot", house, "203.0.113.1", "--from", "10.91.0.120", "--proto", "TCP"}, 0, "leaves by wan1", ""},
		{[]string{"--snapshot", house, "203.0.113.1", "--from", "10.91.0.120", "--tos", "ef", "--mark", "0x7/0xff"}, 0, "with tos 0xb8", ""},
		{[]string{"--snapshot", house, "203.0.113.1", "--from", "10.91.0.120", "--uid", "1001"}, 0, "(rule 9050, table 10001)", ""},
		{[]string{"--snapshot", house, "203.0.113.1", "--from", "10.91.0.120", "--what-if", "down:wan1"}, 1, "is refused: the source is not an address of this host", ""},
	} {
		out, stderr, status := run(t, append([]string{"explain"}, c.args...)...)
		if status != c.status || !strings.Contains(strings.Join(strings.Fields(out), " "), c.out) || !strings.Contains(stderr, c.stderr) || (stderr == "") != (c.stderr == "") {
			t.Errorf("%q: status %d, printed %q, complained %q", c.args, status, out, stderr)
		}
	}
}

// TestExplainDiffers: where the kernel said something else the status is 3, and a snapshot stays.
func TestExplainDiffers(t *testing.T) {
	t.Parallel()
	data, err := os.ReadFile(house)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "other.json")
	data = bytes.ReplaceAll(data, []byte(`"dev": 3,
     "metric": 1073741824`), []byte(`"dev": 2,
     "metric": 1073741824`))
	data = bytes.Replace(data, []byte(`"sent": {
    "type": 1,
    "table": 10001,
    "dst": "0.0.0.0/0",
    "via": "10.91.0.1",
    "dev": 3`), []byte(`"sent": {
    "type": 1,
    "table": 10001,
    "dst": "0.0.0.0/0",
    "via": "10.91.0.1",
    "dev": 2`), 1)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	object, _, status := run(t, "explain", "--json", "--snapshot", path)
	if err := schematest.Check("explain", []byte(object)); err != nil || status != 3 || !strings.Contains(object, `"kernel_agrees": false`) {
		t.Errorf("%d, %v", status, err)
	}
	out, stderr, status := run(t, "explain", "--snapshot", path)
	if status != 3 || !strings.Contains(out, "it says something else") || !strings.Contains(stderr, path) {
		t.Errorf("%d, %q, %q", status, out, stderr)
	}
}

// TestSaveSnapshot reads this host, which needs no rights, and explains it from the file.
func TestSaveSnapshot(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "host.json")
	first, stderr, status := run(t, "explain", "::1", "--save-snapshot", path)
	if status > 1 || stderr != "" {
		t.Fatalf("%d, %q, %q", status, first, stderr)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	// The second line says of which moment that is.
	again, _, other := run(t, "explain", "--snapshot", path)
	lines := strings.SplitAfter(again, "\n")
	at := slices.IndexFunc(lines, func(line string) bool { return strings.HasPrefix(line, "snapshot  ") })
	if at < 0 {
		t.Fatalf("it does not say that it comes from a file: %s", again)
	}
	blank := at + slices.Index(lines[at:], "\n")
	if strings.Join(slices.Delete(lines, at, blank), "") != first || other != status {
		t.Errorf("%d, %s; before %d, %s", other, again, status, first)
	}
	if _, stderr, status := run(t, "explain", "::1", "--save-snapshot", path); status != 2 || !strings.Contains(stderr, "exists already") {
		t.Errorf("%d, %q", status, stderr)
	}
}

// TestSnapshotForAReport: it goes into the current directory, or into that for temporary files.
func TestSnapshotForAReport(t *testing.T) {
	data, err := os.ReadFile(house)
	if err != nil {
		t.Fatal(err)
	}
	s, err := explain.Load(data)
	if err != nil {
		t.Fatal(err)
	}
	here, temporary := t.TempDir(), t.TempDir()
	t.Setenv("TMPDIR", temporary)
	for _, c := range []struct{ work, want string }{{here, here}, {"/proc/self", temporary}} {
		t.Chdir(c.work)
		err := cli.Program{}.Differs(*s)
		found, _ := filepath.Glob(filepath.Join(c.want, "multihomed-explain-*.json"))
		if err == nil || len(found) != 1 || !strings.Contains(err.Error(), filepath.Base(found[0])) {
			t.Fatalf("%v, and in %s there is %q", err, c.want, found)
		}
		if data, err := os.ReadFile(found[0]); err != nil {
			t.Error(err)
		} else if _, err := explain.Load(data); err != nil {
			t.Error(err)
		}
	}
}

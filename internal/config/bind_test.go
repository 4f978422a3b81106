package config_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"multihomed/internal/config"
	"multihomed/routing"
)

// TestBinds: each kind of entry is read, and written so that it is read again.
func TestBinds(t *testing.T) {
	t.Parallel()
	const text = `
[[bind]]
link = "wan1"
user = "alice"

[[bind]]
link = "my \\ \"LTE\""
user = "1000-1999"
strict = false

[[bind]]
link = "wan1"
user = "bob"
dns = false

[[bind]]
link = "wan1"
mark = 0x10

[[bind]]
link = "wan1"
mark = "0x20/0xf0"

[[bind]]
link = "wan1"
interface = "br-guests"
inbound = "deny"

[[bind]]
link = "wan1"
source = "172.31.0.0/24"

[[bind]]
link = "wan0"
source = "2001:db8::7"

[[bind]]
link = "wan1"
unit = "backup@a-b.service"

[[bind]]
link = "wan1"
slice = "machine.slice"

[[bind]]
link = "wan1"
cgroup = "/sys/fs/cgroup/multihomed-a/b"
`
	want := []config.Bind{
		{Link: "wan1", User: "alice", Strict: true, DNS: true, Inbound: config.Answer},
		{Link: `my \ "LTE"`, User: "1000-1999", Inbound: config.Answer},
		{Link: "wan1", User: "bob", Strict: true, Inbound: config.Answer},
		{Link: "wan1", Mark: routing.Mark{Value: 0x10, Mask: 0xffffffff}, Strict: true, Inbound: config.Answer},
		{Link: "wan1", Mark: routing.Mark{Value: 0x20, Mask: 0xf0}, Strict: true, Inbound: config.Answer},
		{Link: "wan1", Interface: "br-guests", Strict: true, Inbound: config.Deny},
		{Link: "wan1", Source: netip.MustParsePrefix("172.31.0.0/24"), Strict: true, Inbound: config.Answer},
		{Link: "wan0", Source: netip.MustParsePrefix("2001:db8::7/128"), Strict: true, Inbound: config.Answer},
		{Link: "wan1", Unit: "backup@a-b.service", Strict: true, DNS: true, Inbound: config.Answer},
		{Link: "wan1", Slice: "machine.slice", Strict: true, DNS: true, Inbound: config.Answer},
		{Link: "wan1", Cgroup: "/sys/fs/cgroup/multihomed-a/b", Strict: true, DNS: true, Inbound: config.Answer},
	}
	const masked = "[answers]\nmark_mask = 0xff000000\n"
	cfg, err := config.Parse("f", []byte(masked+text))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, cfg.Binds, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	var out strings.Builder
	for _, b := range cfg.Binds {
		out.WriteString(config.FormatBind(b))
	}
	again, err := config.ParseBinds("f", []byte(out.String()))
	if err != nil {
		t.Fatalf("%v:\n%s", err, out.String())
	}
	if diff := cmp.Diff(want, again, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
		t.Errorf("read again (-want +got):\n%s", diff)
	}
}

func TestBadBinds(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ text, want string }{
		"nothing selected":  {"link = 'w'", "f:1: bind (entry 1): nothing is selected; want user, mark"},
		"no link":           {"user = 'a'", "f:1: bind (entry 1): link is not set"},
		"two selectors":     {"link = 'w'\nuser = 'a'\nunit = 'a.service'", "unit (entry 1): user selects already; want one of"},
		"root":              {"link = 'w'\nuser = 'root'", `bind.user (entry 1): "root" is not allowed (packets that this host forwards count as root's`},
		"number of root":    {"link = 'w'\nuser = '0-10'", `packets that this host forwards count as root's`},
		"empty range":       {"link = 'w'\nuser = '20-10'", `the range is empty`},
		"no user":           {"link = 'w'\nuser = '4294967295'", `is no user`},
		"signed number":     {"link = 'w'\nuser = '+5'", `no name of a user`},
		"name of a number":  {"link = 'w'\nuser = '12x'", `no name of a user`},
		"no mark":           {"link = 'w'\nmark = 0", `bind.mark (entry 1): 0 is not allowed`},
		"mark of nobody":    {"link = 'w'\nmark = '0/0xff'", `packets without a mark have it`},
		"mark outside":      {"link = 'w'\nmark = '0x100/0xff'", `the value has bits outside of the mask`},
		"our mark":          {"link = 'w'\nmark = 0x81000000", `multihomed uses the bits 0xff000000 of marks`},
		"mark as a list":    {"link = 'w'\nmark = [1]", `a list where a mark such as`},
		"host bits":         {"link = 'w'\nsource = '10.0.0.1/24'", `it has host bits: 10.0.0.0/24 is meant`},
		"everything":        {"link = 'w'\nsource = '::/0'", `everything is in it`},
		"no unit":           {"link = 'w'\nunit = 'backup'", `it does not end with .service or .scope`},
		"path as unit":      {"link = 'w'\nunit = '../x.service'", `no name of a unit`},
		"root slice":        {"link = 'w'\nslice = '-.slice'", `everything is in it`},
		"our slice":         {"link = 'w'\nslice = 'system.slice'", `multihomed itself is in it`},
		"our unit":          {"link = 'w'\nunit = 'multihomed-prober.service'", `multihomed itself is in it`},
		"our cgroup":        {"link = 'w'\ncgroup = '/sys/fs/cgroup/system.slice/multihomed.service/'", `multihomed itself is in it`},
		"our user":          {"link = 'w'\nuser = 'multihomed'", `multihomed itself is in it`},
		"root cgroup":       {"link = 'w'\ncgroup = '/sys/fs/cgroup/'", `everything is in the root`},
		"parent":            {"link = 'w'\ncgroup = 'a/../b'", `write it without . and ..`},
		"dns of a bridge":   {"link = 'w'\ninterface = 'br0'\ndns = true", `queries can be led only for a user, unit, slice or cgroup`},
		"dns, not strict":   {"link = 'w'\nuser = 'a'\nstrict = false\ndns = true", `bind.dns (entry 1): true needs strict = true`},
		"inbound of a user": {"link = 'w'\nuser = 'a'\ninbound = 'deny'", `it is for interface and source`},
		"not strict":        {"link = 'w'\nunit = 'a.service'\nstrict = false", `false is not possible for unit, slice and cgroup`},
		"long link":         {"link = 'provider two'\nunit = 'a.service'", `it has at most 15 bytes and no space`},
		"inbound":           {"link = 'w'\ninterface = 'br0'\ninbound = 'allow'", `"allow" is not allowed; want "answer" or "deny"`},
		"loopback":          {"link = 'w'\ninterface = 'lo'", `"lo" is not allowed (all that this host sends comes by it)`},
		"interface":         {"link = 'w'\ninterface = 'a/b'", `no name of an interface`},
		"same user":         {"link = 'w'\nuser = '1500'\n[[bind]]\nlink='v'\nuser = '1000-1999'", "f:4: bind (entry 2): user=1000-1999 selects packets that user=1500 selects, too"},
		"same mark":         {"link = 'w'\nmark = '0x11/0xff'\n[[bind]]\nlink='v'\nmark = '0x1/0xf'", "mark=0x1/0xf selects packets that mark=0x11/0xff selects, too"},
		"inside":            {"link = 'w'\nsource = '10.0.0.0/8'\n[[bind]]\nlink='v'\nsource = '10.1.0.0/16'", "selects packets that source=10.0.0.0/8 selects, too"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := config.ParseBinds("f", []byte("[[bind]]\n"+c.text+"\n"))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %s", err, c.want)
			}
		})
	}
	if _, err := config.ParseBinds("f", []byte("log_level = 'debug'\n")); err == nil || !strings.Contains(err.Error(), "more than entries of [[bind]]") {
		t.Errorf("another key: %v", err)
	}
}

package cli_test

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"multihomed/internal/cli"
	"multihomed/internal/config"
	"multihomed/routing"
)

// run runs multihomectl and returns what it printed and its exit status.
func run(t *testing.T, args ...string) (out, stderr string, status int) {
	t.Helper()
	var o, e bytes.Buffer
	p := cli.Program{
		Version: "1.2.3", In: strings.NewReader(""), Out: &o, Err: &e, Root: fstest.MapFS{},
		Env: func(string) string { return "" },
	}
	status = p.Run(t.Context(), args)
	return o.String(), e.String(), status
}

func file(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "multihomed.toml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestCommands(t *testing.T) {
	sound := file(t, "uplink_group = 7\n")
	wrong := file(t, "uplink_grup = 7\n")
	missing, dangling := filepath.Join(t.TempDir(), "none.toml"), filepath.Join(t.TempDir(), "link.toml")
	if err := os.Symlink("/nonexistent/mount/m.toml", dangling); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name        string
		args        []string
		status      int
		out, stderr string
	}{
		{"version", []string{"version"}, 0, "multihomectl 1.2.3\n", ""},
		{"help", nil, 0, "multihomectl status", ""},
		{"config", []string{"config", "--config", sound}, 0, "uplink_group = 7\n", ""},
		{"config of nothing", []string{"config", "--config", missing}, 0, "from the defaults: there is no " + missing, ""},
		{"reference", []string{"config", "--reference"}, 0, config.Reference, ""},
		{"metrics in no format", []string{"metrics", "--format", "json"}, 2, "", "--format is \"json\"; it may be openmetrics or prometheus"},
		{"metrics of two minds", []string{"metrics", "--serve", "--format", "prometheus"}, 2, "", "the client says which format it accepts"},
		{"metrics for nobody", []string{"metrics", "--serve"}, 2, "", "to fix: systemctl enable --now multihomed-metrics.socket"},
		{"check", []string{"config", "check", sound}, 0, sound + " is sound\n", ""},
		{"check of what is wrong", []string{"config", "check", wrong}, 1, "", ":1: uplink_grup: unknown key"},
		{"check of nothing", []string{"config", "check", missing}, 2, "", "there is no file " + missing},
		{"check of the defaults", []string{"config", "check", "--config", missing}, 0, "the defaults apply", ""},
		{"status in colours there are not", []string{"status", "--color=green"}, 2, "", `--color is "green"; it may be auto, always or never`},
		{"no such command", []string{"stauts"}, 2, "", `there is no command "stauts"; did you mean status?; see multihomectl --help`},
		{"no such command of a command", []string{"config", "chek"}, 2, "", `there is no command "config chek"; did you mean check?`},
		{"no such shell", []string{"completion", "bsh"}, 2, "", `there is no command "completion bsh"; did you mean bash?`},
		{"an argument of a completion", []string{"completion", "bash", "x"}, 2, "", `multihomectl completion bash takes no arguments, and got "x"; see multihomectl completion bash --help`},
		{"a link to nothing", []string{"config", "check", dangling}, 1, "", "is a symbolic link to /nonexistent/mount/m.toml, which does not exist"},
		{"no such help", []string{"help", "staus"}, 2, "", `there is no command "staus"; did you mean status?`},
		{"version of any", []string{"status", "--version"}, 0, "multihomectl 1.2.3\n", ""},
		{"version as a flag", []string{"--version"}, 0, "multihomectl 1.2.3\n", ""},
		{"no such letter", []string{"status", "-x"}, 2, "", "there is no flag -x; see multihomectl status --help"},
		{"a flag without its value", []string{"status", "--config"}, 2, "", "--config needs a value"},
		{"a wrong value", []string{"lease", "-i", "x", "-a", "192.0.2.1", "--tries", "many"}, 2, "", `--tries cannot be "many": it is a whole number`},
		{"a flag is missing", []string{"lease", "-a", "192.0.2.1"}, 2, "", "--interface is needed"},
		{"one of two is missing", []string{"lease", "-i", "wan0"}, 2, "", "--address or --id is needed"},
		{"two that exclude each other", []string{"lease", "-i", "wan0", "-a", "192.0.2.1", "--id", "x"}, 2, "", "--address and --id cannot go together"},
		{"no such flag", []string{"status", "--jsn"}, 2, "", "there is no flag --jsn; did you mean --json?; see multihomectl status --help"},
		{"too many arguments", []string{"flush", "wan0"}, 2, "", `multihomectl flush takes no arguments, and got "wan0"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			out, stderr, status := run(t, c.args...)
			if status != c.status || !strings.Contains(out, c.out) || !strings.Contains(stderr, c.stderr) {
				t.Errorf("status %d, printed %q, complained %q", status, out, stderr)
			}
			if (stderr != "") != (c.stderr != "") || stderr != "" && (!strings.HasPrefix(stderr, "multihomectl: ") || out != "") {
				t.Errorf("complained %q, printed %q", stderr, out)
			}
		})
	}
}

// With a bad configuration everything goes on with another one, and that is said.
func TestCommandsWithABadConfiguration(t *testing.T) {
	wrong := file(t, "uplink_grup = 7\n")
	out, stderr, status := run(t, "config", "--config", wrong)
	if status != 1 || !strings.Contains(out, "# ") || !strings.Contains(out, "is refused") || !strings.Contains(stderr, "did you mean uplink_group?") {
		t.Errorf("config: %d, %q, %q", status, out, stderr)
	}
	out, stderr, status = run(t, "status", "--config", wrong, "--json")
	var s cli.Status
	if err := json.Unmarshal([]byte(out), &s); err != nil {
		t.Fatal(err)
	}
	if status != 1 || stderr != "" || s.OK || len(s.Problems) == 0 {
		t.Fatalf("status: %d, %q, %q", status, out, stderr)
	}
	if p := s.Problems[0]; p.Code != "configuration" || p.Severity != routing.Error || p.Object != wrong+":1" || !strings.Contains(p.Text, "uplink_grup") || p.Fix == "" {
		t.Errorf("%+v", p)
	}
	if _, stderr, _ := run(t, "lease", "list", "--config", wrong); !strings.Contains(stderr, "in use instead: ") {
		t.Errorf("lease list: %q", stderr)
	}
}

// TestReport makes a report without a daemon, as a directory and as an archive.
func TestReport(t *testing.T) {
	dir := t.TempDir()
	cfg := file(t, "# secret\nuplink_group = 7\nstate_dir = \""+dir+"\"\nruntime_dir = \""+dir+"/run\"\n[[link]]\nprofile = \"Hidden \\\"Nest\\\"*\"\nrole = \"local\"\n[[exclude]]\nprofile = \"Lair\"\n")
	plain, archive := filepath.Join(dir, "report"), filepath.Join(dir, "report.tar.gz")
	if out, stderr, status := run(t, "report", "--config", cfg, "-o", plain); status != 0 || out != plain+"\n" {
		t.Fatalf("status %d, %q, %q", status, out, stderr)
	}
	for name, want := range map[string]string{
		"versions.txt": "multihomectl 1.2.3", "configuration.txt": "uplink_group = 7", "multihomed.toml": "# secret", "status.json": `"schema": 1`,
		"rules-ipv4.txt": "lookup main", "status.txt": "multihomed", "journal.txt": "", "routes-ipv6.txt": "",
	} {
		text, err := os.ReadFile(filepath.Join(plain, name))
		if err != nil || !strings.Contains(string(text), want) {
			t.Errorf("%s: %v\n%s", name, err, text)
		}
	}
	if _, stderr, status := run(t, "report", "--config", cfg, "-o", archive, "--redact"); status != 0 {
		t.Fatalf("status %d, %q", status, stderr)
	}
	list, err := exec.CommandContext(t.Context(), "tar", "-xzOf", archive).Output()
	if err != nil || bytes.Contains(list, []byte("# secret")) || bytes.Contains(list, []byte("Hidden")) || bytes.Contains(list, []byte("Nest")) || bytes.Contains(list, []byte("Lair")) || !bytes.Contains(list, []byte("uplink_group = 7")) {
		t.Errorf("%v:\n%s", err, list)
	}
	if info, err := os.Stat(archive); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	names := []string{"Kestrel", "Osprey", "Merlin", "falconer", "harrier", "goshawk", "Bussard"}
	for name, text := range map[string]string{
		"named": "[[bind]]\nlink = \"Kestrel\"\nuser = \"falconer\"\n[failover]\nprefer = [\"Osprey\"]\n[share.weights]\nMerlin = 2\n" +
			"[allocator]\nusers = [\"harrier\"]\ngroups = [\"goshawk\"]\n",
		"refused": "[[link]]\nprofile = \"Kestrel \\\"x[\"\nrole = \"uplink\"\n[[bind]]\nlink = \"wan0\"\nuser = \"falconer a\"\n[failover]\nprefer = [\"Osprey[\"]\ntargets = [\"www.Bussard.example\"]\n",
	} {
		path := filepath.Join(dir, name)
		if _, stderr, status := run(t, "report", "--config", file(t, text), "-o", path, "--redact"); status != 0 {
			t.Fatalf("status %d, %q", status, stderr)
		}
		for _, part := range []string{"configuration.txt", "configuration-fault.txt", "status.txt", "status.json", "doctor.txt", "doctor.json"} {
			text, err := os.ReadFile(filepath.Join(path, part))
			if err != nil && part != "configuration-fault.txt" {
				t.Error(err)
			}
			for _, n := range names {
				if at := strings.Index(string(text), n); at >= 0 {
					t.Errorf("%s: %s has %q: %q", name, part, n, text[max(at-60, 0):min(at+60, len(text))])
				}
			}
			if isJSON := strings.HasSuffix(part, ".json"); isJSON && !json.Valid(text) {
				t.Errorf("%s: %s is no JSON:\n%s", name, part, text)
			}
			if part == "configuration-fault.txt" && (err == nil) != (name == "refused") {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	if _, stderr, status := run(t, "report", "--config", cfg, "-o", archive); status != 1 || !strings.Contains(stderr, "is there already") {
		t.Errorf("a second time: %d, %q", status, stderr)
	}
	if _, stderr, status := run(t, "report", "--config", cfg, "-o", "/sys/report.tar.gz"); status != 1 || !strings.Contains(stderr, "to fix: name a place where you may write: --output "+filepath.Join(os.TempDir(), "report.tar.gz")) {
		t.Errorf("where nobody may write: %d, %q", status, stderr)
	}
}

// TestConfigIsAConfiguration: what `config` prints means what it was printed
// from.
func TestConfigIsAConfiguration(t *testing.T) {
	custom := config.Default()
	custom.Tables.First, custom.Tables.Last = 20100, 20199
	custom.UplinkGroup, custom.ContainerPrefixLength = 42, 0
	custom.LogLevel = slog.LevelWarn
	custom.RepairBurst, custom.RepairsPerSecond = 3, 0.25
	custom.StateDir, custom.RuntimeDir = `/srv/"quoted" \ and\ttab`, "/run/other"
	custom.NetworkManager, custom.MoveRoutes = config.No, true
	custom.DNS = config.DNS{ServersFile: "/run/servers", PIDFile: "/run/pid"}
	custom.Allocator = config.Allocator{
		Socket: "other", Lifetime: time.Minute, Families: []routing.Family{routing.IPv6}, Users: []string{"alice"}, TablesPerUser: 7,
	}
	custom.Include = []config.Matcher{{Interface: "tun*"}, {Profile: `Caf\é "Nero"`, Type: "vpn?"}}
	custom.Exclude = []config.Matcher{{Interface: "lab[0-9]", Profile: "\u0001", Type: "bridge"}}
	custom.NetworkRules = config.Always
	custom.Failover = config.Failover{
		Targets: []config.Target{
			{Probe: config.ProbeTCP, Address: netip.MustParseAddrPort("[2001:db8::1]:443")},
			{Probe: config.ProbeDNS, Address: netip.MustParseAddrPort("192.0.2.1:53")},
			{Probe: config.ProbeICMP, Address: netip.MustParseAddrPort("192.0.2.2:0")},
		},
		Probe: config.ProbeTCP, Interval: 150 * time.Millisecond, Standby: time.Minute, Metered: 90 * time.Minute, Silence: 1500 * time.Millisecond, Recover: 70 * time.Second,
		Prefer: []config.Name{"wan1", `Caf\é "Nero"`}, Forwarded: config.ForwardedNone, HostRoutes: true, CloseConnections: config.Never, MPTCP: config.MPTCPNo, Prober: "/run/other/prober",
	}
	custom.Share = config.Share{Weights: []config.Weight{{Name: "eth0.100", Weight: 2}, {Name: `a"b`, Weight: 255}, {Name: "wan*", Weight: 1}}}
	custom.Answers = config.Answers{Forwarded: config.Yes, Fence: config.No, MarkMask: 0x70, OnDead: config.Keep}
	custom.Run = config.Run{Group: "network"}
	custom.Links = []config.Link{
		{Matcher: config.Matcher{Interface: "wan?"}, Role: routing.AlwaysUplink, Gateways: []netip.Addr{netip.MustParseAddr("fe80::1"), netip.MustParseAddr("192.0.2.1")}},
		{Matcher: config.Matcher{Profile: `"LTE"`, Type: "gsm"}, Role: routing.AlwaysLocal, LastResort: new(true), Ignore: new(false)},
		{Matcher: config.Matcher{Type: "wifi"}, LastResort: new(false), Ignore: new(true), Delegated: []netip.Prefix{netip.MustParsePrefix("2001:db8:b::/56")}},
	}
	custom.Binds = []config.Bind{
		{Link: "wan1", User: "alice", Strict: true, DNS: true, Inbound: config.Answer},
		{Link: `Caf\é "Nero"`, Source: netip.MustParsePrefix("172.31.0.0/24"), Inbound: config.Deny},
		{Link: "wan1", Mark: routing.Mark{Value: 1, Mask: 3}, Inbound: config.Answer},
		{Link: "wan1", Slice: "a.slice", Strict: true, DNS: true, Inbound: config.Answer},
	}
	for i, a, b := 0, reflect.ValueOf(custom), reflect.ValueOf(config.Default()); i < a.NumField(); i++ {
		if reflect.DeepEqual(a.Field(i).Interface(), b.Field(i).Interface()) {
			t.Errorf("%s is the default: nothing is proven for it", a.Type().Field(i).Name)
		}
	}
	for name, cfg := range map[string]config.Config{"default": config.Default(), "custom": custom} {
		text := cli.Effective(cfg, "/etc/multihomed/multihomed.toml")
		got, err := config.Parse(name, []byte(text))
		if err != nil {
			t.Errorf("%v in\n%s", err, text)
		}
		if !reflect.DeepEqual(got, cfg) {
			t.Errorf("%s: %+v, want %+v, from\n%s", name, got, cfg, text)
		}
	}
}

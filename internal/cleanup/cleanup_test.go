package cleanup_test

import (
	"context"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"multihomed/internal/cleanup"
	"multihomed/internal/connections"
	"multihomed/routing"
	"multihomed/test/lab/nettest"
)

// TestMain keeps the tests away from the machine's routing.
func TestMain(m *testing.M) { os.Exit(nettest.Main(m)) }

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// ip runs ip(8) in the namespace of the test.
func ip(t *testing.T, line string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "ip", strings.Fields(line)...).CombinedOutput()
	if err != nil {
		t.Fatalf("ip %s: %v\n%s", line, err, out)
	}
	return string(out)
}

// newHost gives the test a namespace with two links, each with what a daemon leaves
// in the tables given, and with what somebody else has.
func newHost(t *testing.T, first, second, group string) {
	t.Helper()
	runtime.LockOSThread()
	must(t, unix.Unshare(unix.CLONE_NEWNET))
	for n, name := range []string{"wan0", "wan1"} {
		table := []string{first, second}[n]
		network := []string{"192.0.2", "198.51.100"}[n]
		six := []string{"2001:db8:a::/64", "2001:db8:b::/64"}[n]
		for _, line := range []string{
			"link add NAME type veth peer name pNAME", "link set NAME up", "link set pNAME up", "addr add NET.1/24 dev NAME",
			"link set NAME group " + group,
			"route add NET.0/24 dev NAME table TABLE proto 150", "route add default via NET.254 dev NAME table TABLE proto 150",
			"-6 route add SIX dev NAME table TABLE proto 150",
			"route add throw 198.18.0.0/15 table TABLE proto 150", "-6 route add throw 2600::/16 table TABLE proto 150",
			"rule add from NET.1 lookup main suppress_prefixlength 7 suppress_ifgroup " + group + " priority 9020 protocol 150",
			"rule add oif NAME lookup TABLE priority 9500 protocol 150",
			"rule add from NET.1 lookup TABLE priority 10000 protocol 150",
			"rule add from NET.1 unreachable priority 10500 protocol 150",
			"rule add from NET.1 unreachable priority 32765 protocol 150",
			"-6 rule add from SIX iif lo lookup TABLE priority 10000 protocol 150",
			"-6 rule add from SIX iif lo unreachable priority 10500 protocol 150",
			"rule add from NET.1 iif lo goto 9020 priority 7100 protocol 150", "rule add oif NAME goto 9020 priority 7100 protocol 150",
			"rule add to NET.0/24 lookup TABLE priority 20000 protocol 150",
			"rule add to NET.0/24 lookup main suppress_prefixlength 23 priority 19000 protocol 150",
		} {
			ip(t, strings.NewReplacer("NAME", name, "NET", network, "SIX", six, "TABLE", table).Replace(line))
		}
	}
	ip(t, "rule add fwmark 0x80000001/0x7fffffff goto 30000 priority 8500 protocol 150")
	for _, line := range foreign {
		ip(t, strings.ReplaceAll(line, "TABLE", first))
	}
}

// foreign is what looks like ours and is not.
var foreign = []string{
	"rule add fwmark 1 lookup 77 priority 30000",
	"rule add from 203.0.113.7 lookup TABLE priority 10000 protocol static",
	"rule add from 203.0.113.8 lookup 77 priority 12345 protocol 150",
	"route add 203.0.113.0/24 dev wan0 table TABLE proto static",
	"route add 203.0.113.0/24 dev wan0 table 77 proto 150",
	"route add 203.0.113.0/24 dev wan0 proto 150",
	"link set lo group 5",
}

// theirs is everything that is left after ours went.
func state(t *testing.T) (ours, theirs []string) {
	t.Helper()
	for _, what := range []string{"-N rule", "-N -6 rule", "-N route show table all", "-N -6 route show table all"} {
		for line := range strings.Lines(ip(t, what)) {
			line = strings.Join(strings.Fields(line), " ")
			switch {
			case strings.Contains(line, "fe80") || strings.Contains(line, "ff00::"):
			case strings.Contains(line, "proto 150") && !strings.Contains(line, "203.0.113"):
				ours = append(ours, line)
			default:
				theirs = append(theirs, line)
			}
		}
	}
	for line := range strings.Lines(ip(t, "-o link")) {
		name, _, _ := strings.Cut(strings.Fields(line)[1], "@")
		_, rest, _ := strings.Cut(line, " group ")
		if group := strings.Fields(rest)[0]; group != "default" && name != "lo:" {
			ours = append(ours, strings.TrimSuffix(name, ":")+": group "+group)
		}
	}
	return ours, theirs
}

// TestNobodyTold: without a configuration, a history or a database, everything goes
// that a daemon made under whatever configuration, and nothing else.
func TestNobodyTold(t *testing.T) {
	for name, c := range map[string]struct{ first, second, group string }{
		"as configured by default": {"10000", "10001", "28008"},
		"another range":            {"21000", "4294900000", "4711"},
		"a range in pieces":        {"10000", "31000", "28008"},
	} {
		t.Run(name, func(t *testing.T) {
			newHost(t, c.first, c.second, c.group)
			_, before := state(t)
			// For a link whose network has no table, main has a default of ours.
			ip(t, "route add default via 192.0.2.254 dev wan0 metric "+index(t, "wan0")+" proto 150")
			r, err := cleanup.Open(t.Context(), cleanup.Options{})
			must(t, err)
			defer r.Close()
			planned := r.Summary(r.Left())
			out, err := r.Remove(t.Context())
			must(t, err)
			must(t, out.Err())
			if out.Summary() != planned || out.Groups != 2 || out.Routes != 11 {
				t.Errorf("removed %s, planned %s", out.Summary(), planned)
			}
			ours, after := state(t)
			if len(ours) > 0 {
				t.Errorf("left: %q", ours)
			}
			if !slices.Equal(before, after) {
				t.Errorf("before %q\nafter  %q", before, after)
			}
			again, err := r.Remove(t.Context())
			if err != nil || len(again.Removed) > 0 || again.Err() != nil {
				t.Errorf("the second time: %+v, %v", again, err)
			}
		})
	}
}

func index(t *testing.T, name string) string {
	t.Helper()
	n, _, _ := strings.Cut(ip(t, "-o link show dev "+name), ":")
	return n
}

// TestEras: what no rule names any more is found by earlier configurations, and a
// group that rules name is the administrator's where these name another.
func TestEras(t *testing.T) {
	newHost(t, "21000", "21001", "4711")
	for _, p := range []string{"priority 9500", "priority 10000", "priority 20000"} {
		ip(t, "rule del "+p+" protocol 150")
		ip(t, "rule del "+p+" protocol 150")
	}
	ip(t, "-6 rule flush")
	state1 := t.TempDir()
	eras := []cleanup.Era{{First: 21000, Last: 21099, UplinkGroup: 28008}}
	must(t, cleanup.WriteEras(state1, eras))
	read, err := cleanup.ReadEras(state1)
	if err != nil || !slices.Equal(read, eras) {
		t.Fatalf("read %v, %v", read, err)
	}
	r, err := cleanup.Open(t.Context(), cleanup.Options{Eras: read})
	must(t, err)
	defer r.Close()
	out, err := r.Remove(t.Context())
	must(t, err)
	must(t, out.Err())
	if ours, _ := state(t); !slices.Equal(ours, []string{"wan0: group 4711", "wan1: group 4711"}) {
		t.Errorf("left: %q", ours)
	}
	must(t, os.WriteFile(filepath.Join(state1, cleanup.HistoryName), []byte("{"), 0o600))
	if _, err := cleanup.ReadEras(state1); err == nil {
		t.Error("a damaged file is no history")
	}
}

// TestOneLink: the objects of one link go, those of the other and what both share stay;
// with the last link, all goes.
func TestOneLink(t *testing.T) {
	newHost(t, "10000", "10001", "28008")
	all, before := state(t)
	remove := func(link string) cleanup.Outcome {
		t.Helper()
		r, err := cleanup.Open(t.Context(), cleanup.Options{Link: link})
		must(t, err)
		defer r.Close()
		out, err := r.Remove(t.Context())
		must(t, err)
		must(t, out.Err())
		return out
	}
	remove("wan0")
	var want []string
	for _, line := range all {
		if !strings.Contains(line, "192.0.2.") && !strings.Contains(line, "2001:db8:a:") && !strings.Contains(line, "wan0") &&
			(!strings.HasPrefix(line, "9 ") || !strings.Contains(line, "table 10000 ")) { // a throw route has no link
			want = append(want, line)
		}
	}
	ours, theirs := state(t)
	if !slices.Equal(ours, want) || !slices.Equal(theirs, before) {
		t.Errorf("left %q\nwant %q\nof others %q", ours, want, theirs)
	}
	if out := remove("wan0"); len(out.Removed) > 0 {
		t.Errorf("the second time: %q", out.Removed)
	}
	if out := remove("absent"); len(out.Removed) > 0 {
		t.Errorf("an interface that is not there: %q", out.Removed)
	}
	remove("wan1")
	if ours, theirs := state(t); len(ours) > 0 || !slices.Equal(theirs, before) {
		t.Errorf("left %q\nof others %q", ours, theirs)
	}
}

// TestEndpoints: endpoints of Multipath TCP that we noted go with their link, with the last link and
// with all; those of others stay.
func TestEndpoints(t *testing.T) {
	newHost(t, "10000", "10001", "28008")
	note := connections.Endpoints{Directory: t.TempDir()}
	wan0, err := strconv.Atoi(index(t, "wan0"))
	must(t, err)
	wan1, err := strconv.Atoi(index(t, "wan1"))
	must(t, err)
	_, _, err = note.Follow(t.Context(), []connections.Endpoint{
		{Address: netip.MustParseAddr("192.0.2.1"), Device: wan0}, {Address: netip.MustParseAddr("198.51.100.1"), Device: wan1},
	})
	must(t, err)
	ip(t, "mptcp endpoint add 203.0.113.1 id 7 subflow")
	for _, step := range []struct {
		link    string
		removed string
		left    int
	}{
		{"absent", "", 3},
		{"wan0", "mptcp endpoint 192.0.2.1 dev wan0", 2},
		{"wan0", "", 2},
		{"", "mptcp endpoint 198.51.100.1 dev wan1", 1},
		{"", "", 1},
	} {
		r, err := cleanup.Open(t.Context(), cleanup.Options{Link: step.link, RuntimeDir: note.Directory})
		must(t, err)
		r.Left()
		planned, err := r.Endpoints(t.Context())
		must(t, err)
		out, err := r.Remove(t.Context())
		must(t, err)
		must(t, r.Close())
		shown := ip(t, "mptcp endpoint show")
		if n := strings.Count(shown, "\n"); n != step.left || len(planned) != out.Endpoints || (out.Endpoints == 1) != (step.removed != "") ||
			step.removed != "" && out.Removed[0] != step.removed {
			t.Errorf("off %s: %d planned, %d removed (%q), left:\n%s", step.link, len(planned), out.Endpoints, out.Removed, shown)
		}
		if out.Endpoints == 1 && !strings.HasSuffix(out.Summary(), " and 1 endpoint of Multipath TCP") {
			t.Error(out.Summary())
		}
	}
}

// TestAwait: it ends as soon as somebody else has taken everything away, and says what
// stands when he does not.
func TestAwait(t *testing.T) {
	newHost(t, "10000", "10001", "28008")
	r, err := cleanup.Open(t.Context(), cleanup.Options{})
	must(t, err)
	defer r.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if left, err := r.Await(ctx); err != nil || len(left) == 0 {
		t.Errorf("left %d, %v", len(left), err)
	}
	o, err := cleanup.Open(t.Context(), cleanup.Options{})
	must(t, err)
	defer o.Close()
	_, err = o.Remove(t.Context())
	must(t, err)
	if left, err := r.Await(t.Context()); err != nil || len(left) > 0 {
		t.Errorf("left %d, %v", len(left), err)
	}
}

// TestOutcome: what is left is named with the kernel's reason.
func TestOutcome(t *testing.T) {
	o := cleanup.Outcome{Left: []string{"-4 rule 1", "-4 rule 2", "-4 rule 3", "-4 rule 4"}, Refused: []error{unix.EPERM}}
	if want := "4 objects of multihomed are left (-4 rule 1; -4 rule 2; -4 rule 3; and 1 more): operation not permitted"; o.Err() == nil || o.Err().Error() != want {
		t.Errorf("%v", o.Err())
	}
	o.Refused = nil
	if !strings.Contains(o.Err().Error(), "keeps adding") {
		t.Errorf("%v", o.Err())
	}
	if t1 := (cleanup.Outcome{Rules: 1, Routes: 2, Groups: 1}).Summary(); t1 != "1 rule, 2 routes and the group of 1 uplink" {
		t.Error(t1)
	}
	if e := cleanup.EraOf(routing.DefaultPolicy()); e.Tables() != routing.DefaultPolicy().Tables {
		t.Errorf("%+v", e)
	}
}

// TestUnreachable takes away the rules that answer "unreachable", wherever they stand, and
// nothing else.
func TestUnreachable(t *testing.T) {
	newHost(t, "10000", "10001", "28008")
	all := func() (lines []string) {
		for line := range strings.Lines(ip(t, "-4 rule") + ip(t, "-6 rule") + ip(t, "-N route show table all") + ip(t, "-N -6 route show table all") + ip(t, "-N -o link show group 28008")) {
			// The kernel's own change while addresses are tried.
			if strings.Contains(line, "proto 150") || strings.Contains(line, "group 28008") || !strings.Contains(line, "dev ") {
				lines = append(lines, line)
			}
		}
		return lines
	}
	before := all()
	unreachable := func(line string) bool { return strings.Contains(line, "unreachable") && strings.Contains(line, "from") }
	left := slices.DeleteFunc(slices.Clone(before), unreachable)
	r, err := cleanup.Open(t.Context(), cleanup.Options{Unreachable: true})
	must(t, err)
	defer r.Close()
	done, err := r.Remove(t.Context())
	must(t, err)
	must(t, done.Err())
	if after := all(); !slices.Equal(after, left) || done.Rules != len(before)-len(left) || done.Rules != 6 || done.Routes+done.Groups > 0 {
		t.Errorf("removed %v; of\n%s\nthere is left\n%s", done.Removed, strings.Join(before, ""), strings.Join(after, ""))
	}
	if stands, err := cleanup.Stands(t.Context()); err != nil || !stands {
		t.Errorf("rules of ours stand: %t, %v", stands, err)
	}
	rest, err := cleanup.Open(t.Context(), cleanup.Options{})
	must(t, err)
	defer rest.Close()
	_, err = rest.Remove(t.Context())
	must(t, err)
	if stands, err := cleanup.Stands(t.Context()); err != nil || stands {
		t.Errorf("rules of ours stand: %t, %v", stands, err)
	}
}

// TestFailoverRemains: what leads unbound traffic to a living link goes with everything, and
// when nobody maintains the routing any more; a link that is taken away leaves the other one's.
func TestFailoverRemains(t *testing.T) {
	for _, c := range []struct {
		name    string
		options cleanup.Options
		// rules are those of failover that stay, route says that table F keeps its default.
		rules []string
		route bool
	}{
		{"everything", cleanup.Options{Tables: routing.TableRange{First: 10000, Last: 10999}, Group: 28008}, nil, false},
		{"without a configuration", cleanup.Options{}, nil, false},
		{"nobody maintains it", cleanup.Options{Unreachable: true}, []string{"not from 255.255.255.255 lookup main suppress_prefixlength 0"}, true},
		{"one of two links", cleanup.Options{Link: "wan0"}, nil, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			newHost(t, "10000", "10001", "28008")
			before := ip(t, "route show table main") + ip(t, "rule show pref 32764")
			for _, line := range []string{
				"route add default via 198.51.100.254 dev wan1 table 10999 proto 150 metric 1073741824",
				"rule add pref 32765 not from 255.255.255.255 lookup main suppress_prefixlength 0 protocol 150",
				"rule add pref 32765 lookup 10999 protocol 150",
				"rule add pref 18000 to 192.0.2.0/24 lookup 10001 protocol 150",
			} {
				ip(t, line)
			}
			if got := ip(t, "route get 8.8.8.8"); !strings.Contains(got, "wan1") {
				t.Fatalf("unbound traffic: %s", got)
			}
			r, err := cleanup.Open(t.Context(), c.options)
			must(t, err)
			defer r.Close()
			done, err := r.Remove(t.Context())
			must(t, err)
			must(t, done.Err())
			var rules []string
			for _, pref := range []string{"18000", "32765"} {
				for line := range strings.Lines(ip(t, "rule show pref "+pref)) {
					if _, words, _ := strings.Cut(line, ":"); !strings.Contains(words, "unreachable") && strings.Contains(line, "proto 150") {
						words, _, _ = strings.Cut(words, " proto 150")
						rules = append(rules, strings.TrimSpace(words))
					}
				}
			}
			if !slices.Equal(rules, c.rules) {
				t.Errorf("rules that stay: %q, want %q", rules, c.rules)
			}
			out, _ := exec.CommandContext(t.Context(), "ip", "route", "show", "table", "10999").Output()
			if has := strings.Contains(string(out), "default"); has != c.route {
				t.Errorf("F has a default: %t", has)
			}
			if after := ip(t, "route show table main") + ip(t, "rule show pref 32764"); after != before {
				t.Errorf("main was\n%s\nand is\n%s", before, after)
			}
		})
	}
}

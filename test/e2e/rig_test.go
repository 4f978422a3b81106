// Package e2e_test runs the real daemon on a real NetworkManager, a real bus and
// real providers in namespaces, and looks at the kernel and at the packets.
package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"multihomed/internal/config"
	"multihomed/internal/status/offline"
	"multihomed/internal/status/socket"
	"multihomed/internal/status/view"
	"multihomed/routing"
	"multihomed/test/lab"
	"multihomed/test/lab/labtest"
)

func TestMain(m *testing.M) {
	// Programs with the race detector sleep for a second when they end. A test must not need that.
	if os.Getenv(raceEnv) == "" {
		if err := os.Setenv(raceEnv, "atexit_sleep_ms=0"); err != nil {
			panic(err)
		}
	}
	os.Exit(labtest.Main(m))
}

// raceEnv are options of the race detector.
const raceEnv = "GORACE"

// A rig is a host in the lab with the daemon on it.
type rig struct {
	*lab.Host
	t   testing.TB
	cfg config.Config
	// path is the daemon's configuration file.
	path string
	// env is added to the daemon's environment.
	env    []string
	daemon *lab.Process
	// store keeps descriptors over its end; nil for nobody.
	store *lab.Store
}

// newRig makes a host; the daemon is not started yet. toml is added to its
// configuration.
func newRig(tb testing.TB, host lab.HostConfig, toml string) *rig {
	tb.Helper()
	// Directories go in the opposite order: after the host, which ends the daemon.
	path := filepath.Join(tb.TempDir(), "multihomed.toml")
	r := &rig{t: tb, Host: labtest.NewHost(tb, host), path: path}
	tb.Cleanup(func() {
		if tb.Failed() && r.daemon != nil {
			tb.Logf("the daemon's log ends:\n%s", lab.Tail(r.daemon.Log(), 80))
		}
	})
	dir := tb.TempDir()
	text := fmt.Sprintf("state_dir = %q\nruntime_dir = %q\n", dir, filepath.Join(dir, "run")) + toml
	r.writeConfig(text)
	return r
}

func (r *rig) writeConfig(text string) {
	r.t.Helper()
	if err := os.WriteFile(r.path, []byte(text), 0o600); err != nil {
		r.t.Fatal(err)
	}
	cfg, err := config.Load(r.path)
	if err != nil {
		r.t.Fatal(err)
	}
	r.cfg = cfg
}

// start starts the daemon and returns when it says READY=1.
func (r *rig) start() {
	r.t.Helper()
	r.launch()
	r.ready()
}

// launch starts the daemon without waiting.
func (r *rig) launch() {
	r.t.Helper()
	program, err := labtest.Build("multihomed")
	if err != nil {
		r.t.Fatal(err)
	}
	r.daemon, err = r.Start(lab.ProcessConfig{
		Path: program, Args: []string{"-config", r.path}, Notify: true, Store: r.store,
		Env: append([]string{"GORACE=halt_on_error=1 atexit_sleep_ms=0"}, r.env...),
	})
	if err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) ready() {
	r.t.Helper()
	ctx, cancel := r.patience()
	defer cancel()
	if _, err := r.daemon.WaitNotify(ctx, "READY=1"); err != nil {
		r.t.Fatalf("%v; its log:\n%s", err, r.daemon.Log())
	}
}

// kill9 ends the daemon as the kernel would in need.
func (r *rig) kill9() {
	r.t.Helper()
	if err := r.daemon.Kill(); err != nil {
		r.t.Fatal(err)
	}
}

// patience is generous; only a failure takes all of it.
func (r *rig) patience() (context.Context, context.CancelFunc) {
	return context.WithTimeout(r.t.Context(), lab.Stretched(30*time.Second))
}

// isp connects a provider and a profile of the same name as its link.
func (r *rig) isp(cfg lab.ISPConfig, settings ...string) *lab.ISP {
	r.t.Helper()
	isp := labtest.NewISP(r.t, r.Host, cfg)
	r.must(r.AddProfile(r.t.Context(), cfg.Link, cfg.Link, settings...))
	return isp
}

func (r *rig) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

// up activates profiles.
func (r *rig) up(profiles ...string) {
	r.t.Helper()
	for _, p := range profiles {
		r.must(r.Up(r.t.Context(), p))
	}
}

// look reads the host as it is, with other eyes than the daemon's: a fresh dump,
// a fresh reading of NetworkManager, a fresh plan.
// What only the daemon can say, it is asked for.
func (r *rig) look() (*view.View, error) {
	v, err := offline.Read(r.t.Context(), r.cfg)
	if err != nil || !v.Running {
		return v, err
	}
	told, err := socket.Ask(r.t.Context(), r.cfg.RuntimeDir, true)
	if err != nil {
		return nil, err
	}
	for _, p := range told.Problems {
		v.Daemon.Problems = append(v.Daemon.Problems, p.Problem)
	}
	return v, nil
}

// settled waits until the kernel holds what a fresh plan says and the links
// named have a complete ladder in both families, and returns the view.
func (r *rig) settled(links ...string) *view.View {
	r.t.Helper()
	var last *view.View
	labtest.Eventually(r.t, func() error {
		v, err := r.look()
		if err != nil {
			return err
		}
		last = v
		if len(v.Notes) > 0 {
			return errors.New(strings.Join(v.Notes, "; "))
		}
		if err := v.Converged(); err != nil {
			return err
		}
		for _, name := range links {
			for _, f := range []lab.Family{lab.IPv4, lab.IPv6} {
				if err := r.ladder(name, f); err != nil {
					return err
				}
			}
		}
		return nil
	})
	return last
}

// ladder says what a family of an uplink lacks, from `ip rule` and `ip route`
// alone: no code of the product decides here.
func (r *rig) ladder(link string, f lab.Family) error { return r.ladderWithout("", link, f) }

// ladderWithout is ladder on a link that must lack the rules of one priority.
func (r *rig) ladderWithout(priority, link string, f lab.Family) error {
	ctx := r.t.Context()
	addrs, err := r.Addrs(link, f)
	if err != nil {
		return err
	}
	if len(addrs) == 0 {
		return fmt.Errorf("%s has no %v address", link, f)
	}
	rules, err := r.RulesText(ctx, f)
	if err != nil {
		return err
	}
	has := func(line string) bool {
		for l := range strings.Lines(rules) {
			if plain(l) == line {
				return true
			}
		}
		return false
	}
	var errs []error
	want := func(format string, args ...any) {
		line := fmt.Sprintf(format, args...)
		switch stands, unwanted := has(line), priority != "" && strings.HasPrefix(line, priority+":"); {
		case unwanted && stands:
			errs = append(errs, fmt.Errorf("%s %v: rule %q", link, f, line))
		case !unwanted && !stands:
			errs = append(errs, fmt.Errorf("%s %v: no rule %q", link, f, line))
		}
	}
	for _, a := range addrs {
		if a.Bits() == 128 {
			// DHCPv6 names no network (RFC 8415, section 21.6); the router does.
			a = netip.PrefixFrom(a.Addr(), 64)
		}
		network := a.Masked()
		table := tableOf(rules, link, sourceText(f, a))
		if table == "" {
			errs = append(errs, fmt.Errorf("%s %v: no table for %s in\n%s", link, f, a, rules))
			continue
		}
		want("9500: from all oif %s lookup %s proto 150", link, table)
		want("9020: from %s lookup 254 suppress_prefixlength 7 suppress_ifgroup 28008 proto 150", sourceText(f, a))
		want("10000: from %s lookup %s proto 150", sourceText(f, a), table)
		// 7 is RTN_UNREACHABLE; ip -N names nothing.
		want("10500: from %s 7 proto 150", sourceText(f, a))
		want("91000: from all iif lo lookup %s proto 150", table)
		routes, err := r.RoutesText(ctx, f, table)
		if err != nil {
			return err
		}
		if !strings.Contains(routes, "default via ") {
			errs = append(errs, fmt.Errorf("%s %v: table %s has no default:\n%s", link, f, table, routes))
		}
		if !strings.Contains(routes, network.String()+" dev "+link) {
			errs = append(errs, fmt.Errorf("%s %v: table %s lacks its network %s:\n%s", link, f, table, network, routes))
		}
	}
	if len(errs) > 0 {
		errs = append(errs, errors.New(rules))
	}
	return errors.Join(errs...)
}

// everyMark is the mark that every packet has: where others have rules among ours, it tells ours
// from each other.
var everyMark = regexp.MustCompile(` fwmark 0x[0-9a-f]+/0\b`)

// plain is a rule without the words that select nothing.
func plain(rule string) string {
	return everyMark.ReplaceAllString(strings.Join(strings.Fields(rule), " "), "")
}

// sourceText is the selector of an address as `ip rule` prints it: that of IPv6 is
// the network, and restricted to what this host sends.
func sourceText(f lab.Family, a netip.Prefix) string {
	if f == lab.IPv6 {
		return a.Masked().String() + " iif lo"
	}
	return a.Addr().String()
}

// tableOf finds the table that the source rule leads to and that belongs to the
// device.
func tableOf(rules, link, source string) string {
	for l := range strings.Lines(rules) {
		var table string
		if n, _ := fmt.Sscanf(plain(l), "10000: from "+source+" lookup %s proto 150", &table); n == 1 &&
			strings.Contains(rules, "oif "+link+" lookup "+table+" ") {
			return table
		}
	}
	return ""
}

// table returns the number of the table of a link's only prefix of a family.
func (r *rig) table(v *view.View, link string, f routing.Family) routing.TableID {
	r.t.Helper()
	for plan := range v.Planner.Links() {
		for k, t := range plan.Link.Tables {
			if k.Interface == link && k.Family == f {
				return t
			}
		}
	}
	r.t.Fatalf("%s has no %v table", link, f)
	return 0
}

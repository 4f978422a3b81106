package e2e_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"multihomed/test/lab"
	"multihomed/test/lab/labtest"
)

// part is one family of one link.
type part struct {
	link   string
	family lab.Family
}

func both(links ...string) []part {
	var out []part
	for _, l := range links {
		out = append(out, part{l, lab.IPv4}, part{l, lab.IPv6})
	}
	return out
}

// A watched rig checks step by step that the daemon does its work, does it at once,
// and then does nothing.
type watched struct {
	*rig
	monitor *monitor
	// complaints are lines of the log that were reported.
	complaints map[string]bool
	settledAt  int
}

func (r *rig) watch() *watched {
	return &watched{rig: r, monitor: newMonitor(r.t), complaints: map[string]bool{}}
}

// step runs an action and waits until the kernel is as a fresh plan says, with
// complete ladders for exactly these parts.
func (w *watched) step(name string, action func(), parts ...part) {
	w.t.Helper()
	w.stepUntil(name, action, func() error { return w.holds(parts...) })
}

// stepUntil is step with another condition; the fresh plan is part of it anyway.
func (w *watched) stepUntil(name string, action func(), condition func() error) {
	w.t.Helper()
	w.idle("before " + name)
	start := w.monitor.barrier()
	w.monitor.mark("begin " + name)
	action()
	w.monitor.mark("done " + name)
	ended := time.Now()
	w.settledAt = w.converged(name, condition)
	took := time.Since(ended)
	lag, after, written := w.monitor.lag(start)
	w.t.Logf("%-40s settled %4d ms after the action, longest lag %5.1f ms", name, took.Milliseconds(), float64(lag.Microseconds())/1000)
	if lag >= mostLag {
		w.t.Errorf("%s: %v between %q and %q:\n%s", name, lag, after.text, written.text, w.monitor.text(start))
	}
	// Once more, with other eyes and a little later: nothing to do.
	w.converged(name+", second look", condition)
	w.idle("after " + name)
}

// mostLag tells a reaction to an event from one to a timer. How fast it is, the benchmarks say.
const mostLag = 5 * time.Second

// idle checks that nothing was written since the host was settled, unless
// something else happened to it first.
func (w *watched) idle(when string) {
	w.t.Helper()
	if w.settledAt == 0 {
		return
	}
	for _, line := range w.daemon.Lines() {
		if strings.HasPrefix(line, "error: ") && !w.complaints[line] {
			w.complaints[line] = true
			w.t.Errorf("%s: the kernel refused something: %s", when, line)
		}
	}
	w.monitor.barrier()
	if wrote := w.monitor.unprovoked(w.settledAt); len(wrote) > 0 {
		w.t.Errorf("%s: written although nothing had happened:\n%s", when, w.monitor.text(w.settledAt))
	}
}

// converged waits for a condition and for the kernel to be as a fresh plan says, while nothing happens,
// and returns the number of events until then: whatever happens later has not been answered.
func (w *watched) converged(name string, condition func() error) (events int) {
	w.t.Helper()
	ctx, cancel := w.patience()
	defer cancel()
	err := lab.Eventually(ctx, func() error {
		from := w.monitor.barrier()
		if err := condition(); err != nil {
			return err
		}
		v, err := w.look()
		if err != nil {
			return err
		}
		if len(v.Notes) > 0 {
			return errors.New(strings.Join(v.Notes, "; "))
		}
		if err := v.Converged(); err != nil {
			return err
		}
		events, err = w.monitor.quiet(from)
		return err
	})
	if err != nil {
		w.t.Fatalf("%s: %v\nevents:\n%s", name, err, lab.Tail(w.monitor.text(0), 60))
	}
	return events
}

// holds says what is missing of the ladders of these parts, and what is there
// besides, from `ip rule` and `ip route` alone.
func (r *rig) holds(parts ...part) error {
	var errs []error
	for _, p := range parts {
		errs = append(errs, r.ladder(p.link, p.family))
	}
	for _, f := range []lab.Family{lab.IPv4, lab.IPv6} {
		var links []string
		for _, p := range parts {
			if p.family == f {
				links = append(links, p.link)
			}
		}
		errs = append(errs, r.nothingBut(f, links))
	}
	return errors.Join(errs...)
}

// strangersTable was never ours, whatever protocol stands in it.
const strangersTable = "30000"

// nothingBut reports objects of ours that belong to no link of these.
func (r *rig) nothingBut(f lab.Family, links []string) error {
	rules, err := r.RulesText(r.t.Context(), f)
	if err != nil {
		return err
	}
	ours := func(line string) bool { return strings.Contains(line+" ", "proto 150 ") }
	tables := map[string]string{}
	seen := map[string]bool{}
	sources := map[string]bool{}
	var errs []error
	for line := range strings.Lines(rules) {
		line = strings.Join(strings.Fields(line), " ")
		if !ours(line) || strings.Contains(line, "lookup "+strangersTable+" ") {
			continue
		}
		if seen[line] {
			errs = append(errs, fmt.Errorf("%v: exists twice: %s", f, line))
		}
		seen[line] = true
		words := strings.Fields(line)
		// Rungs that stand once more at a priority of somebody else have another selector.
		if words[0] == "9500:" && word(words, "oif") != "" {
			if !slices.Contains(links, word(words, "oif")) {
				errs = append(errs, fmt.Errorf("%v: belongs to no link: %s", f, line))
			}
			tables[word(words, "lookup")] = word(words, "oif")
		}
		if words[0] == "10000:" {
			sources[word(words, "from")] = true
		}
	}
	pair, last := 0, strconv.FormatUint(uint64(r.cfg.Tables.Last), 10)
	for line := range seen {
		words := strings.Fields(line)
		table := word(words, "lookup")
		switch {
		case isOfFailover(line, last):
			// Whether it must stand depends on defaults; alone, or for one link, it must not.
			if pair++; len(links) < 2 {
				errs = append(errs, fmt.Errorf("%v: failover of %d links: %s", f, len(links), line))
			}
		case slices.Contains(words, "goto"):
			if len(links) == 0 {
				errs = append(errs, fmt.Errorf("%v: there is no link: %s", f, line))
			}
		case words[0] == "19000:":
			// Beside 20000, which is checked.
		case table == "254", table == "":
			if !sources[word(words, "from")] {
				errs = append(errs, fmt.Errorf("%v: orphan: %s", f, line))
			}
		default:
			if tables[table] == "" {
				errs = append(errs, fmt.Errorf("%v: orphan: %s", f, line))
			}
		}
	}
	if pair != 0 && pair != 2 {
		errs = append(errs, fmt.Errorf("%v: %d rules of the pair", f, pair))
	}
	routes, err := r.IP(r.t.Context(), "-N", map[lab.Family]string{lab.IPv4: "-4", lab.IPv6: "-6"}[f], "route", "show", "table", "all", "proto", "150")
	if err != nil {
		return err
	}
	for line := range strings.Lines(routes) {
		words := strings.Fields(line)
		if word(words, "table") == strangersTable {
			continue
		}
		dev, table := word(words, "dev"), word(words, "table")
		if table == last && pair > 0 && slices.Contains(links, dev) {
			continue // Unbound traffic leaves a dead link.
		}
		if dev == "" || tables[table] != dev {
			errs = append(errs, fmt.Errorf("%v: orphan route: %s", f, strings.TrimSpace(line)))
		}
	}
	if len(errs) > 0 {
		errs = append(errs, errors.New(rules))
	}
	return errors.Join(errs...)
}

// isOfFailover reports whether a rule is one of the pair in front of main: it reads main without
// its defaults for everybody, or table F, the last one of the range.
func isOfFailover(line, f string) bool {
	return strings.HasPrefix(line, "32765: ") && !strings.Contains(line, "fwmark") &&
		(strings.Contains(line, "lookup "+f+" ") || strings.Contains(line, "lookup 254 suppress_prefixlength 0 ") && !strings.Contains(line, "suppress_ifgroup"))
}

// word returns what follows a word.
func word(words []string, after string) string {
	if i := slices.Index(words, after); i >= 0 && i+1 < len(words) {
		return words[i+1]
	}
	return ""
}

// tableText is `ip route` of the table that the link's only prefix of a family
// has.
func (r *rig) tableText(link string, f lab.Family) (string, error) {
	rules, err := r.RulesText(r.t.Context(), f)
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(rules) {
		words := strings.Fields(line)
		if words[0] == "9500:" && word(words, "oif") == link {
			return r.RoutesText(r.t.Context(), f, word(words, "lookup"))
		}
	}
	return "", fmt.Errorf("%s has no %v table", link, f)
}

// tableHas says whether a link's table has all of these in its text.
func (r *rig) tableHas(link string, f lab.Family, texts ...string) error {
	have, err := r.tableText(link, f)
	if err != nil {
		return err
	}
	for _, text := range texts {
		if unwanted, not := strings.CutPrefix(text, "!"); not == strings.Contains(have, unwanted) {
			return fmt.Errorf("table of %s %v, wanted %q:\n%s", link, f, text, have)
		}
	}
	return nil
}

// signalDHCP stops and continues a provider's DHCP server: what it is asked
// meanwhile it answers afterwards.
func (r *rig) signalDHCP(isp *lab.ISP, s syscall.Signal) {
	r.t.Helper()
	entries, err := os.ReadDir("/proc")
	r.must(err)
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		cmdline, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if err == nil && strings.HasPrefix(filepath.Base(strings.Split(string(cmdline), "\x00")[0]), "dnsmasq") &&
			strings.Contains(string(cmdline), "/"+isp.Name()+".leases") {
			r.must(syscall.Kill(pid, s))
			return
		}
	}
	r.t.Fatalf("%s has no DHCP server", isp.Name())
}

// eventually waits for a condition that is not the daemon's business.
func (r *rig) eventually(f func() error) {
	r.t.Helper()
	labtest.Eventually(r.t, f)
}

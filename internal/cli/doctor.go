package cli

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"multihomed/internal/config"
	"multihomed/internal/doctor"
	"multihomed/internal/doctor/gather"
	"multihomed/internal/doctor/probe"
	"multihomed/internal/english"
	"multihomed/internal/escape"
	"multihomed/internal/status"
	"multihomed/internal/status/check"
	"multihomed/internal/status/offline"
	"multihomed/internal/status/outcome"
	"multihomed/internal/suggest"
	"multihomed/routing"
)

const doctorHelp = `Find what disturbs the links of this host: every problem of status, and patterns that
status does not know, such as firewalls that mark or translate packets, parameters of the
kernel, and programs that do the same work. Each finding has a code, a severity, the lines
that were seen, and the commands that fix it. The manual, multihomectl(8), lists the codes
under PROBLEMS.

It changes nothing. It works without the daemon and without NetworkManager. What it cannot
read, without root for example, it lists as "not looked".

--probe also sends packets by every link: pings to hosts outside, small and large, and ARP
probes for the addresses of the links. It finds a dead provider (upstream-dead), large
packets that vanish (mtu-hole) and addresses that another host has (duplicate-address).

--fix prints the commands that fix a finding, as a script for sh, and does not run them.
What no command can fix is printed as a comment, and the exit status is 1.

The exit status is 0 if no finding is an error or a warning, 1 if one is, and 2 if the
command line is wrong or the host cannot be read.

With --json it prints the same for programs. Fields are only ever added as long as
"schema" is 1:

  schema        1
  ok            what the exit status says: true for 0
  complete      whether everything was looked at
  probed        whether packets were sent
  findings[]    code, severity ("error", "warning", "notice"), link, object, text, fix,
                commands[] (for sh), evidence[] (the lines that were seen)
  not_looked[]  codes[] (findings that may exist nevertheless), why`

// outside are asked by --probe if the configuration names no targets: the first that answers is
// enough.
func outside() []netip.Addr {
	return []netip.Addr{
		netip.AddrFrom4([4]byte{1, 1, 1, 1}), netip.AddrFrom4([4]byte{9, 9, 9, 9}), netip.AddrFrom4([4]byte{8, 8, 8, 8}),
		netip.MustParseAddr("2606:4700:4700::1111"), netip.MustParseAddr("2620:fe::fe"), netip.MustParseAddr("2001:4860:4860::8888"),
	}
}

// examination is what `doctor` was asked for.
type examination struct {
	json, probe bool
	targets     []string
	fix         string
}

func (a *app) doctor() *cobra.Command {
	var x examination
	cmd := &cobra.Command{
		Use: "doctor", Short: "find what disturbs the links, and the commands that fix it", Long: doctorHelp, Args: noArguments,
		Example: `  multihomectl doctor
  multihomectl doctor --probe
  multihomectl doctor --fix rp-filter
  multihomectl doctor --fix rp-filter | sudo sh`,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.examine(cmd.Context(), x) },
	}
	cmd.Flags().BoolVar(&x.json, "json", false, "print JSON, see above")
	cmd.Flags().BoolVar(&x.probe, "probe", false, "send packets, too")
	cmd.Flags().StringArrayVar(&x.targets, "target", nil, "`address` outside that --probe asks, instead of those of the configuration or public DNS servers; may be repeated")
	cmd.Flags().StringVar(&x.fix, "fix", "", "print the commands that fix the findings with this `code`")
	cmd.MarkFlagsMutuallyExclusive("fix", "json")
	complete(cmd, map[string]cobra.CompletionFunc{"fix": words(findingCodes()...), "target": a.completeTarget})
	return cmd
}

// completeTarget offers the addresses that --probe may ask by itself.
func (a *app) completeTarget(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	targets := targetsOf(a.find(cmd.Context()).Config)
	out := make([]string, 0, len(targets))
	for _, t := range targets {
		out = append(out, t.String())
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}

// targetsOf are who is asked outside: those of the configuration, or public ones.
func targetsOf(cfg config.Config) (targets []netip.Addr) {
	for _, t := range cfg.Failover.Targets {
		targets = append(targets, t.Address.Addr())
	}
	if len(targets) == 0 {
		targets = outside()
	}
	return targets
}

// findingCodes are those of all checks. What the daemon alone can say has codes besides.
func findingCodes() []string {
	codes := slices.Concat(check.Codes(), outcome.Codes(), doctor.Codes())
	out := make([]string, 0, len(codes))
	for _, c := range codes {
		out = append(out, string(c))
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func (a *app) examine(ctx context.Context, x examination) error {
	how, err := a.look()
	if err != nil {
		return err
	}
	var targets []netip.Addr
	for _, text := range x.targets {
		t, err := netip.ParseAddr(text)
		if err != nil {
			return &exitError{exitUsage, fmt.Errorf("--target is %q; it is an address such as 192.0.2.1 or 2001:db8::1", escape.Text(text))}
		}
		targets = append(targets, t)
	}
	loaded := a.find(ctx)
	s, err := a.readStatus(ctx, loaded, nil, false)
	if err != nil {
		return &exitError{exitUsage, err}
	}
	tell(&s, loaded.Fault)
	host, err := a.readFacts(ctx, loaded.Config)
	if err != nil {
		return &exitError{exitUsage, err}
	}
	if x.probe {
		probeHost(ctx, &host, s, loaded.Config, targets)
	}
	report := doctor.Diagnose(s, host)
	switch {
	case x.fix != "":
		return a.printFix(report, x.fix)
	case x.json:
		err = report.WriteJSON(a.Out)
	default:
		err = renderReport(a.Out, report, how)
	}
	if err != nil {
		return &exitError{exitUsage, fmt.Errorf("printing the findings: %w", err)}
	}
	if !report.OK {
		return &exitError{status: exitProblem}
	}
	return nil
}

// readFacts reads what doctor needs besides the status.
func (a *app) readFacts(ctx context.Context, cfg config.Config) (doctor.Host, error) {
	v, err := offline.Look(ctx, cfg)
	if err != nil {
		return doctor.Host{}, err
	}
	return gather.Read(ctx, gather.Of(v), a.Root), nil
}

// probeHost sends packets by all uplinks, and by local links those that ask their own wire.
func probeHost(ctx context.Context, host *doctor.Host, s Status, cfg config.Config, targets []netip.Addr) {
	if len(targets) == 0 {
		targets = targetsOf(cfg)
	}
	probes, unlooked := probe.Run(ctx, probe.Links(s, host.Interfaces), targets)
	host.Probed, host.Probes, host.Unlooked = true, probes, append(host.Unlooked, unlooked...)
}

// printFix prints a script.
func (a *app) printFix(report doctor.Report, code string) error {
	found := report.Of(routing.Code(code))
	if len(found) == 0 {
		if known := findingCodes(); !slices.Contains(known, code) {
			hint := ""
			if word := suggest.For(code, known); word != "" {
				hint = "; did you mean " + word + "?"
			}
			return &exitError{exitUsage, fmt.Errorf("there is no finding %q%s", escape.Text(code), hint)}
		}
		_, err := fmt.Fprintf(a.Out, "# no finding %s\n", code)
		return err
	}
	helpless := false
	var b strings.Builder
	for _, f := range found {
		fmt.Fprintf(&b, "# %s\n", clean(f.Text))
		lines := f.Commands.Lines()
		if len(lines) == 0 {
			helpless = true
			fmt.Fprintf(&b, "# by hand: %s\n", cmp.Or(clean(f.Fix), "nothing to do but to wait, or to decide"))
		}
		for _, line := range lines {
			fmt.Fprintln(&b, line)
		}
	}
	if _, err := io.WriteString(a.Out, b.String()); err != nil {
		return &exitError{exitUsage, fmt.Errorf("printing the commands: %w", err)}
	}
	if helpless {
		return &exitError{status: exitProblem}
	}
	return nil
}

// renderReport shows findings to a person.
func renderReport(w io.Writer, report doctor.Report, how look) error {
	r := &renderer{look: how}
	commands := false
	for _, f := range report.Findings {
		r.finding(f)
		commands = commands || f.Commands != ""
		r.line("")
	}
	indent := len("not looked") + 2
	for _, u := range report.Unlooked {
		text := clean(u.Why)
		if len(u.Codes) > 0 {
			words := make([]string, len(u.Codes))
			for i, c := range u.Codes {
				words[i] = string(c)
			}
			text += " (" + strings.Join(words, ", ") + ")"
		}
		r.folded(r.paint.pad(yellow, "not looked", indent), plain, text)
	}
	switch n := len(report.Findings); {
	case n == 0 && report.Complete:
		r.line("%s", r.paint.paint(green, "no findings"))
	case n == 0:
		r.line("no findings in what was looked at")
	case commands:
		r.line("%s; multihomectl doctor --fix CODE prints the commands", english.Count(n, "finding"))
	default:
		r.line("%s", english.Count(n, "finding"))
	}
	_, err := io.WriteString(w, r.b.String())
	return err
}

// finding shows one: what is wrong, what was seen, what to do.
func (r *renderer) finding(f doctor.Finding) {
	const labels = len("warning") + 2
	text := clean(f.Text)
	if link := clean(f.Link); link != "" && !strings.HasPrefix(text, link+" ") {
		text = link + ": " + text
	}
	r.folded(r.paint.pad(severityStyle(f.Severity), f.Severity.String(), labels), plain, r.paint.paint(bold, string(f.Code))+": "+text)
	label := strings.Repeat(" ", labels) + r.paint.paint(bold, "seen") + "  "
	for _, line := range f.Evidence {
		r.line("%s%s", label, clean(line))
		label = strings.Repeat(" ", labels+len("seen")+2)
	}
	if f.Fix != string(f.Commands) {
		r.fix(clean(f.Fix))
	}
	for _, line := range f.Commands.Lines() {
		r.fix(clean(line))
	}
}

func severityStyle(s routing.Severity) style {
	switch s {
	case routing.Error:
		return red
	case routing.Warning:
		return yellow
	case routing.Notice:
	}
	return plain
}

// mostLinksToExamine bounds what `status` reads for its last lines, so that it stays quick.
const mostLinksToExamine = 40

// mostNamed bounds the findings that `status` names.
const mostNamed = 3

// more are the errors and warnings of doctor that a status does not have: it is for its last lines.
func (a *app) more(ctx context.Context, s Status) []doctor.Finding {
	if len(s.Links) == 0 || len(s.Links) > mostLinksToExamine {
		return nil
	}
	source, err := gather.Beside(s)
	if err != nil {
		return nil // The status says what cannot be read.
	}
	host := gather.Read(ctx, source, a.Root)
	return slices.DeleteFunc(doctor.Diagnose(s, host).Findings, func(f doctor.Finding) bool {
		return f.Severity < routing.Warning || slices.ContainsFunc(s.Problems, func(p status.Problem) bool { return p.Code == f.Code && p.Link == f.Link })
	})
}

// examined names what doctor found beyond the problems.
func (r *renderer) examined() {
	if len(r.found) == 0 {
		return
	}
	r.line("")
	for _, f := range r.found[:min(len(r.found), mostNamed)] {
		text := clean(f.Text)
		if link := clean(f.Link); link != "" && !strings.HasPrefix(text, link+" ") {
			text = link + ": " + text
		}
		r.folded(r.paint.pad(severityStyle(f.Severity), f.Severity.String(), len("warning"))+"  ", plain, text)
	}
	r.folded(strings.Repeat(" ", len("warning"))+"  ", plain, fmt.Sprintf("multihomectl doctor shows %s and how to fix it", english.Count(len(r.found), "such finding")))
}

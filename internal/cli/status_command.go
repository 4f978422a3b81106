package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"multihomed/internal/config"
	"multihomed/internal/status"
	"multihomed/internal/status/check"
	"multihomed/internal/status/offline"
	"multihomed/internal/status/socket"
	"multihomed/internal/status/view"
)

const statusHelp = `Show the links of this host, the routing table of each of their networks, which of the
planned rules and routes are active, what is wrong, and how to fix it. The manual,
multihomectl(8), explains every word of it.

It asks the daemon. If the daemon does not run, or does not answer within two seconds, it
reads the host itself. It changes nothing. It works without root; the end lists what this
user may not read.

For every link it checks where traffic goes: from each of its addresses and from its
device, to the outside, to its own gateway and to the networks of other links. It names
what takes traffic away. Without the daemon it checks only the links that are named, or
50.

A word selects links by interface, profile, address, network or table; with *, ? and []
it is a pattern of interfaces and profiles. Bytes of a name that do not print are
written \xNN, and a backslash twice; both forms are accepted.

The exit status is 0 if everything planned is active, bound traffic leaves by its link
and no problem is an error, 1 if not, and 2 if the command line is wrong or the host
cannot be read. With words, exit status and totals are those of the links shown.

With --json it prints the same for programs. Fields are only ever added as long as
"schema" is 1:

  schema            1
  ok                what the exit status says: true for 0
  by                who looked: "daemon", or "multihomectl" without it
  version           of who looked
  daemon            running, pid, version, started, ready, waiting, kept, refused
                    (true: it does not start with its configuration), state_dir,
                    runtime_dir (where it works, whatever its file says by now)
  network_manager   running, version, complete, waiting, error, none (true: this
                    host has none), unwanted ("disabled" or "masked": why it
                    has none)
  in_force          planned, present and unexpected rules, routes and groups
  tables            first and last table of the range
  uplink_group      interface group of uplinks
  unbound           by family ("ipv4", "ipv6"), the way of what is bound to no link:
                    interface, table; main (the interface of main's best default,
                    where failover moved the traffic), why, shares[] (interface,
                    weight)
  failover          enabled, prober_error (why no probes are sent), uplinks[]:
                    interface, family, state ("unknown", "up", "suspect", "down",
                    "recovering", "unprobed"), since, why, not_watched (the reason),
                    router_only, metered, tested (until when), loss (0 to 1), rtt_ms,
                    last_proof, recovered, deaths_today, targets[] (target, on_link,
                    answered, silent), interval_ms; only from the daemon
  bindings[]        what is bound to links: selector, value, link, interface, strict,
                    dns, dns_led (of users: as dns wants it), deny, by,
                    state ("active", "link-down", "waiting", "failed" or
                    "refused"), why,
                    dropped_packets
  answers           on which link forwarded packets are answered: families[]: family,
                    answers (on the link that was asked), fence, reason, why,
                    addresses (number of those that are answered by link);
                    dropped_packets (by the fence); only from the daemon
  counters          since the daemon started: passes, convergence (buckets[]: up_to_seconds,
                    count; count, sum_seconds), changes[] (object, verb, count),
                    refusals (kernel, database), repairs (rules, routes),
                    netlink_overruns, bus_losses, problems_logged[] (code, severity,
                    count), deaths[] (interface, family, count), switches[] (family,
                    away, back), leases (live, released); only from the daemon
  unchecked_links   number of links whose traffic is not checked yet
  links[]           interface, index, role ("uplink", "local"), role_why,
                    roles (by family, where they differ: role, why),
                    draining, pending, why, profile, type, up, carrier, group, since
                    (role and rules as they are), in_force,
                    networks[]: family, prefix, or host_addresses (true: addresses
                    without a network), table (0: none), routes
                    (a number: those that are not among the objects because
                    there are very many), addresses[] (address,
                    prefix_length, peer, flags[]), gateways[] (via),
                    left_alone: the reason by family, unused_addresses[],
                    objects[]: kind ("rule", "route", "group"), family, state
                    ("in force", "missing", "different", "misplaced", "yields",
                    "unexpected"), text as iproute2 has it, reason, lifts (the
                    rule of somebody else that this one leads to)
  shared[]          objects that serve all links, lift rules of others, or serve
                    no link
  off               since and by whom all of multihomed is switched off, if it is
  off_links[]       interface, uuid (of the profile), since, by; where there are any
  other_rules[]     rules of somebody else that have a say: family, text, place
                    ("ahead", "selects", "behind", "stepped over")
  other_interfaces[]  interface, why it is no link
  problems[]        code, severity ("error", "warning", "notice"), link, object,
                    text, fix, commands[] (that fix it, for sh), since
  unread[]          what could not be read`

func (a *app) status() *cobra.Command {
	var asJSON, verbose bool
	cmd := &cobra.Command{
		Use:   "status [INTERFACE|PROFILE|ADDRESS|NETWORK|TABLE|PATTERN]...",
		Short: "show links, tables, what is active and what is wrong",
		Long:  statusHelp,
		Example: `  multihomectl status
  multihomectl status wan0 'wwan*'
  multihomectl status 192.0.2.7
  multihomectl status --json | jq '.links[] | {interface, networks}'`,
		ValidArgsFunction: a.completeInterfaces,
		RunE: func(cmd *cobra.Command, args []string) error {
			how, err := a.look()
			if err != nil {
				return err
			}
			how.verbose, how.only = verbose, args
			return a.showStatus(cmd.Context(), a.find(cmd.Context()), how, asJSON)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON, see above")
	cmd.Flags().BoolVarP(&verbose, "verbose", "v", false, "list every rule and route with the reason why it exists, and why a link has its role")
	return cmd
}

func (a *app) showStatus(ctx context.Context, loaded config.Loaded, how look, asJSON bool) error {
	s, err := a.readStatus(ctx, loaded, how.only, asJSON || how.verbose)
	if err != nil {
		return &exitError{exitUsage, err}
	}
	tell(&s, loaded.Fault)
	if err := restrict(&s, how.only); err != nil {
		return &exitError{exitUsage, err}
	}
	if asJSON {
		encoder := json.NewEncoder(a.Out)
		encoder.SetIndent("", "  ")
		err = encoder.Encode(s)
	} else {
		if len(how.only) == 0 {
			how.found = a.more(ctx, s)
		}
		err = render(a.Out, s, how)
	}
	switch {
	case err != nil:
		return &exitError{exitUsage, fmt.Errorf("printing the status: %w", err)}
	case !s.OK:
		return &exitError{status: exitProblem}
	default:
		return nil
	}
}

// answerTime bounds the wait for the daemon; then the host is read without it. The daemon pauses after each
// answer, and waits for links after a reload: both together take more than a second.
const answerTime = 2 * time.Second

// patientTime bounds it for orders and the list of bindings: a daemon on a busy host is not one that hangs.
const patientTime = 10 * time.Second

// askAgain is the pause before asking again, while the daemon starts or has not checked all
// links yet.
const askAgain = 50 * time.Millisecond

// readStatus asks the daemon, and reads the host if the daemon does not answer.
func (a *app) readStatus(ctx context.Context, loaded config.Loaded, only []string, whole bool) (Status, error) {
	cfg := loaded.Config
	answer, err := askDaemon(ctx, cfg, whole)
	if err == nil {
		return *answer, nil
	}
	if ctx.Err() != nil {
		return Status{}, context.Cause(ctx)
	}
	v, readErr := readHost(ctx, cfg, only)
	if readErr != nil {
		return Status{}, readErr
	}
	v.Fault = loaded.Fault
	if v.Running {
		v.Silent = true
		if !errors.Is(err, socket.ErrNobody) {
			v.Notes = append(v.Notes, err.Error())
		}
	}
	return v.Status(check.Problems(v, a.Root), a.Version), nil
}

// askDaemon waits while the daemon starts, and while it has not checked all links.
func askDaemon(ctx context.Context, cfg config.Config, whole bool) (*Status, error) {
	return persist(ctx, cfg, answerTime, func(ctx context.Context) (answer *Status, more bool, err error) {
		answer, err = askOnce(ctx, cfg, whole)
		return answer, err == nil && answer.Unchecked > 0, err
	})
}

// askPatiently is askDaemon for patientTime. It does not wait until all links are checked.
func askPatiently(ctx context.Context, cfg config.Config) (*Status, error) {
	return persist(ctx, cfg, patientTime, func(ctx context.Context) (answer *Status, more bool, err error) {
		answer, err = askOnce(ctx, cfg, false)
		return answer, false, err
	})
}

// persist asks again while there is more to come, and while a daemon runs and nobody answers: it
// starts, or ends. It gives up when its patience is over.
func persist(ctx context.Context, cfg config.Config, patience time.Duration, ask func(context.Context) (answer *Status, more bool, err error)) (*Status, error) {
	waiting, cancel := context.WithTimeoutCause(ctx, patience, errors.New("multihomed does not answer"))
	defer cancel()
	ticker := time.NewTicker(askAgain)
	defer ticker.Stop()
	for {
		answer, more, err := ask(waiting)
		away := errors.Is(err, socket.ErrNobody) || errors.Is(err, socket.ErrUnanswered)
		switch {
		case err == nil && !more, err != nil && !away:
			return answer, err
		case err != nil && !offline.DaemonRuns(cfg):
			return nil, socket.ErrNobody // It may just have ended.
		}
		select {
		case <-ticker.C:
		case <-waiting.Done():
			return answer, err
		}
	}
}

func askOnce(ctx context.Context, cfg config.Config, whole bool) (*Status, error) {
	reply, err := fetchDocument(ctx, cfg)
	if err != nil {
		return nil, err
	}
	return reply.Decode(whole)
}

// tell adds the fault of the configuration file unless the daemon has reported it: the
// daemon works with another configuration then, and the next start will too.
func tell(s *Status, fault *config.Fault) {
	said := func(p Problem) bool { return p.Code == config.FaultCode }
	if fault == nil || slices.ContainsFunc(s.Problems, said) {
		return
	}
	s.Problems = slices.Insert(s.Problems, 0, status.ProblemOf(fault.Problem()))
	s.OK = false
}

// breath is how long a running daemon may take to finish a pass, which takes a thousandth
// of it.
const breath = 200 * time.Millisecond

// readHost reads the host. If something is missing while the daemon runs, the daemon was
// probably in the middle of a change, so it reads once more.
func readHost(ctx context.Context, cfg config.Config, only []string) (*view.View, error) {
	v, err := offline.Read(ctx, cfg, only...)
	if err != nil || !v.Running || len(v.Missing) == 0 {
		return v, err
	}
	timer := time.NewTimer(breath)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	return offline.Read(ctx, cfg, only...)
}

// completeInterfaces offers the interfaces of the host to the shell.
func (a *app) completeInterfaces(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	s, err := a.readStatus(cmd.Context(), a.find(cmd.Context()), nil, false)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var out []string
	add := func(word string) {
		if word != "" && !slices.Contains(args, word) && !slices.Contains(out, word) {
			out = append(out, word)
		}
	}
	for _, l := range s.Links {
		add(l.Interface)
	}
	for _, o := range s.Others {
		add(o.Interface)
	}
	slices.SortFunc(out, status.CompareNames)
	for _, l := range s.Links {
		add(l.Profile)
		for _, n := range l.Networks {
			if n.Table != 0 {
				add(strconv.FormatUint(uint64(n.Table), 10))
			}
		}
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}

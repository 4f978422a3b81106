package ctl

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"multihomed/cmd/internal/config"
	"multihomed/cmd/internal/inspect"
	"multihomed/internal/escape"
)

const statusHelp = `Show the links of this host, the routing table of each of their networks, what of
the planned rules and routes is in force, what is wrong, and how to mend it.

Nothing is changed and nobody is asked to wait. It works without the daemon, which
only has to tell what the kernel cannot know, and without root; what this user may
not read is named at the end.

A word selects links by interface, profile, address, network or table; with *, ? and []
it is a pattern of interfaces and profiles. Bytes of a name that do not print are
written \xNN, and a backslash twice; both forms are understood.

The exit status is 0 if everything planned is in force and no problem is an error,
1 if not, and 2 if the command line makes no sense or the host cannot be read.

With --json the same comes for programs. Fields are only ever added as long as
"schema" is 1:

  schema            1
  ok                what the exit status says: true for 0
  version           of multihomectl
  daemon            running, pid, version, started, ready, waiting
  network_manager   running, version, complete, waiting, error, none (this host
                    has none)
  in_force          planned, present and unexpected rules, routes and groups
  tables            first and last table of the range
  uplink_group      interface group of uplinks
  links[]           interface, index, role ("uplink", "local"), role_why,
                    draining, why, profile, type, up, carrier, group, in_force,
                    networks[]: family, prefix, or host_addresses (true: addresses
                    without a network), table (0: none), addresses[] (address,
                    prefix_length, peer, flags[]), gateways[] (via),
                    left_alone: the reason by family, unused_addresses[],
                    objects[]: kind ("rule", "route", "group"), family, state
                    ("in force", "missing", "different", "misplaced", "yields",
                    "unexpected"), text as iproute2 has it, reason, lifts (the
                    rule of somebody else that this one leads to)
  shared[]          objects that serve all links, lift rules of others, or serve
                    no link
  other_interfaces[]  interface, why it is no link
  problems[]        code, severity ("error", "warning", "notice"), link, object,
                    text, fix
  unread[]          what could not be read`

func (a *app) status() *cobra.Command {
	var asJSON, verbose bool
	cmd := &cobra.Command{
		Use:   "status [INTERFACE|PROFILE|ADDRESS|NETWORK|TABLE|PATTERN]...",
		Short: "show links, tables, what is in force and what is wrong",
		Long:  statusHelp,
		Example: `  multihomectl status
  multihomectl status wan0 'wwan*'
  multihomectl status 192.0.2.7
  multihomectl status --json | jq '.links[] | {interface, networks}'`,
		ValidArgsFunction: a.completeInterfaces,
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, err := a.load()
			if err != nil {
				return err
			}
			how, err := a.look()
			if err != nil {
				return err
			}
			how.verbose, how.only = verbose, args
			return a.showStatus(cmd.Context(), cfg, how, asJSON)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON, see above")
	cmd.Flags().BoolVarP(&verbose, "verbose", "v", false, "list every rule and route with the reason why it exists, and why a link has its role")
	return cmd
}

func (a *app) showStatus(ctx context.Context, cfg config.Config, how look, asJSON bool) error {
	view, err := settled(ctx, cfg)
	if err != nil {
		return &exitError{exitUsage, err}
	}
	s := statusOf(view, a.Root, a.Version)
	s.escapeNames()
	if err := s.restrict(how.only); err != nil {
		return &exitError{exitUsage, err}
	}
	if asJSON {
		encoder := json.NewEncoder(a.Out)
		encoder.SetIndent("", "  ")
		err = encoder.Encode(s)
	} else {
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

// breath is how long a running daemon gets to finish what it is doing. It needs
// a thousandth of it.
const breath = 200 * time.Millisecond

// settled reads the host. Where something is missing while the daemon runs, it
// was probably read in the middle of a change, and is read once more.
func settled(ctx context.Context, cfg config.Config) (*inspect.View, error) {
	view, err := inspect.Read(ctx, cfg)
	if err != nil || !view.Running || len(view.Missing) == 0 {
		return view, err
	}
	timer := time.NewTimer(breath)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	return inspect.Read(ctx, cfg)
}

// completeInterfaces offers the interfaces of the host to the shell.
func (a *app) completeInterfaces(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	cfg, err := a.load()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	view, err := inspect.Read(cmd.Context(), cfg)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var out []string
	add := func(word string) {
		if word != "" && !slices.Contains(args, word) && !slices.Contains(out, word) {
			out = append(out, word)
		}
	}
	for name := range view.Links {
		if name != "lo" {
			add(escape.Name(name))
		}
	}
	slices.SortFunc(out, compareNames)
	for plan := range view.Planner.Links() {
		add(escape.Name(view.Claims[plan.Link.Name].Profile))
		for _, k := range plan.Keys {
			if t, leased := plan.Link.Tables[k]; leased {
				add(strconv.FormatUint(uint64(t), 10))
			}
		}
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}

package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/godbus/dbus/v5"
	"github.com/spf13/cobra"

	"multihomed/internal/binding"
	"multihomed/internal/config"
	"multihomed/internal/handoff"
	"multihomed/internal/orders"
	"multihomed/internal/status"
	"multihomed/internal/status/offline"
	"multihomed/internal/status/socket"
)

const bindHelp = `Bind what users, programs, containers or networks send to one link, whatever the main table
says. multihomectl status shows what is bound; [[bind]] in multihomed.toml(5) does the
same, explains every selector, and wins over what is added here.

A selector is one of user=NAME, unit=NAME.service, slice=NAME.slice, cgroup=PATH, mark=NUMBER,
interface=NAME and source=NETWORK.`

const bindAddHelp = `Bind what a selector selects to a link: the name of an interface, or of its profile. The link
need not exist yet. Nothing that is bound leaves by another uplink while the link is down,
unless --strict=false.

It lasts until multihomectl bind remove, or with --runtime until the next boot. It needs
root, or the daemon and the permission of polkit.`

const bindRemoveHelp = `Undo multihomectl bind add. What is in the configuration file stays. A unit, slice or control
group that runs stays bound until it ends: restart the unit. It needs root, or the daemon
and the permission of polkit.`

func (a *app) bind() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "bind",
		Short: "bind users, programs, containers or networks to a link",
		Long:  bindHelp,
		Example: "  multihomectl bind add wan1 user=backup\n  multihomectl bind add lte interface=br-guests --inbound=deny --runtime\n" +
			"  multihomectl bind list\n  multihomectl bind remove user=backup",
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(a.bindAdd(), a.bindList(), a.bindRemove())
	return cmd
}

func (a *app) bindAdd() *cobra.Command {
	var o struct {
		runtime, strict, dns bool
		inbound              string
	}
	cmd := &cobra.Command{
		Use:               "add LINK SELECTOR=VALUE",
		Short:             "bind something to a link",
		Long:              bindAddHelp,
		Example:           "  multihomectl bind add wan1 user=backup\n  multihomectl bind add wan1 unit=sync.service --runtime",
		ValidArgsFunction: a.completeBind,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 2 {
				return usageError(cmd, "%s takes a link and a selector, such as wan1 user=backup; got %d arguments", cmd.CommandPath(), len(args))
			}
			return nil
		},
	}
	flags := cmd.Flags()
	flags.BoolVar(&o.runtime, "runtime", false, "until the next boot")
	flags.BoolVar(&o.strict, "strict", true, "nothing leaves by another uplink while the link is down")
	flags.BoolVar(&o.dns, "dns", true, "DNS queries go to the servers of the link, for user, unit, slice and cgroup; it needs --strict")
	flags.StringVar(&o.inbound, "inbound", string(config.Answer), "how requests by other links are answered, for interface and source: answer or deny")
	complete(cmd, map[string]cobra.CompletionFunc{"inbound": words(string(config.Answer), string(config.Deny))})
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		selector, err := orders.ParseSelector(args[1])
		if err != nil {
			return usageError(cmd, "%v", err)
		}
		b := orders.Binding{Link: args[0], Selector: selector, Strict: &o.strict, Runtime: o.runtime}
		if cmd.Flags().Changed("dns") {
			b.DNS = &o.dns
		}
		if cmd.Flags().Changed("inbound") {
			b.Inbound = o.inbound
		}
		return a.add(cmd, args, b)
	}
	return cmd
}

// add adds an entry.
func (a *app) add(cmd *cobra.Command, args []string, b orders.Binding) error {
	cfg := a.load(cmd.Context())
	wanted, err := b.Entry(cfg, a.configPath)
	if _, is := errors.AsType[*orders.WordError](err); is {
		return usageError(cmd, "%v", err)
	} else if err != nil {
		return &exitError{exitProblem, err}
	}
	if done, err := a.delegated(cmd.Context(), "bind add", args, "Bind", dictionary(b)); done {
		return err
	}
	if err := orders.Bind(cfg.Switch(), wanted, b.Runtime); err != nil {
		return &exitError{exitProblem, err}
	}
	return a.rebound(cmd.Context(), cfg, wanted.Selector(), func(row status.Binding) string { return orders.SentenceBound(wanted, row) })
}

// dictionary is a binding for D-Bus.
func dictionary(b orders.Binding) map[string]dbus.Variant {
	out := map[string]dbus.Variant{
		"link": dbus.MakeVariant(b.Link), b.Selector.Key: dbus.MakeVariant(b.Selector.Value), "strict": dbus.MakeVariant(*b.Strict), "runtime": dbus.MakeVariant(b.Runtime),
	}
	if b.DNS != nil {
		out["dns"] = dbus.MakeVariant(*b.DNS)
	}
	if b.Inbound != "" {
		out["inbound"] = dbus.MakeVariant(b.Inbound)
	}
	return out
}

// rebound has the daemon read the entries, and says what came of it.
func (a *app) rebound(ctx context.Context, cfg config.Config, s config.Selector, sentence func(status.Binding) string) error {
	err := handoff.Command(ctx, cfg.RuntimeDir, handoff.Rebound())
	if errors.Is(err, handoff.ErrNobody) {
		_, err = fmt.Fprintf(a.Out, "%s; it takes effect when multihomed runs: %s\n", sentence(status.Binding{}), a.startCommand())
		return err
	}
	if err != nil {
		return &exitError{exitProblem, fmt.Errorf("this is kept, and not in force yet: %w; to fix: systemctl restart multihomed", err)}
	}
	rows, err := a.bindings(ctx, cfg)
	if err != nil {
		return &exitError{exitProblem, fmt.Errorf("this is in force, and the status could not be read: %w", err)}
	}
	_, err = fmt.Fprintln(a.Out, sentence(orders.RowOf(rows, s)))
	return err
}

func (a *app) bindRemove() *cobra.Command {
	return &cobra.Command{
		Use:               "remove SELECTOR=VALUE",
		Short:             "undo bind add",
		Long:              bindRemoveHelp,
		Example:           "  multihomectl bind remove user=backup",
		ValidArgsFunction: a.completeBound,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usageError(cmd, "%s takes one selector, such as user=backup; got %d arguments", cmd.CommandPath(), len(args))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			selector, err := orders.ParseSelector(args[0])
			if err != nil {
				return usageError(cmd, "%v", err)
			}
			return a.unbind(cmd.Context(), args, selector)
		},
	}
}

func (a *app) unbind(ctx context.Context, args []string, s config.Selector) error {
	cfg := a.load(ctx)
	found, err := orders.FindBound(cfg, s, a.configPath)
	if err != nil {
		return &exitError{exitProblem, err}
	}
	if done, err := a.delegated(ctx, "bind remove", args, "Unbind", found.Selector().String()); done {
		return err
	}
	if err := orders.Unbind(cfg.Switch(), found); err != nil {
		return &exitError{exitProblem, err}
	}
	return a.rebound(ctx, cfg, found.Selector(), func(status.Binding) string { return orders.SentenceUnbound(found) })
}

func (a *app) bindList() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "list what is bound, and whether it is in force",
		Example: "  multihomectl bind list",
		Args:    noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			rows, err := a.bindings(cmd.Context(), a.load(cmd.Context()))
			if err != nil {
				return &exitError{exitProblem, err}
			}
			if asJSON {
				if rows == nil {
					rows = []status.Binding{}
				}
				data, err := json.MarshalIndent(status.Bindings{Schema: status.Schema, Bindings: rows}, "", "  ")
				if err == nil {
					_, err = fmt.Fprintf(a.Out, "%s\n", data)
				}
				return err
			}
			if len(rows) == 0 {
				_, err := fmt.Fprintln(a.Out, "nothing is bound")
				return err
			}
			for _, r := range rows {
				if _, err := fmt.Fprintln(a.Out, boundLine(r)); err != nil {
					return err
				}
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// boundLine is one binding in a line.
func boundLine(r status.Binding) string {
	text := fmt.Sprintf("%s=%s by %s", r.Selector, clean(r.Value), clean(r.Link))
	if r.Interface != "" && r.Interface != r.Link {
		text += " (" + clean(r.Interface) + ")"
	}
	var notes []string
	if r.Why != "" {
		notes = append(notes, clean(r.Why))
	}
	if !r.Strict {
		notes = append(notes, "not strict")
	}
	if r.Deny {
		notes = append(notes, "requests by other links denied")
	}
	switch r.By {
	case string(binding.Configured):
		notes = append(notes, "in the configuration")
	case string(binding.Runtime):
		notes = append(notes, "until the next boot")
	case "sockets":
		notes = append(notes, "the mark of what multihomectl run, units, slices, cgroups and DNS of users have bound")
	}
	switch {
	case r.Dropped == 1:
		notes = append(notes, "1 packet dropped")
	case r.Dropped > 1:
		notes = append(notes, fmt.Sprintf("%d packets dropped", r.Dropped))
	}
	if len(notes) > 0 {
		text += ": " + strings.Join(notes, "; ") // A reason may have commas.
	}
	return text
}

// bindings asks the daemon, or reads the host without one.
func (a *app) bindings(ctx context.Context, cfg config.Config) ([]status.Binding, error) {
	s, err := askPatiently(ctx, cfg)
	switch {
	case err == nil:
		return s.Bindings, nil
	case !errors.Is(err, socket.ErrNobody):
		return nil, a.unanswered(err)
	}
	v, err := offline.Look(ctx, cfg)
	if err != nil {
		return nil, err
	}
	for i := range v.Bindings {
		v.Bindings[i].Escape()
	}
	return v.Bindings, nil
}

// completeBind offers links, then selectors.
func (a *app) completeBind(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	switch len(args) {
	case 0:
		return a.completeUplinks(cmd, args, "")
	case 1:
		words := make([]string, 0, len(orders.SelectorKeys()))
		for _, k := range orders.SelectorKeys() {
			words = append(words, k+"=")
		}
		return words, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
	default:
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
}

// completeBound offers what can be removed.
func (a *app) completeBound(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	var words []string
	if present, err := binding.Load(a.find(cmd.Context()).Switch()); err == nil && len(args) == 0 {
		for _, e := range present {
			words = append(words, e.Selector().String())
		}
	}
	return words, cobra.ShellCompDirectiveNoFileComp
}

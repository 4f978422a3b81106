package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"multihomed/internal/binding"
	"multihomed/internal/config"
	"multihomed/internal/escape"
	"multihomed/internal/handoff"
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
root.`

const bindRemoveHelp = `Undo multihomectl bind add. What is in the configuration file stays. A unit, slice or control
group that runs stays bound until it ends: restart the unit. It needs root.`

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
		key, value, err := selector(cmd, args[1])
		if err != nil {
			return err
		}
		text := fmt.Sprintf("[[bind]]\nlink = %s\n%s = %s\nstrict = %t\n", config.TOMLString(args[0]), key, config.TOMLString(value), o.strict)
		if cmd.Flags().Changed("dns") {
			text += fmt.Sprintf("dns = %t\n", o.dns)
		}
		if cmd.Flags().Changed("inbound") {
			text += fmt.Sprintf("inbound = %s\n", config.TOMLString(o.inbound))
		}
		wanted, err := config.ParseBinds("", []byte(text))
		if err != nil {
			return usageError(cmd, "%s", mistakes(err))
		}
		return a.add(cmd, args, wanted[0], o.runtime)
	}
	return cmd
}

// mistakes says what is wrong with an entry that was made of the command line, without the places
// of a file that does not exist.
func mistakes(err error) string {
	var all []string
	for _, e := range flatten(err) {
		found, is := errors.AsType[*config.Error](e)
		if !is {
			all = append(all, e.Error())
			continue
		}
		key, _, _ := strings.Cut(strings.TrimPrefix(found.Key, "bind."), " ")
		if key != "" && key != "bind" {
			key += ": "
		} else {
			key = ""
		}
		all = append(all, key+found.Message)
	}
	return strings.Join(all, "; ")
}

func flatten(err error) []error {
	if joined, is := err.(interface{ Unwrap() []error }); is {
		return joined.Unwrap()
	}
	return []error{err}
}

// selectorKeys are the keys of [[bind]] that select.
var selectorKeys = []string{"user", "mark", "interface", "source", "unit", "slice", "cgroup"} //nolint:gochecknoglobals // a constant in all but name

func selector(cmd *cobra.Command, word string) (key, value string, err error) {
	key, value, is := strings.Cut(word, "=")
	if !is || !slices.Contains(selectorKeys, key) {
		return "", "", usageError(cmd, "%q is no selector%s; want one of %s=VALUE", escape.Text(word), meant(key, selectorKeys), strings.Join(selectorKeys, "=, "))
	}
	return key, value, nil
}

// add adds an entry.
func (a *app) add(cmd *cobra.Command, args []string, wanted config.Bind, runtime bool) error {
	cfg := a.load(cmd.Context())
	if o, meets := wanted.Meeting(cfg.Binds); meets {
		return &exitError{exitProblem, fmt.Errorf("the configuration binds %s to %s; to fix: change [[bind]] in %s", clean(o.Selector().String()), clean(o.Link), a.configPath)}
	}
	if err := wanted.CheckMark(cfg.Answers.MarkMask); err != nil {
		return usageError(cmd, "mark: %v", err)
	}
	if err := a.may("bind add", args); err != nil {
		return err
	}
	origin, other := binding.Added, binding.Runtime
	if runtime {
		origin, other = other, origin
	}
	present, err := binding.Load(cfg.Switch())
	if err != nil {
		return &exitError{exitProblem, err}
	}
	for _, e := range present {
		if o, meets := wanted.Meeting([]config.Bind{e.Bind}); meets && (e.Origin == other || o.Selector() != wanted.Selector()) {
			return &exitError{exitProblem, fmt.Errorf("%s is bound to %s already; to fix: multihomectl bind remove %s", clean(o.Selector().String()), clean(o.Link), shellWord(o.Selector().String()))}
		}
	}
	err = binding.Change(cfg.Switch(), origin, func(list []config.Bind) ([]config.Bind, error) {
		at := slices.IndexFunc(list, func(b config.Bind) bool { return b.Selector() == wanted.Selector() })
		if at >= 0 {
			list[at] = wanted // Another link, or other words.
			return list, nil
		}
		return append(list, wanted), nil
	})
	if err != nil {
		return &exitError{exitProblem, err}
	}
	return a.rebound(cmd.Context(), cfg, wanted.Selector(), func(row status.Binding) string {
		return fmt.Sprintf("%s is bound to %s", clean(wanted.Selector().String()), clean(wanted.Link)) + because(row)
	})
}

// because says what an entry waits for.
func because(row status.Binding) string {
	switch row.State {
	case status.BindingActive:
		if row.Why != "" {
			return ", but " + clean(row.Why)
		}
		return ""
	case "":
		return ""
	case status.BindingDown:
		return ", which is down: " + clean(row.Why)
	case status.BindingRefused:
		return ", which has no effect: " + clean(row.Why)
	default:
		return ", and waits: " + clean(row.Why)
	}
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
	var row status.Binding
	for _, r := range rows {
		if r.Selector == s.Key && r.Value == escape.Text(s.Value) {
			row = r
		}
	}
	_, err = fmt.Fprintln(a.Out, sentence(row))
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
			key, value, err := selector(cmd, args[0])
			if err != nil {
				return err
			}
			return a.unbind(cmd.Context(), args, config.Selector{Key: key, Value: value})
		},
	}
}

func (a *app) unbind(ctx context.Context, args []string, s config.Selector) error {
	cfg := a.load(ctx)
	present, err := binding.Load(cfg.Switch())
	if err != nil {
		return &exitError{exitProblem, err}
	}
	at := slices.IndexFunc(present, func(e binding.Entry) bool { return same(e.Selector(), s) })
	if at < 0 {
		if slices.ContainsFunc(cfg.Binds, func(b config.Bind) bool { return same(b.Selector(), s) }) {
			return &exitError{exitProblem, fmt.Errorf("the configuration binds %s; to fix: remove its [[bind]] from %s, then: systemctl reload multihomed", s, a.configPath)}
		}
		words := make([]string, 0, len(present))
		for _, e := range present {
			words = append(words, e.Selector().String())
		}
		return &exitError{exitProblem, fmt.Errorf("%s is not bound%s; to see what is: multihomectl bind list", escape.Text(s.String()), meant(s.String(), words))}
	}
	if err := a.may("bind remove", args); err != nil {
		return err
	}
	found := present[at]
	err = binding.Change(cfg.Switch(), found.Origin, func(list []config.Bind) ([]config.Bind, error) {
		return slices.DeleteFunc(list, func(b config.Bind) bool { return b.Selector() == found.Selector() }), nil
	})
	if err != nil {
		return &exitError{exitProblem, err}
	}
	return a.rebound(ctx, cfg, found.Selector(), func(status.Binding) string {
		return fmt.Sprintf("%s is bound to %s no longer", clean(found.Selector().String()), clean(found.Link)) + stays(found.Selector())
	})
}

// stays says what keeps the programs that were attached to its cgroup: they stay as long as that exists.
func stays(s config.Selector) string {
	switch s.Key {
	case "unit":
		return "; if it runs, it stays bound until it ends: systemctl restart " + shellWord(s.Value)
	case "slice":
		return "; if it runs, it stays bound until it ends: systemctl stop " + shellWord(s.Value)
	case "cgroup":
		return "; if it exists, it stays bound until it is removed"
	default:
		return ""
	}
}

// same compares selectors; a mark may be written as a number of any base.
func same(a, written config.Selector) bool {
	if a == written {
		return true
	}
	read, err := config.ParseBinds("", []byte(fmt.Sprintf("[[bind]]\nlink = \"x\"\n%s = %s\n", written.Key, config.TOMLString(written.Value))))
	return err == nil && read[0].Selector() == a
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
				data, err := json.MarshalIndent(rows, "", "  ")
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
	cmd.Flags().BoolVar(&asJSON, "json", false, "as JSON")
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
	s, err := askDaemon(ctx, cfg, false)
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
		words := make([]string, 0, len(selectorKeys))
		for _, k := range selectorKeys {
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

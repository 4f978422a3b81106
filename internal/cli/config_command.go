package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"multihomed/internal/config"
	"multihomed/internal/daemon"
	"multihomed/internal/status/check"
	"multihomed/internal/status/offline"
)

func (a *app) config() *cobra.Command {
	var reference bool
	cmd := &cobra.Command{
		Use:   "config",
		Short: "print the configuration that the file gives, or check one",
		Long: `Print the configuration that the daemon would have if it read its file now: what the
file says, and the defaults for the rest. The output is itself a configuration file. A
running daemon has it after systemctl reload multihomed. If the file is refused, it
prints what is used instead, and the exit status is 1.`,
		Example: `  multihomectl config                 what the file gives, with the defaults
  multihomectl config --reference     every key, explained
  multihomectl config check new.toml  before it is installed`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if reference {
				_, err := fmt.Fprint(a.Out, config.Reference)
				return err
			}
			return a.printConfig(cmd.Context())
		},
	}
	cmd.Flags().BoolVar(&reference, "reference", false, "print a configuration file that explains every key")
	cmd.AddCommand(&cobra.Command{
		Use:   "check [FILE]",
		Short: "check a configuration file without using it",
		Long: `Check a configuration file, by default that of the daemon. The exit status is 0 if it is
valid and 1 if not. It says if a running daemon needs a restart to use the file, because a
reload is not enough, and names entries that match no interface of this host at present.`,
		Args: atMostOne,
		RunE: func(cmd *cobra.Command, args []string) error { return a.check(cmd.Context(), args) },
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			if len(args) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return nil, cobra.ShellCompDirectiveDefault
		},
	})
	return cmd
}

// printConfig prints what the daemon would have. If the file is bad the exit status is 1.
func (a *app) printConfig(ctx context.Context) error {
	loaded := a.find(ctx)
	if _, err := fmt.Fprint(a.Out, a.effective(loaded)); err != nil {
		return err
	}
	if loaded.Fault != nil {
		return &exitError{exitProblem, loaded.Fault}
	}
	return nil
}

func (a *app) check(ctx context.Context, args []string) error {
	path := a.configPath
	if len(args) > 0 {
		path = args[0]
	}
	if config.IsMissing(path) {
		if len(args) > 0 {
			return &exitError{exitUsage, fmt.Errorf("there is no file %s", path)}
		}
		_, err := fmt.Fprintf(a.Out, "%s does not exist: the defaults apply\n", path)
		return err
	}
	cfg, err := config.Load(path)
	if err != nil {
		return &exitError{exitProblem, err}
	}
	restart := ""
	if needs, is := errors.AsType[*config.RestartError](daemon.CheckReload(ctx, path)); is {
		restart = ", but a reload is refused: " + needs.Error()
	}
	lines := []string{fmt.Sprintf("%s is sound%s\n", path, restart)}
	// Where the host cannot be read, the file was checked all the same.
	if v, err := offline.Look(ctx, cfg.Here()); err == nil {
		for _, p := range check.Entries(v) {
			lines = append(lines, fmt.Sprintf("%s: %s\n", p.Severity, clean(p.Text)))
		}
	}
	_, err = fmt.Fprint(a.Out, strings.Join(lines, ""))
	return err
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return !errors.Is(err, fs.ErrNotExist)
}

// effective is the configuration that the daemon would have, as a file. Where it would not start,
// it has none.
func (a *app) effective(loaded config.Loaded) string {
	from := a.configPath
	switch {
	case loaded.Fault != nil && loaded.Fault.Refused:
		return "# " + a.configPath + " is refused; in use instead: " + loaded.Fault.Instead + "\n"
	case loaded.Fault != nil:
		from = loaded.Fault.Instead + ": " + a.configPath + " is refused"
	case config.IsMissing(a.configPath):
		from = "the defaults: there is no " + a.configPath
	}
	return effective(loaded.Config, from)
}

// effective writes a configuration as a file.
func effective(c config.Config, from string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "# The configuration of multihomed, from %s\n", from)
	fmt.Fprintf(&b, "uplink_group = %d\n", c.UplinkGroup)
	fmt.Fprintf(&b, "container_prefix_length = %d\n", c.ContainerPrefixLength)
	fmt.Fprintf(&b, "network_rules = %s\n", config.TOMLString(string(c.NetworkRules)))
	fmt.Fprintf(&b, "log_level = %s\n", config.TOMLString(strings.ToLower(c.LogLevel.String())))
	fmt.Fprintf(&b, "network_manager = %s\n", config.TOMLString(string(c.NetworkManager)))
	fmt.Fprintf(&b, "state_dir = %s\nruntime_dir = %s\n", config.TOMLString(c.StateDir), config.TOMLString(c.RuntimeDir))
	fmt.Fprintf(&b, "\n[tables]\nfirst = %d\nlast = %d\n", c.Tables.First, c.Tables.Last)
	fmt.Fprintf(&b, "\n[repair]\nburst = %d\nper_second = %s\n", c.RepairBurst, decimal(c.RepairsPerSecond))
	allocatorTable(&b, c.Allocator)
	fmt.Fprintf(&b, "\n[dns]\nservers_file = %s\ndnsmasq_pid_file = %s\n", config.TOMLString(c.DNS.ServersFile), config.TOMLString(c.DNS.PIDFile))
	fmt.Fprintf(&b, "\n[ifupdown]\nmove_routes = %t\n", c.MoveRoutes)
	failoverTable(&b, c.Failover)
	shareTable(&b, c.Share)
	fmt.Fprintf(&b, "\n[answers]\nforwarded = %s\nfence = %s\nmark_mask = %#x\non_dead = %s\n", config.TOMLString(string(c.Answers.Forwarded)), config.TOMLString(string(c.Answers.Fence)), uint32(c.Answers.MarkMask), config.TOMLString(string(c.Answers.OnDead)))
	fmt.Fprintf(&b, "\n[run]\ngroup = %s\n", config.TOMLString(c.Run.Group))
	matchers(&b, "include", c.Include)
	matchers(&b, "exclude", c.Exclude)
	links(&b, c.Links)
	for _, bind := range c.Binds {
		b.WriteString("\n" + config.FormatBind(bind))
	}
	return b.String()
}

func allocatorTable(b *strings.Builder, a config.Allocator) {
	families := make([]string, 0, len(a.Families))
	for _, f := range a.Families {
		families = append(families, config.FamilyName(f))
	}
	fmt.Fprintf(b, "\n[allocator]\nenabled = %t\nsocket = %s\nlifetime = %d\n", a.Enabled, config.TOMLString(a.Socket), a.Lifetime/time.Second)
	fmt.Fprintf(b, "families = %s\nusers = %s\ngroups = %s\n", tomlList(families), tomlList(a.Users), tomlList(a.Groups))
	fmt.Fprintf(b, "tables_per_user = %d\n", a.TablesPerUser)
}

func failoverTable(b *strings.Builder, f config.Failover) {
	fmt.Fprintf(b, "\n[failover]\nenabled = %t\ntargets = %s\nprobe = %s\n", f.Enabled, tomlList(texts(f.Targets)), config.TOMLString(string(f.Probe)))
	for _, d := range []struct {
		key   string
		value time.Duration
	}{{"interval", f.Interval}, {"standby", f.Standby}, {"metered", f.Metered}, {"silence", f.Silence}, {"recover", f.Recover}} {
		fmt.Fprintf(b, "%s = %s\n", d.key, config.TOMLString(config.DurationText(d.value)))
	}
	prefer := make([]string, 0, len(f.Prefer))
	for _, n := range f.Prefer {
		prefer = append(prefer, string(n))
	}
	fmt.Fprintf(b, "prefer = %s\nforwarded = %s\nhost_routes = %t\nconntrack = %t\n", tomlList(prefer), config.TOMLString(string(f.Forwarded)), f.HostRoutes, f.Conntrack)
	fmt.Fprintf(b, "close_connections = %s\nmptcp = %s\nprober = %s\n", config.TOMLString(config.DurationText(f.CloseConnections)), config.TOMLString(string(f.MPTCP)), config.TOMLString(f.Prober))
}

func shareTable(b *strings.Builder, s config.Share) {
	weights := make([]string, 0, len(s.Weights))
	for _, w := range s.Weights {
		weights = append(weights, fmt.Sprintf("%s = %d", config.TOMLString(string(w.Name)), w.Weight))
	}
	fmt.Fprintf(b, "\n[share]\nweights = {%s}\n", strings.Join(weights, ", "))
}

func tomlList(list []string) string {
	quoted := make([]string, 0, len(list))
	for _, text := range list {
		quoted = append(quoted, config.TOMLString(text))
	}
	return "[" + strings.Join(quoted, ", ") + "]"
}

func matchers(b *strings.Builder, name string, list []config.Matcher) {
	for _, m := range list {
		entry(b, name, m)
	}
}

// entry begins an entry of a list with the keys that match.
func entry(b *strings.Builder, name string, m config.Matcher) {
	fmt.Fprintf(b, "\n[[%s]]\n", name)
	for _, f := range []struct{ key, glob string }{{"interface", m.Interface}, {"profile", m.Profile}, {"type", m.Type}} {
		if f.glob != "" {
			fmt.Fprintf(b, "%s = %s\n", f.key, config.TOMLString(f.glob))
		}
	}
}

func links(b *strings.Builder, list []config.Link) {
	for _, l := range list {
		entry(b, "link", l.Matcher)
		if role := config.RoleName(l.Role); role != "" {
			fmt.Fprintf(b, "role = %s\n", config.TOMLString(role))
		}
		if len(l.Gateways) > 0 {
			fmt.Fprintf(b, "gateway = %s\n", tomlList(texts(l.Gateways)))
		}
		if l.LastResort != nil {
			fmt.Fprintf(b, "last_resort = %t\n", *l.LastResort)
		}
		if l.Ignore != nil {
			fmt.Fprintf(b, "ignore = %t\n", *l.Ignore)
		}
		if len(l.Delegated) > 0 {
			fmt.Fprintf(b, "delegated = %s\n", tomlList(texts(l.Delegated)))
		}
	}
}

func texts[T fmt.Stringer](list []T) []string {
	out := make([]string, 0, len(list))
	for _, v := range list {
		out = append(out, v.String())
	}
	return out
}

// decimal writes a TOML float, which must have a point.
func decimal(f float64) string {
	text := strconv.FormatFloat(f, 'f', -1, 64)
	if !strings.Contains(text, ".") {
		text += ".0"
	}
	return text
}

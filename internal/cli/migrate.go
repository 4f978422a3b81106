package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"multihomed/allocator"
	"multihomed/internal/ancestor"
	"multihomed/internal/config"
	"multihomed/internal/english"
	"multihomed/internal/ownership"
	"multihomed/routing"
	"multihomed/routing/kernel"
)

const migrateHelp = `Take over the configuration and the table numbers of the table allocator of
kristrev/multihomed-routing, so that this host keeps its numbers: its clients get
theirs when they ask, and a link gets the one that its address had.

Without --apply it changes nothing and prints what it would do. With it, the daemon
must be stopped, as must the ancestor's server. The configuration is written if there
is none. An existing one stays as it is, and what it lacks is printed. Entries that
contradict an existing lease are left out and reported. The files of the ancestor, and
rules and routes of its clients in the kernel, are left to you, with the commands that
remove them. Applying twice changes nothing more.`

func (a *app) migrate() *cobra.Command {
	m := &migration{app: a}
	cmd := &cobra.Command{
		Use:   "migrate",
		Short: "take over from the table allocator of multihomed-routing",
		Long:  migrateHelp,
		Example: `  multihomectl migrate
  systemctl stop multihomed && multihomectl migrate --apply && systemctl start multihomed`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error { return m.run(cmd.Context()) },
	}
	cmd.Flags().StringVar(&m.from, "from", ancestor.DefaultConfig, "the ancestor's configuration `file`")
	cmd.Flags().StringVar(&m.database, "database", "", "the ancestor's database `file`; by default the one that its configuration names")
	cmd.Flags().BoolVar(&m.apply, "apply", false, "do it")
	return cmd
}

// A migration is one run of the command.
type migration struct {
	*app
	from, database string
	apply          bool

	// was is the ancestor's configuration, now ours, next ours after the migration.
	was       ancestor.Config
	now, next config.Config
	// text is the configuration file that is missing, lacks are lines that an
	// existing one should have.
	text  string
	lacks []string
}

func (m *migration) run(ctx context.Context) error {
	fail := func(err error) error { return &exitError{exitProblem, err} }
	var err error
	if m.was, err = ancestor.ReadConfig(m.from); err != nil {
		return fail(err)
	}
	m.now = m.load(ctx)
	if err := m.configure(); err != nil {
		return fail(err)
	}
	if m.database == "" {
		m.database = m.was.Database
	}
	rows, err := ancestor.ReadDatabase(ctx, m.database)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fail(err)
	}
	if errors.Is(err, fs.ErrNotExist) {
		m.say("there is no database %s: there are no numbers to take over", m.database)
	}
	if m.apply {
		lock, err := takeLock(ctx, m.next)
		if err != nil {
			return fail(err)
		}
		defer lock.Close()
		// Before the numbers: without it they would be outside of the range.
		if err := m.writeConfig(); err != nil {
			return fail(err)
		}
	}
	m.tellConfig()
	left, err := m.leases(ctx, rows)
	if err != nil {
		return fail(err)
	}
	if err := m.leftovers(ctx); err != nil {
		return fail(err)
	}
	if !m.apply {
		m.say("nothing was changed; to do it: multihomectl migrate --apply")
	}
	if left > 0 && m.apply {
		return fail(fmt.Errorf("%s not taken over, see above", english.Count(left, "number")))
	}
	return nil
}

func (m *migration) say(format string, args ...any) {
	fmt.Fprintf(m.Out, format+"\n", args...)
}

// configure decides what our configuration needs.
func (m *migration) configure() error {
	d := m.now
	c := d.Allocator
	tables := d.Tables
	if !tables.Contains(m.was.Tables.First) || m.was.Tables.Last >= tables.Last {
		// As many as by default if nobody else has them: links need some too. At least
		// one more, because the last one is kept for failover.
		tables = m.was.Tables
		usual := routing.DefaultPolicy().Tables
		for _, last := range []routing.TableID{tables.First + usual.Last - usual.First, tables.Last + 1} {
			wide := routing.TableRange{First: tables.First, Last: last}
			if wide.Last > tables.Last && rangeAllowed(wide) {
				tables = wide
				break
			}
		}
	}
	lifetime := max(m.was.Lifetime, 10*time.Second)
	var lines []string
	if tables != d.Tables {
		lines = append(lines, "[tables]", fmt.Sprintf("first = %d", tables.First), fmt.Sprintf("last = %d", tables.Last))
	}
	var own []string
	if c.Socket != m.was.Socket {
		own = append(own, "socket = "+config.TOMLString(m.was.Socket))
	}
	if c.Lifetime != lifetime {
		own = append(own, fmt.Sprintf("lifetime = %d", lifetime/time.Second))
	}
	// An additional family does no harm; none of the ancestor's may be missing.
	families := slices.Clone(c.Families)
	for _, f := range m.was.Families {
		if !slices.Contains(families, f) {
			families = append(families, f)
		}
	}
	if len(families) != len(c.Families) {
		names := make([]string, 0, len(families))
		for _, f := range families {
			names = append(names, config.FamilyName(f))
		}
		own = append(own, "families = "+tomlList(names))
	}
	if !c.Enabled {
		own = append(own, "enabled = true")
	}
	if len(own) > 0 {
		lines = append(append(lines, "[allocator]"), own...)
	}
	m.next = d
	if len(lines) == 0 {
		return nil
	}
	if !config.IsMissing(m.configPath) {
		m.lacks = lines
		return nil
	}
	text := fmt.Sprintf("# Taken over from %s. See `multihomectl config --reference`.\n%s\n", m.from, strings.Join(lines, "\n"))
	next, err := config.Parse(m.configPath, []byte(text))
	if err != nil {
		return fmt.Errorf("taking over %s: %w", m.from, err)
	}
	m.text, m.next = text, next
	return nil
}

func rangeAllowed(r routing.TableRange) bool {
	_, err := config.Parse("", fmt.Appendf(nil, "[tables]\nfirst = %d\nlast = %d\n", r.First, r.Last))
	return err == nil
}

func (m *migration) writeConfig() error {
	if m.text == "" {
		return nil
	}
	if err := ownership.MakeDirectory(filepath.Dir(m.configPath)); err != nil {
		return fmt.Errorf("creating the directory of the configuration: %w", err)
	}
	if err := ownership.WriteFile(m.configPath, []byte(m.text), 0o644); err != nil {
		return fmt.Errorf("writing the configuration: %w", err)
	}
	return nil
}

// did chooses between what was done and what would be.
func (m *migration) did(done, planned string) string {
	if m.apply {
		return done
	}
	return planned
}

func (m *migration) tellConfig() {
	for _, key := range m.was.Unknown {
		m.say("%s: %s is no key of the ancestor and was left out", m.from, clean(key))
	}
	indented := func(lines []string) string { return "    " + strings.Join(lines, "\n    ") }
	switch {
	case m.text != "":
		m.say("%s %s:\n%s", m.did("wrote", "would write"), m.configPath, indented(strings.Split(strings.TrimSpace(m.text), "\n")))
	case len(m.lacks) > 0:
		m.say("%s stays as it is; to behave as before it needs:\n%s", m.configPath, indented(m.lacks))
	default:
		m.say("the active configuration needs no change")
	}
}

// leases enters the numbers, and returns how many were left out.
func (m *migration) leases(ctx context.Context, rows []ancestor.Row) (left int, err error) {
	if len(rows) == 0 {
		return 0, nil
	}
	leases, done, err := m.openLeases(ctx)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, done()) }()
	var list []allocator.Imported
	for _, r := range rows {
		if r.Why == "" {
			list = append(list, r.Imported)
			continue
		}
		left++
		m.say("%s: %s", describeRow(r.Imported), r.Why)
	}
	results, err := leases.Import(ctx, list, !m.apply)
	if err != nil {
		return left, err
	}
	for _, r := range results {
		switch r.Fate {
		case allocator.Entered:
			m.say("%s: %s", describeRow(r.Imported), m.did("taken over", "would be taken over"))
		case allocator.Already:
			m.say("%s: is there already", describeRow(r.Imported))
		case allocator.Taken, allocator.Other, allocator.Outside, allocator.Kept, allocator.Senseless:
			left++
			m.say("%s: not taken over: %s; it gets another number when it asks", describeRow(r.Imported), clean(r.Why))
		}
	}
	return left, nil
}

// openLeases opens our leases, for reading only where nothing is to be changed.
func (m *migration) openLeases(ctx context.Context) (leases *allocator.Allocator, done func() error, err error) {
	o := allocator.Options{Path: filepath.Join(m.next.StateDir, allocator.DefaultName), Range: m.next.Tables}
	open, remove := allocator.OpenReadOnly, func() error { return nil }
	switch {
	case m.apply:
		open = allocator.Open
	case !exists(o.Path):
		// A trial in a scratch directory leaves nothing behind.
		scratch, err := os.MkdirTemp("", "multihomed")
		if err != nil {
			return nil, nil, fmt.Errorf("making a scratch directory: %w", err)
		}
		remove = func() error { return os.RemoveAll(scratch) }
		o.Path, open = filepath.Join(scratch, allocator.DefaultName), allocator.Open
	}
	leases, err = open(ctx, o)
	if err != nil {
		return nil, nil, errors.Join(err, remove())
	}
	return leases, func() error { return errors.Join(leases.Close(), remove()) }, nil
}

func describeRow(i allocator.Imported) string {
	const longest = 64
	text := clean(i.Key.Interface + " " + i.Key.Address)
	if len(text) > longest {
		text = text[:longest] + "..."
	}
	return fmt.Sprintf("%s, table %d", text, uint32(i.Table))
}

// leftovers prints the objects of the ancestor's clients in the kernel.
func (m *migration) leftovers(ctx context.Context) error {
	mirror, err := kernel.Open(kernel.Config{Tables: m.was.Tables, Interest: func(string) bool { return false }})
	if err != nil {
		return err
	}
	defer mirror.Close()
	if err := mirror.Sync(ctx); err != nil {
		return err
	}
	var rules []routing.Rule
	var tables []routing.TableID
	mirror.View(func(k *kernel.State) {
		for _, r := range k.ForeignRules() {
			if r.Action == routing.ActionLookup && m.was.Tables.Contains(r.Table) {
				rules = append(rules, r)
			}
		}
		for _, t := range k.ForeignTables() {
			if m.was.Tables.Contains(t) {
				tables = append(tables, t)
			}
		}
	})
	if len(rules)+len(tables) == 0 {
		return nil
	}
	m.say("the kernel still holds rules and routes of the ancestor's clients; they go with a reboot, or with:")
	for _, r := range rules {
		m.say("    %s", deleteRule(r))
	}
	for _, t := range tables {
		for _, f := range routing.Families() {
			m.say("    ip %s route flush table %d protocol boot", f.Flag(), uint32(t))
		}
	}
	return nil
}

// deleteRule is the command that deletes a rule.
func deleteRule(r routing.Rule) string {
	words := []string{"ip", r.Family.Flag(), "rule", "del", "priority", strconv.FormatUint(uint64(r.Priority), 10)}
	if r.IIF != "" {
		words = append(words, "iif", clean(r.IIF))
	}
	if r.OIF != "" {
		words = append(words, "oif", clean(r.OIF))
	}
	if r.From.IsValid() {
		words = append(words, "from", r.From.String())
	}
	if r.To.IsValid() {
		words = append(words, "to", r.To.String())
	}
	return strings.Join(append(words, "lookup", strconv.FormatUint(uint64(r.Table), 10)), " ")
}

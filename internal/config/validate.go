package config

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"
	"unicode"

	"multihomed/routing"
)

// maxTables bounds the range, so that a typing error does not make it four billion: a million
// links get one table each.
const maxTables = 1_000_000

// A reserved range of tables belongs to somebody else.
type reserved struct {
	tables routing.TableRange
	owner  string
}

// reservedTables are those that no lease may use: the kernel's, and those that
// NetworkManager uses unasked (nm-cloud-setup, and the range in which libnm-core searches a
// free table for WireGuard).
func reservedTables() []reserved {
	return []reserved{
		{routing.TableRange{First: routing.TableDefault, Last: routing.TableLocal}, "the kernel"},
		{routing.TableRange{First: 20053, Last: 20053}, "NetworkManager"},
		{routing.TableRange{First: 30200, Last: 30499}, "nm-cloud-setup"},
		{routing.TableRange{First: 51820, Last: 52319}, "WireGuard of NetworkManager"},
	}
}

// A validator turns a raw file into a Config and collects what is wrong.
type validator struct {
	file string
	at   *positions
	errs []*Error
	// more counts the mistakes beyond mostErrors.
	more int
	// faulty holds the tables and entries in which a wrong key or value was left out: what
	// is missing there is no mistake of its own.
	faulty map[string]bool
}

// mostErrors bounds how many mistakes are named. Nobody reads more, and a file may hold
// a hundred thousand.
const mostErrors = 100

func (v *validator) fail(line int, key, message string) {
	if len(v.errs) == mostErrors {
		v.more++
		return
	}
	v.errs = append(v.errs, &Error{File: v.file, Line: line, Key: key, Message: message})
}

// error joins all mistakes, in the order of the file.
func (v *validator) error() error {
	slices.SortStableFunc(v.errs, func(a, b *Error) int { return cmp.Compare(a.Line, b.Line) })
	all := make([]error, 0, len(v.errs)+1)
	for _, e := range v.errs {
		all = append(all, e)
	}
	if v.more > 0 {
		all = append(all, &Error{File: v.file, Message: fmt.Sprintf("and %d more mistakes", v.more)})
	}
	return errors.Join(all...)
}

// refuse says that a value is not among those allowed.
func (v *validator) refuse(key string, value any) {
	want, _ := allowed(key)
	v.fail(v.at.lines[key], key, fmt.Sprintf("%v is not allowed; want %s", value, want))
}

// refuseWord is refuse for a key that has a few words to choose from.
func (v *validator) refuseWord(key, word string) {
	want, _ := allowed(key)
	v.fail(v.at.lines[key], key, fmt.Sprintf("%s is not allowed; want %s%s", quoted(word), want, nearestWord(word, want)))
}

func (v *validator) config(file raw) Config {
	c := Default()
	c.UplinkGroup = v.uint32("uplink_group", file.UplinkGroup, c.UplinkGroup, 1, math.MaxInt32)
	c.ContainerPrefixLength = v.uint32("container_prefix_length", file.ContainerPrefixLength, c.ContainerPrefixLength, 0, 31)
	c.NetworkRules = v.networkRules(file.NetworkRules, c.NetworkRules)
	c.LogLevel = v.level(file.LogLevel, c.LogLevel)
	c.NetworkManager = v.presence("network_manager", file.NetworkManager, c.NetworkManager)
	c.StateDir = v.directory("state_dir", file.StateDir, c.StateDir)
	c.RuntimeDir = v.directory("runtime_dir", file.RuntimeDir, c.RuntimeDir)
	c.Tables = v.tables(file.Tables, c.Tables)
	c.RepairBurst = int(v.uint32("repair.burst", file.Repair.Burst, uint32(c.RepairBurst), 1, 10000)) //nolint:gosec // the default is 20
	c.RepairsPerSecond = v.perSecond(file.Repair.PerSecond, c.RepairsPerSecond)
	c.Allocator = v.allocator(file.Allocator, c.Allocator)
	c.DNS = v.dns(file.DNS, c.DNS)
	if file.Ifupdown.MoveRoutes != nil {
		c.MoveRoutes = *file.Ifupdown.MoveRoutes
	}
	c.Failover = v.failover(file.Failover, c.Failover)
	c.Share = v.share(file.Share)
	c.Answers = v.answers(file.Answers, c.Answers)
	c.Run = v.run(file.Run, c.Run)
	c.Include = v.matchers("include", file.Include)
	c.Exclude = v.matchers("exclude", file.Exclude)
	c.Links = v.links(file.Link)
	c.Binds = v.binds(file.Bind, c.Answers.MarkMask)
	return c
}

func (v *validator) uint32(key string, value *int64, preset, lowest, highest uint32) uint32 {
	if value == nil {
		return preset
	}
	if *value < int64(lowest) || *value > int64(highest) {
		v.refuse(key, *value)
		return preset
	}
	return uint32(*value) //nolint:gosec // not above highest
}

func (v *validator) level(value *string, preset slog.Level) slog.Level {
	if value == nil {
		return preset
	}
	level, is := ParseLevel(*value)
	if !is {
		v.refuseWord("log_level", *value)
		return preset
	}
	return level
}

func (v *validator) presence(key string, value *string, preset Presence) Presence {
	if value == nil {
		return preset
	}
	p := Presence(*value)
	if p != Auto && p != Yes && p != No {
		v.refuseWord(key, *value)
		return preset
	}
	return p
}

func (v *validator) networkRules(value *string, preset NetworkRules) NetworkRules {
	if value == nil {
		return preset
	}
	r := NetworkRules(*value)
	if r != Missing && r != Always {
		v.refuseWord("network_rules", *value)
		return preset
	}
	return r
}

func (v *validator) dns(file rawDNS, preset DNS) DNS {
	if file.ServersFile != nil && *file.ServersFile != "" {
		preset.ServersFile = v.directory("dns.servers_file", file.ServersFile, preset.ServersFile)
	}
	preset.PIDFile = v.directory("dns.dnsmasq_pid_file", file.PIDFile, preset.PIDFile)
	return preset
}

func (v *validator) directory(key string, value *string, preset string) string {
	if value == nil {
		return preset
	}
	clean := filepath.Clean(*value)
	if !filepath.IsAbs(clean) || clean == "/" || strings.ContainsRune(clean, 0) {
		v.refuse(key, quoted(*value))
		return preset
	}
	return clean
}

func (v *validator) perSecond(value *float64, preset float64) float64 {
	if value == nil {
		return preset
	}
	// NaN fails both comparisons.
	if !(*value > 0 && *value <= 1000) {
		v.refuse("repair.per_second", *value)
		return preset
	}
	return *value
}

func (v *validator) tables(file rawTables, preset routing.TableRange) routing.TableRange {
	before := len(v.errs) + v.more
	r := routing.TableRange{
		First: routing.TableID(v.uint32("tables.first", file.First, uint32(preset.First), 1, math.MaxUint32)),
		Last:  routing.TableID(v.uint32("tables.last", file.Last, uint32(preset.Last), 1, math.MaxUint32)),
	}
	if len(v.errs)+v.more > before || v.faulty["tables"] {
		return preset
	}
	// Blame the key that is in the file, tables.last if both are.
	key := "tables.last"
	if file.Last == nil {
		key = "tables.first"
	}
	fail := func(format string, arguments ...any) {
		v.fail(v.at.lines[key], key, fmt.Sprintf("the range %d-%d ", uint32(r.First), uint32(r.Last))+fmt.Sprintf(format, arguments...))
	}
	switch {
	case r.First > r.Last:
		fail("is empty: tables.first (default %d) must be below tables.last (default %d)", uint32(preset.First), uint32(preset.Last))
	case r.First == r.Last:
		fail("holds one table: at least 2 are needed, because the last one is kept for failover")
	case uint64(r.Last)-uint64(r.First) >= maxTables:
		fail("is too large: at most %d tables", maxTables)
	default:
		for _, taken := range reservedTables() {
			if r.First <= taken.tables.Last && taken.tables.First <= r.Last {
				fail("holds tables of %s (%d-%d); choose one that does not, such as %d-%d", taken.owner,
					uint32(taken.tables.First), uint32(taken.tables.Last), uint32(preset.First), uint32(preset.Last))
			}
		}
	}
	return r
}

func (v *validator) allocator(file rawAllocator, preset Allocator) Allocator {
	a := preset
	if file.Enabled != nil {
		a.Enabled = *file.Enabled
	}
	if file.Socket != nil {
		if name := *file.Socket; name == "" || len(name) > maxSocketName || strings.ContainsFunc(name, unicode.IsControl) {
			v.refuse("allocator.socket", quoted(name))
		} else {
			a.Socket = name
		}
	}
	preset32 := uint32(preset.Lifetime / time.Second) //nolint:gosec // an hour
	a.Lifetime = time.Duration(v.uint32("allocator.lifetime", file.Lifetime, preset32, minLifetime, maxLifetime)) * time.Second
	a.TablesPerUser = int(v.uint32("allocator.tables_per_user", file.TablesPerUser, uint32(preset.TablesPerUser), 1, maxTables)) //nolint:gosec // the default is 100
	if file.Families != nil {
		a.Families = v.families(*file.Families)
	}
	a.Users = v.names("allocator.users", file.Users, preset.Users)
	a.Groups = v.names("allocator.groups", file.Groups, preset.Groups)
	return a
}

// maxSocketName is what sun_path of sockaddr_un leaves behind the zero byte of an
// abstract name.
const maxSocketName = 107

// Bounds of the lifetime of a lease, in seconds.
const (
	minLifetime = 10
	maxLifetime = 365 * 24 * 3600
)

func (v *validator) families(file []string) []routing.Family {
	var all []routing.Family
	for _, name := range file {
		f, ok := familyOf(name)
		if !ok {
			v.refuseWord("allocator.families", name)
			continue
		}
		if !slices.Contains(all, f) {
			all = append(all, f)
		}
	}
	if len(file) == 0 {
		v.refuse("allocator.families", "an empty list")
	}
	slices.Sort(all)
	return all
}

// FamilyName is the word for a family in a configuration.
func FamilyName(f routing.Family) string {
	if f == 0 {
		return "unspecified"
	}
	return f.String()
}

func familyOf(name string) (routing.Family, bool) {
	for _, f := range []routing.Family{0, routing.IPv4, routing.IPv6} {
		if FamilyName(f) == name {
			return f, true
		}
	}
	return 0, false
}

func (v *validator) names(key string, file *[]string, preset []string) []string {
	if file == nil {
		return preset
	}
	for _, name := range *file {
		v.name(key, name)
	}
	if len(*file) == 0 {
		return nil // So that two configurations compare.
	}
	return slices.Clone(*file)
}

// name refuses what is no name of a user or a group.
func (v *validator) name(key, name string) (sound bool) {
	if name == "" || len(name) > maxName || strings.ContainsAny(name, ":,/\x00\n \t") {
		v.refuse(key, quoted(name))
		return false
	}
	return true
}

func (v *validator) run(file rawRun, preset Run) Run {
	if file.Group != nil && v.name("run.group", *file.Group) {
		return Run{Group: *file.Group}
	}
	return preset
}

// maxName bounds the name of a user or a group (LOGIN_NAME_MAX of limits.h).
const maxName = 256

func (v *validator) matchers(list string, file []rawMatcher) []Matcher {
	if len(file) == 0 {
		return nil // As in Default, so that two configurations compare.
	}
	all := make([]Matcher, 0, len(file))
	for i, m := range file {
		all = append(all, v.matcher(list, i, m))
		if m == (rawMatcher{}) && !v.faulty[entryKey(list, i, "")] {
			v.fail(v.at.of(list, i, ""), entryKey(list, i, ""), "nothing is set; want interface, profile or type, or several")
		}
	}
	return all
}

func (v *validator) matcher(list string, i int, m rawMatcher) Matcher {
	return Matcher{
		Interface: v.glob(list, i, "interface", m.Interface),
		Profile:   v.glob(list, i, "profile", m.Profile),
		Type:      v.glob(list, i, "type", m.Type),
	}
}

func (v *validator) glob(list string, i int, key string, value *string) string {
	if value == nil {
		return ""
	}
	// An empty glob would match everything, which is not what its author means.
	if _, err := path.Match(*value, ""); err != nil || *value == "" {
		v.fail(v.at.of(list, i, key), entryKey(list, i, key), fmt.Sprintf("%s is not allowed; want %s (* any text, ? one character, [a-c] one of a set, \\ before a character that is meant itself)", quoted(*value), globAllowed))
		return ""
	}
	return *value
}

// quoted shows a value from the file; an absurdly long one only in part.
func quoted(value string) string {
	if len(value) > maxSuggested {
		value = value[:maxSuggested] + "..."
	}
	return fmt.Sprintf("%q", value)
}

// LevelWords are the values of log_level.
func LevelWords() []string { return []string{"debug", "info", "warn", "error"} }

// ParseLevel reads a level.
func ParseLevel(word string) (slog.Level, bool) {
	levels := []slog.Level{slog.LevelDebug, slog.LevelInfo, slog.LevelWarn, slog.LevelError}
	at := slices.Index(LevelWords(), word)
	if at < 0 {
		return 0, false
	}
	return levels[at], true
}

// LevelWord is a level as the configuration writes it.
func LevelWord(l slog.Level) string {
	for _, word := range LevelWords() {
		if at, _ := ParseLevel(word); l <= at {
			return word
		}
	}
	return "error"
}

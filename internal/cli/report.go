package cli

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"multihomed/internal/config"
	"multihomed/internal/doctor"
	"multihomed/internal/explain"
	"multihomed/internal/lazy"
	"multihomed/internal/offswitch"
	"multihomed/internal/redact"
	"multihomed/internal/status"
	"multihomed/routing"
	"multihomed/routing/lookup"
)

const reportHelp = `Collect what a bug report needs: the status, the findings of doctor, rules, routes,
addresses, versions, the configuration, the state of the daemon, and the end of its
journal. explain-ipv4.json and explain-ipv6.json let whoever reads the report ask what any
packet does here: multihomectl explain --snapshot explain-ipv4.json ADDRESS.

Nothing leaves this host: look at the report before you send it. It goes to a file in
the current directory, or with --output to a file that ends with .tar.gz or to a new
directory. It is for its owner only (mode 0600).

With --redact, addresses, hardware addresses, UUIDs, and names are replaced, each always by
the same, so that networks can still be told apart: the names of the host, of all profiles,
of users who may log in, and of other users and groups whom the configuration, bindings or
the off switch name. Names of units, of control groups and of interfaces stay, except for
hardware addresses in them. Comments of the configuration file and descriptions of
interfaces are left out.

It works without the daemon and without root; where a part is missing it says why. It
has at most 2 MiB of each part, the end of the journal and the beginning of all others.`

const (
	// maxPart bounds each part of a report.
	maxPart = 2 << 20
	// partTimeout bounds each program that is asked.
	partTimeout = 10 * time.Second
	// journalLines is how much of the journal there is.
	journalLines = "5000"
	tarball      = ".tar.gz"
)

// A part is a file of a report.
type part struct{ name, text string }

func (a *app) bugReport() *cobra.Command {
	var output string
	var hide bool
	cmd := &cobra.Command{
		Use: "report", Short: "collect what a bug report needs", Long: reportHelp,
		Example: `  multihomectl report --redact
  multihomectl report -o /tmp/report`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if output == "" {
				output = time.Now().Format("multihomed-report-20060102-150405") + tarball
			}
			parts := a.collect(cmd.Context(), hide)
			if err := cmd.Context().Err(); err != nil {
				return &exitError{exitProblem, context.Cause(cmd.Context())}
			}
			if err := writeReport(output, parts); err != nil {
				if errors.Is(err, fs.ErrPermission) || errors.Is(err, unix.EROFS) {
					err = fmt.Errorf("%w; to fix: name a place where you may write: --output %s", err, filepath.Join(os.TempDir(), filepath.Base(output)))
				}
				return &exitError{exitProblem, err}
			}
			_, err := fmt.Fprintln(a.Out, output)
			return err
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "", "`file` (.tar.gz) or new directory")
	cmd.Flags().BoolVar(&hide, "redact", false, "replace addresses and names")
	return cmd
}

// collect makes the parts. A part that fails holds the error.
func (a *app) collect(ctx context.Context, hide bool) []part {
	var parts []part
	add := func(name, text string) { parts = append(parts, part{name, text}) }
	add("versions.txt", a.versions(ctx))
	loaded := a.find(ctx)
	cfg := loaded.Config
	if loaded.Fault != nil {
		add("configuration-fault.txt", loaded.Fault.Error()+"\n")
	}
	add("configuration.txt", a.effective(loaded))
	if !hide {
		add("multihomed.toml", readPart(a.configPath))
	}
	width := narrow
	if hide {
		width = unbroken
	}
	var profiles []string
	var bindings []status.Binding
	s, err := a.readStatus(ctx, loaded, nil, true)
	if err != nil {
		add("status.txt", "The host cannot be read: "+err.Error()+"\n")
	} else {
		tell(&s, loaded.Fault)
		var text bytes.Buffer
		if err := render(&text, s, look{width: width, verbose: true}); err != nil {
			fmt.Fprintf(&text, "\n%v\n", err)
		}
		add("status.txt", text.String())
		object, err := json.MarshalIndent(s, "", "  ")
		if err != nil {
			object = []byte(err.Error())
		}
		add("status.json", string(object)+"\n")
		for _, l := range s.Links {
			profiles = append(profiles, l.Profile)
		}
		bindings = s.Bindings
		for _, p := range a.diagnosis(ctx, cfg, s, width) {
			add(p.name, p.text)
		}
	}
	for _, f := range routing.Families() {
		add("explain-"+f.String()+".json", a.situation(ctx, f, hide))
	}
	for _, c := range []struct {
		name string
		args []string
	}{
		{"rules-ipv4.txt", []string{"ip", "-d", "-4", "rule"}},
		{"rules-ipv6.txt", []string{"ip", "-d", "-6", "rule"}},
		{"routes-ipv4.txt", []string{"ip", "-d", "-4", "route", "show", "table", "all"}},
		{"routes-ipv6.txt", []string{"ip", "-d", "-6", "route", "show", "table", "all"}},
		{"addresses.txt", []string{"ip", "-d", "address"}},
		{"nexthops.txt", []string{"ip", "-d", "nexthop"}},
		{"networkmanager.txt", []string{"nmcli", "-t", "-f", "all", "device"}},
		{"unit.txt", []string{"systemctl", "show", "multihomed.service", "NetworkManager.service", "systemd-networkd.service", "-p", "Id,LoadState,ActiveState,SubState,UnitFileState,Result,NRestarts,ExecMainStatus,MemoryCurrent"}},
		{"journal.txt", []string{"journalctl", "-t", "multihomed", "-u", "multihomed.service", "-n", journalLines, "-o", "short-iso-precise", "--no-pager"}},
	} {
		add(c.name, ask(ctx, c.args))
	}
	entries, err := os.ReadDir(cfg.RuntimeDir)
	if err != nil {
		add("state.txt", err.Error()+"\n")
	}
	for _, e := range entries {
		if filepath.Ext(e.Name()) == ".json" && e.Type().IsRegular() {
			add(filepath.Join("run", e.Name()), readPart(filepath.Join(cfg.RuntimeDir, e.Name())))
		}
	}
	if !hide {
		return parts
	}
	var users []string
	for _, p := range parts {
		for _, found := range switchers().FindAllStringSubmatch(p.text, -1) {
			users = append(users, found[1])
		}
	}
	r := redact.New(secrets(ctx, cfg, profiles, users, bindings))
	for _, p := range parts {
		r.Learn(p.text)
	}
	for i := range parts {
		text := descriptions().ReplaceAllString(parts[i].text, "${1}[left out]")
		text = refusedInQuotes().ReplaceAllString(text, "${1}[left out]")
		parts[i].text = r.Text(refused().ReplaceAllString(text, "${1}[left out]"))
	}
	return parts
}

// diagnosis is what doctor finds, for a person and for programs.
func (a *app) diagnosis(ctx context.Context, cfg config.Config, s Status, width int) []part {
	host, err := a.readFacts(ctx, cfg)
	if err != nil {
		return []part{{"doctor.txt", "The host cannot be read: " + err.Error() + "\n"}}
	}
	found := doctor.Diagnose(s, host)
	var text bytes.Buffer
	if err := renderReport(&text, found, look{width: width}); err != nil {
		fmt.Fprintf(&text, "\n%v\n", err)
	}
	object, err := json.MarshalIndent(found, "", "  ")
	if err != nil {
		object = []byte(err.Error())
	}
	return []part{{"doctor.txt", bounded(text.Bytes())}, {"doctor.json", bounded(append(object, '\n'))}}
}

// situation is a family of the host for `multihomectl explain --snapshot`: whoever has the report can ask what any packet does
// here. Where that is too long, it has the routes of packets to the outside alone. Users have no names where they are
// to be hidden.
func (a *app) situation(ctx context.Context, f routing.Family, hide bool) string {
	to := netip.AddrFrom4([4]byte{1, 1, 1, 1})
	if f == routing.IPv6 {
		to = netip.MustParseAddr("2606:4700:4700::1111")
	}
	for _, whole := range []bool{true, false} {
		s, err := a.readExplained(ctx, lookup.Flow{To: to, UID: uint32(os.Geteuid())}, true, whole, nil) //nolint:gosec // a user
		if err != nil {
			return "The host cannot be read: " + err.Error() + "\n"
		}
		if hide {
			s.Facts.Users = map[uint32]string{}
		}
		// What is too long to be saved is longer than a part, too.
		if data, err := explain.Save(*s); err == nil && len(data) <= maxPart {
			return string(data)
		}
	}
	return fmt.Sprintf("Rules and routes are longer than %d MiB.\n", maxPart>>20)
}

// unbroken is a width at which no line breaks within a name.
const unbroken = 1 << 16

// descriptions are the aliases of interfaces (ip-link(8)), which hold free text.
var descriptions = lazy.Regexp(`(?m)^(\s+alias ).*$`)

// switchers are those who switched something off, also if it has been on again since: the journal keeps them.
var switchers = lazy.Regexp(`\(since [^()\n]*, by ([^()\s]+)\)`)

// Errors quote names that the configuration may not have, which nobody else knows: no link has them. Such an error is
// in quotes itself where a program or the journal has it.
var (
	refused         = lazy.Regexp(namesKey + `"(?:[^"\\\n]|\\.)*"`)
	refusedInQuotes = lazy.Regexp(namesKey + `\\"(?:[^"\\\n]|\\\\\\"|\\\\[^"])*\\"`)
)

// namesKey is the beginning of such an error.
const namesKey = `(\.(?:profile|link|user|users|groups|prefer|targets)(?: \(entry \d+\))?: )`

// secrets are the names that identify a host and its users, by kind.
func secrets(ctx context.Context, cfg config.Config, profiles, users []string, bindings []status.Binding) map[string][]string {
	out := map[string][]string{}
	if host, err := os.Hostname(); err == nil {
		short, domain, _ := strings.Cut(host, ".")
		out["host"] = []string{host, short}
		if strings.Contains(domain, ".") {
			out["domain"] = []string{domain}
		}
	}
	off := offswitch.Load(cfg.Switch())
	marks := make([]offswitch.Mark, 0, len(off.Links)+1)
	if off.Host != nil {
		marks = append(marks, *off.Host)
	}
	for _, l := range off.Links {
		marks, profiles = append(marks, l.Mark), append(profiles, l.Profile)
	}
	for _, m := range marks {
		if !strings.HasPrefix(m.By, "uid ") {
			users = append(users, m.By)
		}
	}
	users = slices.Concat(users, cfg.Allocator.Users, people())
	// The configuration and bindings name users, and profiles that need not exist.
	for _, b := range cfg.Binds {
		users, profiles = append(users, b.User), append(profiles, b.Link)
	}
	for _, b := range bindings {
		profiles = append(profiles, b.Link)
		if b.Selector == "user" {
			users = append(users, b.Value)
		}
	}
	for _, n := range cfg.Failover.Prefer {
		profiles = append(profiles, string(n))
	}
	for _, w := range cfg.Share.Weights {
		profiles = append(profiles, string(w.Name))
	}
	for _, group := range cfg.Allocator.Groups {
		if !slices.Contains(config.Default().Allocator.Groups, group) {
			out["group"] = append(out["group"], group)
		}
	}
	for _, m := range slices.Concat(cfg.Include, cfg.Exclude) {
		profiles = append(profiles, m.Profile)
	}
	for _, l := range cfg.Links {
		profiles = append(profiles, l.Profile)
	}
	known, interfaces := askProfiles(ctx)
	ours := map[string]bool{"": true}
	for _, word := range harmless {
		ours[word] = true
	}
	for _, name := range interfaces {
		ours[name] = true // Without these the report is useless.
	}
	for _, user := range users {
		if user != "root" && !ours[user] && strings.Trim(user, "0123456789-") != "" {
			out["user"] = append(out["user"], user)
		}
	}
	for _, name := range slices.Concat(profiles, known) {
		if name = strings.Trim(name, "*"); !ours[name] {
			out["profile"] = append(out["profile"], name)
		}
	}
	return out
}

// people are the users of this host who may log in: the journal names those whom the configuration named once.
func people() (names []string) {
	const first, nobody = 1000, 65534 // adduser.conf(5)
	for line := range strings.Lines(readPart("/etc/passwd")) {
		fields := strings.Split(line, ":")
		if len(fields) < 3 {
			continue
		}
		if uid, err := strconv.Atoi(fields[2]); err == nil && uid >= first && uid != nobody {
			names = append(names, fields[0])
		}
	}
	return names
}

// harmless are names of profiles and users that identify nobody, and are words of reports.
var harmless = []string{"admin", "auto", "bridge", "debian", "default", "ethernet", "link", "local", "main", "multihomed", "off", "on", "ubuntu", "unmanaged", "up", "user", "vpn", "wifi"} //nolint:gochecknoglobals // a constant in all but name

// askProfiles returns the names of all profiles, active or not, and those of the interfaces.
func askProfiles(ctx context.Context) (profiles, interfaces []string) {
	// With one field, nmcli(1) need not escape colons and backslashes.
	for _, what := range [][]string{{"NAME", "connection", "show"}, {"CONNECTION", "device"}} {
		list, err := run(ctx, append([]string{"nmcli", "-t", "-e", "no", "-f"}, what...))
		if err != nil {
			continue // Without NetworkManager there are none.
		}
		for name := range strings.Lines(list.String()) {
			profiles = append(profiles, strings.TrimSuffix(name, "\n"))
		}
	}
	all, err := net.Interfaces()
	if err != nil {
		return profiles, nil
	}
	for _, i := range all {
		interfaces = append(interfaces, i.Name)
	}
	return profiles, interfaces
}

// versions says what this host runs.
func (a *app) versions(ctx context.Context) string {
	var b strings.Builder
	fmt.Fprintf(&b, "multihomectl %s\n", a.Version)
	for _, path := range []string{"/proc/version", "/etc/os-release"} {
		b.WriteString(readPart(path))
	}
	for _, args := range [][]string{{"ip", "-V"}, {"NetworkManager", "--version"}, {"systemctl", "--version"}} {
		fmt.Fprintf(&b, "%s: %s", args[0], ask(ctx, args))
	}
	return b.String()
}

// readPart reads the beginning of a file.
func readPart(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return err.Error() + "\n"
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return path + " is no file\n"
	}
	data, err := io.ReadAll(io.LimitReader(f, maxPart+1))
	if err != nil {
		return err.Error() + "\n"
	}
	return bounded(data)
}

func bounded(data []byte) string {
	if len(data) > maxPart {
		return string(data[:maxPart]) + "\n[the rest is left out]\n"
	}
	return string(data)
}

// ask runs a program, never a shell, and returns the beginning of its output.
func ask(ctx context.Context, args []string) string {
	out, err := run(ctx, args)
	text := out.String()
	if out.cut {
		text += "\n[the rest is left out]\n"
	}
	switch {
	case errors.Is(err, exec.ErrNotFound):
		return args[0] + " is not installed\n"
	case err != nil && !out.cut:
		text += fmt.Sprintf("[%s: %v]\n", strings.Join(args, " "), err)
	}
	return text
}

// run runs a program.
func run(ctx context.Context, args []string) (*limited, error) {
	ctx, cancel := context.WithTimeout(ctx, partTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, args[0], args[1:]...) //nolint:gosec // all of them are constants
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "TERM=dumb")
	cmd.WaitDelay = time.Second
	out := &limited{left: maxPart}
	cmd.Stdout, cmd.Stderr = out, out
	return out, cmd.Run()
}

// limited keeps the beginning of the output; writes never fail.
type limited struct {
	bytes.Buffer
	left int
	cut  bool
}

func (l *limited) Write(p []byte) (int, error) {
	n := min(len(p), l.left)
	l.cut = l.cut || n < len(p)
	l.left -= n
	_, _ = l.Buffer.Write(p[:n]) // It never fails.
	return len(p), nil
}

// writeReport makes a new file or directory.
func writeReport(path string, parts []part) (err error) {
	if !strings.HasSuffix(path, tarball) {
		if err := os.Mkdir(path, 0o700); err != nil {
			return fmt.Errorf("making the report: %w", err)
		}
		for _, p := range parts {
			name := filepath.Join(path, p.name)
			if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
				return fmt.Errorf("making the report: %w", err)
			}
			if err := os.WriteFile(name, []byte(p.text), 0o600); err != nil {
				return fmt.Errorf("making the report: %w", err)
			}
		}
		return nil
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s is there already; to fix: name another file with --output", path)
	}
	if err != nil {
		return fmt.Errorf("making the report: %w", err)
	}
	defer func() {
		if err != nil {
			_ = os.Remove(path)
		}
	}()
	zip := gzip.NewWriter(f)
	archive := tar.NewWriter(zip)
	directory := strings.TrimSuffix(filepath.Base(path), tarball)
	for _, p := range parts {
		header := &tar.Header{Name: directory + "/" + p.name, Mode: 0o600, Size: int64(len(p.text)), ModTime: time.Now(), Typeflag: tar.TypeReg}
		if err = archive.WriteHeader(header); err == nil {
			_, err = io.WriteString(archive, p.text)
		}
		if err != nil {
			break
		}
	}
	if err = errors.Join(err, archive.Close(), zip.Close(), f.Close()); err != nil {
		return fmt.Errorf("making the report: %w", err)
	}
	return nil
}

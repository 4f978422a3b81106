package cli_test

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"multihomed/dispatcher"
	"multihomed/internal/config"
	"multihomed/internal/metrics"
	"multihomed/internal/metrics/metricstest"
	"multihomed/routing"
)

// A page is the source of a manual page, or a part of it.
type page string

func manual(t *testing.T, name string) page {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "packaging", "man", name))
	if err != nil {
		t.Fatal(err)
	}
	return page(text)
}

// parts are what stands under each line of a macro.
func (p page) parts(macro string) map[string]page {
	all := map[string]page{}
	for _, part := range strings.Split("\n"+string(p), "\n."+macro+" ")[1:] {
		head, body, _ := strings.Cut(part, "\n")
		all[strings.TrimSuffix(head, `\&`)] = page(body)
	}
	return all
}

// items are the words behind a macro in the heads of lists.
func (p page) items(macro string) []string {
	words := regexp.MustCompile(`\b` + macro + ` (\S+)`)
	var all []string
	for _, head := range regexp.MustCompile(`(?m)^\.It .*$`).FindAllString(string(p), -1) {
		for _, found := range words.FindAllStringSubmatch(head, -1) {
			all = append(all, found[1])
		}
	}
	return all
}

// differ compares two sets.
func differ(t *testing.T, what string, programs, manual []string) {
	t.Helper()
	if diff := cmp.Diff(slices.Sorted(slices.Values(programs)), slices.Sorted(slices.Values(manual))); diff != "" {
		t.Errorf("%s (-program +manual):\n%s", what, diff)
	}
}

// A command is what the help of a command says.
type command struct{ children, flags []string }

// commands adds a command and all below it, by path.
func commands(t *testing.T, all map[string]command, path ...string) {
	t.Helper()
	help, _, status := run(t, append(path, "--help")...)
	if status != 0 {
		t.Fatalf("%v --help ends with %d", path, status)
	}
	var c command
	part := ""
	for line := range strings.Lines(help) {
		switch {
		case !strings.HasPrefix(line, " "):
			part = strings.TrimSpace(line)
		case part == "Available Commands:":
			c.children = append(c.children, strings.Fields(line)[0])
		case part == "Flags:":
			// As the manual writes it: -v, --verbose are "v" and "-verbose".
			for _, found := range regexp.MustCompile(`(?:^  |, |^ {6})-(-?\w[-\w]*)`).FindAllStringSubmatch(line[:min(len(line), 30)], -1) {
				c.flags = append(c.flags, found[1])
			}
		}
	}
	all[strings.Join(path, " ")] = c
	for _, name := range c.children {
		commands(t, all, append(slices.Clone(path), name)...)
	}
}

// TestManualOfReasons wants each reason in the manual, in the words of status.
func TestManualOfReasons(t *testing.T) {
	t.Parallel()
	data, err := os.ReadFile("../../packaging/man/multihomectl.8")
	if err != nil {
		t.Fatal(err)
	}
	_, reasons, _ := strings.Cut(string(data), ".Sh REASONS\n")
	reasons, _, _ = strings.Cut(reasons, ".Sh ")
	for _, d := range routing.Decisions() {
		s := d.Sentence()
		if want := ".It Cm " + string(d) + "\n" + strings.ToUpper(s[:1]) + s[1:] + ".\n"; !strings.Contains(reasons, want) {
			t.Errorf("the manual lacks\n%s", want)
		}
	}
	if n := strings.Count(reasons, ".It Cm "); n != len(routing.Decisions()) {
		t.Errorf("the manual has %d reasons, the program %d", n, len(routing.Decisions()))
	}
}

func TestManualOfMultihomectl(t *testing.T) {
	t.Parallel()
	source := manual(t, "multihomectl.8")
	sections := source.parts("Sh")
	all := map[string]command{}
	commands(t, all)
	if len(all) < 10 || !slices.Contains(all["status"].flags, "v") || !slices.Contains(all["status"].flags, "-verbose") {
		t.Fatalf("the help is not understood: %v", all)
	}
	differ(t, "options of all commands", all[""].flags, sections["OPTIONS"].items("Fl"))

	// A command has a part of its own, or is in the list of the one above it.
	explained := sections["COMMANDS"].parts("Ss")
	flags, children := map[string][]string{"": nil}, map[string][]string{}
	for _, path := range slices.Sorted(maps.Keys(all)) {
		where := path
		if _, own := explained[path]; !own {
			above, name := "", path
			if i := strings.LastIndexByte(path, ' '); i >= 0 {
				above, name = path[:i], path[i+1:]
			}
			where = above
			if path != "" {
				children[above] = append(children[above], name)
			}
		}
		for _, f := range all[path].flags {
			if f != "h" && f != "-help" && where != "" && !slices.Contains(flags[where], f) {
				flags[where] = append(flags[where], f)
			}
		}
	}
	for _, name := range children[""] {
		t.Errorf("the manual lacks the command %s", name)
	}
	known := slices.Clone(all[""].flags)
	for path, text := range explained {
		if _, is := all[path]; !is {
			t.Errorf("there is no command %q", path)
		}
		differ(t, "flags of "+path, flags[path], text.items("Fl"))
		differ(t, "commands of "+path, children[path], text.items("Cm"))
		known = append(known, flags[path]...)
	}
	for _, found := range regexp.MustCompile(`\bFl (\S+)`).FindAllStringSubmatch(string(source), -1) {
		if !slices.Contains(known, found[1]) {
			t.Errorf("there is no flag -%s", found[1])
		}
	}
	for _, name := range []string{"multihomectl.8", "multihomed.8", "multihomed-dispatcher.8", "multihomed-prober.8", "multihomed-binder.8", "multihomed.toml.5"} {
		for _, found := range regexp.MustCompile(`multihomectl ([a-z]+)`).FindAllStringSubmatch(string(manual(t, name)), -1) {
			if _, is := all[found[1]]; !is {
				t.Errorf("%s: there is no command %s", name, found[1])
			}
		}
	}
}

func TestManualsOfTheOtherNames(t *testing.T) {
	t.Parallel()
	directory := t.TempDir()
	build := exec.CommandContext(t.Context(), "go", "build", "-buildvcs=false", "-o", directory+"/", "multihomed/cmd/multihomed")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, name := range []string{"multihomed-dispatcher", "multihomed-prober", "multihomed-binder"} {
		if err := os.Symlink("multihomed", filepath.Join(directory, name)); err != nil {
			t.Fatal(err)
		}
	}
	// Its status says that it was not asked to run.
	help, err := exec.CommandContext(t.Context(), filepath.Join(directory, "multihomed"), "-help").CombinedOutput()
	var flags []string
	for _, found := range regexp.MustCompile(`(?m)^  -(\S+)`).FindAllStringSubmatch(string(help), -1) {
		flags = append(flags, found[1])
	}
	if len(flags) == 0 {
		t.Fatalf("%v\n%s", err, help)
	}
	differ(t, "flags of multihomed", flags, manual(t, "multihomed.8").items("Fl"))

	differ(t, "flags of multihomed-dispatcher", []string{"-help", "-version"}, manual(t, "multihomed-dispatcher.8").items("Fl"))
	if out, err := exec.CommandContext(t.Context(), filepath.Join(directory, "multihomed-dispatcher"), "--help").CombinedOutput(); err != nil || !strings.Contains(string(out), "--version") {
		t.Errorf("multihomed-dispatcher --help: %v: %s", err, out)
	}
	if out, err := exec.CommandContext(t.Context(), filepath.Join(directory, "multihomed"), "--help").CombinedOutput(); err != nil || strings.Contains(string(out), " -check") {
		t.Errorf("multihomed --help: %v: %s", err, out)
	}
	if out, err := exec.CommandContext(t.Context(), filepath.Join(directory, "multihomed-dispatcher"), "--version").CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	for name, options := range map[string][]string{"multihomed-prober": {"-socket"}, "multihomed-binder": {"-socket", "-daemon"}} {
		differ(t, "flags of "+name, append(options, "-help", "-version"), manual(t, name+".8").items("Fl"))
		for _, flag := range []string{"--help", "--version"} {
			out, err := exec.CommandContext(t.Context(), filepath.Join(directory, name), flag).CombinedOutput()
			if err != nil || !strings.HasPrefix(strings.TrimPrefix(string(out), "usage: "), name+" ") || flag == "--help" && !strings.Contains(string(out), "--socket") {
				t.Errorf("%s %s: %v: %s", name, flag, err, out)
			}
		}
		for _, args := range [][]string{{}, {"--port"}, {"x"}} {
			out, err := exec.CommandContext(t.Context(), filepath.Join(directory, name), args...).CombinedOutput()
			if exit, failed := errors.AsType[*exec.ExitError](err); !failed || exit.ExitCode() != 64 || !strings.Contains(string(out), name) {
				t.Errorf("%s %v: %v: %s", name, args, err, out)
			}
		}
	}
	_, err = dispatcher.Parse([]string{"nobody"}, nil)
	if err == nil {
		t.Fatal("nobody may call")
	}
	found := regexp.MustCompile(`give one of ([a-z, ]+), ifupdown also`).FindStringSubmatch(err.Error())
	if found == nil {
		t.Fatal(err)
	}
	callers := strings.Split(strings.ReplaceAll(found[1], " and ", ", "), ", ")
	differ(t, "callers", callers, manual(t, "multihomed-dispatcher.8").parts("Ss")["Callers"].items("Cm"))
	for _, name := range callers {
		if _, err := dispatcher.Parse([]string{name}, nil); err == nil || strings.Contains(err.Error(), "the argument") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// linkKey is an entry of [[link]] with a key, and the default that the manual gives.
func linkKey(key string) (sample, preset string) {
	const match, set = "interface = 'x'\n", "ignore = true\n"
	switch key {
	case "interface", "profile", "type":
		return key + " = 'x'\n" + set, "any"
	case "role":
		return match + "role = 'local'\n", "automatic"
	case "gateway":
		return match + "gateway = '192.0.2.1'\n", "automatic"
	case "last_resort", "ignore":
		return match + key + " = true\n", "false"
	case "delegated":
		return match + "delegated = ['2001:db8:b::/56']\n", "none"
	default:
		return "", ""
	}
}

// bindKey is an entry of [[bind]] with a key, and the default of the key.
func bindKey(key string) (sample, preset string) {
	const user = "link = \"wan1\"\nuser = \"alice\"\n"
	switch key {
	case "link", "user":
		return user, "none"
	case "strict", "dns":
		return user + key + " = false\n", "true"
	case "inbound":
		return "link = \"wan1\"\ninterface = \"br0\"\ninbound = \"deny\"\n", `"answer"`
	}
	values := map[string]string{
		"mark": "0x10", "interface": `"br0"`, "source": `"172.31.0.0/24"`, "unit": `"a.service"`, "slice": `"a.slice"`, "cgroup": `"/sys/fs/cgroup/a"`,
	}
	if value, is := values[key]; is {
		return fmt.Sprintf("link = \"wan1\"\n%s = %s\n", key, value), "none"
	}
	return "", ""
}

// TestManualOfTheConfiguration relies on a test of package config: the reference
// names every key.
func TestManualOfTheConfiguration(t *testing.T) {
	t.Parallel()
	reference, table := map[string]string{}, ""
	for line := range strings.Lines(config.Reference) {
		line = strings.TrimSuffix(line, "\n")
		if found := regexp.MustCompile(`^#\[(\w+)\]$`).FindStringSubmatch(line); found != nil {
			table = found[1] + "."
		} else if found := regexp.MustCompile(`^#(\w+) = (.*)$`).FindStringSubmatch(line); found != nil {
			reference[table+found[1]] = found[2]
		} else if found := regexp.MustCompile(`^#   (\w+)(, \w+)?  `).FindStringSubmatch(line); found != nil {
			if sample, preset := linkKey(found[1]); sample != "" {
				reference["link."+found[1]] = preset
				if _, err := config.Parse("", []byte("[[link]]\n"+sample)); err != nil {
					t.Errorf("%s: %v", found[1], err)
				}
			}
			if sample, preset := bindKey(found[1]); sample != "" {
				reference["bind."+found[1]] = preset
				if _, err := config.Parse("", []byte("[[bind]]\n"+sample)); err != nil {
					t.Errorf("%s: %v", found[1], err)
				}
			}
			for _, list := range []string{"include", "exclude"} {
				if _, err := config.Parse("", []byte("[["+list+"]]\n"+found[1]+" = \"x\"\n")); err == nil {
					reference[list+"."+found[1]] = "any"
				}
			}
		}
	}
	explained := map[string]string{}
	for name, text := range manual(t, "multihomed.toml.5").parts("Sh")["KEYS"].parts("Ss") {
		prefixes := []string{""}
		if name != "Top level" {
			prefixes = nil
			for _, found := range regexp.MustCompile(`\[(\w+)\]`).FindAllStringSubmatch(name, -1) {
				prefixes = append(prefixes, found[1]+".")
			}
		}
		for key, body := range text.parts("It Cm") {
			preset := "not said"
			if found := regexp.MustCompile(`(?m)^Default: (.*)$`).FindStringSubmatch(string(body)); found != nil {
				preset = found[1]
			}
			for _, prefix := range prefixes {
				explained[prefix+key] = preset
			}
		}
	}
	if diff := cmp.Diff(reference, explained); diff != "" {
		t.Errorf("keys and their defaults (-reference +manual):\n%s", diff)
	}
}

// TestManualOfMetrics wants each metric in the manual, with its labels and in the words of its help.
func TestManualOfMetrics(t *testing.T) {
	t.Parallel()
	section := manual(t, "multihomectl.8").parts("Sh")["METRICS"]
	var names []string
	for _, f := range metrics.Of(metricstest.Full()) {
		name := f.Name + map[metrics.Type]string{metrics.Counter: "_total", metrics.Info: "_info"}[f.Type]
		names = append(names, name)
		var labels []string
		for _, l := range f.Samples[0].Labels {
			labels = append(labels, l.Name)
		}
		if len(labels) > 0 {
			name += " Pq " + strings.Join(labels, " , ")
		}
		want := ".It Cm " + name + "\n" + regexp.MustCompile(`\. ([A-Z])`).ReplaceAllString(f.Help, ".\n$1") + "\n"
		if !strings.Contains(string(section), want) {
			t.Errorf("the manual lacks\n%s", want)
		}
	}
	differ(t, "metrics", names, section.items("Cm"))
}

package cli_test

import (
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// offered is what a shell gets for the word behind some others, and the directive that says whether it offers files, too.
func offered(t *testing.T, args ...string) (words []string, files bool) {
	t.Helper()
	out, _, status := run(t, append([]string{"__complete"}, args...)...)
	before, directive, is := strings.Cut(strings.TrimSpace(out), ":")
	if at := strings.LastIndexByte(out, ':'); is && at >= 0 {
		before, directive = out[:at], strings.TrimSpace(out[at+1:])
	}
	if status != 0 || !is {
		t.Fatalf("completion of %q ends with %d: %q", args, status, out)
	}
	return strings.Fields(before), !slices.Contains([]string{"4", "6", "36"}, directive)
}

// TestCompletionOfEveryFlag walks through all commands: a flag that has a value offers what can be known, files where
// it is the name of one, and nothing wrong otherwise.
func TestCompletionOfEveryFlag(t *testing.T) {
	t.Parallel()
	all := map[string]command{}
	commands(t, all)
	flag := regexp.MustCompile(`(?m)^ +(?:-\w, )?--([\w-]+) (\S+)  `)
	// Nobody can know these.
	free := map[string]bool{"mark": true, "port": true, "identifier": true, "text": true, "int": true, "duration": true}
	seen := 0
	for _, path := range slices.Sorted(maps.Keys(all)) {
		words := strings.Fields(path)
		help, _, _ := run(t, append(slices.Clone(words), "--help")...)
		for _, f := range flag.FindAllStringSubmatch(help, -1) {
			name, value := f[1], f[2]
			seen++
			line := append(slices.Clone(words), "--"+name, "")
			if name == "address" {
				line = append(slices.Clone(words), "--interface", "lo", "--"+name, "")
			}
			got, files := offered(t, line...)
			known := free[value] || name == "flow" || name == "socket" && value == "name" || path == "lease release" && name == "address"
			switch {
			case value == "file" || value == "path":
				if !files {
					t.Errorf("%s --%s %s offers no files", path, name, value)
				}
			case files:
				t.Errorf("%s --%s %s offers files", path, name, value)
			case len(got) == 0 && !known:
				t.Errorf("%s --%s %s has a value that nothing completes", path, name, value)
			}
		}
	}
	if seen < 50 {
		t.Errorf("%d flags: the help is not understood", seen)
	}
}

// TestCompletionOfArguments: no command offers files as arguments that it would not take.
func TestCompletionOfArguments(t *testing.T) {
	t.Parallel()
	all := map[string]command{}
	commands(t, all)
	for _, path := range slices.Sorted(maps.Keys(all)) {
		words := strings.Fields(path)
		got, files := offered(t, append(slices.Clone(words), "")...)
		if want := path == "config check" || path == "run"; files != want {
			t.Errorf("%s offers files: %v", path, files)
		}
		for _, child := range all[path].children {
			if !slices.Contains(got, child) {
				t.Errorf("%s does not offer %s: %q", path, child, got)
			}
		}
	}
	for _, c := range []struct {
		line []string
		want string
	}{
		{[]string{"schema", ""}, "explain"},
		{[]string{"help", ""}, "doctor"},
		{[]string{"help", "lease", ""}, "release"},
		{[]string{"bind", "add", "wan1", ""}, "user="},
		{[]string{"doctor", "--fix", ""}, "rp-filter"},
		{[]string{"doctor", "--target", ""}, "9.9.9.9"},
		{[]string{"explain", "192.0.2.1", "--from", ""}, "127.0.0.1"},
		{[]string{"explain", "192.0.2.1", "--uid", ""}, "root"},
		{[]string{"explain", "192.0.2.1", "--tos", ""}, "ef"},
		{[]string{"lease", "-i", ""}, ""},
	} {
		if got, _ := offered(t, c.line...); c.want != "" && !slices.Contains(got, c.want) {
			t.Errorf("%q offers %q, and not %s", c.line, got, c.want)
		}
	}
}

// TestCompletionInShells completes a word in the shells themselves, by the scripts that are installed.
func TestCompletionInShells(t *testing.T) {
	t.Parallel()
	directory := t.TempDir()
	build := exec.CommandContext(t.Context(), "go", "build", "-buildvcs=false", "-o", filepath.Join(directory, "multihomectl"), "multihomed/cmd/multihomed")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for shell, script := range map[string][]string{
		"bash": {"bash", "--norc", "-c", `source /usr/share/bash-completion/bash_completion
source <(multihomectl completion bash)
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMP_LINE="$*" COMP_POINT=1000 COMP_TYPE=9 COMP_KEY=9
__start_multihomectl 2>/dev/null # compopt(1) works on a terminal alone.
printf '%s\n' "${COMPREPLY[@]}"`, "bash"},
		"zsh": {"zsh", "-fc", `autoload -U compinit; compinit -u -D
source <(multihomectl completion zsh)
_describe() { print -l -- $completions }
compadd() { : }
words=("$@"); CURRENT=$#
_multihomectl`, "zsh"},
		"fish": {"fish", "--no-config", "-c", `multihomectl completion fish | source; complete -C "$argv"`},
	} {
		cmd := exec.CommandContext(t.Context(), script[0], append(script[1:], "multihomectl", "doctor", "--fix", "rp-f")...)
		cmd.Env = append(os.Environ(), "PATH="+directory+":"+os.Getenv("PATH"), "HOME="+directory)
		var stderr strings.Builder
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if !slices.Contains(strings.Fields(string(out)), "rp-filter") {
			t.Errorf("%s: %v: %s%s", shell, err, out, &stderr)
		}
	}
}

package cli_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"multihomed/internal/cli"
	"multihomed/routing"
	"multihomed/test/golden"
)

// TestLadderInDocuments: what documents say of the ladder is what the planner does
// (go test -update writes it anew).
func TestLadderInDocuments(t *testing.T) {
	t.Parallel()
	root := filepath.Join("..", "..")
	for _, d := range []struct{ path, begin, end, want string }{
		{filepath.Join(root, "ARCHITECTURE.md"), "<!-- the ladder, from routing.Ladder -->\n", "<!-- the end of the ladder -->\n", ladderMarkdown()},
		{filepath.Join(root, "packaging", "man", "multihomed.8"), ".\\\" The ladder, from routing.Ladder.\n", ".\\\" The end of the ladder.\n", ladderManual()},
	} {
		data, err := os.ReadFile(d.path)
		if err != nil {
			t.Fatal(err)
		}
		before, rest, begins := strings.Cut(string(data), d.begin)
		got, after, ends := strings.Cut(rest, d.end)
		if !begins || !ends {
			t.Fatalf("%s has no ladder", d.path)
		}
		if got == d.want {
			continue
		}
		if !golden.Updating() {
			t.Errorf("%s has another ladder (go test -update writes it anew):\n%s", d.path, d.want)
			continue
		}
		if err := os.WriteFile(d.path, []byte(before+d.begin+d.want+d.end+after), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func priorities(r routing.Rung) string {
	if r.First == r.Last {
		return fmt.Sprint(r.First)
	}
	return fmt.Sprintf("%d-%d", r.First, r.Last)
}

func ladderMarkdown() string {
	var b strings.Builder
	b.WriteString("| priority | rung | rule | one for each | why |\n|---|---|---|---|---|\n")
	for _, r := range routing.Ladder() {
		fmt.Fprintf(&b, "| %s | %s | `%s` | %s | %s |\n", priorities(r), r.Name, r.Rule, r.Per, r.Why)
	}
	return b.String()
}

func ladderManual() string {
	var b strings.Builder
	for _, r := range routing.Ladder() {
		fmt.Fprintf(&b, ".It %s\n.Em %s :\n.Ql %s .\n", priorities(r), strings.ReplaceAll(r.Name, ",", " ,"), strings.ReplaceAll(r.Rule, ",", " ,"))
		why := strings.ToUpper(r.Why[:1]) + r.Why[1:] + "."
		for _, sentence := range append([]string{"One for each " + r.Per + "."}, strings.SplitAfter(why, ". ")...) {
			for _, line := range cli.Wrap(strings.TrimSpace(sentence), 78) {
				b.WriteString(line + "\n")
			}
		}
	}
	return b.String()
}

package cli_test

import (
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestCommandsInDocuments wants every command and flag of multihomectl that a page for users
// shows in the program.
func TestCommandsInDocuments(t *testing.T) {
	t.Parallel()
	all := map[string]command{}
	commands(t, all)
	pages, err := filepath.Glob(filepath.Join(root, "docs", "*.md"))
	if err != nil || len(pages) == 0 {
		t.Fatalf("docs: %v", err)
	}
	documents := []string{"README.md"}
	for _, p := range pages {
		documents = append(documents, filepath.Join("docs", filepath.Base(p)))
	}
	// In prose a command stands between backticks, in a block it has its own line.
	quoted := regexp.MustCompile("`(?:sudo )?multihomectl ([^`\n]+)`")
	line := regexp.MustCompile(`(?m)^[ \d.]*(?:[$#] )?(?:sudo )?multihomectl ([a-z][^\n]*)$`)
	checked := 0
	for _, name := range documents {
		text := document(t, name)
		blocks := strings.Split(text, "```")
		var found []string
		for i, block := range blocks {
			pattern := quoted
			if i%2 == 1 {
				pattern = line
			}
			for _, f := range pattern.FindAllStringSubmatch(block, -1) {
				found = append(found, f[1])
			}
		}
		for _, words := range found {
			checked++
			checkCommand(t, all, name, words)
		}
	}
	if checked < 50 {
		t.Errorf("%d commands: the documents are not understood", checked)
	}
}

// checkCommand looks up the words that follow multihomectl.
func checkCommand(t *testing.T, all map[string]command, document, line string) {
	t.Helper()
	line, _, _ = strings.Cut(line, " #")
	path := ""
	for word := range strings.FieldsSeq(line) {
		c := all[path]
		switch {
		case strings.ContainsAny(word[:1], "|>&;"), word == "--":
			return // another program
		case strings.HasPrefix(word, "-"):
			flag, _, _ := strings.Cut(strings.TrimPrefix(word, "-"), "=")
			if !slices.Contains(c.flags, flag) && !slices.Contains(all[""].flags, flag) {
				t.Errorf("%s: multihomectl %s: %q has no flag -%s", document, line, path, flag)
			}
		case slices.Contains(c.children, word):
			path = strings.TrimSpace(path + " " + word)
		case path == "":
			t.Errorf("%s: multihomectl %s: there is no command %s", document, line, word)
			return
		default: // an argument
		}
	}
}

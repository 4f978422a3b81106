package cli_test

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"multihomed/internal/cli"
	"multihomed/test/golden"
)

func TestRender(t *testing.T) {
	for _, c := range []struct {
		name    string
		status  cli.Status
		verbose bool
	}{
		{"empty", empty(), false},
		{"sound", sound(), false},
		{"verbose", sound(), true},
		{"broken", broken(), false},
		{"alone", alone(), false},
		{"waiting", waiting(), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			var plain, coloured bytes.Buffer
			if err := cli.Render(&plain, c.status, false, 80, c.verbose); err != nil {
				t.Fatal(err)
			}
			if err := cli.Render(&coloured, c.status, true, 80, c.verbose); err != nil {
				t.Fatal(err)
			}
			golden.Compare(t, c.name+".txt", plain.Bytes())
			golden.Compare(t, c.name+".ansi", coloured.Bytes())
			fits(t, plain.String(), c.verbose)
		})
	}
}

// fits checks what is true of every status: 80 columns do, but for what is there
// to be copied, and nothing of it can play tricks on a terminal.
func fits(t *testing.T, text string, verbose bool) {
	t.Helper()
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		copied := verbose || strings.Contains(line, "# ") || strings.Contains(line, "fix  ") || strings.Contains(line, " table ")
		if n := utf8.RuneCountInString(line); n > 80 && !copied {
			t.Errorf("%d columns: %q", n, line)
		}
		if strings.TrimRight(line, " ") != line {
			t.Errorf("blanks at the end of %q", line)
		}
		if cli.Clean(line) != line {
			t.Errorf("not printable: %q", line)
		}
	}
}

// TestJSON pins the schema: whoever changes the file breaks somebody's script.
func TestJSON(t *testing.T) {
	for name, s := range map[string]cli.Status{"sound": sound(), "broken": broken(), "empty": empty()} {
		data, err := json.MarshalIndent(s, "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		golden.Compare(t, name+".json", append(data, '\n'))
	}
}

func TestNamesAreOrderedAsPeopleDo(t *testing.T) {
	names := []string{"wan10", "lo", "wan2", "wan", "eth0", "wan02", "wwan1", "wan1"}
	slices.SortFunc(names, cli.CompareNames)
	if got := strings.Join(names, " "); got != "eth0 lo wan wan1 wan02 wan2 wan10 wwan1" && got != "eth0 lo wan wan1 wan2 wan02 wan10 wwan1" {
		t.Error(got)
	}
}

func TestWrap(t *testing.T) {
	for _, c := range []struct {
		text  string
		width int
		want  []string
	}{
		{"", 10, []string{""}},
		{"one two three", 7, []string{"one two", "three"}},
		{"a-word-that-is-too-long for it", 6, []string{"a-word-that-is-too-long", "for it"}},
		{"not at all", 0, []string{"not at all"}},
	} {
		if got := cli.Wrap(c.text, c.width); !slices.Equal(got, c.want) {
			t.Errorf("%q in %d: %q, want %q", c.text, c.width, got, c.want)
		}
	}
}

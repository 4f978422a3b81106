package rttables_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"multihomed/internal/rttables"
	"multihomed/routing"
)

func TestGenerate(t *testing.T) {
	t.Parallel()
	got := string(rttables.Generate([]rttables.Leased{
		{Table: 10004, Interface: "wan0", Family: routing.IPv4},
		{Table: 10001, Interface: "wan0", Family: routing.IPv6},
		{Table: 10000, Interface: "wan0", Family: routing.IPv4},
		{Table: 10002, Interface: "eth0.10", Family: routing.IPv4},
		{Table: 10003, Interface: "a#\x1b[m\"%\xff", Family: routing.IPv4},
	}))
	want := "# The tables that multihomed leased to links: written by the daemon.\n" +
		"10000\tmh-wan0:4\n10001\tmh-wan0:6\n10002\tmh-eth0.10:4\n10003\tmh-a%23%1B%5Bm%22%25%FF:4\n10004\tmh-wan0:4:10004\n"
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func TestWriteAndRemove(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, rttables.GeneratedFile)
	if err := rttables.Write(dir, []rttables.Leased{{Table: 10000, Interface: "wan0", Family: routing.IPv4}}); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode() != 0o644 {
		t.Errorf("%v (%v)", info, err)
	}
	for range 2 {
		if err := rttables.Remove(dir); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("it is still there: %v", err)
	}
	if err := rttables.Write(filepath.Join(dir, "none"), nil); err == nil || !strings.Contains(err.Error(), "writing the names of routing tables") {
		t.Errorf("no directory: %v", err)
	}
}

// FuzzGenerate: every name that an interface can have makes one line with one name, and
// tables differ in their names.
func FuzzGenerate(f *testing.F) {
	f.Add("wan0", "wan0-4")
	f.Add("a b", "#")
	f.Add("\x1b[2J", "x\n10001 main")
	f.Fuzz(func(t *testing.T, one, two string) {
		if one == two || len(one) > 15 || len(two) > 15 || strings.Contains(one+two, ":") {
			return
		}
		text := rttables.Generate([]rttables.Leased{
			{4, one, routing.IPv4},
			{6, one, routing.IPv6},
			{7, one, routing.IPv4},
			{8, two, routing.IPv4},
			{9, two, routing.IPv6},
			{10, two, routing.IPv6},
		})
		names := map[string]bool{}
		lines := regexp.MustCompile(`(?m)^\d+\tmh-[!-"$-~]*$`).FindAllString(string(text), -1)
		for _, line := range lines {
			_, name, _ := strings.Cut(line, "\t")
			// IFNAMSIZ is 16, and iproute2 reads names of up to 511 bytes.
			if names[name] || len(name) > 100 {
				t.Errorf("%q in\n%s", name, text)
			}
			names[name] = true
		}
		if len(lines) != 6 || strings.Count(string(text), "\n") != 7 {
			t.Errorf("%d lines in\n%s", len(lines), text)
		}
	})
}

package cli_test

import (
	"encoding/xml"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestGraphCommand draws the host of the test, which the command does not change.
func TestGraphCommand(t *testing.T) {
	dir := t.TempDir()
	cfg := file(t, "state_dir = \""+dir+"\"\nruntime_dir = \""+dir+"/run\"\n")
	out, stderr, status := run(t, "graph", "--config", cfg)
	if status != 0 || xml.Unmarshal([]byte(out), new(struct{})) != nil || !strings.Contains(out, "from all lookup main") {
		t.Errorf("status %d, %q:\n%s", status, stderr, out)
	}
	path := filepath.Join(dir, "graph.dot")
	if out, stderr, status := run(t, "graph", "--config", cfg, "--format", "dot", "--family", "ipv4", "-o", path); status != 0 || out != "" {
		t.Errorf("status %d, %q, %q", status, stderr, out)
	}
	text, err := os.ReadFile(path)
	if err != nil || !strings.HasPrefix(string(text), "digraph") || !strings.Contains(string(text), "from all lookup main") || strings.Contains(string(text), "IPv6") {
		t.Errorf("%v:\n%s", err, text)
	}
	for _, c := range []struct {
		args   []string
		stderr string
	}{
		{[]string{"--format", "png"}, `--format is "png"; it may be svg or dot`},
		{[]string{"--family", "inet"}, `--family is "inet"; it may be ipv4, ipv6 or both`},
		{[]string{"--flow", "example.org"}, `"example.org" is no address`},
		{[]string{"--mark", "1"}, "--mark describes a packet; name its destination with --flow"},
		{[]string{"--flow", "192.0.2.1", "--from", "2001:db8::1"}, `--from cannot be "2001:db8::1"`},
		{[]string{"--flow", "192.0.2.1", "--family", "ipv6"}, "--flow 192.0.2.1 is an address of IPv4, and --family is ipv6"},
		{[]string{"--flow", "192.0.2.1", "--oif", "lo", "--iif", "lo"}, "--iif and --oif cannot go together"},
		{[]string{"-o", "/nonexistent/graph.svg"}, "writing the graph"},
		{[]string{"wan0"}, `multihomectl graph takes no arguments, and got "wan0"`},
	} {
		if out, stderr, status := run(t, append([]string{"graph", "--config", cfg}, c.args...)...); status != 2 || out != "" || !strings.Contains(stderr, c.stderr) {
			t.Errorf("%v: status %d, %q, %q", c.args, status, stderr, out)
		}
	}
}

package follow_test

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"multihomed/internal/watch"
	"multihomed/internal/watch/follow"
	"multihomed/routing"
)

// proc is a /proc with processes, each of which holds one socket.
func proc(t *testing.T, sockets string, processes map[int][2]string) *follow.Authors {
	t.Helper()
	root := t.TempDir()
	write := func(path, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(filepath.Join(root, "net", "netlink"), "sk Eth Pid Groups Rmem Wmem Dump Locks Drops Inode\n"+sockets)
	for pid, p := range processes {
		dir := filepath.Join(root, strconv.Itoa(pid))
		write(filepath.Join(dir, "comm"), p[0]+"\n")
		if err := os.Mkdir(filepath.Join(dir, "fd"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink("socket:["+p[1]+"]", filepath.Join(dir, "fd", "3")); err != nil {
			t.Fatal(err)
		}
	}
	return follow.NewAuthors(root)
}

func asked(port uint32, protocol routing.Protocol) routing.Announcement {
	return routing.Announcement{Kind: routing.AnnouncedRule, Port: port, Rule: routing.Rule{Family: routing.IPv4, Protocol: protocol}}
}

// TestAuthors: a process counts that holds the socket, whatever the port looks like.
func TestAuthors(t *testing.T) {
	t.Parallel()
	line := func(protocol, port, inode string) string {
		return strings.Join([]string{"0000000000000000", protocol, port, "00000000", "0", "0", "0", "2", "0", inode}, " ") + "\n"
	}
	a := proc(t, line("0", "100", "1000")+line("16", "200", "2000")+line("0", "4000000000", "3000")+line("0", "300", "4000")+line("0", "5", "5000")+line("0", "4111111111", "9999"), map[int][2]string{
		100: {"ip", "1000"}, 200: {"dhcp", "2000"}, 7: {"NetworkManager", "3000"}, 300: {"innocent", "1"}, 301: {"contained", "4000"}, 5: {"multihomed", "5000"}, 400: {"quick", "2"}, 9: {"\x1b[2J", "8"},
	})
	for _, c := range []struct {
		name string
		port uint32
		want watch.Author
	}{
		{"the kernel", 0, watch.Author{Party: watch.Kernel}},
		{"its first socket", 100, watch.Author{Party: watch.Other, Process: "ip", PID: 100}},
		{"its second socket", 4000000000, watch.Author{Party: watch.NetworkManager, Process: "NetworkManager", PID: 7}},
		{"the number of another process", 300, watch.Author{Party: watch.Other, Process: "contained", PID: 301}},
		{"multihomed", 5, watch.Author{Party: watch.Multihomed, Process: "multihomed", PID: 5}},
		{"a socket that is closed", 400, watch.Author{Party: watch.Other, Process: "quick", PID: 400, Probable: true}},
		{"a socket of another protocol", 200, watch.Author{Party: watch.Other, Process: "dhcp", PID: 200, Probable: true}},
		{"a name that plays tricks", 9, watch.Author{Party: watch.Other, Process: `\x1b[2J`, PID: 9, Probable: true}},
		{"a process that has ended", 500, watch.Author{Party: watch.Unknown, PID: 500}},
		{"a socket of nobody", 4111111111, watch.Author{Party: watch.Unknown}},
	} {
		for range 2 {
			if got := a.Name([]routing.Announcement{asked(c.port, 0)})[0].Author; got != c.want {
				t.Errorf("%s: %+v, want %+v", c.name, got, c.want)
			}
		}
	}
	// Only multihomed adds what is of multihomed.
	for _, protocol := range []routing.Protocol{routing.Multihomed, 0} {
		if got := a.Name([]routing.Announcement{asked(4111111111, protocol)})[0].Author; got != (watch.Author{Party: watch.Multihomed, Probable: true}) {
			t.Errorf("%+v", got)
		}
	}
}

// TestCounters reads any name.
func TestCounters(t *testing.T) {
	t.Parallel()
	got, err := follow.ReadCounters(strings.NewReader("Inter-|   Receive\n face |bytes packets\n    lo: 12 0 0 0 0 0 0 0 34 0 0 0 0 0 0 0\na\xff:1 0 0 0 0 0 0 0 18446744073709551615 0 0 0 0 0 0 0\nshort: 1\n"))
	if err != nil || len(got) != 2 || got["lo"] != (watch.Counter{In: 12, Out: 34}) || got[`a\xff`] != (watch.Counter{In: 1, Out: 1<<64 - 1}) {
		t.Errorf("%v, %v", got, err)
	}
}

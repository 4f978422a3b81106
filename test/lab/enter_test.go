package lab_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"multihomed/test/lab"
	"multihomed/test/lab/labtest"
)

// childEnv makes the test binary a program with its own lab, inside the lab of the
// tests: what it leaves behind can be seen there, and nothing else can be meant.
const childEnv = "LAB_TEST_CHILD"

// runChild is that program.
func runChild(what string) int {
	_ = os.Unsetenv(childEnv)
	ctx := context.Background()
	switch what {
	case "exit":
		return 7
	case "panic":
		openLab(ctx)
		panic("on purpose")
	case "hang", "signal":
		signals := make(chan os.Signal, 1)
		if what == "signal" {
			signal.Notify(signals, unix.SIGTERM, unix.SIGINT)
		}
		openLab(ctx)
		fmt.Println("ready")
		s := <-signals
		fmt.Println("got", s)
		return 5
	case "cycle":
		openLab(ctx)
		return 0
	}
	return 64
}

func openLab(ctx context.Context) {
	host, err := lab.NewHost(ctx, lab.HostConfig{FastDAD: true})
	if err == nil {
		_, err = host.NewISP(ctx, lab.DefaultISP(0))
	}
	if err == nil {
		err = host.AddProfile(ctx, "wan0", "wan0")
	}
	if err == nil {
		err = host.Up(ctx, "wan0")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// A plain program, without a lab, for the test of Process.
func init() {
	if os.Getenv(childEnv) != "notify" {
		return
	}
	fmt.Println("the first line")
	fmt.Println("the second line")
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGTERM)
	say := func(string) {}
	if path := os.Getenv("NOTIFY_SOCKET"); path != "" {
		conn, err := (&net.Dialer{}).DialContext(context.Background(), "unixgram", path)
		say = func(text string) {
			if err == nil {
				_, err = conn.Write([]byte(text))
			}
			if err != nil {
				fmt.Println(err)
			}
		}
	}
	say("STATUS=going\nREADY=1\n")
	<-signals
	say("STOPPING=1\n")
	fmt.Println("the last line")
	os.Exit(0)
}

// state is what must be the same before and after a lab.
func state(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	entries, err := os.ReadDir("/proc")
	must(t, err)
	for _, e := range entries {
		if _, err := strconv.Atoi(e.Name()); err != nil {
			continue
		}
		comm, err := os.ReadFile("/proc/" + e.Name() + "/comm")
		if err != nil {
			continue
		}
		fmt.Fprintf(&b, "process %s %s", e.Name(), comm)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	must(t, err)
	b.Write(mounts)
	links, err := net.Interfaces()
	must(t, err)
	for _, l := range links {
		fmt.Fprintf(&b, "link %s\n", l.Name)
	}
	for _, dir := range []string{"/run", "/run/netns", "/etc", "/var/lib", "/etc/NetworkManager"} {
		entries, err := os.ReadDir(dir)
		must(t, err)
		for _, e := range entries {
			fmt.Fprintf(&b, "file %s/%s\n", dir, e.Name())
		}
	}
	hostname, err := os.Hostname()
	must(t, err)
	fmt.Fprintf(&b, "hostname %s\n", hostname)
	return b.String()
}

func child(t *testing.T, what string) (*exec.Cmd, *bytes.Buffer) {
	t.Helper()
	self, err := os.Executable()
	must(t, err)
	cmd := exec.CommandContext(t.Context(), self)
	cmd.Env = append(os.Environ(), childEnv+"="+what,
		"GORACE=atexit_sleep_ms=0") // a second in each of many children
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	return cmd, &stderr
}

// unchanged waits until the state is as it was: the kernel ends the processes of
// a namespace a moment after the first one.
func unchanged(t *testing.T, before string) {
	t.Helper()
	labtest.Eventually(t, func() error {
		after := state(t)
		if after == before {
			return nil
		}
		var diff []string
		a, b := strings.Split(before, "\n"), strings.Split(after, "\n")
		for _, line := range a {
			if !slices.Contains(b, line) {
				diff = append(diff, "- "+line)
			}
		}
		for _, line := range b {
			if !slices.Contains(a, line) {
				diff = append(diff, "+ "+line)
			}
		}
		return fmt.Errorf("the lab changed the machine:\n%s", strings.Join(diff, "\n"))
	})
}

func TestNothingIsLeft(t *testing.T) {
	before := state(t)
	t.Run("20 runs", func(t *testing.T) {
		for range 20 {
			cmd, stderr := child(t, "cycle")
			if err := cmd.Run(); err != nil {
				t.Fatalf("%v: %s", err, stderr)
			}
			unchanged(t, before)
		}
	})
	t.Run("exit status", func(t *testing.T) {
		cmd, _ := child(t, "exit")
		if err := cmd.Run(); cmd.ProcessState.ExitCode() != 7 {
			t.Errorf("status 7 became %v", err)
		}
		unchanged(t, before)
	})
	t.Run("panic", func(t *testing.T) {
		cmd, stderr := child(t, "panic")
		if err := cmd.Run(); cmd.ProcessState.ExitCode() != 2 || !strings.Contains(stderr.String(), "panic: on purpose") {
			t.Errorf("a panic became %v: %s", err, stderr)
		}
		unchanged(t, before)
	})
	for _, test := range []struct {
		child  string
		signal syscall.Signal
		code   int // -1 for a signal
		output string
	}{
		{"hang", unix.SIGKILL, -1, ""},
		{"hang", unix.SIGTERM, 128 + int(unix.SIGTERM), ""},
		{"hang", unix.SIGINT, 128 + int(unix.SIGINT), ""},
		{"signal", unix.SIGTERM, 5, "got terminated"},
		{"signal", unix.SIGINT, 5, "got interrupt"},
	} {
		t.Run(fmt.Sprintf("%s, %v", test.child, test.signal), func(t *testing.T) {
			cmd, stderr := child(t, test.child)
			stdout, err := cmd.StdoutPipe()
			must(t, err)
			must(t, cmd.Start())
			lines := bufio.NewScanner(stdout)
			if !lines.Scan() || lines.Text() != "ready" {
				t.Fatalf("the child said %q: %s", lines.Text(), stderr)
			}
			must(t, cmd.Process.Signal(test.signal))
			var last string
			for lines.Scan() {
				last = lines.Text()
			}
			err = cmd.Wait()
			if got := cmd.ProcessState.ExitCode(); got != test.code || last != test.output {
				t.Errorf("ended with %v (%d) after %q, want %d after %q", err, got, last, test.code, test.output)
			}
			unchanged(t, before)
		})
	}
}

func TestHostsInOneProcess(t *testing.T) {
	before := state(t)
	took := make([]time.Duration, 0, 20)
	for range cap(took) {
		begin := time.Now()
		host, err := lab.NewHost(t.Context(), lab.HostConfig{FastDAD: true})
		must(t, err)
		took = append(took, time.Since(begin))
		if _, err := lab.NewHost(t.Context(), lab.HostConfig{}); err == nil {
			t.Fatal("two hosts at a time")
		}
		_, err = host.NewISP(t.Context(), lab.DefaultISP(0))
		must(t, err)
		must(t, host.AddProfile(t.Context(), "wan0", "wan0"))
		must(t, host.Up(t.Context(), "wan0"))
		_, err = host.IP(t.Context(), "rule", "add", "from", "192.0.2.1", "unreachable", "priority", "10500", "protocol", "150")
		must(t, err)
		_, err = host.IP(t.Context(), "rule", "add", "lookup", "main", "suppress_prefixlength", "0", "priority", "19000", "protocol", "150")
		must(t, err)
		_, err = host.IP(t.Context(), "route", "add", "unreachable", "192.0.2.0/24", "table", "10000", "protocol", "150")
		must(t, err)
		must(t, host.Close())
		must(t, host.Close()) // harmless
		rules, err := exec.CommandContext(t.Context(), "ip", "rule").Output()
		must(t, err)
		if n := strings.Count(string(rules), "\n"); n != 3 {
			t.Fatalf("rules left:\n%s", rules)
		}
	}
	slices.Sort(took)
	t.Logf("a bus and NetworkManager: median %v, most %v", took[10], took[19])
	unchanged(t, before)
}

func TestRequirements(t *testing.T) {
	t.Run("not root", func(t *testing.T) {
		cmd, stderr := child(t, "exit")
		cmd.Path = "/proc/self/exe" // which no user may read, wherever it is
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		err := cmd.Run()
		if errors.Is(err, unix.EACCES) {
			t.Fatalf("starting the child: %v", err)
		}
		if cmd.ProcessState.ExitCode() != 1 || strings.Count(stderr.String(), "\n") != 1 || !strings.Contains(stderr.String(), "not root") {
			t.Errorf("%v: %s", err, stderr)
		}
	})
	t.Run("nothing installed", func(t *testing.T) {
		err := lab.CheckPrograms(t.TempDir())
		want := "NetworkManager, nmcli, dbus-daemon, dnsmasq, ifup, dhclient, dhcpcd, ip not found: " +
			"apt-get install network-manager dbus dnsmasq-base ifupdown isc-dhcp-client dhcpcd-base iproute2"
		if err == nil || err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
	})
}

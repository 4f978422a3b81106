package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"multihomed/test/lab"
)

// A Dispatch is what a run of NetworkManager's dispatcher pays for the script that
// tells the daemon, and what it would pay for /bin/true.
type Dispatch struct {
	True   Series `json:"true"`
	Script Series `json:"script"`
}

// dispatcherConfig is the file that the script reads; it has no option for another one.
const dispatcherConfig = "/etc/multihomed/multihomed.toml"

// dispatchesPerRun makes a median of a few milliseconds worth something.
const dispatchesPerRun = 10

// environment is as NetworkManager 1.42 sends it for a link with both families.
func environment() []string {
	return []string{
		"NM_DISPATCHER_ACTION=up", "CONNECTION_UUID=0a", "CONNECTION_ID=wan0", "DEVICE_IFACE=lo", "DEVICE_IP_IFACE=lo",
		"IP4_ADDRESS_0=192.0.2.10/24 192.0.2.1", "IP4_NUM_ADDRESSES=1", "IP4_GATEWAY=192.0.2.1",
		"IP4_ROUTE_0=192.0.2.0/24 0.0.0.0 100", "IP4_NUM_ROUTES=1", "IP4_NAMESERVERS=192.0.2.53", "IP4_DOMAINS=example.net",
		"IP6_ADDRESS_0=2001:db8::10/64 fe80::1", "IP6_NUM_ADDRESSES=1", "IP6_GATEWAY=fe80::1", "PATH=/usr/bin",
	}
}

// dispatches measures the script while the daemon runs.
func (b *bench) dispatches(ctx context.Context, report *Report) (err error) {
	host, err := lab.NewHost(ctx, lab.HostConfig{NoBus: true})
	if err != nil {
		return fmt.Errorf("making the lab: %w", err)
	}
	defer func() { err = errors.Join(err, host.Close()) }()
	state, err := os.MkdirTemp("", "bench-dispatcher")
	if err != nil {
		return fmt.Errorf("making a directory: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(state)) }()
	text := fmt.Sprintf("log_level = \"error\"\nnetwork_manager = \"no\"\nstate_dir = %q\nruntime_dir = %q\n", state, filepath.Join(state, "run"))
	if err := os.WriteFile(dispatcherConfig, []byte(text), 0o600); err != nil {
		return fmt.Errorf("writing the configuration: %w", err)
	}
	daemon, err := host.Start(lab.ProcessConfig{Path: b.options.daemon, Args: []string{"-config", dispatcherConfig}, Notify: true})
	if err != nil {
		return err
	}
	// It writes to the directory as long as it runs.
	defer func() { err = errors.Join(err, daemon.Kill()) }()
	if _, err := daemon.WaitNotify(ctx, "READY=1"); err != nil {
		return err
	}
	script := filepath.Join(filepath.Dir(b.options.daemon), "multihomed-dispatcher")
	b.progress("the dispatcher's script")
	var times [2][]time.Duration
	for range b.runs * dispatchesPerRun {
		for i, program := range []string{"/bin/true", script} {
			cmd := exec.CommandContext(ctx, program, "lo", "up")
			cmd.Env = environment()
			began := time.Now()
			out, err := cmd.CombinedOutput()
			if err != nil {
				return fmt.Errorf("%s: %w: %s", program, err, out)
			}
			times[i] = append(times[i], time.Since(began))
		}
	}
	report.Dispatch = Dispatch{True: series(times[0]), Script: series(times[1])}
	return nil
}

func printDispatch(out io.Writer, d Dispatch) {
	if d.Script.Runs == 0 {
		return
	}
	table(out, "A script of NetworkManager's dispatcher, from its start to its end, while the daemon runs",
		"/bin/true\tmultihomed-dispatcher\tthe difference", func(line func(...any)) {
			line(d.True, d.Script, milliseconds(d.Script.Median-d.True.Median))
		})
}

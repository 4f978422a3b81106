package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"multihomed/test/lab"
)

// What the planner makes of one IPv4 uplink with a gateway: two routes, five
// rules. No rule is made once for all links.
const (
	perLink     = 7
	uplinkGroup = 28008
)

// bench is the host with its links and programs.
type bench struct {
	options
	began time.Time

	host   *lab.Host
	owner  owner
	links  []link
	names  map[int]string
	dir    string
	daemon *lab.Process
	watch  *watcher
	send   *sender
	// hop counts the next hops of routes that were changed.
	hop int
}

func (b *bench) progress(format string, args ...any) {
	if b.verbose {
		fmt.Fprintf(os.Stderr, "%7.1f s  %s\n", time.Since(b.began).Seconds(), fmt.Sprintf(format, args...))
	}
}

// all measures everything, or the parts that were asked for.
func (b *bench) all(ctx context.Context) (*Report, error) {
	// The bare loop's CPU time is that of this thread.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	report := &Report{Machine: machine()}
	if len(b.only) == 0 {
		if err := b.sized(ctx, report); err != nil {
			return nil, err
		}
	}
	for _, part := range parts() {
		if len(b.only) > 0 && !slices.Contains(b.only, part.name) {
			continue
		}
		if err := part.run(b, ctx, report); err != nil {
			return nil, err
		}
	}
	report.Seconds = time.Since(b.began).Seconds()
	return report, nil
}

// A part is measured on a host of its own, besides the rows of the numbers of links.
type part struct {
	name string
	run  func(*bench, context.Context, *Report) error
}

func parts() []part {
	return []part{
		{"routes", (*bench).throughLink},
		{"bgp", (*bench).redundant},
		{"hosts", (*bench).hostAddresses},
		{"leases", (*bench).leases},
		{"dispatcher", (*bench).dispatches},
		{"failover", (*bench).failovers},
		{"subnet", (*bench).subnet},
		{"forward", (*bench).forwards},
	}
}

func partNames() (names []string) {
	for _, p := range parts() {
		names = append(names, p.name)
	}
	return names
}

// sized measures with each number of links. Those of one owner share a lab, in which links are only
// added.
func (b *bench) sized(ctx context.Context, report *Report) error {
	var genuine, fake []int
	for _, n := range b.sizes {
		if n <= b.real {
			genuine = append(genuine, n)
		} else {
			fake = append(fake, n)
		}
	}
	if len(genuine) > 0 {
		err := b.inLab(ctx, lab.HostConfig{
			NMLogLevel: "WARN", NMConfig: "[keyfile]\nunmanaged-devices=interface-name:" + foreignLink,
		}, func() (owner, error) {
			return &realOwner{host: b.host}, nil
		}, func() error { return b.measure(ctx, report, genuine, true) })
		if err != nil {
			return err
		}
	}
	if len(fake) > 0 {
		if len(genuine) > 0 {
			// The same owner on both sides of the comparison.
			fake = append([]int{10}, fake...)
		}
		err := b.inLab(ctx, lab.HostConfig{NoBus: true}, func() (owner, error) {
			return newFakeOwner(b.host)
		}, func() error { return b.measure(ctx, report, fake, len(genuine) == 0) })
		if err != nil {
			return err
		}
	}
	return nil
}

// inLab runs do on a new host.
func (b *bench) inLab(ctx context.Context, cfg lab.HostConfig, own func() (owner, error), do func() error) (err error) {
	if b.host, err = lab.NewHost(ctx, cfg); err != nil {
		return fmt.Errorf("making the lab: %w", err)
	}
	defer func() { err = errors.Join(err, b.host.Close()) }()
	if b.dir, err = os.MkdirTemp("", "bench"); err != nil {
		return fmt.Errorf("making a directory: %w", err)
	}
	// What watching costs is measured apart; these rows are about the routing of links.
	config := fmt.Sprintf("state_dir = %q\nruntime_dir = %q\n[tables]\nfirst = 10000\nlast = 12999\n[failover]\nenabled = false\n", b.dir, filepath.Join(b.dir, "run"))
	if err := os.WriteFile(b.config(), []byte(config), 0o600); err != nil {
		return fmt.Errorf("writing the configuration: %w", err)
	}
	b.links, b.names = nil, map[int]string{}
	if b.send, err = newSender(); err != nil {
		return err
	}
	defer b.send.close()
	if b.watch, err = watch(); err != nil {
		return err
	}
	defer b.watch.close()
	if b.owner, err = own(); err != nil {
		return err
	}
	defer b.owner.close()
	if err := do(); err != nil {
		if b.daemon != nil {
			lines := b.daemon.Lines()
			for _, line := range lines[max(0, len(lines)-20):] {
				fmt.Fprintln(os.Stderr, "daemon:", line)
			}
		}
		return err
	}
	return nil
}

func (b *bench) config() string { return filepath.Join(b.dir, "multihomed.toml") }

// measure goes through the numbers of links.
func (b *bench) measure(ctx context.Context, report *Report, sizes []int, foreign bool) error {
	for _, n := range sizes {
		if err := b.grow(ctx, n); err != nil {
			return err
		}
		if b.hold {
			return b.keep(ctx)
		}
		b.progress("%d links, %s: starts", n, b.owner)
		row := Row{Links: n, Owner: b.owner.String()}
		if err := b.startUp(ctx, &row); err != nil {
			return fmt.Errorf("starting with %d links: %w", n, err)
		}
		b.progress("%d links: one link's changes", n)
		change, err := b.change(ctx)
		if err != nil {
			return fmt.Errorf("changing one of %d links: %w", n, err)
		}
		row.Change = change
		b.progress("%d links: status", n)
		if err := b.statusTold(ctx, &row.Status); err != nil {
			return fmt.Errorf("status with %d links: %w", n, err)
		}
		if foreign && b.foreign > 0 && (n == 10 || n == sizes[len(sizes)-1]) {
			foreign = false
			b.progress("%d links: %d foreign routes", n, b.foreign)
			f, err := b.foreignRoutes(ctx)
			if err != nil {
				return fmt.Errorf("with %d foreign routes: %w", b.foreign, err)
			}
			f.Links = n
			report.Foreign = f
		}
		if err := b.stop(ctx); err != nil {
			return err
		}
		if err := b.statusRead(ctx, &row.Status); err != nil {
			return fmt.Errorf("status of %d links without the daemon: %w", n, err)
		}
		if err := b.connects(ctx, report); err != nil {
			return fmt.Errorf("connecting with %d links: %w", n, err)
		}
		if err := b.flush(ctx); err != nil {
			return err
		}
		report.Rows = append(report.Rows, row)
	}
	return nil
}

// grow makes links until there are n, and waits until all are configured.
func (b *bench) grow(ctx context.Context, n int) error {
	b.progress("making %d links", n-len(b.links))
	var added []link
	for i := len(b.links); i < n; i++ {
		added = append(added, linkAt(i))
	}
	if err := b.owner.add(ctx, added); err != nil {
		return err
	}
	b.links = append(b.links, added...)
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	err := lab.Eventually(ctx, func() error {
		interfaces, err := netlink.LinkList()
		if err != nil {
			return err
		}
		indexes := map[string]int{}
		for _, i := range interfaces {
			indexes[i.Attrs().Name] = i.Attrs().Index
		}
		defaults, err := netlink.RouteListFiltered(unix.AF_INET, &netlink.Route{Table: unix.RT_TABLE_MAIN, Dst: nil}, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_DST)
		if err != nil {
			return err
		}
		ready := map[int]bool{}
		for _, r := range defaults {
			ready[r.LinkIndex] = true
		}
		missing := 0
		for i := range b.links {
			l := &b.links[i]
			l.index = indexes[l.name]
			b.names[l.index] = l.name
			if !ready[l.index] {
				missing++
			}
		}
		if missing > 0 {
			return fmt.Errorf("%d of %d links are not configured", missing, n)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("waiting for %s: %w", b.owner, err)
	}
	_, err = b.settled(ctx, nothing)
	return err
}

// keep starts the daemon and waits: for a look with other tools, by way of
// nsenter(1).
func (b *bench) keep(ctx context.Context) error {
	_, took, err := b.start(ctx)
	if err != nil {
		return err
	}
	b.progress("ready after %v, and waiting to be interrupted", took)
	<-ctx.Done()
	return b.stop(context.WithoutCancel(ctx))
}

// settled waits until the kernel, the daemon and the owner have come to rest.
func (b *bench) settled(ctx context.Context, enough func([]event) error) ([]event, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	var processes []int
	if b.daemon != nil {
		processes = append(processes, b.daemon.Pid())
	}
	if pid := b.owner.pid(); pid != 0 {
		processes = append(processes, pid)
	}
	return b.watch.settle(ctx, enough, processes...)
}

// start starts the daemon and returns how long it took to say that it is ready.
func (b *bench) start(ctx context.Context) (time.Time, time.Duration, error) {
	begin := time.Now()
	var err error
	b.daemon, err = b.host.Start(lab.ProcessConfig{
		Path: b.options.daemon, Args: []string{"-config", b.config()}, Env: []string{"DBUS_SYSTEM_BUS_ADDRESS=" + b.owner.bus()}, Notify: true,
	})
	if err != nil {
		return begin, 0, err
	}
	if _, err := b.daemon.WaitNotify(ctx, "READY=1"); err != nil {
		return begin, 0, err
	}
	return begin, time.Since(begin), nil
}

func (b *bench) stop(ctx context.Context) error {
	if b.daemon == nil {
		return nil
	}
	p := b.daemon
	b.daemon = nil
	return p.Stop(ctx)
}

// freeze stops the daemon from taking part.
func (b *bench) freeze(ctx context.Context) error {
	if err := b.daemon.Signal(unix.SIGSTOP); err != nil {
		return err
	}
	return lab.Eventually(ctx, func() error {
		states, err := threadStates(b.daemon.Pid())
		if err == nil && strings.Trim(states, "T") != "" {
			err = fmt.Errorf("threads of the daemon are %s", states)
		}
		return err
	})
}

// thaw lets it go on, and waits until it has taken up what happened.
func (b *bench) thaw(ctx context.Context) error {
	if err := b.daemon.Signal(unix.SIGCONT); err != nil {
		return err
	}
	err := lab.Eventually(ctx, func() error {
		states, err := threadStates(b.daemon.Pid())
		if err == nil && strings.Contains(states, "T") {
			err = fmt.Errorf("threads of the daemon are %s", states)
		}
		return err
	})
	if err != nil {
		return err
	}
	_, err = b.settled(ctx, nothing)
	return err
}

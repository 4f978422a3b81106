package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"multihomed/allocator/wire"
	"multihomed/internal/unixgram"
	"multihomed/routing"
	"multihomed/test/lab"
)

// A LeaseRow is the measurement of so many clients of the table allocator, which each
// lease, renew and release again and again, all at once. Latencies are round trips in
// milliseconds.
type LeaseRow struct {
	Store   string  `json:"store"`
	Clients int     `json:"clients"`
	Lease   Latency `json:"lease"`
	// Renew is within the second of the lease: nothing has to be written.
	Renew   Latency `json:"renew"`
	Release Latency `json:"release"`
	// PerSecond counts leases, renewals and releases.
	PerSecond float64 `json:"requests_per_s"`
}

// A Latency is a distribution, in milliseconds.
type Latency struct {
	P50 float64 `json:"p50"`
	P99 float64 `json:"p99"`
}

func (l Latency) String() string {
	return fmt.Sprintf("%s / %s", milliseconds(l.P50), milliseconds(l.P99))
}

// leases measures the table allocator, on disk and in memory.
func (b *bench) leases(ctx context.Context, report *Report) error {
	// The lab's TMPDIR is in memory; /var/tmp is kept over a reboot (file-hierarchy(7)).
	for _, at := range []struct{ store, parent string }{{"disk", "/var/tmp"}, {"memory", "/dev/shm"}} {
		state, err := os.MkdirTemp(at.parent, "bench-leases")
		if err != nil {
			return fmt.Errorf("making a directory: %w", err)
		}
		err = b.leasesIn(ctx, report, at.store, state)
		if err = errors.Join(err, os.RemoveAll(state)); err != nil {
			return fmt.Errorf("leases %s: %w", at.store, err)
		}
	}
	return nil
}

func (b *bench) leasesIn(ctx context.Context, report *Report, store, state string) (err error) {
	host, err := lab.NewHost(ctx, lab.HostConfig{NoBus: true})
	if err != nil {
		return fmt.Errorf("making the lab: %w", err)
	}
	defer func() { err = errors.Join(err, host.Close()) }()
	config := filepath.Join(state, "multihomed.toml")
	text := fmt.Sprintf("log_level = \"error\"\nstate_dir = %q\nruntime_dir = %q\n[tables]\nfirst = 10000\nlast = 13999\n", state, filepath.Join(state, "run"))
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return fmt.Errorf("writing the configuration: %w", err)
	}
	daemon, err := host.Start(lab.ProcessConfig{Path: b.options.daemon, Args: []string{"-config", config}})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, daemon.Kill()) }()
	for _, clients := range []int{1, 8, 64} {
		b.progress("%d clients lease, %s", clients, store)
		row, err := b.crowd(ctx, clients)
		if err != nil {
			return fmt.Errorf("%d clients: %w", clients, err)
		}
		row.Store, row.Clients = store, clients
		report.Leases = append(report.Leases, row)
	}
	return nil
}

// crowd lets clients lease until each has done its cycles.
func (b *bench) crowd(ctx context.Context, clients int) (LeaseRow, error) {
	all := make([]*tenant, clients)
	for i := range all {
		t, err := newTenant(clients, i)
		if err != nil {
			return LeaseRow{}, err
		}
		defer t.conn.Close()
		all[i] = t
		// The first also waits for the daemon.
		if err := lab.Eventually(ctx, func() error { return t.cycle(0) }); err != nil {
			return LeaseRow{}, err
		}
		t.times = [3][]float64{}
	}
	var start sync.WaitGroup
	start.Add(1)
	tasks, _ := errgroup.WithContext(ctx)
	for _, t := range all {
		tasks.Go(func() error {
			start.Wait()
			for n := range b.cycles {
				if err := t.cycle(n); err != nil {
					return err
				}
			}
			return nil
		})
	}
	began := time.Now()
	start.Done()
	if err := tasks.Wait(); err != nil {
		return LeaseRow{}, err
	}
	took := time.Since(began)
	var row LeaseRow
	for step, latency := range []*Latency{&row.Lease, &row.Renew, &row.Release} {
		var times []float64
		for _, t := range all {
			times = append(times, t.times[step]...)
		}
		slices.Sort(times)
		*latency = Latency{P50: times[len(times)/2], P99: times[len(times)*99/100]}
	}
	row.PerSecond = float64(3*clients*b.cycles) / took.Seconds()
	return row, nil
}

// A tenant is one client.
type tenant struct {
	conn   *unixgram.Conn
	to     unixgram.Address
	number int
	buffer [wire.MaxResponse]byte
	times  [3][]float64
}

func newTenant(clients, number int) (*tenant, error) {
	own, err := unixgram.Abstract(fmt.Sprintf("bench-%d-%d", clients, number))
	if err != nil {
		return nil, err
	}
	to, err := unixgram.Abstract("tas_socket")
	if err != nil {
		return nil, err
	}
	conn, err := unixgram.Listen(own)
	if err != nil {
		return nil, err
	}
	return &tenant{conn: conn, to: to, number: number}, nil
}

// addresses is how many a client uses by turns.
const addresses = 40

// cycle leases, renews and releases.
func (t *tenant) cycle(n int) error {
	r := wire.Request{
		Version: 1, Family: routing.IPv4, Interface: "bench",
		Address: netip.AddrFrom4([4]byte{10, 0, byte(t.number), byte(n % addresses)}).String(),
	}
	for step := range t.times {
		if step == 2 {
			r.Command = wire.Release
		}
		began := time.Now()
		if err := t.ask(r); err != nil {
			return err
		}
		t.times[step] = append(t.times[step], float64(time.Since(began).Nanoseconds())/1e6)
	}
	return nil
}

func (t *tenant) ask(r wire.Request) error {
	datagram, refused := r.Encode()
	if refused != nil {
		return refused
	}
	// Many ask one socket at once: a full queue is part of what is measured.
	if err := t.conn.SendWait(context.Background(), t.to, datagram); err != nil {
		return err
	}
	if err := t.conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return err
	}
	d, err := t.conn.Receive(t.buffer[:])
	if err != nil {
		return err
	}
	answer, err := wire.DecodeResponse(d.Payload)
	if err != nil {
		return err
	}
	if answer.Refused != nil {
		return answer.Refused
	}
	return nil
}

func printLeases(out io.Writer, rows []LeaseRow) {
	if len(rows) == 0 {
		return
	}
	table(out, "Leases over the socket, every one durable before it is acknowledged (round trip, median / 99th percentile)",
		"database\tclients\tlease\trenew, same second\trelease\trequests/s", func(line func(...any)) {
			for _, r := range rows {
				line(r.Store, r.Clients, r.Lease, r.Renew, r.Release, fmt.Sprintf("%.0f", r.PerSecond))
			}
		})
}

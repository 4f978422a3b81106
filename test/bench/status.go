package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"multihomed/internal/status"
)

// A StatusRow is what `multihomectl status` takes from its start to its end.
type StatusRow struct {
	// Text and JSON are answered by the daemon, on which nothing has changed since it was asked
	// before.
	Text Series `json:"text"`
	JSON Series `json:"json"`
	// Explain is `multihomectl explain` of a packet with the address of the last link.
	Explain Series `json:"explain"`
	// Metrics is `multihomectl metrics`, answered by the daemon.
	Metrics Series `json:"metrics"`
	// Bytes is the size of the JSON.
	Bytes int `json:"bytes"`
	// Alone is the text where no daemon runs: the host is read, and NetworkManager is asked.
	Alone Series `json:"alone"`
}

// statusTold measures requests to the daemon.
func (b *bench) statusTold(ctx context.Context, row *StatusRow) error {
	document, _, err := b.status(ctx, status.ByDaemon, "--json") // It checks all links first.
	if err != nil {
		return err
	}
	row.Bytes = len(document)
	var text, asJSON []time.Duration
	for range b.runs {
		_, took, err := b.status(ctx, "")
		if err != nil {
			return err
		}
		text = append(text, took)
		if _, took, err = b.status(ctx, status.ByDaemon, "--json"); err != nil {
			return err
		}
		asJSON = append(asJSON, took)
	}
	row.Text, row.JSON = series(text), series(asJSON)
	if row.Explain, err = b.explained(ctx); err != nil {
		return err
	}
	row.Metrics, err = b.measured(ctx)
	return err
}

// measured measures `multihomectl metrics`, which must have all links.
func (b *bench) measured(ctx context.Context) (Series, error) {
	var all []time.Duration
	for range b.runs {
		if err := pause(ctx, b.window/20); err != nil { // As in explained.
			return Series{}, err
		}
		out, took, err := b.ctl(ctx, "metrics")
		if err != nil {
			return Series{}, err
		}
		if n := bytes.Count(out, []byte("\nmultihomed_link_info{")); n != len(b.links) || !bytes.Contains(out, []byte("\nmultihomed_up 1\n")) {
			return Series{}, fmt.Errorf("the metrics have %d links, want %d", n, len(b.links))
		}
		all = append(all, took)
	}
	return series(all), nil
}

// explained measures `multihomectl explain`, which must find the last link and its rule.
func (b *bench) explained(ctx context.Context) (Series, error) {
	last := b.links[len(b.links)-1]
	var all []time.Duration
	for range b.runs {
		// The daemon spends a tenth of a processor on answers: who asks in a row waits for that. A smoke
		// test does.
		if err := pause(ctx, b.window/20); err != nil {
			return Series{}, err
		}
		out, took, err := b.ctl(ctx, "explain", "203.0.113.1", "--from", last.address.Addr().String())
		if err != nil {
			return Series{}, err
		}
		for _, want := range []string{" leaves by " + last.name + " ", "link " + last.name} {
			if !strings.Contains(strings.Join(strings.Fields(string(out)), " "), want) {
				return Series{}, fmt.Errorf("multihomectl explain does not say %q: %s", want, out)
			}
		}
		all = append(all, took)
	}
	return series(all), nil
}

// statusRead measures reading without a daemon.
func (b *bench) statusRead(ctx context.Context, row *StatusRow) error {
	if _, _, err := b.status(ctx, status.ByHost, "--json"); err != nil {
		return err
	}
	var alone []time.Duration
	for range b.starts {
		_, took, err := b.status(ctx, "")
		if err != nil {
			return err
		}
		alone = append(alone, took)
	}
	row.Alone = series(alone)
	return nil
}

// status runs the program once. If by is given it wants JSON in which all links are, from
// whom by names.
func (b *bench) status(ctx context.Context, by string, flags ...string) (out []byte, took time.Duration, err error) {
	if out, took, err = b.ctl(ctx, append([]string{"status"}, flags...)...); err != nil {
		return nil, 0, err
	}
	if by == "" {
		return out, took, nil
	}
	var s status.Status
	if err := json.Unmarshal(out, &s); err != nil {
		return nil, 0, fmt.Errorf("reading the status: %w", err)
	}
	if s.By != by || len(s.Links) != len(b.links) {
		return nil, 0, fmt.Errorf("the status is by %s and has %d links, want %s and %d", s.By, len(s.Links), by, len(b.links))
	}
	return out, took, nil
}

// ctl runs the program once.
func (b *bench) ctl(ctx context.Context, args ...string) (out []byte, took time.Duration, err error) {
	program := filepath.Join(filepath.Dir(b.options.daemon), "multihomectl")
	cmd := exec.CommandContext(ctx, program, append([]string{"--config", b.config()}, args...)...)
	var complaint bytes.Buffer
	cmd.Stderr = &complaint
	began := time.Now()
	out, err = cmd.Output()
	took = time.Since(began)
	// 1 says that there is a problem, which the bench may well have made.
	if exit := (*exec.ExitError)(nil); err != nil && (!errors.As(err, &exit) || exit.ExitCode() != 1) {
		return nil, 0, fmt.Errorf("multihomectl %s: %w: %s", args[0], err, complaint.Bytes())
	}
	if len(out) == 0 {
		return nil, 0, fmt.Errorf("multihomectl %s shows nothing: %s", args[0], complaint.Bytes())
	}
	return out, took, nil
}

func printStatus(out io.Writer, rows []Row) {
	table(out, "multihomectl status, explain and metrics, from their start to their end",
		"links\towner\tby the daemon\t--json\tKB\twithout the daemon\texplain\tmetrics", func(line func(...any)) {
			for _, w := range rows {
				line(w.Links, w.Owner, w.Status.Text, w.Status.JSON, fmt.Sprintf("%.0f", float64(w.Status.Bytes)/1e3), w.Status.Alone, w.Status.Explain, w.Status.Metrics)
			}
		})
}

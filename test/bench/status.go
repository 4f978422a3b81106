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
	"time"

	"multihomed/internal/status"
)

// A StatusRow is what `multihomectl status` takes from its start to its end.
type StatusRow struct {
	// Text and JSON are answered by the daemon, on which nothing has changed since it was asked
	// before.
	Text Series `json:"text"`
	JSON Series `json:"json"`
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
	return nil
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
	program := filepath.Join(filepath.Dir(b.options.daemon), "multihomectl")
	cmd := exec.CommandContext(ctx, program, append([]string{"--config", b.config(), "status"}, flags...)...)
	var complaint bytes.Buffer
	cmd.Stderr = &complaint
	began := time.Now()
	out, err = cmd.Output()
	took = time.Since(began)
	// 1 says that there is a problem, which the bench may well have made.
	if exit := (*exec.ExitError)(nil); err != nil && (!errors.As(err, &exit) || exit.ExitCode() != 1) {
		return nil, 0, fmt.Errorf("multihomectl status: %w: %s", err, complaint.Bytes())
	}
	if len(out) == 0 {
		return nil, 0, fmt.Errorf("multihomectl status shows nothing: %s", complaint.Bytes())
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

func printStatus(out io.Writer, rows []Row) {
	table(out, "multihomectl status, from its start to its end",
		"links\towner\tby the daemon\t--json\tKB\twithout the daemon", func(line func(...any)) {
			for _, w := range rows {
				line(w.Links, w.Owner, w.Status.Text, w.Status.JSON, fmt.Sprintf("%.0f", float64(w.Status.Bytes)/1e3), w.Status.Alone)
			}
		})
}

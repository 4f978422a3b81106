package cli

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/spf13/cobra"

	"multihomed/internal/activation"
	"multihomed/internal/escape"
	"multihomed/internal/metrics"
	"multihomed/internal/metrics/scrape"
)

const metricsHelp = `Print metrics for Prometheus: links and their health, failover, what is in force, problems,
repairs, and how long the daemon takes. The manual, multihomectl(8), explains each.

It asks the daemon, as multihomectl status does. If the daemon does not answer, it prints
multihomed_up 0 and what it finds out from the host itself: links, objects and problems.
It changes nothing, and works without root.

The formats are openmetrics, which Prometheus reads, and prometheus, the older text format,
which the textfile collector of node_exporter reads.

With --serve it answers HTTP on the socket of multihomed-metrics.socket: GET and HEAD of
/metrics, in the format that the client accepts. It ends when nobody has asked for 10 seconds.

The exit status is 0 also if the daemon does not answer, and 2 if the command line is
wrong or the host cannot be read; then it prints nothing.`

// metricFormats are the values of --format.
var metricFormats = []string{"openmetrics", "prometheus"} //nolint:gochecknoglobals // a constant in all but name

func (a *app) metrics() *cobra.Command {
	var format string
	var serve bool
	cmd := &cobra.Command{
		Use: "metrics", Short: "print metrics for Prometheus", Long: metricsHelp,
		Example: `  multihomectl metrics
  multihomectl metrics --format prometheus | promtool check metrics
  systemctl enable --now multihomed-metrics.socket && curl http://127.0.0.1:28008/metrics`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f := metrics.OpenMetrics
			switch format {
			case "openmetrics":
			case "prometheus":
				f = metrics.Prometheus
			default:
				return usageError(cmd, "--format is %q; it may be openmetrics or prometheus", escape.Text(format))
			}
			if serve {
				if cmd.Flags().Changed("format") {
					return usageError(cmd, "--serve and --format do not go together: the client says which format it accepts")
				}
				return a.serveMetrics(cmd.Context())
			}
			text, err := a.measure(cmd.Context(), f)
			if err != nil {
				return &exitError{exitUsage, err}
			}
			if _, err := a.Out.Write(text); err != nil {
				return &exitError{exitUsage, fmt.Errorf("printing the metrics: %w", err)}
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&format, "format", "openmetrics", "`format`: openmetrics or prometheus")
	cmd.Flags().BoolVar(&serve, "serve", false, "answer HTTP on the sockets that systemd passes")
	complete(cmd, map[string]cobra.CompletionFunc{"format": words(metricFormats...)})
	return cmd
}

// measure returns the metrics of the host.
func (a *app) measure(ctx context.Context, f metrics.Format) ([]byte, error) {
	loaded := a.find(ctx)
	s, err := a.readStatus(ctx, loaded, nil, false)
	if err != nil {
		return nil, err
	}
	if !s.Daemon.Running {
		// A running daemon says itself what is wrong with its file. This user may not even be allowed to read that.
		tell(&s, loaded.Fault)
	}
	return metrics.Encode(metrics.Of(&s), f), nil
}

// metricsIdle is how long the server waits for the next client. Prometheus comes every 15 seconds, or seldom: in
// between nothing runs.
const metricsIdle = 10 * time.Second

// serveMetrics answers requests on the sockets that systemd passes.
func (a *app) serveMetrics(ctx context.Context) error {
	var listeners []net.Listener
	var errs []error
	for _, f := range activation.Files() {
		l, err := net.FileListener(f)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s is no listening socket: %w", f.Name(), err))
		} else {
			listeners = append(listeners, l)
		}
		errs = append(errs, f.Close())
	}
	if len(listeners) == 0 {
		errs = append(errs, errors.New("--serve needs a socket of systemd; to fix: systemctl enable --now multihomed-metrics.socket"))
	}
	if err := errors.Join(errs...); err != nil {
		return &exitError{exitUsage, err}
	}
	tell := func(err error) { fmt.Fprintf(a.Err, "multihomectl: %s\n", escape.Text(err.Error())) }
	s := scrape.Server{Document: a.measure, Idle: metricsIdle, Fault: tell, Stuck: func() {
		tell(errors.New("the metrics could not be read in time; to see why: multihomectl status"))
		os.Exit(exitProblem)
	}}
	if err := s.Serve(ctx, listeners...); err != nil {
		return &exitError{exitUsage, err}
	}
	return nil
}

// Bench measures multihomed in the lab, side by side with the least that could do
// the same: a loop that sends the same netlink messages, and `ip -batch`. What
// counts are the ratios within one run; a machine that is busy or slow shifts
// both sides.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"multihomed/test/lab"
)

func main() { os.Exit(lab.Main(run)) }

// patience is for the whole run; what takes this long has failed.
const patience = 30 * time.Minute

// options are those of the command line.
type options struct {
	daemon  string
	sizes   []int
	real    int
	runs    int
	starts  int
	foreign int
	cycles  int
	routes  []int
	bgp     int
	hosts   int
	connect int
	deaths  int
	pulls   int
	watched int
	alone   time.Duration
	window  time.Duration
	only    []string
	learns  bool // wait until a link is known before it fails
	json    bool
	hold    bool
	verbose bool
}

func parse(args []string) (options, error) {
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	o := options{learns: true}
	sizes := flags.String("sizes", "1,2,10,100,1000", "numbers of links, ascending")
	quick := flags.Bool("quick", false, "small sizes of everything, for a smoke test")
	flags.StringVar(&o.daemon, "daemon", "", "the multihomed `program`; the default is the one beside this one")
	flags.IntVar(&o.real, "real", 1000, "up to this number of links, the real NetworkManager has them; above it, a fake one on a real bus")
	flags.IntVar(&o.runs, "runs", 21, "number of measurements of one link's change")
	flags.IntVar(&o.starts, "starts", 5, "number of measurements of a start")
	flags.IntVar(&o.foreign, "foreign", 1_000_000, "number of foreign routes that appear")
	flags.IntVar(&o.cycles, "cycles", 400, "number of leases, renewals and releases of each client of the table allocator")
	routes := flags.String("routes", "1,1000,50000", "numbers of routes through a link, ascending")
	flags.IntVar(&o.bgp, "bgp", 30_000, "number of routes of a routing daemon that repeat a link's default")
	flags.IntVar(&o.hosts, "hosts", 1100, "number of host addresses that one uplink gets")
	flags.IntVar(&o.connect, "connect", 20_000, "number of connects in one measurement")
	flags.IntVar(&o.deaths, "deaths", 10, "number of measurements of each way to fail")
	flags.IntVar(&o.pulls, "pulls", 10, "number of measurements of the lost carrier of a shared subnet")
	flags.IntVar(&o.watched, "watched", 50, "number of links of which the watching is measured, beside two")
	flags.DurationVar(&o.alone, "alone", time.Minute, "how long to wait for NetworkManager alone to leave a provider that fails")
	flags.DurationVar(&o.window, "window", 20*time.Second, "how long to watch what watching costs")
	only := flags.String("only", "", "measure these `parts` alone, of: "+strings.Join(partNames(), ","))
	flags.BoolVar(&o.json, "json", false, "print JSON")
	flags.BoolVar(&o.hold, "hold", false, "measure nothing: create the first number of links, start the daemon and wait for an interrupt")
	flags.BoolVar(&o.verbose, "v", false, "report progress on standard error")
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	if *quick {
		*sizes, o.runs, o.starts, o.foreign, o.real = "1,2,10", 3, 2, 20_000, 2
		o.cycles = 20
		*routes, o.bgp, o.hosts, o.connect = "1,300", 500, 40, 500
		o.deaths, o.pulls, o.watched, o.alone, o.window, o.learns = 1, 2, 3, time.Second, 2*time.Second, false
	}
	var err error
	if o.sizes, err = rising(*sizes, 2000); err != nil {
		return o, fmt.Errorf("sizes: %w", err)
	}
	if o.routes, err = rising(*routes, 1_000_000); err != nil {
		return o, fmt.Errorf("routes: %w", err)
	}
	if *only != "" {
		o.only = strings.Split(*only, ",")
	}
	for _, name := range o.only {
		if !slices.Contains(partNames(), name) {
			return o, fmt.Errorf("only: %q is none of %s", name, strings.Join(partNames(), ","))
		}
	}
	if o.bgp < 1 || o.hosts < 1 || o.hosts > 1<<16 || o.connect < 1 {
		return o, fmt.Errorf("%d routes, %d addresses or %d connections: nothing to measure, or more addresses than 65536", o.bgp, o.hosts, o.connect)
	}
	if o.deaths < 1 || o.pulls < 1 || o.watched < 3 || o.watched > 250 || o.alone <= 0 || o.window <= 0 {
		return o, fmt.Errorf("%d deaths, %d pulls, %d links watched, %v alone, a window of %v: nothing to measure, or links not from 3 to 250", o.deaths, o.pulls, o.watched, o.alone, o.window)
	}
	if o.daemon == "" {
		self, err := os.Executable()
		if err != nil {
			return o, fmt.Errorf("finding the programs: %w", err)
		}
		o.daemon = filepath.Join(filepath.Dir(self), "multihomed")
	}
	if _, err := os.Stat(o.daemon); err != nil {
		return o, fmt.Errorf("no program to measure (make build): %w", err)
	}
	return o, nil
}

// rising reads numbers from 1 to a limit.
func rising(text string, limit int) ([]int, error) {
	var out []int
	for s := range strings.SplitSeq(text, ",") {
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 || n > limit || (len(out) > 0 && n <= out[len(out)-1]) {
			return nil, fmt.Errorf("%q are not ascending numbers from 1 to %d", text, limit)
		}
		out = append(out, n)
	}
	return out, nil
}

func run() int {
	o, err := parse(os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()

	b := &bench{options: o, began: time.Now()}
	report, err := b.all(ctx)
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		return 1
	}
	if !o.json {
		report.print(os.Stdout)
		return 0
	}
	encoder := json.NewEncoder(os.Stdout)
	encoder.SetIndent("", "  ")
	if err := encoder.Encode(report); err != nil {
		fmt.Fprintln(os.Stderr, "bench: printing the report:", err)
		return 1
	}
	return 0
}

package main

import (
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"text/tabwriter"

	"golang.org/x/sys/unix"
)

// A Report is all that was measured. Times are in milliseconds where nothing
// else is said.
type Report struct {
	Machine Machine  `json:"machine"`
	Rows    []Row    `json:"rows"`
	Foreign *Foreign `json:"foreign,omitempty"`
	// Connects are the cost of the rules for each connect(2).
	Connects []ConnectRow `json:"connects"`
	// NoRules is a connect without any rule since boot, in nanoseconds of CPU.
	NoRules Series `json:"connect_no_rules_ns"`
	// Routes are routes of main through a link, Redundant those of a routing
	// daemon that repeat the link's default, Hosts host addresses of one uplink.
	Routes    []RoutesRow `json:"routes"`
	Redundant *Redundant  `json:"redundant,omitempty"`
	Hosts     *Hosts      `json:"hosts,omitempty"`
	// Leases are those of the table allocator.
	Leases []LeaseRow `json:"leases"`
	// Dispatch is the script of NetworkManager's dispatcher.
	Dispatch Dispatch `json:"dispatch"`
	// Failover is how soon unbound traffic leaves a provider that fails.
	Failover *Failover `json:"failover,omitempty"`
	// Forward is what answers and bindings cost.
	Forward *Forward `json:"forward,omitempty"`
	Seconds float64  `json:"seconds"`
}

// Machine is where it was measured.
type Machine struct {
	CPU    string `json:"cpu"`
	Cores  int    `json:"cores"`
	Memory string `json:"memory"`
	Kernel string `json:"kernel"`
	Go     string `json:"go"`
	Load   string `json:"load"`
}

// A Row has the measurements with one number of links.
type Row struct {
	Links int    `json:"links"`
	Owner string `json:"owner"`
	// Ready is from the start to READY=1 with no ladder and no leases, Complete to the
	// last object; Again is to READY=1 with complete routing.
	Ready    Series `json:"ready"`
	Complete Series `json:"complete"`
	Again    Series `json:"again"`
	// Answers is the owner's time to answer the queries of the daemon at its start, to
	// a client that does nothing else.
	Answers Series `json:"answers"`
	// Each, Batched and IP are the same objects made by a bare loop with one
	// request for each system call, with many, and by ip -batch.
	Each    Series `json:"each"`
	Batched Series `json:"batched"`
	IP      Series `json:"ip"`
	Memory  Memory `json:"memory"`
	Change  Change `json:"change"`
	// Status is `multihomectl status`.
	Status StatusRow `json:"status"`
}

// A Change is what one link's change costs.
type Change struct {
	Objects int `json:"objects"`
	// Event is the kernel's time for the address and the routes themselves. It
	// is contained in all other times.
	Event   Series `json:"event"`
	Daemon  Series `json:"daemon"`
	CPU     Series `json:"cpu"`
	Each    Series `json:"each"`
	Batched Series `json:"batched"`
	// BatchedCPU is the bare loop's, that is, the kernel's for these objects.
	BatchedCPU Series `json:"batched_cpu"`
	IP         Series `json:"ip"`
}

// Foreign is the cost of many routes of another program.
type Foreign struct {
	Routes int `json:"routes"`
	Links  int `json:"links"`
	// Adding and Settled are in seconds: when the last was added, and when all programs were idle. CPU
	// is the daemon's, in seconds.
	Adding  float64 `json:"adding_s"`
	Settled float64 `json:"settled_s"`
	CPU     float64 `json:"cpu_s"`
	Before  Memory  `json:"before"`
	Peak    Memory  `json:"peak"`
	After   Memory  `json:"after"`
	// Restarted is the memory of a daemon that was started among them, and
	// Again how long that took.
	Restarted Memory `json:"restarted"`
	Again     Series `json:"again"`
	Change    Change `json:"change"`
	// Explain is `multihomectl explain` among them.
	Explain Series `json:"explain"`
}

func machine() Machine {
	m := Machine{CPU: "unknown", Cores: runtime.NumCPU(), Go: runtime.Version(), Kernel: "unknown"}
	if data, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(data)) {
			if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
				m.CPU = strings.TrimSpace(value)
				break
			}
		}
	}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		m.Kernel = unix.ByteSliceToString(u.Release[:]) + " " + unix.ByteSliceToString(u.Machine[:])
	}
	var s unix.Sysinfo_t
	if unix.Sysinfo(&s) == nil {
		m.Memory = fmt.Sprintf("%.1f GiB", float64(s.Totalram)*float64(s.Unit)/(1<<30))
		m.Load = fmt.Sprintf("%.2f", float64(s.Loads[0])/(1<<16))
	}
	return m
}

func (r *Report) print(out io.Writer) {
	m := r.Machine
	fmt.Fprintf(out, "multihomed bench: %s, %d cores, %s, Linux %s, %s, load %s at the start, took %.0f s\n", m.CPU, m.Cores, m.Memory, m.Kernel, m.Go, m.Load, r.Seconds)
	if len(r.Rows) > 0 {
		r.printSized(out)
	}
	printRoutes(out, r.Routes, r.Redundant)
	printHosts(out, r.Hosts)
	printConnects(out, r.Connects, r.NoRules)
	printLeases(out, r.Leases)
	printDispatch(out, r.Dispatch)
	printFailover(out, r.Failover)
	printForward(out, r.Forward)
}

// printSized prints the rows of the numbers of links.
func (r *Report) printSized(out io.Writer) {
	fmt.Fprintln(out, "Milliseconds unless stated otherwise: median (minimum-maximum) of interleaved runs. \"loop\" sends the same")
	fmt.Fprintln(out, "messages, one for each system call and ACK; \"batched\" sends them as the daemon's writer does.")

	table(out, "From an address and its routes to the complete ladder of one link (2 routes, 5 rules)",
		"links\towner\tevent itself\tdaemon\tloop\tbatched\tip -batch\tdaemon/loop\tdaemon/batched\tdaemon/ip", func(line func(...any)) {
			for _, row := range r.Rows {
				changeLine(line, row.Links, row.Owner, row.Change)
			}
			if f := r.Foreign; f != nil {
				changeLine(line, fmt.Sprintf("%d + %d routes", f.Links, f.Routes), "", f.Change)
			}
		})
	r.printSteady(out)
	table(out, "Start with nothing there, against the same objects made by others",
		"links\towner\towner's answers alone\tready\tcomplete\tloop\tbatched\tip -batch\tcomplete/ip\t(complete-answers)/ip\tready, all standing\tRSS MB\tprivate MB", func(line func(...any)) {
			for _, w := range r.Rows {
				line(w.Links, w.Owner, w.Answers, w.Ready, w.Complete, w.Each, w.Batched, w.IP,
					times(w.Complete.Median, w.IP.Median), times(w.Complete.Median-w.Answers.Median, w.IP.Median), w.Again, mb(w.Memory.RSS), mb(w.Memory.Private))
			}
		})
	if f := r.Foreign; f != nil {
		table(out, fmt.Sprintf("%d routes of protocol 186 through another interface appear in main, %d links present", f.Routes, f.Links),
			"\tRSS MB\tprivate MB", func(line func(...any)) {
				line("before", mb(f.Before.RSS), mb(f.Before.Private))
				line("highest while they appear", mb(f.Peak.RSS), mb(f.Peak.Private))
				line("after", mb(f.After.RSS), mb(f.After.Private))
				line("restarted among them", mb(f.Restarted.RSS), mb(f.Restarted.Private))
			})
		fmt.Fprintf(out, "Adding them took %.1f s, all programs were idle after %.1f s; the daemon used %.2f s of CPU (%.2f us a route).\n",
			f.Adding, f.Settled, f.CPU, f.CPU/float64(max(f.Routes, 1))*1e6)
		fmt.Fprintf(out, "Restart among them, ready after: %s\n", f.Again)
		fmt.Fprintf(out, "multihomectl explain among them: %s\n", f.Explain)
	}
	printStatus(out, r.Rows)
}

func changeLine(line func(...any), links any, owner string, c Change) {
	line(links, owner, c.Event, c.Daemon, c.Each, c.Batched, c.IP,
		times(c.Daemon.Median, c.Each.Median), times(c.Daemon.Median, c.Batched.Median), times(c.Daemon.Median, c.IP.Median))
}

// printSteady compares one link's change with few and with many others.
func (r *Report) printSteady(out io.Writer) {
	few := map[string]Row{}
	table(out, "One link's change with many links against 10, beyond what the kernel's own list of rules costs the batched loop",
		"links\towner\tdaemon\tloop\twall ratio\tdaemon CPU\tloop CPU\tCPU ratio", func(line func(...any)) {
			for _, w := range r.Rows {
				if w.Links < 10 {
					continue
				}
				if _, ok := few[w.Owner]; !ok {
					few[w.Owner] = w
				}
				was, now := few[w.Owner].Change, w.Change
				line(w.Links, w.Owner, milliseconds(now.Daemon.Median), milliseconds(now.Batched.Median),
					times(now.Daemon.Median-(now.Batched.Median-was.Batched.Median), was.Daemon.Median),
					now.CPU, milliseconds(now.BatchedCPU.Median),
					times(now.CPU.Median-(now.BatchedCPU.Median-was.BatchedCPU.Median), was.CPU.Median))
			}
		})
}

func times(a, b float64) string { return fmt.Sprintf("%.2fx", ratio(a, b)) }

func mb(v float64) string { return fmt.Sprintf("%.1f", v) }

// table prints a title, a header and lines, aligned.
func table(out io.Writer, title, header string, fill func(line func(...any))) {
	fmt.Fprintf(out, "\n%s\n", title)
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "  "+header)
	fill(func(cells ...any) {
		text := make([]string, len(cells))
		for i, c := range cells {
			text[i] = fmt.Sprint(c)
		}
		fmt.Fprintln(w, "  "+strings.Join(text, "\t"))
	})
	_ = w.Flush() // what out refuses is found below
}

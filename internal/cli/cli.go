// Package cli is the command-line tool multihomectl. It looks at the host with
// package offline, asks the daemon for leases, and changes the kernel only in
// `flush`.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"multihomed/internal/config"
	"multihomed/internal/daemon"
	"multihomed/internal/status/offline"
)

// Exit statuses.
const (
	exitOK = 0
	// exitProblem: status found something that is not active, or an error; another
	// command failed.
	exitProblem = 1
	// exitUsage: the command line is wrong, or the host cannot be read.
	exitUsage = 2
)

// A Program is what multihomectl is run with.
type Program struct {
	Version  string
	In       io.Reader
	Out, Err io.Writer
	// Root is the host's root directory, for kernel parameters and the
	// configuration of others.
	Root fs.FS
	// Env is os.Getenv.
	Env func(string) string
	// GiveBack ends the handling of signals, before another program takes this one's place.
	GiveBack func()
}

// An exitError ends the program with a status. Without an error inside nothing is printed.
type exitError struct {
	status int
	err    error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit status %d", e.status)
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

// Run runs the program and returns its exit status.
func (p Program) Run(ctx context.Context, args []string) int {
	// --version wins over everything else, mistakes included.
	if slices.Contains(beforeDashes(args), "--version") {
		args = []string{"version"}
	}
	root := p.command()
	root.SetArgs(append([]string{}, args...)) // cobra would replace nil by os.Args.
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitOK
	}
	// What cobra itself finds is wrong with the command line.
	status := exitUsage
	if e, ok := errors.AsType[*exitError](err); ok {
		status, err = e.status, e.err
	} else {
		err = ourWords(err)
	}
	if err != nil {
		fmt.Fprintf(p.Err, "multihomectl: %v\n", err)
	}
	return status
}

// beforeDashes are the arguments that may be flags.
func beforeDashes(args []string) []string {
	if i := slices.Index(args, "--"); i >= 0 {
		return args[:i]
	}
	return args
}

// colours are the values of --color.
var colours = []string{"auto", "always", "never"} //nolint:gochecknoglobals // a constant in all but name

// app is the state of one run.
type app struct {
	Program
	configPath string
	colour     string
}

func (p Program) command() *cobra.Command {
	a := &app{Program: p}
	root := &cobra.Command{
		Use:   "multihomectl",
		Short: "look after the routing of a host with several links",
		Long: `multihomectl shows what multihomed makes of the links of this host: which routing
table each one has, what is active, what is wrong and how to fix it. It leases tables
for interfaces that NetworkManager does not manage, and it can remove everything again.`,
		Example: `  multihomectl status            links, tables and problems of the host
  multihomectl status wan0 -v    every rule and route of one link, with its reason
  multihomectl explain 9.9.9.9   how a packet to this address is routed, and why
  multihomectl doctor            what disturbs the links, and what fixes it
  multihomectl watch             what changes, and who changes it
  multihomectl graph -o g.svg    a picture of rules, tables and devices
  multihomectl plan              what multihomed would change now, as commands
  multihomectl config            the configuration, with the defaults`,
		SilenceUsage: true, SilenceErrors: true,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetIn(p.In)
	root.SetOut(p.Out)
	root.SetErr(p.Err)
	root.SetFlagErrorFunc(flagError)
	root.SetHelpCommand(helpCommand(root))
	flags := root.PersistentFlags()
	flags.StringVar(&a.configPath, "config", config.DefaultPath, "configuration `file`; it need not exist")
	flags.StringVar(&a.colour, "color", "auto", "colour the output: auto, always or never; NO_COLOR is respected")
	flags.Bool("version", false, "print the version and exit")
	complete(root, map[string]cobra.CompletionFunc{"color": words(colours...)})
	root.AddCommand(a.status(), a.doctor(), a.explain(), a.plan(), a.watch(), a.graph(), a.metrics(), a.lease(), a.migrate(), a.off(), a.on(), a.failover(), a.bind(), a.run(), a.reload(), a.reconcile(), a.logLevel(), a.flush(), a.config(), a.bugReport(), a.schema(), a.version(), a.emergency(), a.attend())
	root.InitDefaultCompletionCmd()
	everywhere(root)
	return root
}

func (a *app) version() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "print the version", Args: noArguments,
		RunE: func(*cobra.Command, []string) error {
			_, err := fmt.Fprintln(a.Out, "multihomectl", a.Version)
			return err
		},
	}
}

// load reads the configuration. If the file is bad, or a running daemon refuses it, load says so,
// and returns what the daemon uses instead. The directories are those of a running daemon.
func (a *app) load(ctx context.Context) config.Config {
	loaded := a.find(ctx)
	if loaded.Fault != nil {
		fmt.Fprintf(a.Err, "multihomectl: %v\n", loaded.Fault)
	}
	return loaded.Config
}

// find is load for callers that report the fault themselves.
func (a *app) find(ctx context.Context) config.Loaded {
	loaded := config.FindHere(a.configPath)
	if loaded.Fault != nil && !offline.DaemonRuns(loaded.Config) {
		return daemon.Find(ctx, a.configPath)
	}
	return loaded
}

// narrow is the width of output that is not a terminal.
const narrow = 80

// widest is the width beyond which lines of text are hard to read.
const widest = 110

// look decides about colours and width (https://no-color.org).
func (a *app) look() (look, error) {
	fd, terminal := descriptor(a.Out)
	how := look{width: narrow}
	if terminal {
		if width, _, err := term.GetSize(fd); err == nil && width > 0 {
			how.width = min(width, widest)
		}
	}
	switch a.colour {
	case "always":
		how.paint = true
	case "never":
	case "auto":
		how.paint = painter(terminal && a.Env("NO_COLOR") == "" && a.Env("TERM") != "dumb")
	default:
		return how, &exitError{exitUsage, fmt.Errorf("--color is %q; it may be auto, always or never", a.colour)}
	}
	return how, nil
}

// descriptor says whether a stream is a terminal.
func descriptor(stream any) (fd int, terminal bool) {
	f, ok := stream.(*os.File)
	if !ok {
		return -1, false
	}
	fd = int(f.Fd())
	return fd, term.IsTerminal(fd)
}
